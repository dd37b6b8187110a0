//! [`CompiledJob`]: a job with its inputs and models, ready to be staged and run. Compiling the same job over the same
//! pins gives the same plan in every process.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, displayable, execute_stream};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement};
use rowmill_jobs::infer::{Engine, Task};
use rowmill_jobs::plan::{InputFile, ModelPin, RowGroup, Slice, TableInput};
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Error, Result};

use super::chain;
use super::checks::{check_models, output_names, parse, refuse_own_names};
use super::classify::{Base, base_of, classify};
use super::diagnose::{Diagnosis, running};
use super::lift::{LiftedCall, lift};
use super::session;
use super::staged::{STAGED, over_staged, staged_plan};
use crate::exec::infer_exec::{InferPlanner, Service};
use crate::exec::{Observer, Progress, Totals};
use crate::functions::{self, CallSpec, Places};
use crate::output::rows::RowStream;
use crate::output::stage::{self, StagedFile};
use crate::source::pinned::Troubles;
use crate::source::table::{PinnedTable, Scope};

/// A batch's rows take about this many bytes.
const BATCH_BYTES: u64 = 16 * 1024 * 1024;

/// What the shards of a job read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Rows of one Parquet table, which can be cut along its row groups.
    Table {
        /// Index into the inputs the job was compiled with.
        index: usize,
    },
    /// The result of the base query, which has to be staged first.
    Staged {
        /// Why, in words for people.
        why: String,
    },
}

/// One AI call of a compiled job.
#[derive(Debug, Clone)]
pub struct Call {
    /// Output columns it feeds, or `WHERE`.
    pub column: String,
    /// The table columns that the values of its prompt are made of, sorted.
    pub origins: Vec<String>,
    /// The function's name.
    pub function: String,
    /// What the engine is asked.
    pub task: Arc<Task>,
}

/// A job over pinned inputs and models.
#[derive(Debug)]
pub struct CompiledJob {
    plan: LogicalPlan,
    base: LogicalPlan,
    source: Source,
    sharded: Option<TableInput>,
    calls: Vec<Call>,
    specs: Arc<Vec<CallSpec>>,
    output: SchemaRef,
    runtime: Arc<RuntimeEnv>,
    troubles: Arc<Troubles>,
}

/// Compiles a job. `staged` is its base query's result, once there is one.
///
/// # Errors
/// With a location, whatever is wrong with the query, and what models cannot do.
pub async fn compile(
    spec: &JobSpec,
    inputs: &[TableInput],
    staged: Option<&TableInput>,
    models: &[ModelPin],
) -> Result<CompiledJob> {
    let mut ast = parse(spec)?;
    let written = ast.clone();
    let places = Places::InQuery(spec);
    let calls = functions::rewrite(&mut ast, spec, &places)?;
    let types = check_models(&calls, models, &places)?;
    let diagnosis = Diagnosis { job: spec, inputs, ast: &written, calls: &calls };
    let troubles = Arc::new(Troubles::default());
    let read: Vec<&TableInput> = staged.map_or_else(|| inputs.iter().collect(), |staged| vec![staged]);
    let runtime = session::runtime(&read, &troubles).await?;
    let context = session::context(Arc::clone(&runtime), &calls, &types);
    for table in &spec.tables {
        let input = inputs
            .iter()
            .find(|input| input.table == table.name)
            .ok_or_else(|| Error::internal(format!("table `{}` has no pinned input", table.name)))?;
        refuse_own_names(input)?;
        context
            .register_table(table.name.as_str(), Arc::new(PinnedTable::new(table, input)?))
            .map_err(|error| diagnosis.planning(error))?;
    }
    let (plan, feeds) = plan_query(&context, ast, spec, &diagnosis).await?;
    let base = base_of(&plan).cloned().ok_or_else(|| Error::internal("the optimised plan has lost its base"))?;
    let source = match classify(&base).map_err(|error| diagnosis.planning(error))? {
        Base::RowLocal { table } if staged.is_none() => Source::Table {
            index: inputs
                .iter()
                .position(|input| input.table == table)
                .ok_or_else(|| Error::internal(format!("table `{table}` has no pinned input")))?,
        },
        Base::RowLocal { .. } => Source::Staged { why: "the plan says so".to_owned() },
        Base::Mixed(why) => Source::Staged { why: why.to_owned() },
    };
    let plan = match staged {
        Some(staged) => over_staged(&plan, &base, staged).map_err(|error| diagnosis.planning(error))?,
        None => plan,
    };
    let sharded = match (&source, staged) {
        (_, Some(staged)) => Some(staged.clone()),
        (Source::Table { index }, None) => inputs.get(*index).cloned(),
        (Source::Staged { .. }, None) => None,
    };
    let output = Arc::new(plan.schema().as_arrow().clone());
    let public = feeds
        .into_iter()
        .map(|LiftedCall { spec, feeds, origins }| Call {
            column: feeds,
            origins,
            function: calls[spec].function.to_owned(),
            task: Arc::clone(&calls[spec].task),
        })
        .collect();
    let job = CompiledJob {
        plan,
        base,
        source,
        sharded,
        calls: public,
        specs: Arc::new(calls.clone()),
        output,
        runtime,
        troubles,
    };
    // Whatever physical planning does not like is said now, not by the first shard.
    job.physical(session::config(1, session::BATCH_ROWS, None), None, &job.plan)
        .await
        .map_err(|error| diagnosis.planning(error))?;
    Ok(job)
}

