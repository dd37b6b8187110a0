//! Decides which shards to queue and when a run is over or lost. Pure: it is told what was seen and the time, and says
//! what to do ([`Action`]); the loop in `drive.rs` does it.

use std::collections::BTreeSet;
use std::time::Duration;

use rowmill_jobs::Error;

/// Bounds on what a run may have queued and try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most shards queued or running at once.
    pub window: usize,
    /// Most attempts at one shard.
    pub attempts_max: u32,
    /// Wait before the second attempt; doubles for each further one.
    pub backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window: 2_000, attempts_max: 3, backoff: Duration::from_secs(1) }
    }
}

/// What to do next.
#[derive(Debug)]
pub enum Action {
    /// Queue these shards.
    Push(Vec<u32>),
    /// All parts are there: publish.
    Finalize,
    /// The run cannot be finished by trying again.
    Fail(Error),
}

/// What is known of each shard.
#[derive(Debug)]
pub struct Tracker {
    limits: Limits,
    shards: Vec<State>,
    failures: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be queued, not before this time since the run's start.
    Waiting {
        not_before: Duration,
    },
    Queued,
    Committed,
}

impl Tracker {
    /// Nothing is known yet of `shards` shards.
    pub fn new(shards: usize, limits: Limits) -> Self {
        let waiting = State::Waiting { not_before: Duration::ZERO };
        Self { limits, shards: vec![waiting; shards], failures: vec![0; shards] }
    }

    /// Parts that exist, as a listing told.
    pub fn committed(&mut self, shards: &BTreeSet<u32>) {
        for &shard in shards {
            if let Some(state) = self.shards.get_mut(shard as usize) {
                *state = State::Committed;
            }
        }
    }

    /// A shard's attempt failed at `now` (since the run's start). Permanent trouble, or trouble too often, fails the run.
    pub fn failed(&mut self, shard: u32, error: Error, now: Duration) -> Option<Action> {
        let index = shard as usize;
        let attempts = self.failures.get_mut(index)?;
        if self.shards[index] == State::Committed {
            return None;
        }
        *attempts += 1;
        if !error.retryable() || *attempts >= self.limits.attempts_max {
            let total = self.shards.len();
            return Some(Action::Fail(error.with("shard", format!("{shard} of {total}, attempt {attempts}"))));
        }
        let wait = self.limits.backoff * 2u32.saturating_pow(*attempts - 1);
        self.shards[index] = State::Waiting { not_before: now + wait };
        None
    }

    /// What to do at `now` (since the run's start), given all that was told.
    pub fn next(&mut self, now: Duration) -> Option<Action> {
        if self.shards.iter().all(|state| *state == State::Committed) {
            return Some(Action::Finalize);
        }
        let queued = self.shards.iter().filter(|state| **state == State::Queued).count();
        let due: Vec<u32> = (0u32..)
            .zip(&self.shards)
            .filter(|(_, state)| matches!(state, State::Waiting { not_before } if *not_before <= now))
            .map(|(shard, _)| shard)
            .take(self.limits.window.saturating_sub(queued))
            .collect();
        if due.is_empty() {
            return None;
        }
        for &shard in &due {
            self.shards[shard as usize] = State::Queued;
        }
        Some(Action::Push(due))
    }

    /// Shards whose part exists.
    pub fn committed_count(&self) -> usize {
        self.shards.iter().filter(|state| **state == State::Committed).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowmill_jobs::Kind;

    const LIMITS: Limits = Limits { window: 2, attempts_max: 3, backoff: Duration::from_secs(1) };

    fn pushed(action: Option<Action>) -> Vec<u32> {
        match action {
            Some(Action::Push(shards)) => shards,
            None => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn queues_a_window_of_what_is_missing_and_publishes_when_nothing_is() {
        let mut tracker = Tracker::new(4, LIMITS);
        tracker.committed(&BTreeSet::from([1]));
        assert_eq!(pushed(tracker.next(at(0))), [0, 2]);
        assert_eq!(pushed(tracker.next(at(0))), [0; 0]);
        tracker.committed(&BTreeSet::from([0]));
        assert_eq!(pushed(tracker.next(at(0))), [3]);
        tracker.committed(&BTreeSet::from([0, 1, 2, 3]));
        assert!(matches!(tracker.next(at(0)), Some(Action::Finalize)));
    }

    #[test]
    fn tries_temporary_trouble_again_later_and_then_gives_up() {
        let mut tracker = Tracker::new(1, LIMITS);
        for (attempt, now) in [(1, 0), (2, 1)] {
            assert_eq!(pushed(tracker.next(at(now))), [0]);
            assert!(tracker.failed(0, Error::temporary("away"), at(now)).is_none());
            assert_eq!(pushed(tracker.next(at(now))), [0; 0], "attempt {attempt} backs off");
        }
        assert_eq!(pushed(tracker.next(at(3))), [0]);
        let Some(Action::Fail(error)) = tracker.failed(0, Error::temporary("away"), at(3)) else { panic!() };
        assert_eq!(error.kind(), Kind::Temporary);
    }

    #[test]
    fn permanent_trouble_fails_at_once_but_never_a_committed_shard() {
        let mut tracker = Tracker::new(2, LIMITS);
        tracker.committed(&BTreeSet::from([0]));
        assert!(tracker.failed(0, Error::invalid("bad"), at(0)).is_none());
        assert!(matches!(tracker.failed(1, Error::invalid("bad"), at(0)), Some(Action::Fail(_))));
    }
}
