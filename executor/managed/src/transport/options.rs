//! How a transport is set up. The defaults are those for a provider on the Internet.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use rowmill_jobs::allowance::Allowance;

use super::authentication::Authentication;
use super::headers::Windows;
use super::host::Place;
use super::retry::RetryPolicy;

/// Longest times of a call's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// Between two pieces of an answer, and until the first.
    pub idle: Duration,
    /// One attempt, from connecting to the answer's last byte. Blank lines that keep a connection alive defeat `idle`, not this.
    pub attempt: Duration,
    /// A call with all its attempts and everything it waits for.
    pub call: Duration,
}

impl Timeouts {
    /// For the flex lane, whose answers come when the provider has room: OpenAI advises 15 minutes at least.
    pub const FLEX: Self = Self {
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(1_800),
        attempt: Duration::from_secs(1_800),
        call: Duration::from_secs(6 * 3_600),
    };
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(120),
            attempt: Duration::from_secs(600),
            call: Duration::from_secs(3_600),
        }
    }
}

/// A transport's settings. Breaker and concurrency are the transport's own: make one for each account and group of models
/// in a process, and share it.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// Base URL, the provider's version included: `https://api.openai.com/v1`.
    pub base_url: String,
    /// Whose host that is.
    pub place: Place,
    /// How requests are authenticated.
    pub authentication: Authentication,
    /// Headers of every request (`anthropic-version`, `OpenAI-Organization`); no secrets.
    pub headers: HeaderMap,
    /// Longest times.
    pub timeouts: Timeouts,
    /// When calls are tried again.
    pub retry: RetryPolicy,
    /// Calls that may be under way at once; how many are, is learned.
    pub concurrency_max: usize,
    /// Largest answer in bytes, unpacked.
    pub answer_max: usize,
    /// What the provider's rate-limit headers count by.
    pub windows: Windows,
    /// Limits of the provider's account, shared with whoever else uses it.
    pub allowance: Arc<dyn Allowance>,
}

impl TransportOptions {
    /// Calls under way at once, if the operator does not say.
    pub const CONCURRENCY: usize = 256;

    /// The defaults for a provider.
    pub fn new(base_url: &str, authentication: Authentication, allowance: Arc<dyn Allowance>) -> Self {
        Self {
            base_url: base_url.to_owned(),
            place: Place::Provider,
            authentication,
            headers: HeaderMap::new(),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            concurrency_max: Self::CONCURRENCY,
            answer_max: 64 << 20,
            windows: Windows::default(),
            allowance,
        }
    }
}
