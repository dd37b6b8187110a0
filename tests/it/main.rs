//! Rowmill through the user's boundary: job files in, Parquet out, real processes. One binary, because each links
//! everything. What a test needs it makes or starts itself; nothing here is skipped when something is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub, missing_docs)]

// Feature `services`: these tests need Redis and a Python environment with an S3 server, a hub and readers of tables.
// infra/test makes both and turns the feature on; a test that lacks its service is not compiled in, so it cannot pass.

mod auto_lane;
mod bad_input;
mod buckets;
mod cli;
#[cfg(feature = "services")]
mod cluster;
mod crash;
mod example;
mod lanes;
mod managed;
mod models;
mod paid_once;
mod random;
#[cfg(feature = "services")]
mod readers;
#[cfg(feature = "services")]
mod remote;
mod runs;
#[cfg(feature = "services")]
mod servers;
mod simulation;
mod spill;
mod support;
mod tidy;
