//! Decides which shards to queue and when a run is over or lost. Pure: it is told what was seen and the time, and says
//! what to do ([`Action`]); the loop in `drive.rs` does it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use rowmill_jobs::Error;
use rowmill_jobs::queue::{Held, WINDOW_MAX};

/// Bounds on what a run may have queued and try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most shards queued or running at once.
    pub window: usize,
    /// Most attempts at one shard that may fail.
    pub attempts_max: u32,
    /// Wait before the second attempt; doubles for each further one.
    pub backoff: Duration,
    /// When a running shard is given to a second executor; `None`: never.
    pub late: Option<Late>,
}

/// When a running shard is late: at the end of a run, one slow machine must not keep everybody waiting. The commit
/// protocol makes running it twice safe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Late {
    /// Times the median of the finished shards.
    pub factor: f64,
    /// At least this long.
    pub at_least: Duration,
}

/// Marks the copy of a late shard.
const LATE_COPY: u32 = 1 << 31;
/// Finished shards that a median needs.
const DURATIONS_MIN: usize = 3;

impl Limits {
    /// For a run whose executors are this process.
    pub fn one_process() -> Self {
        Self { window: WINDOW_MAX, attempts_max: 3, backoff: Duration::from_secs(1), late: None }
    }

    /// For a run whose executors are other processes.
    pub fn many_processes() -> Self {
        let late = Late { factor: 3.0, at_least: Duration::from_secs(30) };
        Self { late: Some(late), ..Self::one_process() }
    }
}

/// What to do next.
#[derive(Debug)]
pub enum Action {
    /// Queue these shards, as `(shard, copy)`.
    Push(Vec<(u32, u32)>),
    /// All parts are there: publish.
    Finalize,
    /// The run cannot be finished by trying again.
    Fail(Error),
}

/// What is known of each shard.
#[derive(Debug)]
pub struct Tracker {
    limits: Limits,
    /// Where queueing begins: two processes that begin at different shards meet late.
    first: usize,
    shards: Vec<Tracked>,
    failures_seen: HashSet<String>,
    /// How long finished shards ran.
    durations: Vec<Duration>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tracked {
    state: State,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Neither queued nor done.
    #[default]
    Missing,
    /// Not to be queued before this time since the drive's start.
    BackingOff { until: Duration },
    /// In the queue.
    Queued { running_since: Option<Duration>, copies: u32 },
    /// Its part exists.
    Committed,
}

impl Tracker {
    /// Nothing is known yet of `shards` shards. Queueing begins at shard `first`.
    pub fn new(shards: usize, first: usize, limits: Limits) -> Self {
        Self {
            limits,
            first: first % shards.max(1),
            shards: vec![Tracked::default(); shards],
            failures_seen: HashSet::new(),
            durations: Vec::new(),
        }
    }

    /// Parts that exist. Time since the drive's start is `now`.
    pub fn committed(&mut self, shards: &BTreeSet<u32>, now: Duration) {
        for &shard in shards {
            let Some(tracked) = self.shards.get_mut(shard as usize) else { continue };
            if let State::Queued { running_since: Some(since), .. } = tracked.state {
                self.durations.push(now.saturating_sub(since));
            }
            tracked.state = State::Committed;
        }
    }

    /// What the queue held, looked at after everything that was pushed until now and before the parts that were told
    /// last. What it does not hold and has no part is nowhere.
    pub fn held(&mut self, held: &BTreeMap<u32, Held>, now: Duration) {
        for (shard, tracked) in (0u32..).zip(&mut self.shards) {
            let held = held.get(&shard);
            tracked.state = match (tracked.state, held) {
                (State::Committed, _) => State::Committed,
                // What failed may still be on its way out of the queue.
                (State::BackingOff { until }, _) => State::BackingOff { until },
                (_, None) => State::Missing,
                (state, Some(held)) => {
                    let since = match state {
                        State::Queued { running_since, .. } => running_since,
                        _ => None,
                    };
                    State::Queued { running_since: held.running.then(|| since.unwrap_or(now)), copies: held.copies }
                }
            };
        }
    }

