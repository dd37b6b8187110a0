//! `rowmill cancel`: gives a run up. A run that was published meanwhile stays published.

use rowmill_jobs::publish::RunOutcome;
use rowmill_jobs::{Error, Result};
use serde_json::json;

use crate::args::CancelArgs;
use crate::output::{Format, say};
use crate::planned::Asked;
use crate::setup::process_name;

/// Cancels a job's run.
///
/// # Errors
/// There is no such run, or it is published.
pub(crate) async fn cancel(args: &CancelArgs, format: Format) -> Result<()> {
    let asked = Asked::new(&args.id)?;
    let who = std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(process_name);
    let ended = rowmill_scheduler::cancel(asked.store.as_ref(), &asked.run_key, &who, &args.why).await?;
    match ended {
        RunOutcome::Cancelled { by, why } => match format {
            Format::Json => say(&json!({
                "status": "cancelled", "run_key": asked.run_key, "by": by, "why": why,
            })
            .to_string()),
            Format::Text => say(&format!("run {} is cancelled (by {by}: {why})", asked.run_key)),
        },
        RunOutcome::Success { .. } => {
            return Err(Error::invalid("the run is published already; it cannot be cancelled")
                .with("run", &asked.run_key)
                .hint("`rowmill run --rerun ID` computes the date again and replaces it"));
        }
    }
    Ok(())
}
