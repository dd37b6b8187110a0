//! [`ManagedEngine`]: one model at a provider, for one run. Every call goes the same way: rows are redacted, the most it can
//! cost is reserved, the audit says what is about to leave, the transport sends it, and all three are settled. Whether
//! anything may be sent at all was decided before: without a [`Permit`] there is no engine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use rowmill_jobs::infer::{Answer, Outcome, Request, RowError, RowErrorCode, Task, TaskKind, TextFormat};
use rowmill_jobs::money;
use rowmill_jobs::spend::{Ledger, Reservation, Reserve};
use rowmill_jobs::{Error, Kind, Result};

use crate::accounts::Accounts;
use crate::audit::{Audit, Ending, Intent};
use crate::call::{Call, Class, Spent};
use crate::conversation::{Conversation, Step};
use crate::policy::Permit;
use crate::pricing::ModelPrice;
use crate::question::Question;
use crate::redaction::{Redactor, Vault};
use crate::target::Target;
use crate::tokens::Estimates;
use crate::transport::Transport;

/// Tokens of a chat template and of JSON's own words around a body, at most.
const TEMPLATE_TOKENS_MAX: u64 = 256;

/// What all managed models of a run share in a process.
#[derive(Debug, Clone)]
pub struct RunGuard {
    /// The record of what leaves.
    pub audit: Arc<Audit>,
    /// The money, if the job has a cap.
    pub ledger: Option<Arc<Ledger>>,
    /// The detectors, if the operator has a key for them.
    pub redactor: Option<Arc<Redactor>>,
}

/// For which attempt at which shard something is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnBehalf {
    /// The shard.
    pub shard: u32,
    /// The attempt.
    pub attempt: String,
}

/// A model at a provider.
#[derive(Debug)]
pub struct ManagedEngine {
    permit: Permit,
    target: Arc<Target>,
    transport: Transport,
    concurrency: usize,
    host: String,
    region: Option<String>,
    /// None is needed where no cap is.
    price: Option<ModelPrice>,
    guard: RunGuard,
    questions: Mutex<HashMap<usize, Arc<Asked>>>,
}

/// A task, made ready, with what was learned of it. It keeps the task, whose address is its name here.
#[derive(Debug)]
struct Asked {
    task: Arc<Task>,
    question: Arc<Question>,
    estimates: Mutex<Estimates>,
}

/// One conversation's rows with what was taken out of them.
struct Talk<'a> {
    engine: &'a ManagedEngine,
    asked: &'a Asked,
    who: &'a OnBehalf,
    rows: u64,
    redactions: std::collections::BTreeMap<String, u64>,
}

impl ManagedEngine {
    /// Opens a model for a run; `dimensions` is the length of its vectors, if it embeds.
    ///
    /// # Errors
    /// The key cannot be had, the provider's address is not whole, or no price is known and the job has a cap.
    pub async fn open(accounts: &Accounts, permit: Permit, dimensions: Option<u32>, guard: RunGuard) -> Result<Self> {
        let target = accounts.target(&permit, dimensions)?;
        let price = match (accounts.price(&permit), &guard.ledger) {
            (Ok(price), _) => Some(price),
            (Err(error), Some(_)) => return Err(error),
            (Err(_), None) => None,
        };
        if permit.redacts() && guard.redactor.is_none() {
            return Err(Error::internal("a permit asks for redaction, and there is none"));
        }
        let transport = accounts.transport(&permit, &target).await?;
        let url = url::Url::parse(&target.base_url).ok();
        let host = url.as_ref().and_then(url::Url::host_str).unwrap_or_default().to_owned();
        let region = target.holes.get("region").cloned();
        let concurrency = accounts.concurrency(&permit);
        Ok(Self { permit, target, transport, concurrency, host, region, price, guard, questions: Mutex::default() })
    }

