//! A token bucket that refills continuously. Pure: time is handed in. `allowance.lua` computes the same in Redis.

use std::time::Duration;

use super::{BURST, Firmness, LONG_WINDOW, Limit};

/// How many times what is in flight is taken to be missing in a provider's count: with twice, a twentieth of an
/// allowance stays unused; with once, callers are throttled (`simulation_tests.rs` of the transport).
pub(super) const DOUBT: f64 = 1.5;

/// One limit and what is left of it. Levels may be negative: that is what callers who wait have taken already, so that
/// they are served in order and each knows how long it waits.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    limit: Limit,
    /// What the provider said the limit is.
    seen: Option<f64>,
    level: f64,
    /// Reserved and not settled: the provider may or may not have counted it.
    in_flight: f64,
    refilled_at: Duration,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(limit: Limit, now: Duration) -> Self {
        let mut bucket = Self { limit, seen: None, level: 0.0, in_flight: 0.0, refilled_at: now };
        bucket.level = bucket.capacity();
        bucket
    }

    /// How much there may be in the window.
    fn amount(&self) -> f64 {
        let configured = self.limit.amount as f64;
        match (self.limit.firmness, self.seen) {
            (_, None) => configured,
            (Firmness::Firm, Some(seen)) => configured.min(seen),
            (Firmness::Learned, Some(seen)) => seen,
        }
    }

    fn per_second(&self) -> f64 {
        self.amount() / self.limit.window.as_secs_f64()
    }

    /// The most that can be saved up.
    fn capacity(&self) -> f64 {
        if self.limit.window >= LONG_WINDOW {
            return self.amount();
        }
        self.per_second() * BURST.min(self.limit.window).as_secs_f64()
    }

    /// Lets time pass.
    pub(super) fn refill(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.refilled_at).as_secs_f64();
        self.refilled_at = now;
        self.level = (self.level + seconds * self.per_second()).min(self.capacity());
    }

    /// How long until so much is there.
    pub(super) fn wait(&self, amount: f64) -> Duration {
        if amount <= 0.0 || amount <= self.level {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64((amount - self.level) / self.per_second()).unwrap_or(Duration::MAX)
    }

    /// Takes it, there or not.
    pub(super) fn take(&mut self, amount: f64) {
        self.level -= amount;
        self.in_flight += amount;
    }

    /// Corrects what was taken to what was used.
    pub(super) fn settle(&mut self, reserved: f64, used: f64) {
        self.level = (self.level + reserved - used).min(self.capacity());
        self.in_flight = (self.in_flight - reserved).max(0.0);
    }

    /// Corrects our count with the provider's. Down to what it says is left; up only as far as is safe if it has counted
    /// nothing of what is in flight, nor of what has overtaken this answer since it counted, which was when the call came.
    pub(super) fn correct(&mut self, limit: Option<u64>, remaining: Option<u64>) {
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            self.seen = Some(limit as f64);
        }
        let capacity = self.capacity();
        if let Some(remaining) = remaining.map(|remaining| remaining as f64) {
            let safe = (remaining - DOUBT * self.in_flight).min(capacity);
            self.level = self.level.max(safe).min(remaining);
        }
        self.level = self.level.min(capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Resource;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn bucket(amount: u64, firmness: Firmness) -> Bucket {
        let limit = Limit { resource: Resource::Requests, amount, window: MINUTE, firmness };
        Bucket::new(limit, Duration::ZERO)
    }

    #[test]
    fn it_saves_up_a_few_seconds_and_refills_continuously() {
        let mut bucket = bucket(600, Firmness::Firm);
        assert_eq!(bucket.wait(50.0), Duration::ZERO, "five seconds' worth");
        bucket.take(50.0);
        assert_eq!(bucket.wait(1.0), Duration::from_millis(100));
        bucket.refill(Duration::from_millis(250));
        assert_eq!(bucket.wait(2.0), Duration::ZERO);
        bucket.refill(Duration::from_secs(1_000));
        assert_eq!(bucket.wait(51.0), Duration::from_millis(100), "no more than five seconds' worth is kept");
    }

    #[test]
    fn callers_who_wait_are_served_one_after_the_other() {
        let mut bucket = bucket(60, Firmness::Firm);
        bucket.take(5.0);
        let waits: Vec<u64> = (0..3)
            .map(|_| {
                let wait = bucket.wait(1.0);
                bucket.take(1.0);
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 3]);
        bucket.take(1_000.0);
        assert_eq!(bucket.wait(100.0).as_secs(), 1_103, "more than fits is granted, late");
    }

    #[test]
    fn settling_gives_back_and_charges() {
        let mut bucket = bucket(600, Firmness::Firm);
        bucket.take(50.0);
        bucket.settle(30.0, 10.0);
        assert_eq!(bucket.wait(20.0), Duration::ZERO);
        bucket.settle(20.0, 60.0);
        assert_eq!(bucket.wait(1.0), Duration::from_millis(2_100));
    }

    #[test]
    fn headers_lower_and_raise_a_learned_limit_and_only_lower_a_firm_one() {
        for (firmness, seen, expected) in
            [(Firmness::Learned, 1_200, 50), (Firmness::Learned, 300, 200), (Firmness::Firm, 1_200, 100)]
        {
            let mut bucket = bucket(600, firmness);
            bucket.correct(Some(seen), Some(0));
            assert_eq!(bucket.wait(1.0), Duration::from_millis(expected), "{firmness:?} {seen}");
        }
        let mut bucket = bucket(600, Firmness::Learned);
        bucket.correct(Some(0), None);
        assert_eq!(bucket.wait(50.0), Duration::ZERO, "a limit of zero says nothing");
    }

    #[test]
    fn what_the_provider_has_left_corrects_both_ways() {
        let mut bucket = bucket(600, Firmness::Firm);
        bucket.take(10.0);
        bucket.correct(None, Some(7));
        assert_eq!(bucket.wait(7.0), Duration::ZERO);
        assert!(bucket.wait(8.0) > Duration::ZERO, "fewer are left than we thought");
        bucket.correct(None, Some(400));
        assert_eq!(bucket.wait(50.0), Duration::ZERO, "more are left than we thought");
        bucket.take(50.0);
        bucket.correct(None, Some(90));
        assert!(bucket.wait(1.0) > Duration::ZERO, "sixty are in flight and perhaps not counted yet");
        bucket.correct(None, Some(100));
        assert_eq!(bucket.wait(10.0), Duration::ZERO);
    }

    #[test]
    fn a_days_worth_may_be_used_at_once() {
        let limit = Limit {
            resource: Resource::Requests,
            amount: 14_400,
            window: Duration::from_secs(86_400),
            firmness: Firmness::Learned,
        };
        let mut bucket = Bucket::new(limit, Duration::ZERO);
        assert_eq!(bucket.wait(14_400.0), Duration::ZERO);
        bucket.take(14_400.0);
        assert_eq!(bucket.wait(1.0), Duration::from_secs(6));
    }
}