/// The optimised plan with its AI calls lifted, and what is known of each call.
async fn plan_query(
    context: &SessionContext,
    ast: Box<Query>,
    spec: &JobSpec,
    diagnosis: &Diagnosis<'_>,
) -> Result<(LogicalPlan, Vec<LiftedCall>)> {
    let planning = |error| diagnosis.planning(error);
    let state = context.state();
    let statement = Statement::Statement(Box::new(SqlStatement::Query(ast)));
    let plan = state.statement_to_plan(statement).await.map_err(planning)?;
    let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {}).map_err(planning)?;
    let names = output_names(plan.schema(), spec, diagnosis)?;
    let chain = chain::read(&plan).map_err(|refusal| diagnosis.refusal(refusal))?;
    let spilling = spec
        .spill
        .is_some()
        .then(|| (0..diagnosis.calls.len()).filter(|call| spec.spills(&diagnosis.calls[*call].task)).collect());
    let lifted = lift(chain, &names, spilling.as_ref()).map_err(planning)?;
    Ok((state.optimize(&lifted.plan).map_err(planning)?, lifted.calls))
}

impl CompiledJob {
    /// The output's Arrow schema as Arrow's own JSON, `_errors` included.
    pub fn output_schema(&self) -> serde_json::Value {
        serde_json::to_value(self.output.as_ref()).unwrap_or_default()
    }

    /// The output's Arrow schema, `_errors` included.
    pub fn arrow_schema(&self) -> SchemaRef {
        Arc::clone(&self.output)
    }

    /// What the shards read.
    pub fn source(&self) -> Source {
        self.source.clone()
    }

    /// The AI calls.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// The staged table that files made by [`CompiledJob::stage`] are; for [`compile`] and for the plan.
    ///
    /// # Errors
    /// Kind `Internal` if the base query's schema cannot be written as JSON.
    pub fn staged_input(&self, files: Vec<InputFile>) -> Result<TableInput> {
        let base = staged_plan(&self.base).map_err(running)?;
        let schema = serde_json::to_value(base.schema().as_arrow())
            .map_err(|error| Error::internal("a schema as JSON").caused_by(error))?;
        Ok(TableInput { table: STAGED.to_owned(), schema, files })
    }

    /// Runs the base query once and writes its rows, in their order, as Parquet files into a local folder.
    ///
    /// # Errors
    /// What reading the inputs, the query or writing the folder can meet.
    pub async fn stage(&self, folder: &Path) -> Result<Vec<StagedFile>> {
        let partitions = std::thread::available_parallelism().map_or(1, usize::from);
        let work = async {
            let plan = staged_plan(&self.base)?;
            let (physical, config) =
                self.physical(session::config(partitions, session::BATCH_ROWS, None), None, &plan).await?;
            execute_stream(physical, self.task_context(config))
        };
        let rows = work.await.map_err(|error| self.failed(error))?;
        stage::write(rows, folder, |error| self.failed(error)).await
    }

