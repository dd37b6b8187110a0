//! What an executor holds of the shared limits, and what it has not told Redis yet. Pure: time is handed in, and what is
//! said to Redis and back are values.

use std::time::Duration;

use super::book::learned;
use super::bucket::DOUBT;
use super::exchange::{Answer, Ask, AskBucket};
use super::{Charge, Grant, Limit, Seen};

/// How much an executor takes at once, as time to refill it: a fiftieth of what can be saved up. Calls of a tenth of a
/// second share one round trip, and an executor that ends takes no more with it.
const LEASE: Duration = Duration::from_millis(100);
/// An executor silent for this long does not share the limits any more.
const SILENCE: Duration = Duration::from_secs(60);
/// Half of what a dead executor had in flight is forgotten in this time.
const FORGET: Duration = Duration::from_secs(300);
/// A key that nobody used is forgotten.
const KEEP: Duration = Duration::from_secs(2 * 86_400);
/// Rounding.
const HAIR: f64 = 1e-4;

/// An executor's share.
#[derive(Debug)]
pub(super) struct Lease {
    who: String,
    held: Vec<Held>,
    /// When what is held may be used.
    ready_at: Duration,
    paused_until: Duration,
    /// A pause Redis has not been told of.
    pause_untold: Duration,
    pub(super) members: u64,
}

#[derive(Debug)]
struct Held {
    limit: Limit,
    have: f64,
    /// Not told yet.
    back: f64,
    done: f64,
    seen_limit: Option<u64>,
    seen_remaining: Option<u64>,
}

impl Held {
    fn of(limit: Limit) -> Self {
        Self { limit, have: 0.0, back: 0.0, done: 0.0, seen_limit: None, seen_remaining: None }
    }
}

impl Lease {
    /// Nothing yet.
    pub(super) fn new(who: String, limits: &[Limit]) -> Self {
        Self {
            who,
            held: limits.iter().copied().map(Held::of).collect(),
            ready_at: Duration::ZERO,
            paused_until: Duration::ZERO,
            pause_untold: Duration::ZERO,
            members: 1,
        }
    }

    /// The limits, learned ones included.
    pub(super) fn limits(&self) -> impl Iterator<Item = Limit> {
        self.held.iter().map(|held| held.limit)
    }

    /// Serves a call from what is held; `None` if Redis has to be asked.
    pub(super) fn take(&mut self, charge: Charge, wait_max: Duration, now: Duration) -> Option<Grant> {
        let paused = self.paused(now);
        if paused > wait_max {
            return Some(Grant::Refused(paused));
        }
        let enough = |held: &Held| held.have + HAIR >= charge.of(held.limit.resource);
        // Without limits there is only the pause to ask for, which every settlement does.
        if !self.held.iter().all(enough) {
            return None;
        }
        let wait = paused.max(self.ready_at.saturating_sub(now));
        if wait > wait_max {
            return Some(Grant::Refused(wait));
        }
        for held in &mut self.held {
            held.have -= charge.of(held.limit.resource);
        }
        Some(Grant::After(wait))
    }

    /// What is to be said to Redis, with a charge if there is one to take. It counts as said.
    pub(super) fn ask(&mut self, charge: Option<(Charge, Duration)>) -> Ask {
        let buckets = self.held.iter_mut().map(|held| {
            let needed = charge.map_or(0.0, |(charge, _)| charge.of(held.limit.resource) - held.have);
            AskBucket {
                least: if needed > HAIR { needed } else { 0.0 },
                back: std::mem::take(&mut held.back),
                done: std::mem::take(&mut held.done),
                seen_limit: held.seen_limit.take().map_or(0.0, |limit| limit as f64),
                seen_remaining: held.seen_remaining.take().map_or(-1.0, |remaining| remaining as f64),
                ..AskBucket::of(&held.limit)
            }
        });
        Ask {
            buckets: buckets.collect(),
            who: self.who.clone(),
            take: charge.is_some(),
            wait_max: charge.map_or(0.0, |(_, wait_max)| wait_max.as_secs_f64()),
            pause: std::mem::take(&mut self.pause_untold).as_secs_f64(),
            lease: LEASE.as_secs_f64(),
            silence: SILENCE.as_secs_f64(),
            doubt: DOUBT,
            forget: FORGET.as_secs_f64(),
            keep: KEEP.as_secs(),
        }
    }

