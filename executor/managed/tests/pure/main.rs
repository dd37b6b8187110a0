//! Requests and answers without a network: what each target is sent, against JSON written by hand and against OpenAI's own
//! types; where a row's values can stand; how talks about rows go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bed;
mod conversations;
mod data;
mod requests;
mod specification;
