//! The transport: the one way out. It sends [`Call`]s of an account to a provider, within its limits, as often as helps, and
//! gives back whole answers. Policy is the caller's, before it calls [`Transport::send`]; audit and money are asked for before
//! each attempt, through the call's [`Witness`]. Bodies are neither read beyond errors and token counts, nor logged, nor put
//! into errors.
//!
//! Outer to inner: deadline, retry, limiter, breaker, witness, classification, authentication, wire. Retrying is outside the
//! limiter, so that each attempt takes from the limits and a call that waits holds no place. What the breaker holds back is
//! never witnessed: it would be on record as about to leave.

mod authentication;
mod breaker;
mod classify;
pub mod errors;
#[cfg(test)]
mod errors_tests;
pub mod headers;
mod host;
mod limiter;
mod once;
mod options;
mod phrases;
mod retry;
#[cfg(test)]
mod simulation_tests;
mod stack;
#[cfg(test)]
mod stub;
#[cfg(test)]
mod tests;
mod wire;
mod witnessed;

use std::sync::Arc;
use std::time::Duration;

use async_openai::Client;
use async_openai::config::Config;
use async_openai::traits::RequestOptionsBuilder;
use bytes::Bytes;
use http::HeaderMap;
use rowmill_jobs::Result;
use secrecy::SecretString;
use serde_json::value::RawValue;
use tokio::time::Instant;

pub use authentication::{Authentication, GoogleCredentials};
pub use headers::Windows;
pub use host::Place;
pub use options::{Timeouts, TransportOptions};
pub use retry::RetryPolicy;

use crate::call::{Call, CallError, Class, Reply, Witness};
use authentication::Authenticated;
use breaker::Breaker;
use classify::Classify;
use limiter::Limiter;
use retry::Retry;
use stack::{Deadline, Facts, call_error, error};
use wire::Wire;
use witnessed::Witnessed;

/// The way to a provider's account. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Transport {
    client: Arc<Client<Target>>,
    call_time: Duration,
    /// Makes requests that async-openai has no form for.
    requests: reqwest::Client,
    /// The layers without retrying.
    once: Limiter<Breaker<Witnessed<Classify>>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("base_url", &self.client.config().base).finish_non_exhaustive()
    }
}

/// What async-openai has to know. Authentication is not its matter: it could not wait for a token.
#[derive(Debug, Clone)]
struct Target {
    base: String,
    headers: HeaderMap,
    no_key: SecretString,
}

impl Config for Target {
    fn headers(&self) -> HeaderMap {
        self.headers.clone()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn query(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn api_base(&self) -> &str {
        &self.base
    }

    fn api_key(&self) -> &SecretString {
        &self.no_key
    }
}

impl Transport {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// The base URL or a key is none, or TLS cannot be set up.
    pub fn new(options: TransportOptions) -> Result<Self> {
        let TransportOptions { timeouts, retry, windows, concurrency_max, .. } = options;
        let (base, reach) = host::base_url(&options.base_url, options.place)?;
        let target = Target {
            base: base.as_str().trim_end_matches('/').to_owned(),
            headers: options.headers,
            no_key: SecretString::default(),
        };
        let wire = Wire::new(reach, timeouts, concurrency_max, options.answer_max)?;
        let makes_requests = wire.client();
        let inner = Authenticated::new(&options.authentication, wire, base, reach, timeouts)?;
        let inner = Breaker::new(Witnessed { inner: Classify { inner, windows } });
        let inner = Limiter::new(inner, options.allowance, concurrency_max, retry.wait_max);
        let once = inner.clone();
        let inner = Deadline { inner: Retry { inner, policy: retry } };
        let client = Client::build(makes_requests.clone(), target).with_http_service(inner);
        Ok(Self { client: Arc::new(client), call_time: timeouts.call, requests: makes_requests, once })
    }

    /// Sends a call that carries no row, with the transport's own deadline.
    ///
    /// # Errors
    /// See [`Transport::send_by`].
    pub async fn send(&self, call: Call) -> Result<Reply, CallError> {
        self.send_by(call, Instant::now() + self.call_time, None).await
    }

    /// Sends a call with rows, whose attempts are paid for and on record.
    ///
    /// # Errors
    /// See [`Transport::send_by`].
    pub async fn send_paid(&self, call: Call, witness: Arc<dyn Witness>) -> Result<Reply, CallError> {
        self.send_by(call, Instant::now() + self.call_time, Some(witness)).await
    }

    /// Sends a call that has to be over at `deadline`. Whoever calls this has the operator's permit.
    ///
    /// # Errors
    /// There is no answer: the class says what to do. With [`Class::Throttled`], `retry_after` says when it is worth coming
    /// back, which is later than is waited for here.
    pub async fn send_by(
        &self,
        call: Call,
        deadline: Instant,
        witness: Option<Arc<dyn Witness>>,
    ) -> Result<Reply, CallError> {
        let Call { path, body, estimate } = call;
        if !path.starts_with('/') {
            return Err(error(Class::Refused, "the request's path is none"));
        }
        let facts = Facts::new(estimate, deadline, witness);
        let answered = Arc::clone(&facts).run(self.answer(path, body)).await;
        let body = answered?;
        let noted = facts.take_noted();
        let (request_id, first_byte) =
            noted.map_or((None, Duration::ZERO), |noted| (noted.request_id, noted.first_byte));
        Ok(Reply { body, request_id, first_byte })
    }

    /// Through async-openai's methods that take and give any JSON, with a path of ours: none of its own types is involved.
    async fn answer(&self, path: String, body: Option<Bytes>) -> Result<Bytes, CallError> {
        let Some(body) = body else {
            let files = self.client.files().path(path).map_err(call_error)?;
            return files.content("").await.map_err(call_error);
        };
        let json: &RawValue =
            serde_json::from_slice(&body).map_err(|_| error(Class::Refused, "the request is no JSON"))?;
        let chat = self.client.chat().path(path).map_err(call_error)?;
        let answer: Box<RawValue> = chat.create_byot(json).await.map_err(call_error)?;
        let text: Box<str> = answer.into();
        Ok(Bytes::from(text.into_string()))
    }
}
