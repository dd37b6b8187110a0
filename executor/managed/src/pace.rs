//! [`Pace`]: how fast an account answers online. Measured while it was asked for all that it can do; before that what the
//! operator says of the account, and where nobody says anything a rate that small accounts have. What was answered while
//! little was asked says how little that was, and nothing of the account. It limits nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::call::{CallError, Class, Estimate, Left, Witness};
use crate::policy::config::Limits;

/// Requests a second of an account of which nothing is known.
const UNKNOWN: f64 = 5.0;
/// Time that one call is taken to last.
const CALL: Duration = Duration::from_secs(10);
/// Time of asking from which a measured rate counts: accounts are limited by the minute, and let more pass for seconds.
const MEASURED_FROM: Duration = Duration::from_secs(60);
/// Shorter times in which something was held back tell nothing: every call is for a moment, on its way out.
const HELD_MIN: Duration = Duration::from_secs(1);

/// How fast an account answers.
#[derive(Debug)]
pub struct Pace {
    limits: Limits,
    concurrency: usize,
    clocks: Mutex<Clocks>,
}

#[derive(Debug)]
struct Clocks {
    /// Runs while calls are under way. The account can do what was answered then, and maybe more.
    asking: Clock,
    /// Runs while something is held back that would be asked. The account can do what was answered then, and no more.
    holding: Clock,
}

/// Adds up time and what was answered in it.
#[derive(Debug)]
struct Clock {
    /// Shorter times do not count.
    least: Duration,
    /// Reasons to run now.
    reasons: usize,
    /// Since when it runs without a break, and rows that were answered since then.
    now: Option<(Instant, u64)>,
    /// Time and rows before that.
    before: (Duration, u64),
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Asking<'a>(&'a Pace);

/// Something is held back that would be asked, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Pace>);

impl Pace {
    /// Of an account with these limits, and so many calls at once.
    pub fn new(limits: Limits, concurrency: usize) -> Self {
        let clocks = Clocks { asking: Clock::new(Duration::ZERO), holding: Clock::new(HELD_MIN) };
        Self { limits, concurrency, clocks: Mutex::new(clocks) }
    }

    /// Rows a second, of requests that take so many tokens on average.
    pub fn per_second(&self, tokens: Estimate) -> f64 {
        let clocks = self.lock();
        clocks.holding.rate().unwrap_or_else(|| {
            let assumed = assumed(&self.limits, self.concurrency, tokens);
            clocks.asking.rate().map_or(assumed, |rate| rate.max(assumed))
        })
    }

    /// A call begins.
    pub(crate) fn begin(&self) -> Asking<'_> {
        self.lock().asking.run();
        Asking(self)
    }

    /// Something has to wait until it can be asked.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        self.lock().holding.run();
        Held(Arc::clone(self))
    }

    /// Time in which something was held back, and rows that were answered in it.
    #[cfg(test)]
    pub(crate) fn measured(&self) -> (Duration, u64) {
        self.lock().holding.total()
    }

    fn lock(&self) -> MutexGuard<'_, Clocks> {
        // Nobody panics while holding the lock.
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    fn new(least: Duration) -> Self {
        Self { least, reasons: 0, now: None, before: Default::default() }
    }

    fn run(&mut self) {
        self.reasons += 1;
        self.now.get_or_insert_with(|| (Instant::now(), 0));
    }

    fn answered(&mut self, rows: u64) {
        if let Some((_, answered)) = &mut self.now {
            *answered += rows;
        }
    }

    /// A reason is gone.
    fn rest(&mut self) {
        self.reasons -= 1;
        if self.reasons == 0 {
            self.before = self.total();
            self.now = None;
        }
    }

    /// Time that counts, and rows in it.
    fn total(&self) -> (Duration, u64) {
        let (took, rows) = self.before;
        let now = self.now.map(|(since, answered)| (since.elapsed(), answered));
        now.filter(|(now, _)| *now >= self.least).map_or((took, rows), |(now, answered)| (took + now, rows + answered))
    }

    /// Rows a second, once there are some.
    fn rate(&self) -> Option<f64> {
        let (took, rows) = self.total();
        (took >= MEASURED_FROM && rows > 0).then(|| rows as f64 / took.as_secs_f64())
    }
}

