//! Decides: what a run's shards are, which of them to queue, when the run is over and what readers see. It computes no
//! row, holds no model and keeps no state of its own: the store has it all, so any scheduler can go on where another died.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod claim;
pub mod drive;
pub mod finalize;
pub mod planning;
pub mod resolve;
pub mod split;
pub mod tracker;

pub use drive::drive;
pub use finalize::publish_if_complete;
pub use planning::{Draft, Planned, RunId, adopt, draft, pin, stored};
pub use resolve::{Resolved, RunState, resolve, run_state};