    /// Runs the job over exactly these rows of its source: a stream of the output's rows, in the input's order.
    ///
    /// # Errors
    /// Kind `Internal` if the job has to be staged first. What happens while rows are read comes from the stream.
    pub fn run(&self, slices: &[Slice], engine: Arc<dyn Engine>, counters: Arc<dyn Observer>) -> Result<RowStream> {
        let Some(input) = &self.sharded else {
            return Err(Error::internal("a job was run before its base query was staged"));
        };
        let scope = Scope { table: input.table.clone(), slices: slices.to_vec() };
        let config = session::config(1, batch_rows(input, slices), Some(scope));
        let totals = Arc::new(Totals::new(counters));
        let service = Service { engine: Some(engine), totals: Arc::clone(&totals) };
        let planner = self.planner(Some(service));
        let (plan, runtime) = (self.plan.clone(), Arc::clone(&self.runtime));
        let start = async move {
            let state = session::state(runtime, config);
            let physical = planner.create_physical_plan(&plan, &state).await?;
            execute_stream(physical, state.task_ctx())
        };
        let troubles = Arc::clone(&self.troubles);
        let files = files_of(input, slices);
        let failed = move |error| troubles.explain(&error).unwrap_or_else(|| running(error).with("reading", &files));
        Ok(RowStream::new(Arc::clone(&self.output), start, totals, failed))
    }

    /// The physical plan of a run, for tests and `--explain`.
    ///
    /// # Errors
    /// What planning meets.
    pub async fn explain(&self) -> Result<String> {
        let (physical, _) =
            self.physical(session::config(1, session::BATCH_ROWS, None), None, &self.plan).await.map_err(running)?;
        Ok(displayable(physical.as_ref()).indent(false).to_string())
    }

    fn planner(&self, service: Option<Service>) -> DefaultPhysicalPlanner {
        let service =
            service.unwrap_or_else(|| Service { engine: None, totals: Arc::new(Totals::new(Arc::new(Unheard))) });
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(InferPlanner {
            calls: Arc::clone(&self.specs),
            service,
        })])
    }

    async fn physical(
        &self,
        config: SessionConfig,
        service: Option<Service>,
        plan: &LogicalPlan,
    ) -> PlanResult<(Arc<dyn ExecutionPlan>, SessionConfig)> {
        let state = session::state(Arc::clone(&self.runtime), config.clone());
        Ok((self.planner(service).create_physical_plan(plan, &state).await?, config))
    }

    fn task_context(&self, config: SessionConfig) -> Arc<TaskContext> {
        session::state(Arc::clone(&self.runtime), config).task_ctx()
    }

    fn failed(&self, error: DataFusionError) -> Error {
        self.troubles.explain(&error).unwrap_or_else(|| running(error))
    }
}

/// Nobody listens to a plan that is only looked at.
struct Unheard;

impl Observer for Unheard {
    fn window(&self, _progress: &Progress) {}
}

/// The files that slices are of, for people: an error seldom knows which of them it was in.
fn files_of(input: &TableInput, slices: &[Slice]) -> String {
    let mut indices: Vec<u32> = slices.iter().map(|slice| slice.file).collect();
    indices.dedup();
    let urls = indices.iter().filter_map(|index| input.files.get(*index as usize)).map(|file| file.url.as_str());
    urls.collect::<Vec<_>>().join(", ")
}

/// Rows of a batch so that it takes about [`BATCH_BYTES`].
fn batch_rows(input: &TableInput, slices: &[Slice]) -> usize {
    let group = |slice: &Slice| -> Option<RowGroup> {
        input.files.get(slice.file as usize)?.row_groups.get(slice.row_group as usize).copied()
    };
    // Footers may say anything.
    let (rows, bytes) = slices.iter().filter_map(group).fold((0u64, 0u64), |(rows, bytes), group| {
        (rows.saturating_add(group.rows), bytes.saturating_add(group.bytes))
    });
    let row_bytes = (bytes / rows.max(1)).max(1);
    usize::try_from(BATCH_BYTES / row_bytes).unwrap_or(session::BATCH_ROWS).clamp(64, session::BATCH_ROWS)
}
