//! All limits of a key and its pause, in one place. Pure: time is handed in.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bucket::Bucket;
use super::{Charge, Firmness, Grant, Limit, Resource, Seen};

/// What is left of every limit.
#[derive(Debug)]
pub(super) struct Book {
    buckets: BTreeMap<(Resource, Duration), Bucket>,
    paused_until: Duration,
}

impl Book {
    /// Full.
    pub(super) fn new(limits: &[Limit], now: Duration) -> Self {
        let buckets = limits.iter().map(|limit| ((limit.resource, limit.window), Bucket::new(*limit, now))).collect();
        Self { buckets, paused_until: Duration::ZERO }
    }

    pub(super) fn reserve(&mut self, charge: Charge, wait_max: Duration, now: Duration) -> Grant {
        let mut wait = self.paused(now);
        for ((resource, _), bucket) in &mut self.buckets {
            bucket.refill(now);
            wait = wait.max(bucket.wait(charge.of(*resource)));
        }
        if wait > wait_max {
            return Grant::Refused(wait);
        }
        for ((resource, _), bucket) in &mut self.buckets {
            bucket.take(charge.of(*resource));
        }
        Grant::After(wait)
    }

    pub(super) fn settle(&mut self, reserved: Charge, used: Charge) {
        for ((resource, _), bucket) in &mut self.buckets {
            bucket.settle(reserved.of(*resource), used.of(*resource));
        }
    }

    /// A limit nobody told us of is learned.
    pub(super) fn correct(&mut self, seen: &[Seen], now: Duration) {
        for seen in seen {
            let at = (seen.resource, seen.window);
            if let (None, Some(limit)) = (self.buckets.get(&at), learned(seen)) {
                self.buckets.insert(at, Bucket::new(limit, now));
            }
            if let Some(bucket) = self.buckets.get_mut(&at) {
                bucket.refill(now);
                bucket.correct(seen.limit, seen.remaining);
            }
            if let Some(pause) = seen.pause() {
                self.pause(pause, now);
            }
        }
    }

    pub(super) fn pause(&mut self, time: Duration, now: Duration) {
        self.paused_until = self.paused_until.max(now.saturating_add(time));
    }

    pub(super) fn paused(&self, now: Duration) -> Duration {
        self.paused_until.saturating_sub(now)
    }
}

/// A limit that only the provider told us of.
pub(super) fn learned(seen: &Seen) -> Option<Limit> {
    let amount = seen.limit.filter(|limit| *limit > 0)?;
    Some(Limit { resource: seen.resource, amount, window: seen.window, firmness: Firmness::Learned })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const CALL: Charge = Charge { requests: 1, input_tokens: 100, output_tokens: 20 };

    #[test]
    fn the_scarcest_resource_decides() {
        let limits = [Limit::per_minute(Resource::Requests, 6_000), Limit::per_minute(Resource::Tokens, 1_200)];
        let mut book = Book::new(&limits, Duration::ZERO);
        assert_eq!(book.reserve(CALL, MINUTE, Duration::ZERO), Grant::After(Duration::from_secs(1)));
        assert_eq!(book.reserve(CALL, MINUTE, Duration::ZERO), Grant::After(Duration::from_secs(7)));
    }

    #[test]
    fn what_is_refused_takes_nothing() {
        let mut book = Book::new(&[Limit::per_minute(Resource::Requests, 60)], Duration::ZERO);
        for _ in 0..5 {
            assert_eq!(book.reserve(CALL, Duration::ZERO, Duration::ZERO), Grant::After(Duration::ZERO));
        }
        for _ in 0..3 {
            assert_eq!(book.reserve(CALL, Duration::ZERO, Duration::ZERO), Grant::Refused(Duration::from_secs(1)));
        }
    }

    #[test]
    fn a_pause_holds_everything_back_and_ends() {
        let mut book = Book::new(&[], Duration::ZERO);
        book.pause(Duration::from_secs(30), Duration::ZERO);
        book.pause(Duration::from_secs(10), Duration::ZERO);
        assert_eq!(book.reserve(CALL, MINUTE, Duration::from_secs(5)), Grant::After(Duration::from_secs(25)));
        assert_eq!(book.reserve(CALL, MINUTE, Duration::from_secs(31)), Grant::After(Duration::ZERO));
    }

    #[test]
    fn limits_are_learned_and_a_day_that_is_used_up_is_waited_for() {
        let mut book = Book::new(&[], Duration::ZERO);
        let minute = Seen {
            resource: Resource::InputTokens,
            window: MINUTE,
            limit: Some(6_000),
            remaining: Some(0),
            reset: Some(MINUTE),
        };
        book.correct(&[minute], Duration::ZERO);
        assert_eq!(book.reserve(CALL, MINUTE, Duration::ZERO), Grant::After(Duration::from_secs(1)));
        let day = Seen { resource: Resource::Requests, window: MINUTE * 1_440, reset: Some(MINUTE * 90), ..minute };
        book.correct(&[day], Duration::ZERO);
        assert_eq!(book.reserve(CALL, MINUTE, Duration::ZERO), Grant::Refused(MINUTE * 90));
    }
}
