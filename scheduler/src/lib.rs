//! Decides: what a run's shards are, which of them to queue, when the run is over and what readers see. It computes no
//! row, holds no model and keeps no state of its own: the store has it all, so any scheduler can go on where another died.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cancel;
pub mod claim;
pub mod drive;
pub mod finalize;
pub mod finish;
pub mod gc;
pub mod planning;
pub mod resolve;
pub mod service;
pub mod split;
pub mod tracker;

pub use cancel::cancel;
pub use drive::Drive;
pub use finalize::publish_if_complete;
pub use finish::{Finished, finish, published_before};
pub use planning::{Draft, Planned, RunId, adopt, draft, pin, pin_plan};
pub use resolve::{Resolved, RunState, resolve, run_state};
