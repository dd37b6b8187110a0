//! Where rows go: parts, staged files, and text for people.

pub(crate) mod as_json;
mod parquet_file;
pub(crate) mod part;
pub(crate) mod rows;
pub(crate) mod show;
pub(crate) mod stage;