    /// An attempt failed. The same attempt may be told several times. Permanent trouble, or trouble too often, fails the
    /// run.
    pub fn failed(&mut self, shard: u32, attempt: &str, error: Error, now: Duration) -> Option<Action> {
        let total = self.shards.len();
        let tracked = self.shards.get_mut(shard as usize)?;
        if !self.failures_seen.insert(attempt.to_owned()) || tracked.state == State::Committed {
            return None;
        }
        tracked.failures += 1;
        let failures = tracked.failures;
        if !error.retryable() || failures >= self.limits.attempts_max {
            return Some(Action::Fail(error.with("shard", format!("{shard} of {total}, attempt {failures}"))));
        }
        tracked.state = State::BackingOff { until: now + self.limits.backoff * 2u32.saturating_pow(failures - 1) };
        None
    }

    /// Failures that are not this drive's business: they were there before it.
    pub fn forget_failure(&mut self, attempt: &str) {
        self.failures_seen.insert(attempt.to_owned());
    }

    /// Whether a failure was told already.
    pub fn knows_failure(&self, attempt: &str) -> bool {
        self.failures_seen.contains(attempt)
    }

    /// What to do at `now` (since the drive's start), given all that was told.
    pub fn next(&mut self, now: Duration) -> Option<Action> {
        if self.shards.iter().all(|tracked| tracked.state == State::Committed) {
            return Some(Action::Finalize);
        }
        let queued = self.shards.iter().filter(|tracked| matches!(tracked.state, State::Queued { .. })).count();
        let due = |tracked: &Tracked| match tracked.state {
            State::Missing => true,
            State::BackingOff { until } => until <= now,
            State::Queued { .. } | State::Committed => false,
        };
        let order = (self.first..self.shards.len()).chain(0..self.first);
        let mut push: Vec<(u32, u32)> = order
            .filter(|index| due(&self.shards[*index]))
            .take(self.limits.window.saturating_sub(queued))
            // A new copy for each failure: the old one may still be on its way out of the queue.
            .filter_map(|index| Some((u32::try_from(index).ok()?, self.shards[index].failures)))
            .collect();
        for (shard, _) in &push {
            self.shards[*shard as usize].state = State::Queued { running_since: None, copies: 1 };
        }
        if push.is_empty() {
            push = self.late(now);
        }
        (!push.is_empty()).then_some(Action::Push(push))
    }

    /// Shards that run alone for too long while nothing else is left to do.
    fn late(&mut self, now: Duration) -> Vec<(u32, u32)> {
        let Some(late) = self.limits.late else { return Vec::new() };
        let waits = |tracked: &Tracked| match tracked.state {
            State::Queued { running_since, .. } => running_since.is_none(),
            State::Missing | State::BackingOff { .. } => true,
            State::Committed => false,
        };
        if self.durations.len() < DURATIONS_MIN || self.shards.iter().any(waits) {
            return Vec::new();
        }
        let middle = self.durations.len() / 2;
        let median = *self.durations.select_nth_unstable(middle).1;
        let limit = late.at_least.max(median.mul_f64(late.factor));
        let mut push = Vec::new();
        for (shard, tracked) in (0u32..).zip(&mut self.shards) {
            if let State::Queued { running_since: Some(since), copies: 1 } = &mut tracked.state
                && now.saturating_sub(*since) > limit
            {
                tracked.state = State::Queued { running_since: Some(*since), copies: 2 };
                push.push((shard, LATE_COPY | tracked.failures));
            }
        }
        push
    }

    /// Shards whose part exists.
    pub fn committed_count(&self) -> usize {
        self.shards.iter().filter(|tracked| tracked.state == State::Committed).count()
    }

