//! Does: fetches and loads models, runs shards through them and commits their parts. It decides nothing about a run and
//! knows no other executor; all it is told is which shard to compute.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod attempt;
mod chain;
mod digest;
pub mod egress;
pub mod engines;
pub mod estimate;
mod forecast;
pub mod isolate;
pub mod models;
pub mod router;
pub mod runs;
pub mod scratch;
mod spill;
pub mod worker;

pub use attempt::{Who, attempt};
pub use egress::{Egress, Outlook, Sending};
pub use engines::{EngineLimits, Engines};
pub use models::{ResolvedModel, resolve};
pub use router::{AtShard, Models, Router};
/// What the command line asks of the engine itself, without a run.
pub use rowmill_engine::{EngineOptions, architectures, bench, verify};
/// What the command line asks of managed models without a run.
pub use rowmill_managed::{Accounts, audit, lane, policy, pricing};
pub use runs::{PlannedModels, RunContext, Runs, models_of};
pub use scratch::Scratch;
pub use worker::{Executor, ExecutorOptions, Watch};
