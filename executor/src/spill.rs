//! [`Spill`]: which rows of a model of this machine are asked elsewhere, as the job says. It decides from outcomes and
//! errors, and divides rows between both while the run is late; what may be sent is decided where `there` is made.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rowmill_jobs::infer::{Answer, Engine, Outcome, Request, RowErrorCode, Task};
use rowmill_jobs::spec::{SpillSpec, SpillWhen};
use rowmill_jobs::{Error, Result};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Between two looks whether the run is late.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rows that this machine takes at first of those it may have to share, before its speed is known.
const HERE_FIRST: usize = 32;
/// Work that it takes at a time after that: long enough to fill batches, short enough that both end together.
const HERE_WORK: Duration = Duration::from_secs(5);
/// Rows that go elsewhere at a time.
const THERE: usize = 64;

/// Who can answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seats<'a> {
    /// The model that was asked.
    pub(crate) here: &'a dyn Engine,
    /// Those in its place.
    pub(crate) there: &'a dyn Engine,
    /// Who knows whether the run will miss its deadline, for [`SpillWhen::Late`].
    pub(crate) forecast: Option<&'a dyn Lateness>,
}

/// Whether a run will miss its deadline if this machine does the rest.
#[async_trait]
pub(crate) trait Lateness: Send + Sync + fmt::Debug {
    /// Whether it will, as things are now.
    async fn is_late(&self) -> bool;
}

/// A job's rules, and whether the model that was asked has failed.
#[derive(Debug)]
pub(crate) struct Spill {
    spec: SpillSpec,
    /// It failed in this run: it is not tried again in this process.
    gone: AtomicBool,
}

impl Spill {
    /// The rules of a job for one of its models.
    pub(crate) fn new(spec: &SpillSpec) -> Self {
        Self { spec: spec.clone(), gone: AtomicBool::new(false) }
    }

    /// Whether the job names this case.
    pub(crate) fn has(&self, case: SpillWhen) -> bool {
        self.spec.when.contains(&case)
    }

    /// Answers every request, in their order.
    ///
    /// # Errors
    /// Whoever has to answer cannot go on.
    pub(crate) async fn answer(
        &self,
        seats: Seats<'_>,
        task: &Arc<Task>,
        requests: Vec<Request>,
    ) -> Result<Vec<Outcome>> {
        if self.has(SpillWhen::Always) || self.gone.load(Ordering::Relaxed) {
            return seats.there.infer(task, requests).await;
        }
        let answered = match seats.forecast {
            Some(forecast) => share(seats, forecast, task, &requests).await,
            None => seats.here.infer(task, requests.clone()).await,
        };
        match answered {
            Ok(outcomes) => self.second_thoughts(seats.there, task, requests, outcomes).await,
            Err(error) if self.has(SpillWhen::Unavailable) => {
                tracing::warn!(model = task.model, error = %error, "the model fails; from now on its rows are asked elsewhere");
                self.gone.store(true, Ordering::Relaxed);
                seats.there.infer(task, requests).await
            }
            Err(error) => Err(error),
        }
    }

    /// Asks elsewhere for single rows that the model could not answer, or not surely.
    async fn second_thoughts(
        &self,
        there: &dyn Engine,
        task: &Arc<Task>,
        mut requests: Vec<Request>,
        mut outcomes: Vec<Outcome>,
    ) -> Result<Vec<Outcome>> {
        let rows: Vec<usize> = (0..outcomes.len()).filter(|row| self.doubts(&outcomes[*row])).collect();
        if rows.is_empty() {
            return Ok(outcomes);
        }
        let again = rows.iter().map(|row| std::mem::replace(&mut requests[*row], nothing())).collect();
        for (row, second) in rows.into_iter().zip(there.infer(task, again).await?) {
            outcomes[row] = better(std::mem::replace(&mut outcomes[row], second.clone()), second);
        }
        Ok(outcomes)
    }

    fn doubts(&self, outcome: &Outcome) -> bool {
        match outcome {
            Err(error) => {
                let overflows = matches!(error.code, RowErrorCode::TooLong | RowErrorCode::OutOfMemory);
                overflows && self.has(SpillWhen::Overflow)
            }
            Ok(answered) => match (&answered.answer, self.spec.min_confidence) {
                (Answer::Choice { index, scores }, Some(least)) if self.has(SpillWhen::LowConfidence) => {
                    // Where nothing is known of it, nothing can be doubted.
                    answered.spilled_to.is_none() && scores.get(*index).is_some_and(|score| f64::from(*score) < least)
                }
                _ => false,
            },
        }
    }
}

