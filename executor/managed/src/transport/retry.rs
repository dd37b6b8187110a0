//! When a call is tried again, and the layer that does so. Being throttled costs time, failing costs attempts, everything
//! else is final. Each attempt takes from the limits anew, and nothing is held while waiting.

use std::time::Duration;

use async_openai::middleware::HttpRequestFactory;
use tokio::time::{Instant, sleep};

use super::stack::{Answer, Facts, Failed, Layered};
use crate::call::{CallError, Class};

/// What may be spent on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts, the first included, that may fail for passing reasons.
    pub attempts_max: u32,
    /// Time that may be spent on waiting while the provider asks for fewer requests.
    pub throttled_max: Duration,
    /// Longest single wait. If the provider asks for more, the caller is told instead.
    pub wait_max: Duration,
    /// First and longest mean of random waits, where the provider says nothing.
    pub backoff: (Duration, Duration),
}

impl RetryPolicy {
    /// For the flex lane: a provider without room says so (429 `resource_unavailable`, 503), bills nothing, and is asked again
    /// after waits that grow, for two hours.
    pub const FLEX: Self = Self {
        attempts_max: 5,
        throttled_max: Duration::from_secs(2 * 3_600),
        wait_max: Duration::from_secs(300),
        backoff: (Duration::from_secs(1), Duration::from_secs(120)),
    };
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            throttled_max: Duration::from_secs(300),
            wait_max: Duration::from_secs(60),
            backoff: (Duration::from_millis(500), Duration::from_secs(30)),
        }
    }
}

/// What a call has cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tried {
    failed: u32,
    throttled: u32,
    waited: Duration,
}

impl RetryPolicy {
    /// How long to wait before the next attempt; `None` if there is none. `left` is the time until the call's deadline,
    /// `random` is in [0, 1).
    pub(super) fn next(&self, error: &CallError, tried: &mut Tried, left: Duration, random: f64) -> Option<Duration> {
        if error.retry_after.is_some_and(|asked| asked > self.wait_max) {
            return None;
        }
        let wait = match error.class {
            Class::Throttled => {
                let wait = self.wait(error.retry_after, tried.throttled, random);
                tried.throttled += 1;
                tried.waited += wait;
                (tried.waited <= self.throttled_max).then_some(wait)
            }
            Class::Transient => {
                let wait = self.wait(error.retry_after, tried.failed, random);
                tried.failed += 1;
                (tried.failed < self.attempts_max).then_some(wait)
            }
            _ => None,
        };
        wait.filter(|wait| *wait < left)
    }

    /// The provider's wait and a little more, so that not all come back at once; else full jitter: anything up to twice the
    /// mean, which doubles (Brooker, "Exponential backoff and jitter", AWS 2015).
    fn wait(&self, asked: Option<Duration>, before: u32, random: f64) -> Duration {
        if let Some(asked) = asked {
            return asked + asked.min(Duration::from_secs(10)).mul_f64(random / 10.0);
        }
        let (first, longest) = self.backoff;
        let mean = first.saturating_mul(2_u32.saturating_pow(before)).min(longest);
        mean.mul_f64(random * 2.0)
    }
}

/// Tries again.
#[derive(Debug, Clone)]
pub(super) struct Retry<S> {
    pub(super) inner: S,
    pub(super) policy: RetryPolicy,
}

impl<S: Layered> Layered for Retry<S> {
    async fn call(&self, request: HttpRequestFactory) -> Result<Answer, Box<Failed>> {
        let deadline = Facts::of_this_call().deadline;
        let mut tried = Tried::default();
        loop {
            let mut failed = match self.inner.call(request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(wait) = self.policy.next(&failed.error, &mut tried, left, fastrand::f64()) else {
                if failed.error.class == Class::Throttled {
                    // Whoever parks the work has to know for how long.
                    failed.error.retry_after.get_or_insert(self.policy.backoff.1);
                }
                return Err(failed);
            };
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn error(class: Class, retry_after: Option<u64>) -> CallError {
        let retry_after = retry_after.map(Duration::from_secs);
        CallError { class, status: None, code: None, message: String::new(), retry_after, request_id: None }
    }

    #[test]
    fn passing_failures_cost_attempts() {
        let (policy, mut tried) = (RetryPolicy::default(), Tried::default());
        let waits: Vec<_> = (0..5)
            .map(|_| policy.next(&error(Class::Transient, None), &mut tried, HOUR, 0.5).map(|wait| wait.as_millis()))
            .collect();
        assert_eq!(waits, [Some(500), Some(1_000), Some(2_000), Some(4_000), None]);
    }

    #[test]
    fn being_throttled_costs_time_and_no_attempts() {
        let (policy, mut tried) = (RetryPolicy::default(), Tried::default());
        let throttled = error(Class::Throttled, Some(20));
        let waits = (0..100).take_while(|_| policy.next(&throttled, &mut tried, HOUR, 0.0).is_some()).count();
        assert_eq!(waits, 15, "300 s of 20 s each");
        assert!(policy.next(&error(Class::Transient, None), &mut tried, HOUR, 0.0).is_some());
    }

    #[test]
    fn waits_are_random_and_bounded() {
        let policy = RetryPolicy::default();
        for (before, random, millis) in [(0, 0.0, 0), (0, 0.99, 990), (3, 0.5, 4_000), (40, 0.5, 30_000)] {
            assert_eq!(policy.wait(None, before, random).as_millis(), millis, "{before} {random}");
        }
        assert_eq!(policy.wait(Some(Duration::from_secs(7)), 3, 0.5), Duration::from_millis(7_350));
    }

    #[test]
    fn what_takes_too_long_or_is_final_is_told() {
        let policy = RetryPolicy::default();
        let next = |error: CallError, left| policy.next(&error, &mut Tried::default(), left, 0.9);
        assert!(next(error(Class::Throttled, Some(60)), HOUR).is_some());
        assert_eq!(next(error(Class::Throttled, Some(61)), HOUR), None, "not slept through");
        assert_eq!(next(error(Class::Throttled, Some(10)), Duration::from_secs(5)), None, "past the deadline");
        for class in
            [Class::Refused, Class::TooLong, Class::Denied, Class::Billing, Class::Stopped, Class::InvalidOutput]
        {
            assert_eq!(next(error(class, Some(1)), HOUR), None, "{class:?}");
        }
    }
}
