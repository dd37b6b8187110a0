//! [`GuardedWire`]: the batch lane's way to the provider. Before rows go, the most that they can cost is set aside in the run's
//! ledger, under the batch's name, and the audit says what is about to leave; when their ends are known, what the batch took
//! is settled and said. It sends each call once, and decides nothing about batches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use rowmill_jobs::{Error, Result};
use tokio::time::Instant;

use super::super::{Asked, ManagedEngine, OnBehalf, RunGuard};
use super::{Batches, sum_of};
use crate::audit::{Ending, Intended, Intent};
use crate::batch::{
    BatchBody, BatchCall, BatchProvider, BatchRef, BatchWire, Folder, Part, Reason, RowResult, did_nothing,
};
use crate::budget::{Amount, Budget};
use crate::call::{CallError, Class, Estimate, Left, Reply, Spent};
use crate::dialect;
use crate::lane::Lane;
use crate::pricing::ModelPrice;
use crate::question::Question;
use crate::transport::Transport;

/// What is known of a row before it is sent.
#[derive(Debug, Clone)]
pub(super) struct RowFacts {
    pub(super) estimate: Estimate,
    /// Tokens that it can take at most.
    pub(super) tokens_max: u64,
    /// How many times each detector replaced something.
    pub(super) redactions: BTreeMap<String, u64>,
}

/// The way.
#[derive(Debug)]
pub(super) struct GuardedWire {
    provider: BatchProvider,
    transport: Transport,
    folder: Option<Folder>,
    guard: RunGuard,
    budget: Arc<Budget>,
    price: Option<ModelPrice>,
    question: Arc<Question>,
    rows: Vec<RowFacts>,
    /// What every intent has in common.
    intent: Intent,
    /// Longest time that a call may take.
    call_time: Duration,
    /// From when on a call that is held back is not waited with: then its rows may be left to others.
    waits_until: Option<Instant>,
    /// What held a call back that was not sent.
    refusal: Mutex<Option<Error>>,
}

impl GuardedWire {
    /// For the rows of one call, whose facts are in their order.
    pub(super) fn new(
        engine: &ManagedEngine,
        asked: &Asked,
        who: &OnBehalf,
        (batches, rows): (&Batches, Vec<RowFacts>),
    ) -> Self {
        Self {
            provider: batches.provider,
            transport: engine.transport.clone(),
            folder: batches.folder.clone(),
            guard: engine.guard.clone(),
            budget: Arc::clone(&engine.budget),
            price: engine.price.clone(),
            question: Arc::clone(&asked.question),
            rows,
            intent: engine.intent(who),
            call_time: Duration::from_millis(batches.patience.call_ms.unsigned_abs()),
            waits_until: None,
            refusal: Mutex::default(),
        }
    }

    /// The same for rows that may be left to others from `leaves_ms` on, milliseconds since 1970: whoever waits in a call for a
    /// provider that is left alone cannot leave them.
    pub(super) fn for_rows_left_at(self, leaves_ms: Option<i64>) -> Self {
        let left = |leaves_ms: i64| {
            Duration::from_millis(u64::try_from(leaves_ms - Utc::now().timestamp_millis()).unwrap_or(0))
        };
        Self { waits_until: leaves_ms.map(|leaves_ms| Instant::now() + left(leaves_ms)), ..self }
    }

