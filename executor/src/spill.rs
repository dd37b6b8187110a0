//! [`Spill`]: which rows of a model of this machine are asked elsewhere, as the job says. It decides from outcomes and
//! errors, and divides rows between both while the run is late; what may be sent is decided where `there` is made.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rowmill_jobs::infer::{Answer, Answered, Engine, Outcome, Partial, Request, RowErrorCode, Task};
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
    pub(crate) there: &'a dyn Elsewhere,
    /// Who knows whether the run will miss its deadline, for [`SpillWhen::Late`].
    pub(crate) forecast: Option<&'a dyn Lateness>,
}

/// Models that are paid for what they answer.
#[async_trait]
pub(crate) trait Elsewhere: Send + Sync + fmt::Debug {
    /// Answers as many requests as it can.
    async fn ask(&self, task: &Arc<Task>, requests: Vec<Request>) -> Partial;
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
            return seats.there.ask(task, requests).await.whole();
        }
        let First { mut partial, mut spilled } = match seats.forecast {
            Some(forecast) => share(seats, forecast, task, &requests).await,
            None => alone(seats.here, task, &requests).await,
        };
        if let Some(error) = partial.stopped.take() {
            // What was answered elsewhere is kept there, rows that were refused as well: the next attempt finds it, and asks
            // here again.
            if !self.has(SpillWhen::Unavailable) {
                return Err(error);
            }
            tracing::warn!(model = task.model, error = %error, "the model fails; from now on its rows are asked elsewhere");
            self.gone.store(true, Ordering::Relaxed);
            // What was answered before stands, wherever: it was paid for, or computed.
            let open = partial.open();
            let rest = open.iter().map(|row| requests[*row].clone()).collect();
            open.iter().for_each(|row| spilled[*row] = true);
            partial.fill(&open, seats.there.ask(task, rest).await);
        }
        self.second_thoughts(seats.there, task, requests, (partial.whole()?, spilled)).await
    }

    /// Asks elsewhere for single rows that the model could not answer, or not surely; but for none that was asked there already.
    async fn second_thoughts(
        &self,
        there: &dyn Elsewhere,
        task: &Arc<Task>,
        mut requests: Vec<Request>,
        (mut outcomes, spilled): (Vec<Outcome>, Vec<bool>),
    ) -> Result<Vec<Outcome>> {
        let doubtful = |row: &usize| !spilled[*row] && self.doubts(&outcomes[*row]);
        let rows: Vec<usize> = (0..outcomes.len()).filter(doubtful).collect();
        if rows.is_empty() {
            return Ok(outcomes);
        }
        let again = rows.iter().map(|row| std::mem::replace(&mut requests[*row], nothing())).collect();
        for (row, second) in rows.into_iter().zip(there.ask(task, again).await.whole()?) {
            outcomes[row] = better(std::mem::replace(&mut outcomes[row], second.clone()), second);
        }
        Ok(outcomes)
    }

    /// Whether an outcome of this machine's model is a case for another.
    fn doubts(&self, outcome: &Outcome) -> bool {
        match outcome {
            Err(error) => {
                let overflows = matches!(error.code, RowErrorCode::TooLong | RowErrorCode::OutOfMemory);
                overflows && self.has(SpillWhen::Overflow)
            }
            Ok(Answered { answer: Answer::Choice { index, scores }, .. }) => {
                let least = self.spec.min_confidence.filter(|_| self.has(SpillWhen::LowConfidence));
                // Where nothing is known of it, nothing can be doubted.
                least.zip(scores.get(*index)).is_some_and(|(least, score)| f64::from(*score) < least)
            }
            Ok(_) => false,
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

/// What came of rows before second thoughts.
struct First {
    partial: Partial,
    /// Rows that were asked elsewhere.
    spilled: Vec<bool>,
}

/// Lets this machine answer.
async fn alone(here: &dyn Engine, task: &Arc<Task>, requests: &[Request]) -> First {
    let nothing = Partial::nothing(requests.len());
    let partial = match here.infer(task, requests.to_vec()).await {
        Ok(outcomes) => Partial { outcomes: outcomes.into_iter().map(Some).collect(), stopped: None },
        Err(error) => Partial { stopped: Some(error), ..nothing },
    };
    First { partial, spilled: vec![false; requests.len()] }
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
    first: First,
}

impl<'a> Shared<'a> {
    fn new(requests: &'a [Request]) -> Self {
        let first = First { partial: Partial::nothing(requests.len()), spilled: vec![false; requests.len()] };
        let state = Mutex::new(State { open: std::iter::once(0..requests.len()).collect(), first });
        Self { requests, state, done_here: Notify::new() }
    }

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

    fn answered_here(&self, range: Range<usize>, outcomes: Vec<Outcome>) {
        let mut state = self.lock();
        range.zip(outcomes).for_each(|(row, outcome)| state.first.partial.outcomes[row] = Some(outcome));
    }

    /// Takes what came of rows elsewhere; those without an answer are open again. Returns why there are any.
    fn answered_there(&self, range: Range<usize>, came: Partial) -> Option<Error> {
        let mut state = self.lock();
        for (row, outcome) in range.zip(came.outcomes) {
            if outcome.is_some() {
                state.first.partial.outcomes[row] = outcome;
                state.first.spilled[row] = true;
                continue;
            }
            match state.open.back_mut().filter(|last| last.end == row) {
                Some(last) => last.end += 1,
                None => state.open.push_back(row..row + 1),
            }
        }
        came.stopped
    }
}

/// Lets both answer, this machine from the front and, while the run is late, the others from the back, until they meet. When
/// the others cannot go on (their provider is away, the money is spent), or refuse a row, this machine does the rest: late is
/// better than not at all. When this machine cannot, what it and the others had answered until then is returned.
async fn share(seats: Seats<'_>, forecast: &dyn Lateness, task: &Arc<Task>, requests: &[Request]) -> First {
    let shared = Shared::new(requests);
    let here = async {
        let answered = answer_here(seats.here, task, &shared).await;
        if answered.is_err() {
            // Nothing more is paid for these rows until somebody has decided what becomes of them.
            shared.lock().open.clear();
        }
        shared.done_here.notify_one();
        answered
    };
    let (mut here, ()) = futures::future::join(here, answer_there(seats.there, forecast, task, &shared)).await;
    if here.is_ok() {
        // What came back after this machine had found nothing more to do.
        here = answer_here(seats.here, task, &shared).await;
    }
    let mut first = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner).first;
    if here.is_ok() {
        here = answer_refused(seats.here, task, requests, &mut first).await;
    }
    first.partial.stopped = here.err();
    first
}

/// Lets this machine answer rows that came back with errors: they were asked elsewhere for lack of time only.
async fn answer_refused(here: &dyn Engine, task: &Arc<Task>, requests: &[Request], first: &mut First) -> Result<()> {
    let refused = |row: &usize| first.spilled[*row] && matches!(first.partial.outcomes[*row], Some(Err(_)));
    let rows: Vec<usize> = (0..requests.len()).filter(refused).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let outcomes = here.infer(task, rows.iter().map(|row| requests[*row].clone()).collect()).await?;
    rows.into_iter().zip(outcomes).for_each(|(row, outcome)| first.partial.outcomes[row] = Some(outcome));
    Ok(())
}

async fn answer_here(here: &dyn Engine, task: &Arc<Task>, shared: &Shared<'_>) -> Result<()> {
    let mut most = HERE_FIRST;
    while let Some(range) = shared.first(most) {
        let started = Instant::now();
        let outcomes = here.infer(task, shared.requests[range.clone()].to_vec()).await?;
        let rate = range.len() as f64 / started.elapsed().as_secs_f64().max(1e-6);
        most = ((rate * HERE_WORK.as_secs_f64()) as usize).clamp(1, 4 * range.len().max(1));
        shared.answered_here(range, outcomes);
    }
    Ok(())
}

async fn answer_there(there: &dyn Elsewhere, forecast: &dyn Lateness, task: &Arc<Task>, shared: &Shared<'_>) {
    loop {
        if !forecast.is_late().await {
            match tokio::time::timeout(LOOK_EVERY, shared.done_here.notified()).await {
                Ok(()) => return,
                Err(_) => continue,
            }
        }
        let Some(range) = shared.last(THERE) else { return };
        let came = there.ask(task, shared.requests[range.clone()].to_vec()).await;
        if let Some(error) = shared.answered_there(range, came) {
            tracing::warn!(model = task.model, error = %error, "nothing more is spilled of these rows");
            return;
        }
    }
}

#[cfg(test)]
#[path = "spill_tests.rs"]
mod tests;
