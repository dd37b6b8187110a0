//! A request's way through the simulator: key, journal, fate, limit, answer. One function decides all of it; only reading
//! the request and sending the answer wait for anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use crate::batch::{self, Form, Shelf};
use crate::config::{Config, Faults, Reach};
use crate::dialect::{self, Operation};
use crate::fault::{self, Fate, Instead, Lost, Way};
use crate::journal::{Entry, Journal};
use crate::limit::Account;
use crate::provider::Provider;
use crate::reply::{Delivery, Reply};
use crate::time::Time;
use crate::trouble::{self, Trouble};
use crate::{access, random, rates, token};

/// Larger bodies are refused: above what any batch file may have.
const BODY_BYTES_MAX: usize = 600 << 20;
/// Wait that a 429 without a reason asks for.
const FAULT_WAIT_MS: i64 = 1_000;

/// Everything a simulator remembers.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) time: Time,
    pub(crate) journal: Journal,
    accounts: Mutex<BTreeMap<(Provider, String), (Account, u64)>>,
    shelves: Mutex<BTreeMap<Provider, Shelf>>,
}

/// A request, read whole.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) provider: Provider,
    pub(crate) method: Method,
    /// After the provider's name.
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) form: Option<Form>,
}

impl Incoming {
    pub(crate) fn json(&self) -> Result<Value, Trouble> {
        serde_json::from_slice(&self.body).map_err(|_| Trouble::Invalid("could not parse the body as JSON".into()))
    }
}

/// Serves one request.
pub(crate) async fn handle(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().trim_start_matches('/');
    let (name, path) = path.split_once('/').unwrap_or((path, ""));
    let Some(provider) = Provider::of_name(name) else {
        return Reply::json(404, &json!({"error": "no such provider"})).deliver().await;
    };
    let Ok(body) = axum::body::to_bytes(body, BODY_BYTES_MAX).await else {
        return trouble::reply(provider, &Trouble::TooLarge).deliver().await;
    };
    let query = head.uri.query().unwrap_or_default();
    let incoming = Incoming {
        provider,
        method: head.method,
        path: format!("/{path}"),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        form: Form::read(&head.headers, &body).await,
        headers: head.headers,
        body,
    };
    state.answer(&incoming).deliver().await
}

impl State {
    pub(crate) fn new(config: Config) -> Self {
        let (time, journal) = (Time::new(config.clock_speed), Journal::new(config.keep_bodies));
        Self { config, time, journal, accounts: Mutex::default(), shelves: Mutex::default() }
    }