    /// Answers every request, in their order.
    ///
    /// # Errors
    /// The provider stays away, refuses the account, or the cap is reached: the shard cannot go on.
    pub async fn infer(&self, who: &OnBehalf, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let asked = self.asked(task)?;
        let packs = asked.question.packs(&requests);
        let talks = packs.into_iter().map(|pack| self.talk(who, &asked, &requests[pack]));
        let outcomes: Vec<Vec<Outcome>> = futures::stream::iter(talks).buffered(self.concurrency).try_collect().await?;
        Ok(outcomes.into_iter().flatten().collect())
    }

    fn asked(&self, task: &Arc<Task>) -> Result<Arc<Asked>> {
        let key = Arc::as_ptr(task) as usize;
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = questions.get(&key) {
            return Ok(Arc::clone(known));
        }
        let question = Question::new(&self.target, task)?;
        let estimates = Mutex::new(question.estimates());
        let asked = Arc::new(Asked { task: Arc::clone(task), question, estimates });
        questions.insert(key, Arc::clone(&asked));
        Ok(asked)
    }

    /// Talks about one row, or one pack of texts to embed.
    async fn talk(&self, who: &OnBehalf, asked: &Asked, rows: &[Request]) -> Result<Vec<Outcome>> {
        let mut vault = Vault::default();
        let redacted = match &self.guard.redactor {
            None => rows.to_vec(),
            Some(redactor) => match redact(redactor, rows, &mut vault) {
                Ok(redacted) => redacted,
                // Fails closed, and says nothing of the row.
                Err(_) => return Ok(rows.iter().map(|_| Err(unsearchable())).collect()),
            },
        };
        let redactions = vault.counts().clone();
        let talk = Talk { engine: self, asked, who, rows: rows.len() as u64, redactions };
        let outcomes = talk.run(Conversation::start(&asked.question, &redacted)?).await?;
        Ok(match &self.guard.redactor {
            None => outcomes,
            Some(redactor) => {
                outcomes.into_iter().map(|outcome| restore(redactor, &vault, &asked.task, outcome)).collect()
            }
        })
    }
}

