//! Makes a run's plan and pins it: inputs from footers, staged results where rows cannot be cut as they are, shards,
//! models. The first plan that is stored is the run's plan; whoever comes later adopts it.

use std::path::Path;

use rowmill_jobs::infer::TaskKind;
use rowmill_jobs::plan::{ModelPin, PLAN_VERSION, Plan, Shard, TableInput};
use rowmill_jobs::record::StagingFate;
use rowmill_jobs::spec::{JobSpec, TableFormat, TableSpec};
use rowmill_jobs::store::{self, Payload, Store};
use rowmill_jobs::{Error, Result, layout, record};
use rowmill_sql::{Call, CompiledJob, Source, compile, compile_plan, discover_inputs};

use crate::claim::{Supersede, check_claim, claim};
use crate::split::{ShardSize, split};

/// A job's plan with what is needed to run it.
#[derive(Debug)]
pub struct Planned {
    /// The run's plan.
    pub plan: Plan,
    /// The job, compiled against the plan's inputs.
    pub compiled: CompiledJob,
}

/// What is known before anything is pinned or staged.
#[derive(Debug)]
pub struct Draft {
    /// The tables' files.
    pub inputs: Vec<TableInput>,
    /// The job, compiled against them.
    pub compiled: CompiledJob,
    /// Shards, unless the query must be staged first.
    pub shards: Option<Vec<Shard>>,
}

/// Reads the inputs' footers and compiles the job. Writes nothing.
///
/// `on_file(done, total)` is told how far reading footers is.
///
/// # Errors
/// Whatever is wrong with the job, its tables or its models.
pub async fn draft(job: &JobSpec, models: &[ModelPin], on_file: impl Fn(usize, usize) + Send + Sync) -> Result<Draft> {
    let inputs = discover_inputs(job, on_file).await?;
    let compiled = compile(job, &inputs, None, models).await?;
    let shards = match compiled.source() {
        Source::Table { index } => Some(split(&inputs[index].files, shard_size(job, compiled.calls(), models))?),
        Source::Staged { .. } => None,
    };
    Ok(Draft { inputs, compiled, shards })
}

/// Pins a draft as the run's plan, staging its query first if it must be; or adopts the plan that somebody else pinned
/// in the meantime.
///
/// `scratch` is an empty folder for staged files on their way to the store.
///
/// # Errors
/// The date belongs to another run; the store or the query fails.
pub async fn pin(
    store: &dyn Store,
    run: RunId<'_>,
    draft: Draft,
    models: &[ModelPin],
    scratch: &Path,
) -> Result<Planned> {
    let job = run.job;
    let Draft { inputs, compiled, shards } = draft;
    let (staged, compiled, shards) = match shards {
        Some(shards) => (None, compiled, shards),
        None => {
            // A query that runs for hours only to be refused helps nobody. The date is claimed when it has run.
            check_claim(store, &job.logical_date, run.run_key, run.supersede).await?;
            // Another scheduler may stage the same query; each writes under a name of its own and the stored plan picks one.
            let attempt = ulid::Ulid::generate().to_string().to_lowercase();
            let staged = stage(store, run, &attempt, &compiled, scratch).await?;
            let compiled = compile(job, &inputs, Some(&staged), models).await?;
            let shards = split(&staged.files, shard_size(job, compiled.calls(), models))?;
            (Some((attempt, staged)), compiled, shards)
        }
    };
    let (attempt, staged) = staged.unzip();
    let plan = Plan {
        version: PLAN_VERSION,
        rowmill: env!("CARGO_PKG_VERSION").into(),
        run_key: run.run_key.into(),
        job: job.clone(),
        inputs,
        staged,
        models: models.to_vec(),
        output_schema: compiled.output_schema(),
        shards,
        // By this machine's clock and time zone.
        deadline_ms: job.deadline_ms(&chrono::Local::now())?,
        policy_hash: run.policy_hash.map(str::to_owned),
    };
    let stored = pin_staged(store, &plan, attempt.as_deref(), run.supersede).await?;
    if stored == plan { Ok(Planned { plan, compiled }) } else { adopt(stored).await }
}