    /// Locks every shelf: batches are no matter of speed.
    pub(crate) fn shelves(&self) -> MutexGuard<'_, BTreeMap<Provider, Shelf>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, incoming: &Incoming) -> Reply {
        let provider = incoming.provider;
        let for_a_token = token::is_asked_for(incoming);
        let key_name = match for_a_token {
            true => Some("assertion".to_owned()),
            false => access::key_name(provider, &incoming.headers, &incoming.query, &self.config.keys),
        };
        let ticket = self.journal.came(Entry {
            at_ms: self.time.now_ms(),
            provider,
            method: incoming.method.to_string(),
            path: incoming.path.clone(),
            key_name: key_name.clone(),
            bytes: incoming.body.len(),
            body: Some(incoming.body.clone()),
            status: None,
        });
        let reply = match key_name {
            Some(_) if for_a_token => token::reply(&incoming.body, &self.config.keys),
            Some(key_name) => self.answer_known(incoming, &key_name),
            None => trouble::reply(provider, &Trouble::Unauthorized),
        };
        if reply.delivery != Delivery::Never {
            self.journal.answered(&ticket, reply.status);
        }
        reply
    }

    fn answer_known(&self, incoming: &Incoming, key_name: &str) -> Reply {
        let provider = incoming.provider;
        let faults = self.config.faults_of(provider);
        let operation = dialect::operation(provider, &incoming.path).filter(|_| incoming.method == Method::POST);
        let fate = self.fate(provider, key_name, faults, operation.is_some());
        let has_room = fate.instead == Some(Instead::NoRoom) && !is_flex(incoming);
        if let Some(instead) = fate.instead.filter(|_| !has_room) {
            return spoilt(provider, instead);
        }
        let reply = match operation {
            Some(operation) => self.ask(incoming, key_name, &operation, fate),
            None if incoming.path.ends_with("/models") => Ok(Reply::ok(&json!({"object": "list", "data": []}))),
            None => batch::answer(self, incoming).map(|reply| lose(reply, incoming, fate)),
        };
        let reply = reply.unwrap_or_else(|trouble| trouble::reply(provider, &trouble));
        let reply = on_its_way(reply, provider, fate, faults);
        if reply.is_ok() && reply.delivery == Delivery::Cut {
            self.journal.cut(provider);
        }
        reply
    }

    fn fate(&self, provider: Provider, key_name: &str, faults: &Faults, is_inference: bool) -> Fate {
        let number = self.account(provider, key_name, |_, number| {
            *number += 1;
            *number
        });
        let reached = match faults.reach {
            Reach::Everything => true,
            Reach::Inference => is_inference,
            Reach::Batches => !is_inference,
        };
        let key = random::of(format!("{} {key_name}", provider.name()));
        let fate = fault::fate(faults, self.config.seed, key, number);
        // Answers to creations are lost whatever the reach: the rate says which.
        if reached { fate } else { Fate { lost: fate.lost, ..Fate::default() } }
    }

    fn account<T>(&self, provider: Provider, key_name: &str, act: impl FnOnce(&mut Account, &mut u64) -> T) -> T {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let (account, number) = accounts
            .entry((provider, key_name.to_owned()))
            .or_insert_with(|| (Account::new(self.config.limits_of(provider), self.time.now_ms()), 0));
        act(account, number)
    }

    /// Asks a model, within the limits.
    fn ask(&self, incoming: &Incoming, key_name: &str, operation: &Operation, fate: Fate) -> Result<Reply, Trouble> {
        let provider = incoming.provider;
        if provider == Provider::Anthropic && !incoming.headers.contains_key("anthropic-version") {
            return Err(Trouble::Invalid("anthropic-version: header is required".into()));
        }
        let answered = dialect::infer(provider, operation, &incoming.json()?, fate.flaw)?;
        let now_ms = self.time.now_ms();
        let (taken, levels) =
            self.account(provider, key_name, |account, _| (account.take(answered.take, now_ms), account.levels()));
        let reply = match taken {
            Ok(()) => {
                self.journal.paid(provider, &incoming.body, answered.take);
                Reply::ok(&answered.body)
            }
            Err(wait_ms) => trouble::reply(provider, &Trouble::Throttled { wait_ms }),
        };
        let id = format!("req_{:016x}", random::of(&incoming.body));
        let reply = match provider {
            Provider::Anthropic => reply.header("request-id", id),
            Provider::Bedrock => reply.header("x-amzn-requestid", id),
            _ => reply.header("x-request-id", id),
        };
        let reply = rates::tell(reply, provider, &levels, now_ms);
        let keeps_alive = provider == Provider::Deepseek && reply.is_ok();
        Ok(if keeps_alive { Reply { delivery: Delivery::BlankLines, ..reply } } else { reply })
    }
}

/// Whether a request asks for the flex tier.
fn is_flex(incoming: &Incoming) -> bool {
    let tier = incoming.json().ok().and_then(|body| body["service_tier"].as_str().map(str::to_lowercase));
    tier.as_deref() == Some("flex")
}

/// What is sent instead of an answer.
fn spoilt(provider: Provider, instead: Instead) -> Reply {
    match instead {
        Instead::Throttled => trouble::reply(provider, &Trouble::Throttled { wait_ms: FAULT_WAIT_MS }),
        Instead::Broken => trouble::reply(provider, &Trouble::Broken),
        Instead::OverloadedHtml => trouble::html(),
        Instead::Billing => trouble::reply(provider, &Trouble::Billing),
        Instead::NoRoom => trouble::reply(provider, &Trouble::NoRoom),
        Instead::Silent => Reply { delivery: Delivery::Never, ..trouble::reply(provider, &Trouble::Broken) },
    }
}

/// What becomes of an answer between the provider and the client.
fn on_its_way(reply: Reply, provider: Provider, fate: Fate, faults: &Faults) -> Reply {
    match fate.way {
        Some(Way::Cut) if reply.is_ok() => Reply { delivery: Delivery::Cut, ..reply },
        Some(Way::ErrorInOk) if reply.is_ok() => {
            Reply { status: 200, ..trouble::reply(provider, &Trouble::Overloaded) }
        }
        Some(Way::Slow) => Reply { delivery: Delivery::Late(Duration::from_millis(faults.slow_ms)), ..reply },
        _ => reply,
    }
}

/// Loses the answer to a creation that was done.
fn lose(reply: Reply, incoming: &Incoming, fate: Fate) -> Reply {
    let is_creation =
        incoming.method == Method::POST && !["cancel", "stop"].iter().any(|end| incoming.path.ends_with(end));
    match fate.lost.filter(|_| is_creation && reply.is_ok()) {
        None => reply,
        Some(Lost::CutOff) => Reply { delivery: Delivery::Cut, ..reply },
        Some(Lost::GatewayError) => Reply::new(504, "text/html", "<html><body>504 Gateway Time-out</body></html>"),
    }
}
