//! Where a batch is at a moment: a pure function of its creation, its size, its cancellation and how batches go here.

use super::Job;
use crate::config::Batches;
use crate::random;

/// A batch at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) phase: Phase,
    /// Rows that are done: the first ones.
    pub(crate) done: usize,
    /// When it ended, if it did.
    pub(crate) ended_ms: Option<i64>,
}

/// What a batch is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Validating,
    Running,
    Finalizing,
    Completed,
    Failed,
    Expired,
    Cancelling,
    Cancelled,
}

pub(super) fn look(job: &Job, behaviour: &Batches, seed: u64, now_ms: i64) -> Look {
    let drawn = |what: u64| random::draw(seed, &[job.number, what]);
    let started_ms = job.created_ms + behaviour.validating_ms;
    let fails = job.failure.is_some() || random::happens(drawn(101), behaviour.failed);
    let rows = job.rows.len();
    let stands_still = random::happens(drawn(102), behaviour.stalled);
    let reachable = if stands_still { rows / 2 } else { rows };
    let done_at = |at_ms: i64| {
        let passed = (at_ms - started_ms).max(0);
        let count = if behaviour.row_ms <= 0 { i64::MAX } else { passed / behaviour.row_ms };
        if at_ms < started_ms { 0 } else { reachable.min(usize::try_from(count).unwrap_or(usize::MAX)) }
    };
    let computed_ms = started_ms + behaviour.row_ms * i64::try_from(rows).unwrap_or(i64::MAX);
    // Rows under way when it is cancelled are done before it ends.
    let is_deaf = random::happens(drawn(103), behaviour.cancel_ignored);
    let cancelled_ms = job.cancelled_ms.filter(|_| !is_deaf).map(|at_ms| at_ms + behaviour.finalizing_ms);
    let ends = [
        (fails.then_some(started_ms), Phase::Failed, 0),
        ((!stands_still).then_some(computed_ms + behaviour.finalizing_ms), Phase::Completed, rows),
        (Some(job.created_ms + behaviour.window_ms), Phase::Expired, done_at(job.created_ms + behaviour.window_ms)),
        (cancelled_ms, Phase::Cancelled, cancelled_ms.map_or(0, done_at)),
    ];
    let first = ends.iter().filter_map(|(at_ms, phase, done)| at_ms.map(|at_ms| (at_ms, *phase, *done)));
    let end = first.min_by_key(|(at_ms, ..)| *at_ms).filter(|(at_ms, ..)| *at_ms <= now_ms);
    if let Some((at_ms, phase, done)) = end {
        return Look { phase, done, ended_ms: Some(at_ms) };
    }
    let phase = match () {
        () if job.cancelled_ms.is_some() => Phase::Cancelling,
        () if now_ms < started_ms => Phase::Validating,
        () if now_ms >= computed_ms && !stands_still => Phase::Finalizing,
        () => Phase::Running,
    };
    Look { phase, done: done_at(now_ms), ended_ms: None }
}
