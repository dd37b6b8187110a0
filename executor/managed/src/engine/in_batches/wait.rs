//! Waits for batches: visits, and sleeps as long as the lane says between two of them. It decides nothing, and what it knows
//! is lost without harm.

use std::time::Duration;

use chrono::Utc;
use rowmill_jobs::Result;

use crate::batch::{BatchLane, Patience, Progress, RowEnd, Wanted};

/// Visits in a row that may fail for passing reasons: a store that does not answer, an answer that cannot be read.
const FAILED_MAX: u32 = 8;

/// Visits until every row has its end.
pub(super) async fn until_done(lane: &BatchLane, patience: Patience) -> Result<Vec<RowEnd>> {
    let now_ms = || Utc::now().timestamp_millis();
    let mut failed = 0;
    loop {
        let until_ms = match lane.advance(Wanted::Everything, &now_ms).await {
            Ok(Progress::Done(ends)) => return Ok(ends),
            Ok(Progress::Wait(until_ms)) => {
                failed = 0;
                until_ms
            }
            Err(error) if error.retryable() && failed < FAILED_MAX => {
                failed += 1;
                tracing::warn!(%error, "a visit to batches failed; the next one goes on");
                now_ms() + patience.poll_least_ms
            }
            Err(error) => return Err(error),
        };
        let wait_ms = u64::try_from(until_ms - now_ms()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}
