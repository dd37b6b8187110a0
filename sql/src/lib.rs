//! Job files, AI functions and DataFusion plans: tables in, tables out. It answers no prompt (an [`Engine`] does) and
//! decides nothing about shards, retries or publishing.
//!
//! [`Engine`]: rowmill_jobs::infer::Engine
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod exec;
mod functions;
mod jobfile;
mod output;
mod plan;
mod source;

pub use exec::{Observer, Progress};
pub use jobfile::read_job_file;
pub use output::as_json::rows_as_json;
pub use output::part::{FooterRead, PartSummary, read_part_metadata, write_part};
pub use output::rows::RowStream;
pub use output::show::format_rows;
pub use output::stage::StagedFile;
pub use plan::adopt::compile_plan;
pub use plan::job::{Call, CompiledJob, Source, compile};
pub use source::discover::discover_inputs;
pub use source::{download, storage};
