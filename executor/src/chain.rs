//! [`There`]: the models that rows spill to. The first whose provider is there answers; the next one is asked for what it has
//! not answered. Which rows spill is decided elsewhere.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rowmill_jobs::infer::{Partial, Portion, Request, Task};
use rowmill_jobs::{Error, Kind, Result};
use rowmill_managed::{ManagedEngine, OnBehalf};
use tokio::time::Instant;

use crate::spill::Elsewhere;

/// A model that was away is asked after the others for this long.
const AWAY_FOR: Duration = Duration::from_secs(300);

/// A model that rows spill to.
#[derive(Debug)]
pub(crate) struct Target {
    name: Arc<str>,
    engine: Arc<ManagedEngine>,
    /// When it was last found to be away.
    away: Mutex<Option<Instant>>,
}

impl Target {
    /// A model by its name in SQL.
    pub(crate) fn new(name: &str, engine: &Arc<ManagedEngine>) -> Self {
        Self { name: name.into(), engine: Arc::clone(engine), away: Mutex::default() }
    }

    /// How many rows it wants at once.
    pub(crate) fn portion(&self) -> Portion {
        self.engine.portion()
    }

    /// Whether it was away a moment ago.
    fn is_away(&self) -> bool {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.is_some_and(|since| since.elapsed() < AWAY_FOR)
    }

    async fn ask(&self, who: &Arc<OnBehalf>, task: &Arc<Task>, requests: Vec<Request>, after: After) -> Partial {
        let came = match after {
            After::Another => self.engine.infer_or_leave(who, task, requests).await,
            After::Nobody => self.engine.infer_some(who, task, requests).await,
        };
        let away = came.stopped.as_ref().filter(|error| error.kind() == Kind::Temporary);
        if let Some(error) = away {
            tracing::warn!(model = &*self.name, error = %error, "a model that rows spill to is away");
        }
        // Batches that are under way are found again where they were sent, and nowhere else.
        let since = away.filter(|_| self.portion() != Portion::Large).map(|_| Instant::now());
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = since;
        self.own(came)
    }

    /// Whether another may be asked after this error. Of rows that go in batches only what they were certainly not sent in:
    /// with a store that is away, say, batches may be under way, and are paid for.
    fn gives_way(&self, error: &Error) -> bool {
        match self.portion() {
            Portion::Usual | Portion::Many => error.kind() == Kind::Temporary,
            Portion::Large => ManagedEngine::has_left(error),
        }
    }

    /// Says of answers that they are its own.
    fn own(&self, mut came: Partial) -> Partial {
        for answered in came.outcomes.iter_mut().flatten().flatten() {
            answered.spilled_to = Some(Arc::clone(&self.name));
        }
        came
    }
}

/// Who is asked after a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// Another model.
    Another,
    /// Nobody: it is waited for.
    Nobody,
}

/// The models that rows spill to: the first whose provider is there answers.
#[derive(Debug)]
pub(crate) struct There<'a> {
    /// They, in the job's order.
    pub(crate) chain: &'a [Target],
    /// On whose behalf.
    pub(crate) who: &'a Arc<OnBehalf>,
}

impl There<'_> {
    /// Puts in what earlier attempts were answered, by whichever model: the one that was away then may be there now.
    async fn recall(&self, task: &Arc<Task>, requests: &[Request], partial: &mut Partial) -> Result<()> {
        for target in self.chain {
            let open = partial.open();
            let asked: Vec<Request> = open.iter().map(|row| requests[*row].clone()).collect();
            let outcomes = target.engine.known(self.who, task, &asked).await?;
            partial.fill(&open, target.own(Partial { outcomes, stopped: None }));
        }
        Ok(())
    }

    /// The chain, with those last that were away a moment ago: each time it takes minutes to find out.
    fn in_turn(&self) -> Vec<&Target> {
        let (mut there, away): (Vec<&Target>, Vec<&Target>) = self.chain.iter().partition(|target| !target.is_away());
        there.extend(away);
        there
    }
}

#[async_trait]
impl Elsewhere for There<'_> {
    async fn ask(&self, task: &Arc<Task>, requests: Vec<Request>) -> Partial {
        let nobody = Error::internal("no model is there to spill to");
        let mut partial = Partial { stopped: Some(nobody), ..Partial::nothing(requests.len()) };
        // Batches are found again by all that is in them, so nothing may be left out there.
        let online = self.chain.iter().all(|target| target.portion() == Portion::Usual);
        if online && let Err(error) = self.recall(task, &requests, &mut partial).await {
            return Partial { stopped: Some(error), ..partial };
        }
        let targets = self.in_turn();
        for (place, target) in targets.iter().enumerate() {
            let open = partial.open();
            if open.is_empty() {
                break;
            }
            let asked = open.iter().map(|row| requests[*row].clone()).collect();
            let after = if place + 1 < targets.len() { After::Another } else { After::Nobody };
            partial.fill(&open, target.ask(self.who, task, asked, after).await);
            if partial.stopped.as_ref().is_none_or(|error| !target.gives_way(error)) {
                break;
            }
        }
        partial
    }
}
