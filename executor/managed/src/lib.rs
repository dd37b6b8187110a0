//! Managed models: every byte of a row that leaves the operator's machines goes through this crate, after the operator's
//! policy permitted it, an audit record was written and the money was reserved. Knows no table, no job file and no shard.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod audit;
pub mod call;
mod hex;
pub mod lane;
pub mod policy;
pub mod pricing;
pub mod redaction;
pub mod secrets;