    /// What held a call back, if something did.
    pub(super) fn take_refusal(&self) -> Option<Error> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A call that is not sent, and why. Trying again helps where the error says so.
    fn held_back(&self, error: Error) -> CallError {
        let class = if error.retryable() { Class::Throttled } else { Class::Stopped };
        let message = error.to_string();
        if class == Class::Stopped {
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
        CallError { class, status: None, code: None, message, retry_after: None, request_id: None }
    }

    /// Sets aside the most that a batch can take, unless that was done before.
    async fn set_aside(&self, batch: &BatchRef) -> Result<()> {
        let most = self.of(&batch.rows).fold(Amount { rows: leaving(batch), ..Amount::default() }, |sum, row| Amount {
            tokens: sum.tokens.saturating_add(row.tokens_max),
            nano_usd: sum.nano_usd.saturating_add(row.estimate.nano_usd_max),
            ..sum
        });
        self.budget.set_aside(&batch.name, most).await
    }

    /// Gives back what was set aside for a batch that was surely not created.
    async fn give_back(&self, batch: &BatchRef) {
        if let Err(error) = self.budget.release(&batch.name, Amount::default()).await {
            // It is found when the batch is created, or when it is known that it never will be.
            tracing::warn!(batch = batch.name, %error, "money that was set aside could not be given back");
        }
    }

    /// Sets aside what a call needs, and says that its rows are about to leave.
    async fn begin(&self, call: &BatchCall) -> Result<Option<Intended>> {
        if let Some(batch) = &call.of {
            self.set_aside(batch).await?;
        }
        self.intend(call).await
    }

    /// Says that rows are about to leave; nothing for calls that carry none.
    async fn intend(&self, call: &BatchCall) -> Result<Option<Intended>> {
        let Some((batch, body)) = carried(call) else { return Ok(None) };
        let tokens = self.of(&batch.rows).map(|row| row.estimate.input_tokens + row.estimate.output_tokens).sum();
        let intent = Intent {
            rows: batch.rows.len() as u64,
            bytes: body.len() as u64,
            tokens_estimated: tokens,
            redactions: sum_of(self.of(&batch.rows).map(|row| &row.redactions)),
            payload_hmac: self.guard.audit.sign(body),
            ..self.intent.clone()
        };
        let intent = match (&call.body, &self.folder) {
            (BatchBody::Put(_), Some(folder)) => Intent { host: folder.url().to_owned(), ..intent },
            _ => intent,
        };
        self.guard.audit.intend(intent).await.map(Some)
    }

    /// Sends a call, or does with an object of the folder what it says.
    async fn carry_out(&self, path: &str, body: BatchBody) -> std::result::Result<Reply, CallError> {
        let content = match body {
            BatchBody::Put(content) => Some(content),
            BatchBody::Read => None,
            body => return self.transmit(path, body).await,
        };
        let object = self.exchange(path, content).await.map_err(|error| self.held_back(error))?;
        let body = object.ok_or_else(nothing_there)?;
        Ok(Reply { body, request_id: None, first_byte: Duration::ZERO })
    }

    /// Creates an object of the folder of which there is content, and reads one of which there is none.
    async fn exchange(&self, path: &str, content: Option<Bytes>) -> Result<Option<Bytes>> {
        let folder = self.folder.as_ref().ok_or_else(|| Error::internal("an object of a batch without a folder"))?;
        let done = async {
            match content {
                Some(content) => folder.put(path, content).await.map(|url| Some(Bytes::from(url))),
                None => folder.read(path).await,
            }
        };
        let late = |_| Err(Error::temporary("the folder of batches does not answer in time"));
        tokio::time::timeout(self.call_time, done).await.unwrap_or_else(late)
    }

    /// Sends a call, again only where nothing of it left.
    async fn transmit(&self, path: &str, body: BatchBody) -> std::result::Result<Reply, CallError> {
        let deadline = Instant::now() + self.call_time;
        let waits_until = self.waits_until.map_or(deadline, |until| until.min(deadline));
        loop {
            let (mut error, left) = match self.transport.send_once(path, body.clone(), deadline).await {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            if left == Left::Something || !matches!(error.class, Class::Throttled | Class::Transient) {
                return Err(error);
            }
            let wait = error.retry_after.unwrap_or(Duration::from_secs(1));
            if Instant::now() + wait >= waits_until {
                // Nothing was sent, and the class has to say so.
                error.class = Class::Throttled;
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn of<'a>(&'a self, rows: &'a [u32]) -> impl Iterator<Item = &'a RowFacts> {
        rows.iter().filter_map(|row| self.rows.get(*row as usize))
    }

    /// What a row took. A row without an answer is not billed, unless the provider keeps nothing of what it did, or what it
    /// says cannot be read.
    fn taken(&self, result: &RowResult) -> Spent {
        let most = self.rows.get(result.row as usize).map_or(0, |row| row.estimate.nano_usd_max);
        let failed = result.failed.as_ref().map(|failed| failed.reason).or(result.resubmitted);
        let is_lost = matches!(failed, Some(Reason::NoLine | Reason::BatchFailed | Reason::NotDone));
        let Some(answer) = &result.answered else {
            // What cannot be read, or is kept no more, may have been computed; a batch that goes on though it was cancelled may
            // do so still.
            let is_unsure = matches!(failed, Some(Reason::Unreadable | Reason::NotEnded | Reason::Gone));
            let may_be_billed = is_unsure || (is_lost && self.provider.may_bill_lost_rows());
            let nano_usd = if may_be_billed { most } else { 0 };
            return Spent { nano_usd, ..Spent::default() };
        };
        let body = dialect::batch_answer(&self.question.target, answer.get());
        match (self.question.spent(&body, 1), &self.price) {
            (Some(spent), Some(price)) => Spent { nano_usd: price.cost(&spent, Lane::Batch), ..spent },
            (Some(spent), None) => spent,
            (None, _) => Spent { nano_usd: most, ..Spent::default() },
        }
    }

    /// What all rows of a batch took.
    fn all_taken(&self, results: &[RowResult]) -> Spent {
        results.iter().map(|result| self.taken(result)).fold(Spent::default(), |sum, spent| Spent {
            input_tokens: sum.input_tokens + spent.input_tokens,
            cached_tokens: sum.cached_tokens + spent.cached_tokens,
            output_tokens: sum.output_tokens + spent.output_tokens,
            nano_usd: sum.nano_usd.saturating_add(spent.nano_usd),
        })
    }
}

#[async_trait]
impl BatchWire for GuardedWire {
    async fn send(&self, call: BatchCall) -> std::result::Result<Reply, CallError> {
        let intended = match self.begin(&call).await {
            Ok(intended) => intended,
            Err(error) => {
                // Whatever of it was set aside: nothing leaves.
                if let Some(batch) = &call.of {
                    self.give_back(batch).await;
                }
                return Err(self.held_back(error));
            }
        };
        let BatchCall { path, body, of, .. } = call;
        let reply = self.carry_out(&path, body).await;
        if let (Some(batch), Err(error)) = (&of, &reply)
            && (batch.part == Part::Input || did_nothing(error))
        {
            self.give_back(batch).await;
        }
        if let Some(intended) = intended {
            // What it takes is known when it has ended: settling says it.
            let ending = match &reply {
                Ok(reply) => ended(None, Some(200), reply.request_id.clone()),
                Err(error) => ended(Some(error.class), error.status, error.request_id.clone()),
            };
            if let Err(error) = self.guard.audit.end(intended, ending).await {
                // It was sent all the same. Nothing more will be: the next intent cannot be written either.
                tracing::warn!(%error, "the end of a call is not in the audit");
            }
        }
        reply
    }

    async fn settle(&self, batch: &BatchRef, results: &[RowResult]) -> Result<()> {
        let Spent { input_tokens, output_tokens, nano_usd, .. } = self.all_taken(results);
        // Those that were never sent leave with whoever asks for them next.
        let rows = if results.iter().all(RowResult::is_unsent) { 0 } else { leaving(batch) };
        let took = Amount { rows, tokens: input_tokens.saturating_add(output_tokens), nano_usd };
        let late = |_| Err(Error::temporary("the ledger does not answer in time"));
        tokio::time::timeout(self.call_time, self.budget.release(&batch.name, took)).await.unwrap_or_else(late)
    }

    async fn settled(&self, batch: &BatchRef, results: &[RowResult]) {
        let Spent { input_tokens, output_tokens, nano_usd, .. } = self.all_taken(results);
        // A line of its own, of no rows and no bytes: the process that sent the rows may be long gone.
        let payload_hmac = self.guard.audit.sign(b"");
        let said = async {
            let intended = self.guard.audit.intend(Intent { payload_hmac, ..self.intent.clone() }).await?;
            let ending = Ending { input_tokens, output_tokens, nano_usd, ..ended(None, None, None) };
            self.guard.audit.end(intended, ending).await
        };
        if let Err(error) = said.await {
            // Nothing more will be sent: the next intent cannot be written either.
            tracing::warn!(batch = batch.name, %error, "what a batch took is not in the audit");
        }
    }
}

/// Rows that leave with a batch for the first time.
fn leaving(batch: &BatchRef) -> u64 {
    if batch.round == 0 { batch.rows.len() as u64 } else { 0 }
}

fn ended(class: Option<Class>, status: Option<u16>, request_id: Option<String>) -> Ending {
    Ending { class: Ending::class_of(class), status, request_id, ..Ending::default() }
}

/// That an object is not there, as a provider would say of a file.
fn nothing_there() -> CallError {
    let message = "there is no such object in the folder".to_owned();
    CallError { class: Class::Denied, status: Some(404), code: None, message, retry_after: None, request_id: None }
}

/// The batch whose rows are in a call, and the bytes that they are in.
fn carried(call: &BatchCall) -> Option<(&BatchRef, &Bytes)> {
    let batch = call.of.as_ref()?;
    match (&call.body, batch.part) {
        (BatchBody::Form { content, .. } | BatchBody::Put(content), _) => Some((batch, content)),
        (BatchBody::Json(body), Part::InputAndCreation) => Some((batch, body)),
        _ => None,
    }
}
