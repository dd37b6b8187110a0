//! Answers requests of a shard as far as it can: what earlier attempts were answered is found in the journal, the rest is
//! asked, several calls at a time, and kept as it comes. Nothing is asked twice, and nothing that came is lost with an error.

use std::sync::Arc;

use rowmill_jobs::Result;
use rowmill_jobs::infer::{Outcome, Partial, Request, Task};

use super::due::Leeway;
use super::{Asked, ManagedEngine, OnBehalf, Unwanted, all, to_its_end};
use crate::journal::{Fingerprint, Journal};

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
        let (engine, on_behalf) = (Arc::clone(self), Arc::clone(who));
        let answering =
            |unwanted: Unwanted| async move { Ok(engine.answer(&on_behalf, &asked, requests, &unwanted).await) };
        to_its_end(who, answering).await.unwrap_or_else(stopped)
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
        let leeway = self.due.as_ref().map(|due| due.leeway(asked, requests));
        let packs = asked.question.packs(requests);
        // Until the last is begun, the account is asked for all that it can do.
        let (last, mut more) = (packs.len().saturating_sub(1), Some(self.pace.hold()));
        let talks = packs.into_iter().enumerate().map(|(index, pack)| {
            more.take_if(|_| index == last);
            async move {
                let rows = &requests[pack.clone()];
                let outcomes = self.talk_in_time(who, asked, rows, unwanted, leeway).await?;
                if let (Some(journal), Some(prints)) = (&self.guard.journal, &asked.prints) {
                    let prints: Vec<Fingerprint> = rows.iter().map(|row| prints.of(row)).collect();
                    journal.record(who.shard, &prints, &outcomes).await;
                }
                Ok((pack, outcomes))
            }
        });
        let done = all(talks, self.concurrency, unwanted).await;
        let mut partial = Partial { stopped: done.stopped, ..Partial::nothing(requests.len()) };
        for (_, (pack, outcomes)) in done.pieces {
            pack.zip(outcomes).for_each(|(row, outcome)| partial.outcomes[row] = Some(outcome));
        }
        partial
    }

    /// Talks about rows in this lane, as long as there is leeway, and online after that. The journal keeps answers of both
    /// under the same names.
    async fn talk_in_time(
        &self,
        who: &OnBehalf,
        asked: &Asked,
        rows: &[Request],
        unwanted: &Unwanted,
        leeway: Option<Leeway<'_>>,
    ) -> Result<Vec<Outcome>> {
        let Some(within) = leeway else { return self.talk(who, asked, rows, unwanted, None).await };
        if within.is_enough().await {
            match self.talk(who, asked, rows, unwanted, leeway).await {
                // Another attempt would ask online. Whether they have left before is not known: a rule counts them again.
                Err(error) if error.retryable() && !within.is_enough().await => {
                    tracing::info!(shard = who.shard, %error, "there is no more time for the flex lane; rows go online");
                }
                ended => return ended,
            }
        }
        let online = within.online();
        let asked = online.asked(&asked.task)?;
        online.talk(who, &asked, rows, unwanted, None).await
    }
}
