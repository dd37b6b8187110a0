//! What the parts of this crate say to each other: a dialect makes a [`Call`], the transport sends it under a
//! permit of the policy and gives a [`Reply`] or a [`CallError`]. No policy and no I/O here.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// A request of a provider's API, before authentication.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Path after the provider's base URL, query included: `/chat/completions`.
    pub path: String,
    /// JSON body, as it is sent; `None` makes it a GET.
    pub body: Option<Bytes>,
    /// What it will take, as far as is known before it is sent.
    pub estimate: Estimate,
}

/// Who is asked before each attempt at a call leaves, and told if it was not answered, its deadline included. The transport
/// tries again by itself, and each attempt has a price of its own.
#[async_trait]
pub trait Witness: Send + Sync + fmt::Debug {
    /// An attempt is about to leave; `false` keeps it, and the call ends as [`Class::Stopped`].
    async fn leaving(&self) -> bool;

    /// The attempt has no answer.
    async fn unanswered(&self, error: &CallError, left: Left);
}

/// Whether anything of an attempt left this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing did.
    Nothing,
    /// Something did.
    Something,
}

/// Tokens and money a call is expected to take: reserved before it is sent, settled with [`Spent`] after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Output tokens that are likely: what rate limits are charged with.
    pub output_tokens: u64,
    /// The most it can cost, in nano-dollars (10⁻⁹ USD): every output token that it may write is counted.
    pub nano_usd_max: u64,
}

/// What a call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Prompt tokens, cached ones included.
    pub input_tokens: u64,
    /// Prompt tokens that the provider had cached.
    pub cached_tokens: u64,
    /// Output tokens, reasoning included.
    pub output_tokens: u64,
    /// Cost in nano-dollars.
    pub nano_usd: u64,
}

/// A provider's whole answer with a status of 2xx and no error inside.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The body.
    pub body: Bytes,
    /// The provider's name for the request, from its headers.
    pub request_id: Option<String>,
    /// Time until the response's headers came.
    pub first_byte: Duration,
}

/// What sort of trouble a call had, which decides what is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The provider asks for fewer requests (429, 529, 503 of an overloaded server): wait; it spends time, not attempts.
    Throttled,
    /// A broken connection, a timeout, 408, 409, 5xx, a body that was cut: try again, a few times.
    Transient,
    /// The answer is not what was asked for (no JSON of the schema, cut at the token limit): ask again, differently, at most twice.
    InvalidOutput,
    /// The provider refuses this request whatever is done (400, 413, 422, content filter): the row's error.
    Refused,
    /// The prompt is longer than the model's context: the row's error, and a reason to spill elsewhere.
    TooLong,
    /// Keys, permissions or names are wrong (401, 403, 404): the lane stops; somebody must fix something.
    Denied,
    /// No money left at the provider (`insufficient_quota`, a billing stop): the lane stops, and is never retried.
    Billing,
    /// The job's own cap, deadline or a cancellation: nothing was sent, or nothing more may be.
    Stopped,
}

/// Why a call has no reply. It never carries the body of the request nor the text of the response: both may hold row content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// What sort of trouble it is.
    pub class: Class,
    /// HTTP status, if there was a response.
    pub status: Option<u16>,
    /// The provider's own code (`rate_limit_exceeded`, `overloaded_error`), if it is a plain word.
    pub code: Option<String>,
    /// The trouble in our words.
    pub message: String,
    /// How long the provider asks to wait.
    pub retry_after: Option<Duration>,
    /// The provider's name for the request.
    pub request_id: Option<String>,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(status) = self.status {
            write!(f, " (HTTP {status}")?;
            if let Some(code) = &self.code {
                write!(f, ", {code}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl std::error::Error for CallError {}
