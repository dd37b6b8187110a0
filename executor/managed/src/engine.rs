//! [`ManagedEngine`]: one model at a provider, for one run. Every call goes the same way: rows are redacted, the transport
//! sends them with a [`Payment`] that reserves and records each attempt, and what came is kept in the journal. Whether
//! anything may be sent at all was decided before: without a [`Permit`] there is no engine.
//!
//! A call that has left is paid for: it is waited for and kept, also when its shard fails meanwhile.

mod answering;
pub mod due;
mod in_batches;
mod under_way;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rowmill_jobs::capability::Capabilities;
use rowmill_jobs::infer::{Answer, Outcome, Request, RowError, RowErrorCode, Task, TaskKind, TextFormat};
use rowmill_jobs::{Error, Result};
use tokio::time::Instant;

use crate::accounts::Accounts;
use crate::audit::{Audit, Intent};
use crate::budget::{Amount, Budget};
use crate::call::{Call, CallError, Reply, Spent, Witness};
use crate::conversation::{Conversation, Step};
use crate::journal::{Fingerprints, Journal};
use crate::lane::Lane;
use crate::on_behalf::{OnBehalf, Unwanted};
use crate::pace::{Holding, Pace};
use crate::payment::Payment;
use crate::policy::Permit;
use crate::pricing::ModelPrice;
use crate::question::Question;
use crate::redaction::{Redactor, Vault};
use crate::target::Target;
use crate::tokens::Estimates;
use crate::transport::Transport;

use due::Leeway;
pub use due::{Due, Remaining};
use in_batches::Batches;
pub use in_batches::BatchesOfRun;
use under_way::{all, to_its_end, unwanted};

/// Tokens of a chat template and of JSON's own words around a body, at most.
const TEMPLATE_TOKENS_MAX: u64 = 256;

/// What all managed models of a run share in a process.
#[derive(Debug, Clone)]
pub struct RunGuard {
    /// The record of what leaves.
    pub audit: Arc<Audit>,
    /// The detectors, if the operator has a key for them.
    pub redactor: Option<Arc<Redactor>>,
    /// What was answered, if the run has a store to keep it in.
    pub journal: Option<Arc<Journal>>,
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
    budget: Arc<Budget>,
    guard: RunGuard,
    questions: Mutex<HashMap<usize, Arc<Asked>>>,
    /// How it sends in batches, if that is its lane.
    batches: Option<Arc<Batches>>,
    /// Until when it may be waited for, if its lane was chosen among several.
    due: Option<Due>,
    /// How fast it answers, one call at a time.
    pace: Arc<Pace>,
}

/// A task, made ready, with what was learned of it. It keeps the task, whose address is its name here.
#[derive(Debug)]
struct Asked {
    task: Arc<Task>,
    question: Arc<Question>,
    estimates: Mutex<Estimates>,
    /// Where answers are kept.
    prints: Option<Fingerprints>,
}

/// One conversation's rows with what was taken out of them.
struct Talk<'a> {
    engine: &'a ManagedEngine,
    asked: &'a Asked,
    who: &'a OnBehalf,
    unwanted: &'a Unwanted,
    rows: u64,
    redactions: std::collections::BTreeMap<String, u64>,
}

impl ManagedEngine {
    /// Opens a model for a run; `said` is the job's word on it: the length of its vectors, if it embeds, and what it can do.
    ///
    /// # Errors
    /// The key cannot be had, the provider's address is not whole, or no price is known and money is bounded.
    pub async fn open(
        accounts: &Accounts,
        permit: Permit,
        said: (Option<u32>, &Capabilities),
        budget: Budget,
        guard: RunGuard,
    ) -> Result<Self> {
        let target = accounts.target(&permit, said)?;
        let price = match accounts.price(&permit) {
            Ok(price) => Some(price),
            Err(error) if budget.bounds_money() => return Err(error),
            Err(_) => None,
        };
        if permit.redacts() && guard.redactor.is_none() {
            return Err(Error::internal("a permit asks for redaction, and there is none"));
        }
        let transport = accounts.transport(&permit, &target).await?;
        let base_url = if permit.lane() == Lane::Batch { &target.batch_url } else { &target.base_url };
        let url = url::Url::parse(base_url).ok();
        let host = url.as_ref().and_then(url::Url::host_str).unwrap_or_default().to_owned();
        let region = target.holes.get("region").cloned();
        let concurrency = accounts.concurrency(&permit);
        let pace = Arc::new(accounts.pace(&permit));
        let (budget, questions) = (Arc::new(budget), Mutex::default());
        Ok(Self {
            permit,
            target,
            transport,
            concurrency,
            host,
            region,
            price,
            budget,
            guard,
            questions,
            batches: None,
            due: None,
            pace,
        })
    }

