//! The candle engine: open models on this machine, for tables. Tokens in, outcomes out: packed ragged batches, a paged KV
//! cache with shared prefixes, label scoring without decoding, constrained output, continuous batching. Beside it, an
//! engine without a model ([`echo`]).
//! Knows no table, no network and no file it was not given; fetches nothing and writes nothing.

mod added;
mod answer;
mod attention;
pub mod bench;
mod buffers;
mod chat;
mod compatible;
mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod cuts;
mod decoder;
mod descriptor;
#[cfg(any(test, feature = "cuda"))]
mod device;
mod drive;
pub mod echo;
mod encoder;
mod engine;
mod gemm;
mod gguf;
mod guide;
mod kernels;
mod kv;
mod labels;
mod line;
mod linear;
mod lora;
mod lost;
mod model;
mod pack;
mod pieces;
mod place;
mod prefixes;
mod prompt;
mod prompts;
mod rope;
mod row;
mod safetensors;
mod schedule;
mod source;
mod texts;
mod tokens;
pub mod verify;
mod weights;
mod worker;
mod writer;

pub use descriptor::{Architecture, ComputedBy, architectures};
pub use engine::CandleEngine;
pub use lost::lost_device;
pub use model::{EngineOptions, KV_BYTES_DEFAULT, ModelFacts, inspect, inspect_adapted};

#[cfg(test)]
mod ahead_tests;
#[cfg(test)]
mod alone;
#[cfg(test)]
mod answer_tests;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod odd;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod parity_tests;
#[cfg(test)]
mod pieces_tests;
#[cfg(test)]
mod place_tests;
#[cfg(test)]
mod prompts_tests;
#[cfg(test)]
mod schedule_tests;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod worker_tests;
#[cfg(test)]
mod writer_tests;
