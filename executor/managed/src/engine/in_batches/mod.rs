//! The batch lane of a managed model: all requests of a call go to the provider as batches, are waited for, and are read by the
//! same dialects as answers that come online. What must not be forgotten is in the run's store (see [`crate::batch`]), so
//! that whichever process asks the same again finds the batches and pays nothing twice. A row whose answer has not the form
//! that was asked for is asked again online, where the policy permits that, and nowhere else; so are rows that are too few for
//! a batch; where batches are one lane of several, so is any without an answer. No row becomes an error that was never sent.

mod elsewhere;
mod rest;
mod wait;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rowmill_jobs::infer::{Outcome, Portion, Request, RowError, RowErrorCode};
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result};

use super::due::mean;
use super::{Asked, ManagedEngine, OnBehalf, TEMPLATE_TOKENS_MAX, Talk, all, restore, to_its_end, unsearchable};
use crate::accounts::Accounts;
use crate::batch::{
    Asks, BatchJob, BatchLane, BatchProvider, BatchRow, Failed, Folder, Limits, Patience, Reason, RowEnd,
};
use crate::call::{CallError, Class, Estimate, Reply};
use crate::conversation::{Conversation, Step};
use crate::dialect;
use crate::journal::{Fingerprint, Journal};
use crate::lane::Lane;
use crate::on_behalf::Unwanted;
use crate::redaction::Vault;
use elsewhere::{Away, Others};
use rest::Rest;
use wire::{GuardedWire, RowFacts};

/// Where a run remembers its batches.
#[derive(Debug, Clone)]
pub struct BatchesOfRun {
    /// The run's store.
    pub store: Arc<dyn Store>,
    /// Names the run.
    pub run_key: String,
    /// Names this process.
    pub executor: String,
}

/// What a model needs to send in batches.
#[derive(Debug)]
pub(super) struct Batches {
    provider: BatchProvider,
    run: BatchesOfRun,
    patience: Patience,
    limits: Limits,
    /// Where the provider reads its input, if not in what it is sent.
    folder: Option<Folder>,
    /// Asks online again what came in a wrong form.
    online: Option<Arc<ManagedEngine>>,
    away: Away,
}

/// A row on its way through a batch.
struct Row {
    conversation: Conversation,
    vault: Vault,
    /// Bytes of its request.
    bytes: usize,
    /// Tokens that it can take at most.
    tokens_max: u64,
    /// Names it among what was answered before.
    print: Option<Fingerprint>,
}

/// A row before anything is sent.
enum Prepared {
    /// Nothing is to be asked.
    Ended(Outcome),
    /// It, its request and what that will take.
    ToSend(Box<Row>, Bytes, Estimate),
}

/// What is known of a row: its end, or what it waits for.
enum Standing {
    Ended(Outcome),
    /// Its place among the batches' rows.
    Sent(usize),
}

impl ManagedEngine {
    /// With what the batch lane needs; `online` asks again what comes in a wrong form, if the policy permits that.
    ///
    /// # Errors
    /// Rowmill speaks no batch API of this provider; it needs a folder, and the operator names none.
    pub fn in_batches(
        self,
        accounts: &Accounts,
        run: BatchesOfRun,
        online: Option<Arc<ManagedEngine>>,
    ) -> Result<Self> {
        let provider = BatchProvider::of_name(&self.target.provider).ok_or_else(|| {
            Error::invalid(format!("provider {} has no batch interface that Rowmill speaks", self.permit.provider()))
                .hint(format!("lane = 'batch' is for {}", Lane::Batch.kinds().join(", ")))
        })?;
        let (patience, limits) = (accounts.patience(&self.permit), accounts.batch_limits(&self.permit, &self.target));
        let folder = accounts.batch_folder(&self.permit)?;
        if provider.needs_folder() && folder.is_none() {
            return Err(Error::internal("a permit for batches through a folder, and there is none"));
        }
        Ok(Self {
            batches: Some(Arc::new(Batches { provider, run, patience, limits, folder, online, away: Away::default() })),
            ..self
        })
    }