    /// Whether a task can be asked of this model.
    ///
    /// # Errors
    /// As [`Question::new`].
    pub fn check(&self, task: &Arc<Task>) -> Result<()> {
        self.asked(task).map(drop)
    }

    /// Gives back what was set aside of the budget and is not under way.
    ///
    /// # Errors
    /// As [`Budget::give_back`].
    pub async fn give_back(&self) -> Result<()> {
        self.budget.give_back().await?;
        let batches = self.batches.as_deref();
        let online = batches.and_then(Batches::online).or(self.due.as_ref().map(|due| &**due.online()));
        match online {
            Some(online) => online.budget.give_back().await,
            None => Ok(()),
        }
    }

    /// What every intent about this model has in common: whose rows go where, and who permits it. What is in a body is not.
    fn intent(&self, who: &OnBehalf) -> Intent {
        let Self { permit, host, region, .. } = self;
        Intent {
            shard: who.shard,
            attempt: who.attempt.clone(),
            provider: permit.provider().to_owned(),
            host: host.clone(),
            region: region.clone(),
            model: permit.model().to_owned(),
            lane: permit.lane(),
            rule: permit.rule().to_owned(),
            policy_hash: permit.policy_hash().to_owned(),
            columns: permit.columns().to_vec(),
            ..Intent::default()
        }
    }

    fn asked(&self, task: &Arc<Task>) -> Result<Arc<Asked>> {
        let key = Arc::as_ptr(task) as usize;
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = questions.get(&key) {
            return Ok(Arc::clone(known));
        }
        let question = Question::new(&self.target, task)?;
        let estimates = Mutex::new(question.estimates());
        let journal = self.guard.journal.as_ref();
        let prints = journal.map(|journal| journal.fingerprints(self.permit.provider(), self.permit.model(), task));
        let asked = Arc::new(Asked { task: Arc::clone(task), question, estimates, prints });
        questions.insert(key, Arc::clone(&asked));
        Ok(asked)
    }

    /// What is said of rows, with what detectors find replaced; `None` if it cannot be searched: then nothing is said, and of the
    /// row nothing either. The whole text is searched: a query may put an address together of values that are none.
    fn texts(&self, asked: &Asked, rows: &[Request], vault: &mut Vault) -> Result<Option<Vec<String>>> {
        let texts = rows.iter().map(|row| asked.question.text(row)).collect::<Result<Vec<String>>>()?;
        let Some(redactor) = &self.guard.redactor else { return Ok(Some(texts)) };
        Ok(texts.iter().map(|text| redactor.redact(text, vault)).collect::<Result<_>>().ok())
    }

    /// Talks about one row, or one pack of texts to embed, as far as there is leeway.
    async fn talk(
        &self,
        who: &OnBehalf,
        asked: &Asked,
        rows: &[Request],
        unwanted: &Unwanted,
        leeway: Option<Leeway<'_>>,
    ) -> Result<Vec<Outcome>> {
        let mut vault = Vault::default();
        let Some(texts) = self.texts(asked, rows, &mut vault)? else {
            return Ok(rows.iter().map(|_| Err(unsearchable())).collect());
        };
        let redactions = vault.counts().clone();
        let talk = Talk { engine: self, asked, who, unwanted, rows: rows.len() as u64, redactions };
        let outcomes = talk.run(Conversation::of_texts(&asked.question, texts), leeway).await?;
        Ok(match &self.guard.redactor {
            None => outcomes,
            Some(redactor) => {
                outcomes.into_iter().map(|outcome| restore(redactor, &vault, &asked.task, outcome)).collect()
            }
        })
    }
}

