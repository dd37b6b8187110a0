//! Where rows come from: object stores, pinned files and the tables over them. Nothing here knows AI functions.

mod buffers;
pub(crate) mod discover;
pub mod download;
pub(crate) mod footer;
pub(crate) mod infer_schema;
mod listing;
pub(crate) mod pinned;
pub mod storage;
pub(crate) mod table;
