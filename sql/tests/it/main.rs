//! Job files in, rows and parts out, over Parquet made in temporary folders and a scripted engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod bad_files;
mod bad_jobs;
mod bad_spills;
mod bed;
mod engines;
mod formats;
mod inputs;
mod origins;
mod rows;
mod staging;