/// The outcome of a row that was asked twice: the second, unless it is an error and the first none. It took both.
fn better(first: Outcome, second: Outcome) -> Outcome {
    match (first, second) {
        (Ok(first), Ok(mut second)) => {
            second.usage += first.usage;
            Ok(second)
        }
        (Ok(first), Err(_)) => Ok(first),
        (Err(_), second) => second,
    }
}

fn nothing() -> Request {
    Request { values: Default::default() }
}

/// Rows that nobody has taken, and what came of the others.
struct Shared<'a> {
    requests: &'a [Request],
    state: Mutex<State>,
    /// This machine has found nothing more to do, or failed.
    done_here: Notify,
}

struct State {
    /// In order; more than one where rows came back.
    open: VecDeque<Range<usize>>,
    outcomes: Vec<Option<Outcome>>,
}

impl Shared<'_> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nobody panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first rows that are open, at most so many.
    fn first(&self, most: usize) -> Option<Range<usize>> {
        let mut state = self.lock();
        let range = state.open.pop_front()?;
        let middle = range.end.min(range.start + most.max(1));
        if middle < range.end {
            state.open.push_front(middle..range.end);
        }
        Some(range.start..middle)
    }

    /// The last rows that are open, at most so many.
    fn last(&self, most: usize) -> Option<Range<usize>> {
        let mut state = self.lock();
        let range = state.open.pop_back()?;
        let middle = range.start.max(range.end.saturating_sub(most.max(1)));
        if range.start < middle {
            state.open.push_back(range.start..middle);
        }
        Some(middle..range.end)
    }

    fn give_back(&self, range: Range<usize>) {
        self.lock().open.push_back(range);
    }

    fn answered(&self, range: Range<usize>, outcomes: Vec<Outcome>) {
        for (row, outcome) in range.zip(outcomes) {
            self.lock().outcomes[row] = Some(outcome);
        }
    }
}

/// Lets both answer, this machine from the front and, while the run is late, the others from the back, until they meet. When
/// the others cannot go on (their provider is away, the money is spent), this machine does the rest: late is better than not
/// at all.
async fn share(
    seats: Seats<'_>,
    forecast: &dyn Lateness,
    task: &Arc<Task>,
    requests: &[Request],
) -> Result<Vec<Outcome>> {
    let open = std::iter::once(0..requests.len()).collect();
    let shared = Shared {
        requests,
        state: Mutex::new(State { open, outcomes: vec![None; requests.len()] }),
        done_here: Notify::new(),
    };
    let here = async {
        let answered = answer_here(seats.here, task, &shared).await;
        if answered.is_err() {
            // Nothing more is paid for these rows until somebody has decided what becomes of them.
            shared.lock().open.clear();
        }
        shared.done_here.notify_one();
        answered
    };
    let (here, ()) = futures::future::join(here, answer_there(seats.there, forecast, task, &shared)).await;
    here?;
    // What came back after this machine had found nothing more to do.
    answer_here(seats.here, task, &shared).await?;
    let outcomes = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner).outcomes;
    outcomes.into_iter().collect::<Option<_>>().ok_or_else(|| Error::internal("a shared row has no outcome"))
}

async fn answer_here(here: &dyn Engine, task: &Arc<Task>, shared: &Shared<'_>) -> Result<()> {
    let mut most = HERE_FIRST;
    while let Some(range) = shared.first(most) {
        let started = Instant::now();
        let outcomes = here.infer(task, shared.requests[range.clone()].to_vec()).await?;
        let rate = range.len() as f64 / started.elapsed().as_secs_f64().max(1e-6);
        most = ((rate * HERE_WORK.as_secs_f64()) as usize).clamp(1, 4 * range.len().max(1));
        shared.answered(range, outcomes);
    }
    Ok(())
}

async fn answer_there(there: &dyn Engine, forecast: &dyn Lateness, task: &Arc<Task>, shared: &Shared<'_>) {
    loop {
        if !forecast.is_late().await {
            match tokio::time::timeout(LOOK_EVERY, shared.done_here.notified()).await {
                Ok(()) => return,
                Err(_) => continue,
            }
        }
        let Some(range) = shared.last(THERE) else { return };
        match there.infer(task, shared.requests[range.clone()].to_vec()).await {
            Ok(outcomes) => shared.answered(range, outcomes),
            Err(error) => {
                tracing::warn!(model = task.model, error = %error, "nothing more is spilled of these rows");
                shared.give_back(range);
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "spill_tests.rs"]
mod tests;
