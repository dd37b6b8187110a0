//! Rowmill through the user's boundary: job files in, Parquet out, real processes. One binary, because each links
//! everything. What a test needs it makes or starts itself; nothing here is skipped when something is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub, missing_docs)]

mod bad_input;
mod cli;
#[cfg(feature = "services")]
mod cluster;
mod crash;
mod example;
mod models;
#[cfg(feature = "services")]
mod readers;
#[cfg(feature = "services")]
mod remote;
mod runs;
#[cfg(feature = "services")]
mod servers;
mod simulation;
mod support;
mod tidy;