impl Asking<'_> {
    /// It has answered so many rows.
    pub(crate) fn answered(self, rows: u64) {
        let mut clocks = self.0.lock();
        clocks.asking.answered(rows);
        clocks.holding.answered(rows);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().asking.rest();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().holding.rest();
    }
}

/// A call's witness that tells the pace while the call is held back: until it leaves, and from when on the provider asks
/// for fewer until it leaves again.
#[derive(Debug)]
pub(crate) struct Holding {
    pace: Arc<Pace>,
    witness: Arc<dyn Witness>,
    held: Mutex<Option<Held>>,
}

impl Holding {
    /// For a call that is about to be sent.
    pub(crate) fn new(pace: &Arc<Pace>, witness: Arc<dyn Witness>) -> Arc<Self> {
        Arc::new(Self { pace: Arc::clone(pace), witness, held: Mutex::new(Some(pace.hold())) })
    }

    fn set(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

#[async_trait]
impl Witness for Holding {
    async fn leaving(&self) -> bool {
        self.set(None);
        self.witness.leaving().await
    }

    async fn unanswered(&self, error: &CallError, left: Left) {
        if error.class == Class::Throttled {
            self.set(Some(self.pace.hold()));
        }
        self.witness.unanswered(error, left).await;
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
    async fn what_was_answered_in_a_minute_can_be_answered_again() {
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

    #[tokio::test(start_paused = true)]
    async fn an_account_that_is_asked_for_little_is_not_slow() {
        let limits = Limits { requests_per_minute: Some(3_000), ..Limits::default() };
        let pace = Arc::new(Pace::new(limits, 1_000));
        for _ in 0..100 {
            let few: Vec<Asking<'_>> = (0..5).map(|_| pace.begin()).collect();
            // On its way out every call is held for a moment.
            let held = pace.hold();
            tokio::time::advance(Duration::from_millis(100)).await;
            drop(held);
            tokio::time::advance(Duration::from_secs(10)).await;
            few.into_iter().for_each(|asking| asking.answered(1));
        }
        assert_eq!(pace.per_second(tokens(1, 1)), 50.0, "half a row a second was all that was asked");
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_holds_calls_back_does_what_it_does_then() {
        let limits = Limits { requests_per_minute: Some(3_000), ..Limits::default() };
        let pace = Arc::new(Pace::new(limits, 1_000));
        let call = Holding::new(&pace, Arc::new(Nobody));
        for second in 0..60 {
            assert_eq!(pace.per_second(tokens(1, 1)), 50.0, "after {second} seconds");
            let asking = pace.begin();
            tokio::time::advance(Duration::from_secs(1)).await;
            asking.answered(2);
        }
        assert_eq!(pace.per_second(tokens(1, 1)), 2.0);
        // From when on it has left, nothing is held back.
        assert!(call.leaving().await);
        let asking = pace.begin();
        tokio::time::advance(Duration::from_secs(60)).await;
        asking.answered(1_000);
        assert_eq!(pace.per_second(tokens(1, 1)), 2.0);
        // A provider that asks for fewer holds it again.
        let error = |class| CallError {
            class,
            status: Some(429),
            code: None,
            message: String::new(),
            retry_after: None,
            request_id: None,
        };
        call.unanswered(&error(Class::Transient), Left::Something).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(pace.per_second(tokens(1, 1)), 2.0);
        call.unanswered(&error(Class::Throttled), Left::Something).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(pace.per_second(tokens(1, 1)), 1.0);
    }

    #[derive(Debug)]
    struct Nobody;

    #[async_trait]
    impl Witness for Nobody {
        async fn leaving(&self) -> bool {
            true
        }

        async fn unanswered(&self, _: &CallError, _: Left) {}
    }
}
