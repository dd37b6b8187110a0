//! [`Due`]: until when a lane that is cheaper than online may be waited for. The rule looks at the whole run: as long as all
//! that is open could still be asked online by the deadline, the cheap lane is worth waiting for; from that moment on
//! everything goes online. So whoever waits first may use what time there is, and nobody is late because of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use rowmill_jobs::infer::Request;
use rowmill_jobs::{Error, Result};
use tokio::time::Instant;

use super::{Asked, ManagedEngine};
use crate::batch::Patience;
use crate::call::Estimate;
use crate::lane::Lane;
use crate::transport::Timeouts;

/// Requests that tell how long all are.
const SAMPLE: usize = 32;
/// Looks at a batch that there must be time for, or it is not begun.
const LOOKS: i64 = 10;
/// Time that a call in the flex lane may take: two hours until there is room, and one attempt.
const FLEX_MS: i64 = 150 * 60_000;

/// What is left of a run.
#[async_trait]
pub trait Remaining: Send + Sync + fmt::Debug {
    /// Input rows of shards that have no part yet.
    ///
    /// # Errors
    /// It cannot be known now.
    async fn rows(&self) -> Result<u64>;
}

/// Until when a lane may be waited for, and who asks online after that.
#[derive(Debug)]
pub struct Due {
    online: Arc<ManagedEngine>,
    /// When the run has to be finished: milliseconds since 1970.
    deadline_ms: i64,
    /// What a row asks of the account.
    calls: u64,
    remaining: Arc<dyn Remaining>,
    /// Whether what is left was not known when it was last asked for.
    unknown: AtomicBool,
}

impl Due {
    /// For a run whose rows ask the account so many times each.
    pub fn new(online: Arc<ManagedEngine>, deadline_ms: i64, calls: u64, remaining: Arc<dyn Remaining>) -> Self {
        Self { online, deadline_ms, calls, remaining, unknown: AtomicBool::new(false) }
    }

    /// Who asks online.
    pub(super) fn online(&self) -> &Arc<ManagedEngine> {
        &self.online
    }

    /// The last moment for a lane that needs so long to end.
    pub(super) async fn last_ms(&self, end_ms: i64, tokens: Estimate) -> i64 {
        match self.remaining.rows().await {
            Ok(rows) => {
                self.unknown.store(false, Ordering::Relaxed);
                let requests = rows.saturating_mul(self.calls);
                last_ms(self.deadline_ms, end_ms, requests, self.online.pace.per_second(tokens))
            }
            Err(error) => {
                // It is asked for with every row.
                if !self.unknown.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "what is left of the run is not known; cheap lanes are waited for");
                }
                i64::MAX
            }
        }
    }

    /// The leeway for requests in the flex lane.
    pub(super) fn leeway(&self, asked: &Asked, requests: &[Request]) -> Leeway<'_> {
        Leeway { due: self, tokens: mean(asked, requests) }
    }
}

/// How long the flex lane, whose calls cannot be taken back, may be used for some requests. It is looked at before each of
/// them, and again before each call: it takes hours until all are asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leeway<'a> {
    due: &'a Due,
    /// What the requests take on average.
    tokens: Estimate,
}

impl<'a> Leeway<'a> {
    /// Whether there is time for one more.
    pub(super) async fn is_enough(&self) -> bool {
        Utc::now().timestamp_millis() < self.due.last_ms(FLEX_MS, self.tokens).await
    }

    /// When a call has to be over that is sent now: then all that is open has to be asked online.
    ///
    /// # Errors
    /// That moment has passed.
    pub(super) async fn over_by(&self) -> Result<Instant> {
        let left_ms = self.due.last_ms(0, self.tokens).await.saturating_sub(Utc::now().timestamp_millis());
        let left = u64::try_from(left_ms).ok().filter(|left_ms| *left_ms > 0).map(Duration::from_millis);
        let left = left.ok_or_else(|| Error::temporary("there is no more time for the flex lane"))?;
        Ok(Instant::now() + left.min(Timeouts::FLEX.call))
    }

    /// Who asks after that.
    pub(super) fn online(&self) -> &'a Arc<ManagedEngine> {
        &self.due.online
    }
}

impl ManagedEngine {
    /// With several lanes to choose from: this engine's as long as there is time for it, then online.
    #[must_use]
    pub fn until(self, due: Due) -> Self {
        Self { due: Some(due), ..self }
    }
}

/// What requests take on average, as far as their lengths tell.
pub(super) fn mean(asked: &Asked, requests: &[Request]) -> Estimate {
    let sample = &requests[..requests.len().min(SAMPLE)];
    let own: usize = sample.iter().filter_map(|request| asked.question.text(request).ok()).map(|text| text.len()).sum();
    let bytes = own / sample.len().max(1) + asked.task.system.as_ref().map_or(0, String::len);
    let estimates = asked.estimates.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (input_tokens, output_tokens) = (estimates.input.tokens(bytes), estimates.output.tokens());
    Estimate { input_tokens, output_tokens, nano_usd_max: 0 }
}

/// How long a lane that is given up takes to end.
pub fn end_ms(lane: Lane, patience: &Patience) -> i64 {
    match lane {
        Lane::Online => 0,
        Lane::Flex => FLEX_MS,
        Lane::Batch => patience.cancel_ms,
    }
}

/// How long before its last moment a lane must be begun to be worth it.
pub fn least_ms(lane: Lane, patience: &Patience) -> i64 {
    match lane {
        Lane::Online | Lane::Flex => 0,
        Lane::Batch => LOOKS * patience.poll_least_ms,
    }
}

/// The last moment at which a lane can be given up so that all these requests are answered online by the deadline. It takes
/// `end_ms` until it has ended, and they a quarter more than their rate says.
pub fn last_ms(deadline_ms: i64, end_ms: i64, requests: u64, per_second: f64) -> i64 {
    let online_ms = requests as f64 / per_second.max(1e-9) * 1e3 * 1.25;
    // What never ends is infinite, and a cast takes it for the greatest number there is.
    deadline_ms.saturating_sub(end_ms).saturating_sub(online_ms as i64)
}

#[cfg(test)]
#[path = "flex_tests.rs"]
mod flex_tests;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn the_last_moment_leaves_time_for_ending_and_for_all_that_is_open() {
        // Deadline in 6 hours.
        for (end_ms, requests, per_second, last) in [
            (0, 0, 5.0, 6 * HOUR_MS),
            (900_000, 0, 5.0, 6 * HOUR_MS - 900_000),
            (900_000, 14_400, 5.0, 5 * HOUR_MS - 900_000),
            // Too much for the time that there is: the moment has passed.
            (900_000, 144_000, 5.0, -4 * HOUR_MS - 900_000),
            // The same, once it was seen that the account is fast.
            (900_000, 144_000, 100.0, 6 * HOUR_MS - 900_000 - HOUR_MS / 2),
            (0, u64::MAX, 0.0, i64::MIN + 6 * HOUR_MS + 1),
        ] {
            assert_eq!(last_ms(6 * HOUR_MS, end_ms, requests, per_second), last, "{requests} at {per_second}");
        }
    }

    #[test]
    fn a_batch_is_begun_only_if_it_can_be_looked_at_a_few_times() {
        let patience = Patience::default();
        assert_eq!((least_ms(Lane::Batch, &patience), least_ms(Lane::Flex, &patience)), (300_000, 0));
        assert_eq!((end_ms(Lane::Batch, &patience), end_ms(Lane::Flex, &patience)), (900_000, 9_000_000));
    }
}
