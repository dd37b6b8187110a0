//! How many calls may be under way at once, learned from how they end: additive increase, multiplicative decrease
//! (Chiu and Jain 1989), with TCP's slow start until the first cut. Pure: time is handed in.

use std::time::Duration;

/// Calls at once to begin with.
const START: f64 = 8.0;
/// What a throttled call leaves of the limit.
const CUT: f64 = 0.7;
/// Share of the limit that must be in use before it is raised: a limit that nobody reaches is not known to be too low.
const IN_USE: f64 = 0.75;

/// A call that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Calls under way when it ended, itself included.
    pub under_way: usize,
    /// How long it waited for requests or tokens. Whoever waits for those needs no further calls at once.
    pub waited: Duration,
}

/// The limit of an account, in one process.
#[derive(Debug, Clone)]
pub struct Concurrency {
    limit: f64,
    most: f64,
    growing_fast: bool,
    cut_at: Option<Duration>,
}

impl Concurrency {
    /// The first limit; it will never exceed `most`, and is at least 1.
    pub fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        Self { limit: START.min(most), most, growing_fast: true, cut_at: None }
    }

    /// Calls that may be under way at once.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// A call ended well: the limit grows by one for as many of these as it is, and by one for each until the first cut.
    pub fn succeeded(&mut self, finished: Finished) {
        if !finished.waited.is_zero() || (finished.under_way as f64) < self.limit * IN_USE {
            return;
        }
        let step = if self.growing_fast { 1.0 } else { 1.0 / self.limit };
        self.limit = (self.limit + step).min(self.most);
    }

    /// A call that was sent at `sent_at` was throttled. Calls sent before the last cut say nothing new: a round trip
    /// cuts once, however many of its calls are throttled.
    pub fn throttled(&mut self, sent_at: Duration, now: Duration) {
        if self.cut_at.is_some_and(|cut_at| sent_at < cut_at) {
            return;
        }
        self.limit = (self.limit * CUT).max(1.0);
        self.growing_fast = false;
        self.cut_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Finished = Finished { under_way: 1_000, waited: Duration::ZERO };

    #[test]
    fn it_doubles_per_round_until_the_first_cut_and_then_adds_one() {
        let mut concurrency = Concurrency::new(512);
        assert_eq!(concurrency.limit(), 8);
        (0..8).for_each(|_| concurrency.succeeded(BUSY));
        assert_eq!(concurrency.limit(), 16);
        concurrency.throttled(Duration::ZERO, Duration::from_secs(1));
        assert_eq!(concurrency.limit(), 11);
        (0..12).for_each(|_| concurrency.succeeded(BUSY));
        assert_eq!(concurrency.limit(), 12);
        (0..100_000).for_each(|_| concurrency.succeeded(BUSY));
        assert_eq!(concurrency.limit(), 447, "(2 · 100,000)½: far from the most after so many");
    }

    #[test]
    fn a_round_trip_cuts_once() {
        let mut concurrency = Concurrency::new(100);
        for _ in 0..50 {
            concurrency.throttled(Duration::from_millis(10), Duration::from_millis(500));
        }
        assert_eq!(concurrency.limit(), 5);
        concurrency.throttled(Duration::from_millis(501), Duration::from_millis(900));
        assert_eq!(concurrency.limit(), 3);
        for round in 1..50 {
            concurrency.throttled(Duration::from_secs(round), Duration::from_secs(round));
        }
        assert_eq!(concurrency.limit(), 1, "never none");
    }

    #[test]
    fn it_does_not_grow_where_that_would_not_help() {
        let mut concurrency = Concurrency::new(100);
        for _ in 0..100 {
            concurrency.succeeded(Finished { under_way: 5, waited: Duration::ZERO });
            concurrency.succeeded(Finished { waited: Duration::from_millis(1), ..BUSY });
        }
        assert_eq!(concurrency.limit(), 8);
        assert_eq!(Concurrency::new(3).limit(), 3);
        assert_eq!(Concurrency::new(0).limit(), 1);
    }
}
