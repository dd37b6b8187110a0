//! The innermost layer: sends a request with reqwest and reads the answer, with bounds on time and size. Looks at nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use reqwest::redirect::Policy;
use rowmill_jobs::{Error, Result};
use tokio::time::Instant;

use super::host::{Reach, Resolver, Unreachable};
use super::options::Timeouts;
use super::stack::{Answers, Facts, Failed, error};
use crate::call::{CallError, Class};

/// Calls that share a connection of HTTP/2: most servers take no more, and the rest would wait in line unseen.
const CALLS_PER_CONNECTION: usize = 100;
/// Clients, each with its connections.
const CLIENTS_MAX: usize = 16;
/// How much larger than an answer the results of a batch may be: they are thousands.
const RESULTS_FACTOR: usize = 16;
/// Room that is made for an answer before it comes.
const ROOM_MAX: u64 = 1 << 20;

/// A response, read whole.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) first_byte: Duration,
}

/// Sends.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    clients: Arc<[reqwest::Client]>,
    turn: Arc<AtomicUsize>,
    answer_max: usize,
}

impl Wire {
    /// For calls to hosts within reach, so many at once.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(super) fn new(reach: Reach, timeouts: Timeouts, at_once: usize, answer_max: usize) -> Result<Self> {
        let count = at_once.div_ceil(CALLS_PER_CONNECTION).clamp(1, CLIENTS_MAX);
        let clients: Result<Arc<[_]>> = (0..count).map(|_| client(reach, timeouts)).collect();
        Ok(Self { clients: clients?, turn: Arc::default(), answer_max })
    }

    /// Any of the clients, to make requests with.
    pub(super) fn client(&self) -> reqwest::Client {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // There is at least one.
        self.clients.get(turn % self.clients.len()).cloned().unwrap_or_default()
    }

    /// Sends a request. Any status is an answer.
    pub(super) async fn send(&self, request: reqwest::Request) -> Result<Response, Box<Failed>> {
        let started = Instant::now();
        let mut response = self.client().execute(request).await.map_err(|error| unanswered(&error))?;
        let first_byte = started.elapsed();
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let answer_max = match Facts::of_this_call().answers {
            Answers::Model => self.answer_max,
            Answers::Batch => self.answer_max.saturating_mul(RESULTS_FACTOR),
        };
        let room = response.content_length().unwrap_or(0);
        if room > answer_max as u64 {
            return Err(Failed::unanswered(too_large()));
        }
        let mut body = BytesMut::with_capacity(usize::try_from(room.min(ROOM_MAX)).unwrap_or(0));
        while let Some(piece) = response.chunk().await.map_err(|error| unanswered(&error))? {
            if body.len() + piece.len() > answer_max {
                return Err(Failed::unanswered(too_large()));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Response { status, headers, body: body.freeze(), first_byte })
    }
}

/// A client that goes nowhere but where it is sent.
fn client(reach: Reach, timeouts: Timeouts) -> Result<reqwest::Client> {
    // Two are compiled in, so that somebody has to choose. An earlier choice is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("rowmill/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        .https_only(reach != Reach::Private)
        .dns_resolver(Resolver { reach })
        .connect_timeout(timeouts.connect)
        .read_timeout(timeouts.idle)
        .timeout(timeouts.attempt)
        .pool_idle_timeout(Duration::from_secs(60))
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(20))
        .build()
        .map_err(|error| Error::invalid("HTTP cannot be set up").caused_by(error.without_url()))
}

/// What an error of the connection means. Its own text is not shown: it may hold the URL.
fn unanswered(cause: &reqwest::Error) -> Box<Failed> {
    let mut sources = std::iter::successors(std::error::Error::source(cause), |error| error.source());
    if sources.any(|source| source.is::<Unreachable>()) {
        return Failed::unsent(error(Class::Denied, "the provider's host has no address that may be connected to"));
    }
    if cause.is_builder() {
        return Failed::unsent(error(Class::Refused, "the request cannot be made"));
    }
    if cause.is_connect() {
        return Failed::unsent(error(Class::Transient, "the provider cannot be connected to"));
    }
    let message = match cause {
        _ if cause.is_timeout() => "the provider did not answer in time",
        _ if cause.is_body() || cause.is_decode() => "the provider's answer was cut",
        _ => "the connection to the provider broke",
    };
    Failed::unanswered(error(Class::Transient, message))
}

fn too_large() -> CallError {
    error(Class::Refused, "the provider's answer is larger than is read")
}
