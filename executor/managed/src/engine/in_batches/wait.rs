//! Waits for batches: visits, and sleeps as long as the lane says between two of them. Where batches are one lane of several,
//! it gives them up when there is no more time for them; where other models can be asked, when none can be created. What it
//! knows is lost without harm.

use std::time::Duration;

use chrono::Utc;
use rowmill_jobs::{Error, Kind, Result};

use super::super::Due;
use super::super::due::{end_ms, least_ms};
use crate::batch::{BatchLane, Patience, Progress, RowEnd, Sent, Wanted};
use crate::call::Estimate;
use crate::lane::Lane;

/// Visits in a row that may fail for passing reasons: a store that does not answer, an answer that cannot be read.
const FAILED_MAX: u32 = 8;
/// Between two looks at how much time there is.
const LOOK_MS: i64 = 60_000;

/// Until when batches are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until<'a> {
    /// When, and what comes then.
    pub(super) due: &'a Due,
    /// What the rows' requests take on average.
    pub(super) tokens: Estimate,
    pub(super) patience: Patience,
}

impl Until<'_> {
    async fn last_ms(&self) -> i64 {
        self.due.last_ms(end_ms(Lane::Batch, &self.patience), self.tokens).await
    }
}

/// Visits until every row has its end. From `leaves_ms` on, rows of which nothing could be sent are left to another model.
pub(super) async fn until_done(
    lane: &BatchLane,
    patience: Patience,
    until: Option<Until<'_>>,
    leaves_ms: Option<i64>,
) -> Result<Vec<RowEnd>> {
    let now_ms = || Utc::now().timestamp_millis();
    let mut wanted = Wanted::Everything;
    if let Some(until) = &until {
        // What is under way already costs nothing to wait for.
        let least_ms = if lane.has_begun().await? { 0 } else { least_ms(Lane::Batch, &patience) };
        if now_ms() + least_ms >= until.last_ms().await {
            wanted = Wanted::WhatIsDone;
        }
    }
    let mut failed = 0;
    loop {
        let until_ms = match lane.advance(wanted, &now_ms).await {
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
            Err(error) if until.is_some() && wanted == Wanted::Everything => {
                is_of_nothing_under_way(lane, error).await?;
                wanted = Wanted::WhatIsDone;
                continue;
            }
            Err(error) => return Err(error),
        };
        let leaves = wanted == Wanted::Everything && leaves_ms.is_some_and(|leaves_ms| now_ms() >= leaves_ms);
        if leaves && lane.sent().await? == Sent::Nothing {
            tracing::warn!("no batch could be created; the rows are left to another model");
            wanted = Wanted::Elsewhere;
            continue;
        }
        if sleep(until_ms, until.as_ref().filter(|_| wanted == Wanted::Everything)).await == Slept::TooLong {
            tracing::info!("there is no more time for batches; what is not done of them goes online");
            wanted = Wanted::WhatIsDone;
        }
    }
}

/// That the provider takes no batches of some rows: it refused an upload or a creation, and none of them is at the provider.
///
/// # Errors
/// The error, if it is another one. What it says of batches that are under way is not that they are not wanted.
async fn is_of_nothing_under_way(lane: &BatchLane, error: Error) -> Result<()> {
    if error.kind() != Kind::Invalid || lane.sent().await? == Sent::UnderWay {
        return Err(error);
    }
    tracing::warn!(%error, "the provider takes no batches of this; the rest goes online");
    Ok(())
}

/// How a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slept {
    /// It is time for a visit.
    Enough,
    /// There is no more time.
    TooLong,
}

/// Sleeps until a moment, or until there is no more time.
async fn sleep(until_ms: i64, until: Option<&Until<'_>>) -> Slept {
    loop {
        let now_ms = Utc::now().timestamp_millis();
        let mut next_ms = until_ms;
        if let Some(until) = until {
            let last_ms = until.last_ms().await;
            if now_ms >= last_ms {
                return Slept::TooLong;
            }
            next_ms = next_ms.min(last_ms).min(now_ms + LOOK_MS);
        }
        if now_ms >= until_ms {
            return Slept::Enough;
        }
        tokio::time::sleep(Duration::from_millis(u64::try_from(next_ms - now_ms).unwrap_or(0))).await;
    }
}
