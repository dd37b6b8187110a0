//! Managed models: every byte of a row that leaves the operator's machines goes through this crate, after the operator's
//! policy permitted it, an audit record was written and the money was reserved. Knows no table, no job file and no shard.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod accounts;
pub mod audit;
pub mod batch;
pub mod budget;
pub mod call;
mod choice;
pub mod conversation;
mod dialect;
pub mod engine;
mod hex;
pub mod journal;
pub mod lane;
pub mod on_behalf;
pub mod pace;
mod payment;
pub mod policy;
pub mod pricing;
pub mod question;
pub mod redaction;
pub mod secrets;
mod structured;
pub mod target;
pub mod tokens;
pub mod transport;
mod vectors;

pub use accounts::Accounts;
pub use budget::{Amount, Books, Budget};
pub use conversation::{Conversation, Step, Turn};
pub use engine::{BatchesOfRun, Due, ManagedEngine, Remaining, RunGuard};
pub use journal::Journal;
pub use on_behalf::OnBehalf;
pub use question::Question;
pub use target::{Overrides, Target};
