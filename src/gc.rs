//! `rowmill gc`: deletes what nobody can read any more. The only command that deletes.

use std::time::Duration;

use rowmill_jobs::Result;
use rowmill_jobs::store::erase::open_eraser;
use rowmill_scheduler::gc::{Retention, collect};
use serde_json::json;

use crate::args::OutputArgs;
use crate::output::{Format, say};
use crate::setup::open_output;

const HOUR: Duration = Duration::from_secs(3600);

/// Collects the garbage of an output.
///
/// # Errors
/// The store does not answer, or does not let us delete.
pub(crate) async fn gc(args: &OutputArgs, abandoned_after: u64, grace: u64, format: Format) -> Result<()> {
    let (store, _) = open_output(args)?;
    let hours = |hours: u64| HOUR.saturating_mul(u32::try_from(hours).unwrap_or(u32::MAX));
    let keep = Retention { abandoned_after: hours(abandoned_after), grace: hours(grace) };
    let done = collect(store.as_ref(), open_eraser(store.url())?.as_ref(), keep).await?;
    match format {
        Format::Json => say(&json!({
            "status": "ok",
            "cancelled": done.cancelled,
            "emptied": done.emptied,
            "objects": done.objects,
            "bytes": done.bytes,
        })
        .to_string()),
        Format::Text => say(&format!(
            "gave up {} runs; deleted {} objects of {} runs ({:.1} MiB)",
            done.cancelled,
            done.objects,
            done.emptied,
            done.bytes as f64 / f64::from(1 << 20)
        )),
    }
    Ok(())
}