impl Talk<'_> {
    async fn run(&self, mut conversation: Conversation, leeway: Option<Leeway<'_>>) -> Result<Vec<Outcome>> {
        let step = conversation.first();
        // They leave with the first call; a further one about them takes none of what a rule allows.
        self.go_on_within(leeway, conversation, step, (self.who.first_of(self.rows), 0)).await
    }

    /// Goes on with a conversation of which so many rows have not left yet, and which has cost something already.
    async fn go_on(&self, conversation: Conversation, step: Step, so_far: (u64, u64)) -> Result<Vec<Outcome>> {
        self.go_on_within(None, conversation, step, so_far).await
    }

    /// The same, as far as there is leeway.
    async fn go_on_within(
        &self,
        leeway: Option<Leeway<'_>>,
        mut conversation: Conversation,
        mut step: Step,
        (mut rows, mut nano_usd): (u64, u64),
    ) -> Result<Vec<Outcome>> {
        let asking = self.engine.pace.begin();
        let failed = loop {
            match step {
                Step::Done(outcomes) => {
                    asking.answered(self.rows);
                    return Ok(self.with_cost(outcomes, nano_usd));
                }
                Step::Failed(error) => break error.with("provider", self.engine.permit.provider()),
                Step::Ask if self.unwanted.is_set() => break unwanted(),
                Step::Ask => match self.send(&mut conversation, std::mem::take(&mut rows), leeway).await {
                    Ok((next, spent)) => {
                        nano_usd += spent;
                        step = next;
                    }
                    Err(error) => break error,
                },
            }
        };
        // Whoever answers the rows now does not know of it.
        self.who.paid_for_errors(nano_usd);
        Err(failed)
    }

    /// Sends one call. Returns what to do next, and what it cost.
    async fn send(
        &self,
        conversation: &mut Conversation,
        rows: u64,
        leeway: Option<Leeway<'_>>,
    ) -> Result<(Step, u64)> {
        let engine = self.engine;
        let over_by = match leeway {
            Some(leeway) => Some(leeway.over_by().await?),
            None => None,
        };
        let mut call = conversation.call(&self.estimates());
        let bytes = call.body.as_ref().map_or(0, bytes::Bytes::len);
        // No tokenizer makes more tokens of a text than it has bytes.
        let input_tokens_max = bytes as u64 + TEMPLATE_TOKENS_MAX;
        let price = |tokens: &dyn Fn(&ModelPrice) -> u64| engine.price.as_ref().map_or(0, tokens);
        let output_tokens_max = conversation.output_tokens_max();
        let nano_usd = price(&|price| price.most(input_tokens_max, output_tokens_max, engine.permit.lane()));
        call.estimate.nano_usd_max = nano_usd;
        let most = Amount { rows, tokens: input_tokens_max + output_tokens_max, nano_usd };
        let payment = Payment::new(&engine.guard.audit, &engine.budget, self.intent(&call, bytes as u64), most);
        match self.transmit(call, &payment, over_by).await {
            Ok(reply) => {
                let turn = conversation.on_reply(&reply);
                let nano_usd = price(&|price| price.cost(&turn.spent, engine.permit.lane()));
                self.estimates().observe(bytes, &turn.spent);
                let spent = Spent { nano_usd, ..turn.spent };
                Ok((turn.step, payment.answered(reply.request_id, spent).await?))
            }
            Err(error) => {
                let nano_usd = payment.failed()?;
                Ok((conversation.on_error(&error), nano_usd))
            }
        }
    }

    /// Sends a call that has to be over at a moment, or when its transport says.
    async fn transmit(
        &self,
        call: Call,
        payment: &Arc<Payment>,
        over_by: Option<Instant>,
    ) -> std::result::Result<Reply, CallError> {
        let transport = &self.engine.transport;
        let witness = Holding::new(&self.engine.pace, Arc::clone(payment) as Arc<dyn Witness>);
        match over_by {
            Some(over_by) => transport.send_by(call, over_by, Some(witness)).await,
            None => transport.send_paid(call, witness).await,
        }
    }

    /// The cost of a talk, at the first of its rows that has an answer.
    fn with_cost(&self, mut outcomes: Vec<Outcome>, nano_usd: u64) -> Vec<Outcome> {
        match outcomes.iter_mut().find_map(|outcome| outcome.as_mut().ok()) {
            Some(answered) => answered.usage.nano_usd = nano_usd,
            None => self.who.paid_for_errors(nano_usd),
        }
        outcomes
    }

    fn intent(&self, call: &Call, bytes: u64) -> Intent {
        let engine = self.engine;
        Intent {
            rows: self.rows,
            bytes,
            tokens_estimated: call.estimate.input_tokens + call.estimate.output_tokens,
            redactions: self.redactions.clone(),
            payload_hmac: engine.guard.audit.sign(call.body.as_deref().unwrap_or_default()),
            ..engine.intent(self.who)
        }
    }

    fn estimates(&self) -> std::sync::MutexGuard<'_, Estimates> {
        self.asked.estimates.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