    /// Whether a shard's part exists.
    pub fn is_committed(&self, shard: u32) -> bool {
        self.shards.get(shard as usize).is_some_and(|tracked| tracked.state == State::Committed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowmill_jobs::Kind;

    const LATE: Late = Late { factor: 3.0, at_least: Duration::from_secs(5) };
    const LIMITS: Limits = Limits { window: 2, attempts_max: 3, backoff: Duration::from_secs(1), late: Some(LATE) };

    fn pushed(action: Option<Action>) -> Vec<(u32, u32)> {
        match action {
            Some(Action::Push(shards)) => shards,
            None => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held(shards: &[(u32, u32, bool)]) -> BTreeMap<u32, Held> {
        shards.iter().map(|&(shard, copies, running)| (shard, Held { copies, running })).collect()
    }

    #[test]
    fn queues_a_window_of_what_is_missing_and_publishes_when_nothing_is() {
        let mut tracker = Tracker::new(4, 2, LIMITS);
        tracker.committed(&BTreeSet::from([3]), at(0));
        assert_eq!(pushed(tracker.next(at(0))), [(2, 0), (0, 0)]);
        assert_eq!(pushed(tracker.next(at(0))), []);
        tracker.committed(&BTreeSet::from([0]), at(0));
        assert_eq!(pushed(tracker.next(at(0))), [(1, 0)]);
        tracker.committed(&BTreeSet::from([0, 1, 2, 3]), at(0));
        assert!(matches!(tracker.next(at(0)), Some(Action::Finalize)));
    }

    #[test]
    fn queues_again_what_the_queue_lost_and_not_what_another_scheduler_queued() {
        let mut tracker = Tracker::new(3, 0, LIMITS);
        assert_eq!(pushed(tracker.next(at(0))), [(0, 0), (1, 0)]);
        tracker.held(&held(&[(1, 1, false), (2, 1, true)]), at(1));
        assert_eq!(pushed(tracker.next(at(1))), []);
        tracker.held(&held(&[(1, 1, false)]), at(2));
        tracker.committed(&BTreeSet::from([2]), at(2));
        assert_eq!(pushed(tracker.next(at(2))), [(0, 0)]);
    }

    #[test]
    fn tries_temporary_trouble_again_later_and_then_gives_up() {
        let mut tracker = Tracker::new(1, 0, LIMITS);
        for (copy, now) in [(0, 0), (1, 1)] {
            assert_eq!(pushed(tracker.next(at(now))), [(0, copy)]);
            assert!(tracker.failed(0, &format!("a{copy}"), Error::temporary("away"), at(now)).is_none());
            assert!(tracker.failed(0, &format!("a{copy}"), Error::temporary("away"), at(now)).is_none(), "told twice");
            tracker.held(&BTreeMap::new(), at(now));
            assert_eq!(pushed(tracker.next(at(now))), [], "attempt {copy} backs off");
        }
        assert_eq!(pushed(tracker.next(at(3))), [(0, 2)]);
        let Some(Action::Fail(error)) = tracker.failed(0, "a2", Error::temporary("away"), at(3)) else { panic!() };
        assert_eq!(error.kind(), Kind::Temporary);
    }

    #[test]
    fn permanent_trouble_fails_at_once_but_never_a_committed_shard() {
        let mut tracker = Tracker::new(2, 0, LIMITS);
        tracker.committed(&BTreeSet::from([0]), at(0));
        assert!(tracker.failed(0, "a", Error::invalid("bad"), at(0)).is_none());
        tracker.forget_failure("old");
        assert!(tracker.failed(1, "old", Error::invalid("bad"), at(0)).is_none());
        assert!(matches!(tracker.failed(1, "b", Error::invalid("bad"), at(0)), Some(Action::Fail(_))));
    }

    #[test]
    fn a_late_shard_runs_twice_once_nothing_else_is_left() {
        let limits = Limits { window: 9, ..LIMITS };
        let mut tracker = Tracker::new(5, 0, limits);
        pushed(tracker.next(at(0)));
        let all: Vec<_> = (0..5).map(|shard| (shard, 1, true)).collect();
        tracker.held(&held(&all), at(0));
        tracker.committed(&BTreeSet::from([0, 1, 2]), at(4));
        tracker.held(&held(&[(3, 1, true), (4, 1, false)]), at(4));
        assert_eq!(pushed(tracker.next(at(40))), [], "something still waits");
        tracker.held(&held(&[(3, 1, true), (4, 1, true)]), at(8));
        assert_eq!(pushed(tracker.next(at(12))), [], "3 x 4 s is not over");
        assert_eq!(pushed(tracker.next(at(13))), [(3, LATE_COPY)]);
        assert_eq!(pushed(tracker.next(at(14))), [], "two are enough");
        tracker.held(&held(&[(3, 2, true), (4, 1, true)]), at(14));
        assert_eq!(pushed(tracker.next(at(99))), [(4, LATE_COPY)]);
    }
}
