//! [`Pace`]: how fast an account answers online. Measured where it has been asked for long enough; before that what the
//! operator says of the account, and where nobody says anything a rate that small accounts have. It limits nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::call::Estimate;
use crate::policy::config::Limits;

/// Requests a second of an account of which nothing is known.
const UNKNOWN: f64 = 5.0;
/// Time that one call is taken to last.
const CALL: Duration = Duration::from_secs(10);
/// Time of asking from which a measured rate counts: accounts are limited by the minute, and let more pass for seconds.
const MEASURED_FROM: Duration = Duration::from_secs(60);

/// How fast an account answers.
#[derive(Debug)]
pub struct Pace {
    limits: Limits,
    concurrency: usize,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    under_way: usize,
    /// Since when calls are under way without a break.
    since: Option<Instant>,
    /// How long they were, before that.
    before: Duration,
    answered: u64,
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Asking<'a>(&'a Pace);

impl Pace {
    /// Of an account with these limits, and so many calls at once.
    pub fn new(limits: Limits, concurrency: usize) -> Self {
        Self { limits, concurrency, asked: Mutex::default() }
    }

    /// Rows a second, of requests that take so many tokens on average.
    pub fn per_second(&self, tokens: Estimate) -> f64 {
        let asked = self.lock();
        let took = asked.before + asked.since.map_or(Duration::ZERO, |since| since.elapsed());
        if took >= MEASURED_FROM && asked.answered > 0 {
            return asked.answered as f64 / took.as_secs_f64();
        }
        assumed(&self.limits, self.concurrency, tokens)
    }

    /// A call begins.
    pub(crate) fn begin(&self) -> Asking<'_> {
        let mut asked = self.lock();
        asked.under_way += 1;
        asked.since.get_or_insert_with(Instant::now);
        Asking(self)
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        // Nobody panics while holding the lock.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking<'_> {
    /// It has answered so many rows.
    pub(crate) fn answered(self, rows: u64) {
        self.0.lock().answered += rows;
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.0.lock();
        asked.under_way -= 1;
        if asked.under_way == 0
            && let Some(since) = asked.since.take()
        {
            asked.before += since.elapsed();
        }
    }
}

/// Requests a second that limits leave room for.
fn assumed(limits: &Limits, concurrency: usize, tokens: Estimate) -> f64 {
    let stated = [
        (limits.requests_per_minute, 1),
        (limits.input_tokens_per_minute, tokens.input_tokens),
        (limits.output_tokens_per_minute, tokens.output_tokens),
    ];
    let rates = stated.into_iter().filter_map(|(limit, each)| Some(limit? as f64 / 60.0 / each.max(1) as f64));
    rates.reduce(f64::min).unwrap_or(UNKNOWN).min(concurrency as f64 / CALL.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input_tokens: u64, output_tokens: u64) -> Estimate {
        Estimate { input_tokens, output_tokens, nano_usd_max: 0 }
    }

    #[test]
    fn what_the_operator_says_counts_and_else_a_small_account() {
        let limits = |requests, input, output| Limits {
            requests_per_minute: requests,
            input_tokens_per_minute: input,
            output_tokens_per_minute: output,
            ..Limits::default()
        };
        for (limits, concurrency, rate) in [
            (limits(None, None, None), 256, 5.0),
            (limits(None, None, None), 10, 1.0),
            (limits(Some(600), None, None), 256, 10.0),
            (limits(Some(600), Some(120_000), None), 256, 2.0),
            (limits(Some(600), Some(120_000), Some(600)), 256, 0.1),
            // So many calls at once that last ten seconds.
            (limits(Some(60_000), None, None), 256, 25.6),
        ] {
            let assumed = assumed(&limits, concurrency, tokens(1_000, 100));
            assert!((assumed - rate).abs() < 1e-9, "{limits:?}: {assumed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_of_asking_tells_more_than_any_word() {
        let pace = Pace::new(Limits::default(), 256);
        let (first, second) = (pace.begin(), pace.begin());
        tokio::time::advance(Duration::from_secs(40)).await;
        first.answered(1_000);
        second.answered(1_000);
        assert_eq!(pace.per_second(tokens(1, 1)), UNKNOWN, "after 40 seconds");
        // Nothing is under way: that is no time of asking.
        tokio::time::advance(Duration::from_secs(1_000)).await;
        let third = pace.begin();
        tokio::time::advance(Duration::from_secs(60)).await;
        third.answered(1_000);
        assert!((pace.per_second(tokens(1, 1)) - 30.0).abs() < 1e-9);
    }
}
