//! The batch lane: rows that can wait, sent through a provider's batch API at about half the price. Everything that must
//! not be forgotten is a record in the run's store, written by put-if-absent, so that any process may die at any
//! instruction and another goes on; the records' names are in [`record`].
//!
//! ```text
//! round planned → intended → uploaded → created → (polled) → ended, fetched → reconciled → settled → next round, or done
//!                                                    ↑ cancelled, once it is recorded that there is no next round
//! ```
//!
//! [`machine`] decides from the records and the time alone; [`lane`] does what it says and holds no policy. Requests and
//! answers are opaque here: a dialect made the one and will read the other. It refuses to hold bytes that do not fit in
//! memory: a shard's rows and answers are there at once.

pub mod api;
mod find;
mod folder;
pub mod lane;
pub mod machine;
pub mod reconcile;
pub mod record;
pub mod rows;
pub mod seam;

pub use self::api::BatchProvider;
pub use self::folder::Folder;
pub use self::lane::{BatchLane, Progress, Sent, Wanted};
pub use self::machine::Patience;
pub use self::reconcile::{Failed, Reason, RowEnd, RowResult};
pub use self::rows::{Asks, BatchJob, BatchRow, Limits};
pub(crate) use self::seam::did_nothing;
pub use self::seam::{BatchBody, BatchCall, BatchRef, BatchWire, Part};
