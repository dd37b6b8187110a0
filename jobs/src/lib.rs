//! The vocabulary of Rowmill: job, run, plan, shard, part, outcome; the stores that hold them and the queues that carry
//! shards. Nothing here knows a table (that is `rowmill-sql`) or a model (that is `rowmill-engine`).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod allowance;
pub mod capability;
pub mod deadline;
pub mod error;
pub mod infer;
pub mod lane;
pub mod layout;
pub mod money;
pub mod part;
pub mod plan;
pub mod planted;
pub mod progress;
pub mod publish;
pub mod queue;
pub mod record;
pub mod spec;
pub mod spend;
pub mod store;

pub use error::{Error, Kind, Location, Result};
