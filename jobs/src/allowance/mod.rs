//! What a provider allows an account: requests and tokens per time, and how many calls at once. [`Allowance`] shares it out
//! among callers, [`LocalAllowance`] within a process, [`RedisAllowance`] among all executors. Knows no provider, no HTTP and
//! no money (that is the spend ledger); it never asks a provider anything.
//!
//! A call takes what it is expected to need before it is sent (reserve) and corrects that afterwards (settle). What
//! providers say about their own count in headers corrects ours, up and down.

mod book;
mod bucket;
mod concurrency;
#[cfg(test)]
mod contract;
mod exchange;
mod lease;
mod local;
mod redis;
// Not every machine has a redis-server: infra/test brings it.
#[cfg(all(test, feature = "services"))]
mod redis_tests;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

pub use concurrency::{Concurrency, Finished};
pub use local::LocalAllowance;
pub use redis::RedisAllowance;

use crate::{Error, Result};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Calls.
    Requests,
    /// Prompt tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
    /// Prompt and output tokens together.
    Tokens,
}

impl Resource {
    /// As it is written in the names of buckets.
    fn name(self) -> &'static str {
        match self {
            Resource::Requests => "requests",
            Resource::InputTokens => "input",
            Resource::OutputTokens => "output",
            Resource::Tokens => "tokens",
        }
    }
}

/// Who says what a limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmness {
    /// The operator: what a provider's headers say may lower it, never raise it.
    Firm,
    /// A table of usual values: the provider's headers replace it.
    Learned,
}

/// So much of a resource in a window of time. Refills continuously.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is counted.
    pub resource: Resource,
    /// How much.
    pub amount: u64,
    /// In which time: a second, a minute, a day.
    pub window: Duration,
    /// Whether headers may raise it.
    pub firmness: Firmness,
}

impl Limit {
    /// So much a minute, as the operator wants it.
    pub fn per_minute(resource: Resource, amount: u64) -> Self {
        Self { resource, amount, window: Duration::from_secs(60), firmness: Firmness::Firm }
    }

    /// What a process may use of it if `parts` share it and cannot talk to each other.
    fn divided(self, parts: u64) -> Self {
        Self { amount: (self.amount / parts.max(1)).max(1), ..self }
    }
}

/// What a call takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charge {
    /// Calls: one, or none where a call was not even counted.
    pub requests: u64,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
}

impl Charge {
    /// How much of a resource.
    fn of(self, resource: Resource) -> f64 {
        let amount = match resource {
            Resource::Requests => self.requests,
            Resource::InputTokens => self.input_tokens,
            Resource::OutputTokens => self.output_tokens,
            Resource::Tokens => self.input_tokens.saturating_add(self.output_tokens),
        };
        amount as f64
    }
}

/// What a provider says about one of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What is counted.
    pub resource: Resource,
    /// In which time.
    pub window: Duration,
    /// How much there may be.
    pub limit: Option<u64>,
    /// How much is left.
    pub remaining: Option<u64>,
    /// Until everything is there again.
    pub reset: Option<Duration>,
}

impl Seen {
    /// How long nothing may be sent because of it: a long window that is used up does not refill bit by bit everywhere, so
    /// the provider's own word is taken.
    fn pause(&self) -> Option<Duration> {
        self.reset.filter(|_| self.remaining == Some(0) && self.window >= LONG_WINDOW)
    }

    /// What a process takes it for if `parts` share the limit and cannot talk to each other.
    fn divided(self, parts: u64) -> Self {
        let divide = |amount: u64| amount / parts.max(1);
        Self { limit: self.limit.map(divide), remaining: self.remaining.map(divide), ..self }
    }
}

/// Whether a call may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// After this time; its charge has been taken.
    After(Duration),
    /// Not within the time the caller would wait, but after this time; nothing has been taken.
    Refused(Duration),
}

/// An account's limits, shared by everybody who holds them. Only [`Allowance::reserve`] may wait for others (a round trip
/// to Redis); the rest notes and returns at once.
#[async_trait]
pub trait Allowance: Send + Sync + fmt::Debug {
    /// Takes a charge, unless that means to wait for longer than `wait_max`. Callers are served in order. A charge larger
    /// than what can ever be saved up is granted, too: it is waited for as long as it takes to refill.
    async fn reserve(&self, charge: Charge, wait_max: Duration) -> Grant;

    /// Corrects what was reserved to what was used, both ways. Once for every grant.
    fn settle(&self, reserved: Charge, used: Charge);

    /// Corrects our count with a provider's.
    fn correct(&self, seen: &[Seen]);

    /// Nothing is granted for this long: the provider asked for it.
    fn pause(&self, time: Duration);

    /// How long nothing may be sent from now on. For whoever was granted something before a pause began.
    fn paused(&self) -> Duration;
}

/// Windows from here on are saved up whole; shorter ones only for [`BURST`].
const LONG_WINDOW: Duration = Duration::from_secs(3_600);

/// How much of a limit may be saved up and then be used at once, as time to refill it. Providers count in windows of their
/// own, often shorter than a minute: a full minute's worth at once would be refused.
const BURST: Duration = Duration::from_secs(5);

/// Refuses limits that would never let a call through.
///
/// # Errors
/// One is zero, or has no window.
fn check_limits(limits: &[Limit]) -> Result<()> {
    for limit in limits {
        if limit.amount == 0 || limit.window.is_zero() {
            let name = limit.resource.name();
            return Err(Error::invalid(format!("the limit of {name} would let no call through"))
                .hint("leave a limit out that does not exist; to send nothing, do not name the model"));
        }
    }
    Ok(())
}