    /// Takes note of what Redis said. Limits learned meanwhile were not asked for and have no amount.
    pub(super) fn answer(&mut self, charge: Option<Charge>, answer: &Answer, now: Duration) -> Grant {
        self.members = answer.members;
        self.paused_until = self.paused_until.max(now + answer.paused);
        let Some(charge) = charge.filter(|_| answer.granted) else { return Grant::Refused(answer.wait) };
        for (held, amount) in self.held.iter_mut().zip(&answer.amounts) {
            held.have += amount - charge.of(held.limit.resource);
        }
        self.ready_at = self.ready_at.max(now + answer.wait);
        Grant::After(answer.wait)
    }

    pub(super) fn settle(&mut self, reserved: Charge, used: Charge) {
        for held in &mut self.held {
            let (reserved, used) = (reserved.of(held.limit.resource), used.of(held.limit.resource));
            held.back += reserved - used;
            held.done += reserved;
        }
    }

    pub(super) fn correct(&mut self, seen: &[Seen], now: Duration) {
        for seen in seen {
            let same = |held: &&mut Held| held.limit.resource == seen.resource && held.limit.window == seen.window;
            match self.held.iter_mut().find(same) {
                Some(held) => {
                    held.seen_limit = seen.limit.or(held.seen_limit);
                    held.seen_remaining = seen.remaining.or(held.seen_remaining);
                }
                None => self.held.extend(learned(seen).map(|limit| Held {
                    seen_limit: seen.limit,
                    seen_remaining: seen.remaining,
                    ..Held::of(limit)
                })),
            }
            if let Some(pause) = seen.pause() {
                self.pause(pause, now);
            }
        }
    }

    pub(super) fn pause(&mut self, time: Duration, now: Duration) {
        self.paused_until = self.paused_until.max(now + time);
        self.pause_untold = self.pause_untold.max(time);
    }

    pub(super) fn paused(&self, now: Duration) -> Duration {
        self.paused_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Resource;
    use super::*;

    const CALL: Charge = Charge { requests: 1, input_tokens: 0, output_tokens: 0 };
    const MINUTE: Duration = Duration::from_secs(60);

    fn lease() -> Lease {
        Lease::new("me".into(), &[Limit::per_minute(Resource::Requests, 600)])
    }

    #[test]
    fn what_was_granted_serves_several_calls_after_its_wait() {
        let mut lease = lease();
        assert_eq!(lease.take(CALL, MINUTE, Duration::ZERO), None, "nothing is held yet");
        let ask = lease.ask(Some((CALL, MINUTE)));
        assert!((ask.take, ask.buckets[0].least) == (true, 1.0));
        let answer = Answer::read(&[0.5, 4.0, 0.0, 1.0, 3.0]).unwrap();
        assert_eq!(lease.answer(Some(CALL), &answer, Duration::ZERO), Grant::After(Duration::from_millis(500)));
        assert_eq!(lease.members, 4);
        let later = Duration::from_millis(200);
        assert_eq!(lease.take(CALL, MINUTE, later), Some(Grant::After(Duration::from_millis(300))));
        assert_eq!(lease.take(CALL, later, later), Some(Grant::Refused(Duration::from_millis(300))));
        assert_eq!(lease.take(CALL, MINUTE, later * 5), Some(Grant::After(Duration::ZERO)));
        assert_eq!(lease.take(CALL, MINUTE, later * 5), None, "three were granted");
    }

    #[test]
    fn settlements_and_headers_are_told_once() {
        let mut lease = lease();
        lease.settle(CALL, Charge::default());
        lease.settle(CALL, CALL);
        let seen =
            Seen { resource: Resource::Requests, window: MINUTE, limit: Some(900), remaining: Some(3), reset: None };
        lease.correct(&[seen, Seen { resource: Resource::Tokens, ..seen }], Duration::ZERO);
        lease.pause(MINUTE, Duration::ZERO);
        let ask = lease.ask(None);
        let bucket = &ask.buckets[0];
        assert_eq!((bucket.back, bucket.done, bucket.seen_limit, bucket.seen_remaining), (1.0, 2.0, 900.0, 3.0));
        assert_eq!((ask.pause, ask.take, ask.buckets.len()), (60.0, false, 2));
        let ask = lease.ask(None);
        let bucket = &ask.buckets[0];
        assert_eq!((bucket.back, bucket.done, bucket.seen_limit, bucket.seen_remaining), (0.0, 0.0, 0.0, -1.0));
        assert_eq!(ask.pause, 0.0);
        assert_eq!(lease.take(CALL, Duration::ZERO, MINUTE / 2), Some(Grant::Refused(MINUTE / 2)));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for numbers in [&[][..], &[1.0, 1.0, 1.0], &[-1.0, 1.0, 0.0, 1.0], &[f64::NAN, 1.0, 0.0, 1.0]] {
            assert_eq!(Answer::read(numbers), None, "{numbers:?}");
        }
    }
}