impl Talk<'_> {
    async fn run(&self, mut conversation: Conversation) -> Result<Vec<Outcome>> {
        let mut nano_usd = 0;
        let mut step = conversation.first();
        loop {
            match step {
                Step::Done(outcomes) => return Ok(with_cost(outcomes, nano_usd)),
                Step::Failed(error) => return Err(error.with("provider", self.engine.permit.provider())),
                Step::Ask => {
                    let call = conversation.call(&self.estimates());
                    let (next, spent) = self.send(&mut conversation, call).await?;
                    nano_usd += spent;
                    step = next;
                }
            }
        }
    }

    /// Sends one call. Returns what to do next, and what it cost.
    async fn send(&self, conversation: &mut Conversation, mut call: Call) -> Result<(Step, u64)> {
        let engine = self.engine;
        let bytes = call.body.as_ref().map_or(0, bytes::Bytes::len);
        // No tokenizer makes more tokens of a text than it has bytes.
        let input_tokens_max = bytes as u64 + TEMPLATE_TOKENS_MAX;
        let most = engine
            .price
            .as_ref()
            .map_or(0, |price| price.most(input_tokens_max, conversation.output_tokens_max(), engine.permit.lane()));
        call.estimate.nano_usd_max = most;
        let reservation = self.reserve(most).await?;
        let intended = engine.guard.audit.intend(self.intent(&call, bytes as u64)).await?;
        let (ending, step) = match engine.transport.send(call).await {
            Ok(reply) => {
                let turn = conversation.on_reply(&reply);
                let nano_usd = engine.price.as_ref().map_or(0, |price| price.cost(&turn.spent, engine.permit.lane()));
                self.estimates().observe(bytes, &turn.spent);
                (ended(None, Some(200), reply.request_id, Spent { nano_usd, ..turn.spent }), turn.step)
            }
            Err(error) => {
                // A request that went unanswered may have been computed, and then it is paid for.
                let nano_usd = if error.class == Class::Transient { most } else { 0 };
                let spent = Spent { nano_usd, ..Spent::default() };
                (ended(Some(error.class), error.status, error.request_id.clone(), spent), conversation.on_error(&error))
            }
        };
        let nano_usd = ending.nano_usd;
        if let Some(reservation) = reservation {
            reservation.settle(nano_usd);
        }
        engine.guard.audit.end(intended, ending).await?;
        Ok((step, nano_usd))
    }

    async fn reserve(&self, most: u64) -> Result<Option<Reservation>> {
        let Some(ledger) = &self.engine.guard.ledger else { return Ok(None) };
        match ledger.reserve(most).await? {
            Reserve::Granted(reservation) => Ok(Some(reservation)),
            Reserve::CapReached { left } => Err(Error::new(Kind::Incomplete, "max_cost_usd is reached")
                .with("left", format!("{} USD", money::show(left)))
                .with("next request", format!("{} USD at most", money::show(most)))
                .hint("finished parts are kept; raise max_cost_usd and start the same command again")),
        }
    }

    fn intent(&self, call: &Call, bytes: u64) -> Intent {
        let Self { engine, who, .. } = self;
        Intent {
            shard: who.shard,
            attempt: who.attempt.clone(),
            provider: engine.permit.provider().to_owned(),
            host: engine.host.clone(),
            region: engine.region.clone(),
            model: engine.permit.model().to_owned(),
            lane: engine.permit.lane(),
            rule: engine.permit.rule().to_owned(),
            policy_hash: engine.permit.policy_hash().to_owned(),
            columns: engine.permit.columns().to_vec(),
            rows: self.rows,
            bytes,
            tokens_estimated: call.estimate.input_tokens + call.estimate.output_tokens,
            redactions: self.redactions.clone(),
            payload_hmac: engine.guard.audit.sign(call.body.as_deref().unwrap_or_default()),
        }
    }

    fn estimates(&self) -> std::sync::MutexGuard<'_, Estimates> {
        self.asked.estimates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ended(class: Option<Class>, status: Option<u16>, request_id: Option<String>, spent: Spent) -> Ending {
    Ending {
        intent: 0,
        class: Ending::class_of(class),
        status,
        request_id,
        input_tokens: spent.input_tokens,
        output_tokens: spent.output_tokens,
        nano_usd: spent.nano_usd,
    }
}

/// The cost of a talk, at the first of its rows that has an answer.
fn with_cost(mut outcomes: Vec<Outcome>, nano_usd: u64) -> Vec<Outcome> {
    if let Some(answered) = outcomes.iter_mut().find_map(|outcome| outcome.as_mut().ok()) {
        answered.usage.nano_usd = nano_usd;
    }
    outcomes
}

fn redact(redactor: &Redactor, rows: &[Request], vault: &mut Vault) -> Result<Vec<Request>> {
    let row = |row: &Request, vault: &mut Vault| {
        let values = row.values.iter().map(|value| redactor.redact(value, vault)).collect::<Result<_>>()?;
        Ok(Request { values })
    };
    rows.iter().map(|request| row(request, vault)).collect()
}

fn restore(redactor: &Redactor, vault: &Vault, task: &Task, outcome: Outcome) -> Outcome {
    let mut answered = outcome?;
    if let Answer::Text(text) = &mut answered.answer {
        let is_json = matches!(task.kind, TaskKind::Complete { format: TextFormat::Json { .. }, .. });
        let restored = if is_json { redactor.restore_json(text, vault) } else { Ok(redactor.restore(text, vault)) };
        let no_json = |_| RowError::new(RowErrorCode::InvalidOutput, "the answer is not the JSON that was asked for");
        *text = restored.map_err(no_json)?.text;
    }
    Ok(answered)
}

fn unsearchable() -> RowError {
    let message = "a value could not be searched for personal data, so nothing was sent";
    RowError::new(RowErrorCode::Filtered, message)
}
