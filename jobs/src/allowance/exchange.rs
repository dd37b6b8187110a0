//! What an executor and the script in Redis say to each other. Nothing is decided here.

use std::time::Duration;

use serde::Serialize;

use super::{Firmness, Limit};

/// All that is said to the script.
#[derive(Debug, Serialize)]
pub(super) struct Ask {
    /// The executor.
    pub(super) who: String,
    /// Whether something is taken.
    pub(super) take: bool,
    /// Longest wait that is granted, in seconds.
    pub(super) wait_max: f64,
    /// Nothing is granted for so many seconds.
    pub(super) pause: f64,
    /// How much more than is needed is taken, as seconds of refill.
    pub(super) lease: f64,
    /// An executor silent for so many seconds is none.
    pub(super) silence: f64,
    /// How many times what is in flight is taken to be missing in a provider's count.
    pub(super) doubt: f64,
    /// Half of what is in flight is forgotten in so many seconds.
    pub(super) forget: f64,
    /// Seconds after which all of it is forgotten.
    pub(super) keep: u64,
    /// Limit by limit.
    pub(super) buckets: Vec<AskBucket>,
}

/// What is said about one limit.
#[derive(Debug, Serialize)]
pub(super) struct AskBucket {
    pub(super) name: String,
    pub(super) amount: f64,
    pub(super) window: f64,
    /// Seconds of refill that may be saved up.
    pub(super) burst: f64,
    pub(super) firm: bool,
    /// What is needed now.
    pub(super) least: f64,
    /// What is given back; negative if more was used than reserved.
    pub(super) back: f64,
    /// What is no longer in flight.
    pub(super) done: f64,
    /// The provider's limit, 0 if it said none.
    pub(super) seen_limit: f64,
    /// What the provider says is left, negative if it said nothing.
    pub(super) seen_remaining: f64,
}

impl AskBucket {
    /// Nothing needed, nothing settled, nothing seen.
    pub(super) fn of(limit: &Limit) -> Self {
        let window = limit.window.as_secs_f64();
        Self {
            name: format!("{}/{window}", limit.resource.name()),
            amount: limit.amount as f64,
            window,
            burst: if limit.window >= super::LONG_WINDOW { window } else { super::BURST.as_secs_f64().min(window) },
            firm: limit.firmness == Firmness::Firm,
            least: 0.0,
            back: 0.0,
            done: 0.0,
            seen_limit: 0.0,
            seen_remaining: -1.0,
        }
    }
}

/// What the script says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// How long to wait.
    pub(super) wait: Duration,
    /// Executors that share the limits, this one included.
    pub(super) members: u64,
    /// How long nothing is granted.
    pub(super) paused: Duration,
    /// Whether it was taken.
    pub(super) granted: bool,
    /// What was granted, in the order of the limits asked for.
    pub(super) amounts: Vec<f64>,
}

impl Answer {
    /// Reads the script's numbers; `None` if they are not what it says.
    pub(super) fn read(numbers: &[f64]) -> Option<Self> {
        let [wait, members, paused, granted, amounts @ ..] = numbers else { return None };
        let time = |seconds: &f64| Duration::try_from_secs_f64(*seconds).ok();
        Some(Self {
            wait: time(wait)?,
            members: (*members as u64).max(1),
            paused: time(paused)?,
            granted: *granted == 1.0,
            amounts: amounts.to_vec(),
        })
    }
}
