//! Compiles the job of a stored plan, as every process does that computes its shards. It refuses a plan whose columns this
//! version would write differently.

use rowmill_jobs::plan::Plan;
use rowmill_jobs::{Error, Result};

use super::job::{CompiledJob, compile};

/// Compiles a stored plan's job against the inputs it pins.
///
/// # Errors
/// The plan cannot be compiled by this version.
pub async fn compile_plan(plan: &Plan) -> Result<CompiledJob> {
    let compiled = compile(&plan.job, &plan.inputs, plan.staged.as_ref(), &plan.models).await?;
    if compiled.output_schema() != plan.output_schema {
        return Err(Error::invalid("this version would write other columns than the run's plan says")
            .with("run", &plan.run_key)
            .with("planned by", &plan.rowmill)
            .hint("finish it with that version, or start again with --rerun ID"));
    }
    Ok(compiled)
}