/// Claims the plan's date for its run and makes it the run's plan, unless the run has one. Returns the plan that counts.
///
/// # Errors
/// The date belongs to another run and may not be taken over, or the store does not answer.
pub async fn pin_plan(store: &dyn Store, plan: &Plan, supersede: Supersede) -> Result<Plan> {
    pin_staged(store, plan, None, supersede).await
}

/// The same, for a plan that names what this attempt staged. Of what is kept for a plan garbage collection knows only when the
/// plan is there, so it is kept last of all.
async fn pin_staged(store: &dyn Store, plan: &Plan, attempt: Option<&str>, supersede: Supersede) -> Result<Plan> {
    // Only now, when the plan is made: a query that cannot be staged must not hold the date.
    claim(store, &plan.job.logical_date, &plan.run_key, supersede).await?;
    if let Some(attempt) = attempt {
        keep_staged(store, &plan.run_key, attempt).await?;
    }
    match store::create_json(store, &layout::plan(&plan.run_key), plan).await? {
        store::Put::Created => Ok(plan.clone()),
        // Another's; or ours after all, if the write was applied though its answer was lost.
        store::Put::Exists => record::plan(store, &plan.run_key).await?.ok_or_else(|| {
            Error::temporary("the store reports a plan but does not show it").with("run", &plan.run_key)
        }),
    }
}

/// Which run is planned, and what it may do to another run of its date.
#[derive(Debug, Clone, Copy)]
pub struct RunId<'a> {
    /// The job.
    pub job: &'a JobSpec,
    /// The run's name.
    pub run_key: &'a str,
    /// Whether it may take the date over.
    pub supersede: Supersede,
    /// Hash of the policy that permits its managed models.
    pub policy_hash: Option<&'a str>,
}

/// Compiles a stored plan's job against the inputs it pins.
///
/// # Errors
/// The plan cannot be compiled by this version.
pub async fn adopt(plan: Plan) -> Result<Planned> {
    let compiled = compile_plan(&plan).await?;
    Ok(Planned { plan, compiled })
}

/// Runs the part of the query below its AI calls once and stores the result as Parquet under the run.
async fn stage(
    store: &dyn Store,
    run: RunId<'_>,
    attempt: &str,
    compiled: &CompiledJob,
    scratch: &Path,
) -> Result<TableInput> {
    for (index, file) in compiled.stage(scratch).await?.iter().enumerate() {
        let name = layout::staged(run.run_key, attempt, index);
        store::create(store, &name, &Payload::File(file.path.clone())).await?;
    }
    let first = layout::staged(run.run_key, attempt, 0);
    let folder = first.rsplit_once('/').map_or("", |(folder, _)| folder);
    staged_table(run.job, compiled, &format!("{}{folder}/", store.url())).await
}

/// Makes sure that garbage collection leaves a staged result to the plan that is about to name it.
///
/// # Errors
/// It was collected already, or the store does not answer.
pub(crate) async fn keep_staged(store: &dyn Store, run_key: &str, attempt: &str) -> Result<()> {
    match record::decide_staging(store, run_key, attempt, StagingFate::Kept).await? {
        StagingFate::Kept => Ok(()),
        StagingFate::Gone => {
            Err(Error::temporary("garbage collection took the staged result of the query before a plan named it")
                .with("run", run_key)
                .hint("run it again; `rowmill gc --abandoned-after` is to be longer than any query takes"))
        }
    }
}