    /// What asks online what batches leave, if the policy permits that.
    pub fn online(&self) -> Option<Arc<ManagedEngine>> {
        self.batches.as_ref()?.online.clone()
    }

    /// How many requests it wants at once.
    pub fn portion(&self) -> Portion {
        if self.batches.is_some() { Portion::Large } else { Portion::Usual }
    }
}

impl Batches {
    /// What asks again online.
    pub(super) fn online(&self) -> Option<&ManagedEngine> {
        self.online.as_deref()
    }

    /// Answers every request, in their order. When the caller goes away, rows that are asked again go on until they are kept.
    pub(super) async fn infer(
        self: &Arc<Self>,
        engine: &Arc<ManagedEngine>,
        asked: &Arc<Asked>,
        who: &Arc<OnBehalf>,
        requests: Vec<Request>,
    ) -> Result<Vec<Outcome>> {
        self.infer_beside(engine, asked, who, (requests, Others::None)).await
    }

    /// The same, beside others that can be asked.
    async fn infer_beside(
        self: &Arc<Self>,
        engine: &Arc<ManagedEngine>,
        asked: &Arc<Asked>,
        who: &Arc<OnBehalf>,
        (requests, others): (Vec<Request>, Others),
    ) -> Result<Vec<Outcome>> {
        let (mut standings, mut rows) = (Vec::new(), Vec::new());
        let (mut facts, mut sent, mut to_send) = (Vec::new(), Vec::new(), Vec::new());
        for request in &requests {
            match prepare(engine, asked, request)? {
                Prepared::Ended(outcome) => standings.push(Standing::Ended(outcome)),
                Prepared::ToSend(row, body, estimate) => {
                    standings.push(Standing::Sent(rows.len()));
                    let redactions = row.vault.counts().clone();
                    facts.push(RowFacts { estimate, tokens_max: row.tokens_max, redactions });
                    sent.push(BatchRow { body, estimate });
                    rows.push(*row);
                    to_send.push(request.clone());
                }
            }
        }
        let ends = match sent.is_empty() {
            true => Vec::new(),
            false => self.send(engine, asked, who, (sent, facts, mean(asked, &to_send)), others).await?,
        };
        let mut outcomes = match self.rest(engine) {
            Some(rest) => rest::ask(rest, asked, who, &to_send, &ends).await?,
            None => HashMap::new(),
        };
        let in_batches = rows.into_iter().zip(ends).enumerate();
        let ended: Vec<_> = in_batches.filter(|(place, _)| !outcomes.contains_key(place)).collect();
        let (batches, engine, asked, on_behalf) =
            (Arc::clone(self), Arc::clone(engine), Arc::clone(asked), Arc::clone(who));
        let reading = |unwanted| async move {
            let (batches, engine, asked, who, unwanted) = (&*batches, &*engine, &*asked, &*on_behalf, &unwanted);
            let read =
                |(place, row)| async move { Ok((place, batches.read(engine, asked, who, unwanted, row).await?)) };
            all(ended.into_iter().map(read), engine.concurrency, unwanted).await.whole()
        };
        outcomes.extend(to_its_end(who, reading).await?);
        let lost = || Error::internal("a row of a batch has no end");
        let end = |standing| match standing {
            Standing::Ended(outcome) => Ok(outcome),
            Standing::Sent(place) => outcomes.remove(&place).ok_or_else(lost),
        };
        standings.into_iter().map(end).collect()
    }

