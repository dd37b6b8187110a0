//! Where rows go: parts, staged files, and text for people.

pub(crate) mod as_json;
mod parquet_file;
pub mod part;
pub mod rows;
pub mod show;
pub mod stage;
