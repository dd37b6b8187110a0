//! `InferExec`, the physical operator of an `Infer` node, and its planner. Without calls it only counts rows.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_datafusion_err, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, InputDistributionRequirements,
    Partitioning, PhysicalExpr, PlanProperties, ReplaceChildrenOptions,
};
use datafusion::physical_planner::{ExtensionPlanner, PhysicalPlanner};
use futures::StreamExt;
use rowmill_jobs::infer::Engine;

use super::answers::Shape;
use super::emitter::ANSWER_BYTES_MAX;
use super::observer::{Progress, Totals};
use super::window::{self, DeskSpec, ExecCall, Setup};
use crate::functions::CallSpec;
use crate::plan::infer_node::Infer;

/// Who answers, and who counts.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    /// Answers requests; absent in plans that are only looked at.
    pub(crate) engine: Option<Arc<dyn Engine>>,
    /// Counts.
    pub(crate) totals: Arc<Totals>,
}

/// Plans [`Infer`] nodes.
pub(crate) struct InferPlanner {
    /// Fixed parts of the job's calls.
    pub(crate) calls: Arc<Vec<CallSpec>>,
    /// Who answers.
    pub(crate) service: Service,
}

#[async_trait]
impl ExtensionPlanner for InferPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        planning: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(infer) = node.as_any().downcast_ref::<Infer>() else { return Ok(None) };
        let [input] = physical_inputs else { return internal_err!("Infer has one input") };
        let schema = infer.input.schema();
        let mut fields: Vec<Arc<Field>> = input.schema().fields().iter().cloned().collect();
        let (mut calls, mut desks, mut desk_specs) = (Vec::new(), Vec::new(), Vec::new());
        for call in &infer.calls {
            let physical = |expr| planner.create_physical_expr(expr, schema, session, planning);
            let desk = match desk_specs.iter().position(|spec| *spec == call.spec) {
                Some(desk) => desk,
                None => {
                    let spec = self
                        .calls
                        .get(call.spec)
                        .ok_or_else(|| internal_datafusion_err!("call {} is unknown", call.spec))?;
                    let shape = Shape { returns: spec.returns.clone(), data_type: call.returns.clone() };
                    desk_specs.push(call.spec);
                    desks.push(DeskSpec { task: Arc::clone(&spec.task), shape });
                    desks.len() - 1
                }
            };
            calls.push(ExecCall {
                desk,
                values: call.values.iter().map(physical).collect::<Result<_>>()?,
                only: call.only.as_ref().map(physical).transpose()?,
                spills: call.spills,
            });
            fields.extend(call.fields());
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, input.schema().metadata().clone()));
        Ok(Some(Arc::new(InferExec::new(Arc::clone(input), calls, desks, schema, self.service.clone()))))
    }
}

/// The operator.
#[derive(Debug)]
pub(crate) struct InferExec {
    input: Arc<dyn ExecutionPlan>,
    calls: Vec<ExecCall>,
    desks: Vec<DeskSpec>,
    schema: SchemaRef,
    service: Service,
    properties: Arc<PlanProperties>,
}

impl InferExec {
    fn new(
        input: Arc<dyn ExecutionPlan>,
        calls: Vec<ExecCall>,
        desks: Vec<DeskSpec>,
        schema: SchemaRef,
        service: Service,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { input, calls, desks, schema, service, properties: Arc::new(properties) }
    }
}

impl DisplayAs for InferExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InferExec: calls={}", self.calls.len())
    }
}

impl ExecutionPlan for InferExec {
    fn name(&self) -> &str {
        "InferExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for expr in self.calls.iter().flat_map(|call| call.values.iter().chain(&call.only)) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = children.as_slice() else { return internal_err!("InferExec has one input") };
        let (calls, desks) = (self.calls.clone(), self.desks.clone());
        Ok(Arc::new(Self::new(Arc::clone(input), calls, desks, Arc::clone(&self.schema), self.service.clone())))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let totals = Arc::clone(&self.service.totals);
        if self.calls.is_empty() {
            let counted = input.inspect(move |batch| {
                if let Ok(batch) = batch {
                    totals.add(Progress { rows_in: batch.num_rows() as u64, ..Progress::default() });
                }
            });
            return Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), counted)));
        }
        let engine =
            self.service.engine.clone().ok_or_else(|| internal_datafusion_err!("a plan without an engine was run"))?;
        let setup = Setup {
            calls: self.calls.clone(),
            desks: self.desks.clone(),
            engine,
            totals,
            schema: Arc::clone(&self.schema),
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), window::answered(setup, input))))
    }
}