    /// Has the rows computed in batches, however long that takes.
    async fn send(
        &self,
        engine: &ManagedEngine,
        asked: &Asked,
        who: &OnBehalf,
        (rows, facts, tokens): (Vec<BatchRow>, Vec<RowFacts>, Estimate),
        others: Others,
    ) -> Result<Vec<RowEnd>> {
        let asks = if asked.question.form.is_some() { Asks::Text } else { Asks::Vectors };
        let job = BatchJob {
            run_key: self.run.run_key.clone(),
            shard: who.shard,
            chunk: String::new(),
            model: engine.permit.model().to_owned(),
            asks,
            rows,
        };
        let job = job.named_for(engine.permit.provider());
        let leaves_ms = self.away.leaves_ms(others, &self.patience);
        let wire = Arc::new(GuardedWire::new(engine, asked, who, (self, facts)).for_rows_left_at(leaves_ms));
        let (store, executor) = (Arc::clone(&self.run.store), self.run.executor.as_str());
        let role = self.folder.as_ref().map(|folder| folder.role().to_owned());
        let lane = BatchLane::new(self.provider, wire.clone(), store, job, executor, self.patience);
        let lane = lane.with_limits(self.limits).with_role(role);
        let goes_on = self.rest(engine).is_some();
        let are_too_few = |rows| rest::too_few(engine.permit.provider(), (who.shard, rows), lane.limits());
        match lane.too_few()? {
            rows if rows > 0 && !goes_on && !lane.has_begun().await? => return Err(are_too_few(rows)),
            _ => {}
        }
        let until = engine.due.as_ref().map(|due| wait::Until { due, tokens, patience: self.patience });
        let ended = wait::until_done(&lane, self.patience, until, leaves_ms).await;
        // What held a call back says more than that it was held back.
        let provider = engine.permit.provider();
        let ends = ended.map_err(|error| wire.take_refusal().unwrap_or_else(|| error.with("provider", provider)))?;
        match (elsewhere::left(provider, &ends), rest::unsent(&ends)) {
            (Some(left), _) => {
                self.away.begin();
                Err(left)
            }
            (None, rows) if rows > 0 && !goes_on => Err(are_too_few(rows)),
            _ => Ok(ends),
        }
    }

    /// Who asks online for what batches leave, and for what of it.
    fn rest<'a>(&'a self, engine: &'a ManagedEngine) -> Option<(&'a Arc<ManagedEngine>, Rest)> {
        match &engine.due {
            Some(due) => Some((due.online(), Rest::All)),
            None => self.online.as_ref().map(|online| (online, Rest::Unsent)),
        }
    }

    /// A row's outcome from its end.
    async fn read(
        &self,
        engine: &ManagedEngine,
        asked: &Asked,
        who: &OnBehalf,
        unwanted: &Unwanted,
        (mut row, end): (Row, RowEnd),
    ) -> Result<Outcome> {
        let (step, nano_usd) = match end {
            RowEnd::Answered(answer) => {
                let body = dialect::batch_answer(&engine.target, answer.get());
                let reply = Reply { body, request_id: None, first_byte: Duration::ZERO };
                let turn = row.conversation.on_reply(&reply);
                let price = engine.price.as_ref();
                let nano_usd = price.map_or(0, |price| price.cost(&turn.spent, engine.permit.lane()));
                asked.estimates.lock().unwrap_or_else(PoisonError::into_inner).observe(row.bytes, &turn.spent);
                (turn.step, nano_usd)
            }
            RowEnd::Failed(failed) => (self.failed(&mut row.conversation, &failed), 0),
        };
        let step = match (step, &self.online) {
            (Step::Ask, Some(online)) => return ask_again(online, asked, who, unwanted, (row, nano_usd)).await,
            (Step::Ask, None) => row.conversation.give_up(),
            (step, _) => step,
        };
        outcome(engine, asked, who, unwanted, (row, step, nano_usd)).await
    }

    /// What a row comes to that has no answer.
    fn failed(&self, conversation: &mut Conversation, failed: &Failed) -> Step {
        let class = failed.reason.class();
        if class != Class::Refused && class != Class::TooLong {
            let message = match failed.reason {
                Reason::Unreadable => {
                    "what the provider says of the row has another shape than it documents".to_owned()
                }
                Reason::Stopped | Reason::TooFew | Reason::Elsewhere => "the row was never sent".to_owned(),
                Reason::NotEnded => {
                    "the batch was given up, and the provider did not end it in time: it may be billed".to_owned()
                }
                Reason::TooFewLeft => {
                    "the provider gave no answer, and the rows left are too few for another batch".to_owned()
                }
                _ => format!("the provider gave no answer in {} batches", self.patience.rounds_max),
            };
            return conversation.end_with(RowError::new(RowErrorCode::Provider, message));
        }
        conversation.on_error(&CallError {
            class,
            status: failed.status,
            code: failed.code.clone(),
            message: if class == Class::TooLong {
                "the prompt is longer than the model takes".to_owned()
            } else {
                "the provider refused the request".to_owned()
            },
            retry_after: None,
            request_id: None,
        })
    }
}

