//! Answers requests of a shard as far as it can: what earlier attempts were answered is found in the journal, the rest is
//! asked, several calls at a time, and kept as it comes. Nothing is asked twice, and nothing that came is lost with an error.

use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use rowmill_jobs::infer::{Outcome, Partial, Request, Task};
use rowmill_jobs::{Error, Result};

use super::{Asked, ManagedEngine, OnBehalf, Unwanted};
use crate::journal::{Fingerprint, Journal};
use crate::on_behalf::Wanted;

impl ManagedEngine {
    /// Answers every request, in their order; otherwise as [`ManagedEngine::infer_some`].
    ///
    /// # Errors
    /// The provider stays away, refuses the account, or the cap is reached: the shard cannot go on.
    pub async fn infer(
        self: &Arc<Self>,
        who: &Arc<OnBehalf>,
        task: &Arc<Task>,
        requests: Vec<Request>,
    ) -> Result<Vec<Outcome>> {
        self.infer_some(who, task, requests).await.whole()
    }

    /// Answers as many requests as it can, each at most once. When the caller goes away, calls that have left go on until they
    /// are kept: see [`OnBehalf::quiet`].
    pub async fn infer_some(
        self: &Arc<Self>,
        who: &Arc<OnBehalf>,
        task: &Arc<Task>,
        requests: Vec<Request>,
    ) -> Partial {
        let nothing = Partial::nothing(requests.len());
        let stopped = |error| Partial { stopped: Some(error), ..nothing };
        let asked = match self.asked(task) {
            Ok(asked) => asked,
            Err(error) => return stopped(error),
        };
        if let Some(batches) = &self.batches {
            return match batches.infer(self, &asked, who, requests).await {
                Ok(outcomes) => Partial { outcomes: outcomes.into_iter().map(Some).collect(), stopped: None },
                Err(error) => stopped(error),
            };
        }
        let wanted = Wanted::default();
        let unwanted = wanted.unwanted();
        let (engine, who) = (Arc::clone(self), Arc::clone(who));
        let under_way = who.enter().await;
        let answering = tokio::spawn(async move {
            let _under_way = under_way;
            engine.answer(&who, &asked, requests, &unwanted).await
        });
        answering.await.unwrap_or_else(|_| stopped(Error::internal("a defect of Rowmill ended a call to a provider")))
    }

    /// What earlier attempts were answered to requests, one for each. Nothing of what was asked in batches, which knows it
    /// itself.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn known(&self, who: &OnBehalf, task: &Arc<Task>, requests: &[Request]) -> Result<Vec<Option<Outcome>>> {
        self.known_of(who, &*self.asked(task)?, requests).await
    }

    async fn known_of(&self, who: &OnBehalf, asked: &Asked, requests: &[Request]) -> Result<Vec<Option<Outcome>>> {
        let (Some(journal), Some(prints), None) = (&self.guard.journal, &asked.prints, &self.batches) else {
            return Ok(vec![None; requests.len()]);
        };
        let known = who.known(journal).await?;
        Ok(requests.iter().map(|request| Journal::find(known, &prints.of(request)).cloned()).collect())
    }

    /// Answers what no earlier attempt was answered.
    async fn answer(&self, who: &OnBehalf, asked: &Asked, requests: Vec<Request>, unwanted: &Unwanted) -> Partial {
        let mut partial = Partial::nothing(requests.len());
        match self.known_of(who, asked, &requests).await {
            Ok(known) => partial.outcomes = known,
            Err(error) => return Partial { stopped: Some(error), ..partial },
        }
        let open = partial.open();
        let requests: Vec<Request> = open.iter().map(|row| requests[*row].clone()).collect();
        partial.fill(&open, self.talks(who, asked, &requests, unwanted).await);
        partial
    }

    /// Asks for rows, several at a time. After the first error nothing new is begun; what was is waited for.
    async fn talks(&self, who: &OnBehalf, asked: &Asked, requests: &[Request], unwanted: &Unwanted) -> Partial {
        let failed: OnceLock<Error> = OnceLock::new();
        let first = &failed;
        let talks = asked.question.packs(requests).into_iter().map(|pack| async move {
            if unwanted.is_set() {
                return (pack, Vec::new());
            }
            match self.talk(who, asked, &requests[pack.clone()], unwanted).await {
                Ok(outcomes) => {
                    if let (Some(journal), Some(prints)) = (&self.guard.journal, &asked.prints) {
                        let prints: Vec<Fingerprint> =
                            requests[pack.clone()].iter().map(|row| prints.of(row)).collect();
                        journal.record(who.shard, &prints, &outcomes).await;
                    }
                    (pack, outcomes)
                }
                Err(error) => {
                    // Those that end because of it come later: the first is the reason.
                    first.get_or_init(|| error);
                    unwanted.set();
                    (pack, Vec::new())
                }
            }
        });
        let mut partial = Partial::nothing(requests.len());
        let mut talked = futures::stream::iter(talks).buffer_unordered(self.concurrency);
        while let Some((pack, outcomes)) = talked.next().await {
            pack.zip(outcomes).for_each(|(row, outcome)| partial.outcomes[row] = Some(outcome));
        }
        drop(talked);
        partial.stopped = failed.into_inner();
        partial
    }
}
