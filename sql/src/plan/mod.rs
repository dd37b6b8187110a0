//! From a job to plans: DataFusion's logical plan, AI calls lifted out of it, and what of it is row-local. `job.rs` is the
//! face of it.

pub(crate) mod adopt;
pub(crate) mod chain;
mod checks;
mod classify;
mod diagnose;
pub(crate) mod infer_node;
pub(crate) mod job;
mod lift;
mod operands;
mod origins;
pub(crate) mod row_notes;
mod session;
mod staged;
mod subquery;