/// Asks a row again online, unless an earlier attempt has the answer.
async fn ask_again(
    online: &ManagedEngine,
    asked: &Asked,
    who: &OnBehalf,
    unwanted: &Unwanted,
    (row, nano_usd): (Row, u64),
) -> Result<Outcome> {
    let kept = online.guard.journal.as_ref().zip(row.print);
    if let Some((journal, print)) = &kept
        && let Some(known) = Journal::find(who.known(journal).await?, print)
    {
        return Ok(known.clone());
    }
    let outcome = outcome(online, asked, who, unwanted, (row, Step::Ask, nano_usd)).await?;
    if let Some((journal, print)) = &kept {
        journal.record(who.shard, std::slice::from_ref(print), std::slice::from_ref(&outcome)).await;
    }
    Ok(outcome)
}

/// Goes on with a row's conversation to its end. The row has left with its batch.
async fn outcome(
    engine: &ManagedEngine,
    asked: &Asked,
    who: &OnBehalf,
    unwanted: &Unwanted,
    (row, step, nano_usd): (Row, Step, u64),
) -> Result<Outcome> {
    let redactions = row.vault.counts().clone();
    let talk = Talk { engine, asked, who, unwanted, rows: 1, redactions };
    let outcomes = talk.go_on(row.conversation, step, (0, nano_usd)).await?;
    let outcome = outcomes.into_iter().next().ok_or_else(|| Error::internal("a row of a batch has no outcome"))?;
    Ok(match &engine.guard.redactor {
        None => outcome,
        Some(redactor) => restore(redactor, &row.vault, &asked.task, outcome),
    })
}

/// A row and its request, or its end where nothing is to be asked. The request depends on nothing but the row: another process
/// must make the same one.
fn prepare(engine: &ManagedEngine, asked: &Asked, request: &Request) -> Result<Prepared> {
    let mut vault = Vault::default();
    let Some(texts) = engine.texts(asked, std::slice::from_ref(request), &mut vault)? else {
        return Ok(Prepared::Ended(Err(unsearchable())));
    };
    let mut conversation = Conversation::of_texts(&asked.question, texts);
    if let Step::Done(outcomes) = conversation.first() {
        let lost = || Error::internal("a row of a batch has no outcome");
        return outcomes.into_iter().next().map(Prepared::Ended).ok_or_else(lost);
    }
    // Estimates that have seen nothing: what was learned differs between processes.
    let call = conversation.call(&asked.question.estimates());
    let body = dialect::batch_row(&engine.target, call.body.unwrap_or_default());
    let input_tokens_max = body.len() as u64 + TEMPLATE_TOKENS_MAX;
    let output_tokens_max = conversation.output_tokens_max();
    let price = engine.price.as_ref();
    let nano_usd_max = price.map_or(0, |price| price.most(input_tokens_max, output_tokens_max, engine.permit.lane()));
    let estimate = Estimate { nano_usd_max, ..call.estimate };
    let (bytes, tokens_max) = (body.len(), input_tokens_max + output_tokens_max);
    let print = asked.prints.as_ref().map(|prints| prints.of(request));
    let row = Row { conversation, vault, bytes, tokens_max, print };
    Ok(Prepared::ToSend(Box::new(row), body, estimate))
}

/// How many times each detector replaced something in some rows.
fn sum_of<'a>(counts: impl Iterator<Item = &'a BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for (name, count) in counts.flatten() {
        *sum.entry(name.clone()).or_default() += count;
    }
    sum
}