/// The table of staged files in a folder, with its footers read. `folder` is a URL that ends in `/`.
///
/// # Errors
/// The files cannot be read.
pub async fn staged_table(job: &JobSpec, compiled: &CompiledJob, folder: &str) -> Result<TableInput> {
    let table = TableSpec {
        name: "staged".into(),
        format: TableFormat::Parquet,
        location: folder.into(),
        columns: Vec::new(),
        partition_columns: Vec::new(),
        options: Default::default(),
    };
    let pinned = discover_inputs(&JobSpec { tables: vec![table], ..job.clone() }, |_, _| ()).await?;
    let pinned = pinned.into_iter().next().ok_or_else(|| Error::internal("the staged query result cannot be found"))?;
    compiled.staged_input(pinned.files)
}

/// Rows that are a few minutes of work, by the slowest kind of call: generating is slower than reading a prompt, and
/// without a model only the machinery's own cost per shard counts.
fn shard_size(job: &JobSpec, calls: &[Call], models: &[ModelPin]) -> ShardSize {
    const GENERATING: u64 = 2_000;
    const READING: u64 = 10_000;
    const WITHOUT_MODEL: u64 = 125_000;
    let rows = calls
        .iter()
        .filter(|call| models.iter().any(|model| model.name == call.task.model && model.engine != "echo"))
        .map(|call| match call.task.kind {
            TaskKind::Complete { .. } => GENERATING,
            TaskKind::Choose { .. } | TaskKind::Embed => READING,
        })
        .min()
        .unwrap_or(WITHOUT_MODEL);
    ShardSize::new(job.shard_rows.unwrap_or(rows))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rowmill_jobs::Kind;
    use rowmill_jobs::plan::Ability;
    use rowmill_jobs::store::local::LocalStore;
    use rowmill_sql::read_job_file;

    use super::*;

    const JOB: &str = "CREATE EXTERNAL TABLE t (name STRING) STORED AS CSV LOCATION 't.csv';
CREATE MODEL e WITH (engine = 'echo');
CREATE JOB j WITH (output = 'out', logical_date = '2026-11-20', key = 'name', model = 'e') AS
SELECT name, ai_complete(name) AS answer FROM (SELECT DISTINCT name FROM t);";

    /// What comes of planning a job that must be staged, as run `run_key`.
    async fn plan(folder: &Path, store: &LocalStore, run_key: &str) -> Result<Planned> {
        let job = read_job_file(&folder.join("job.sql"), &BTreeMap::new())?;
        let models = [ModelPin {
            name: "e".into(),
            engine: "echo".into(),
            architecture: "echo".into(),
            abilities: vec![Ability::Complete],
            dimensions: None,
            labels: None,
            context_tokens: None,
            revision: None,
            digest: "d".into(),
            files: Vec::new(),
        }];
        let draft = draft(&job, &models, |_, _| ()).await?;
        assert!(draft.shards.is_none(), "it must be staged");
        let scratch = tempfile::tempdir_in(folder).unwrap();
        let run = RunId { job: &job, run_key, supersede: Supersede::Never, policy_hash: None };
        pin(store, run, draft, &models, scratch.path()).await
    }

    #[tokio::test]
    async fn a_run_whose_date_is_taken_stages_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("t.csv"), "name\na\nb\na\n").unwrap();
        std::fs::write(folder.path().join("job.sql"), JOB).unwrap();
        let store = LocalStore::new(folder.path().join("out"));
        let planned = plan(folder.path(), &store, "first").await.unwrap();
        assert_eq!(planned.plan.shards.iter().map(Shard::rows).sum::<u64>(), 2);
        // The job file was changed, and cron comes again and again.
        for _ in 0..2 {
            let error = plan(folder.path(), &store, "second").await.unwrap_err();
            assert!(error.kind() == Kind::Invalid && error.report().contains("--rerun"), "{}", error.report());
        }
        assert!(store.list("run=second/").await.unwrap().is_empty());
        // What is staged for a run that gets its date is kept for its plan, once.
        let kept = store.list("run=first/_staged/").await.unwrap();
        assert_eq!(kept.iter().filter(|object| object.name.ends_with("_fate.json")).count(), 1);
    }
}
