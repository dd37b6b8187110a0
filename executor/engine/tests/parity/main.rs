//! The engine through its public face: parity with reference numbers, and
//! every refusal. Fixtures are described in tests/fixtures/make_fixtures.py.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod answers;
mod compatible;
mod encoders;
mod refusals;
#[expect(dead_code, reason = "the crate's own tests use the rest")]
#[path = "../../src/synthetic.rs"]
mod synthetic;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rowmill_engine::{CandleEngine, EngineOptions};
use rowmill_jobs::infer::{Piece, Request, Task, TaskKind};
use rowmill_jobs::spec::Dtype;
use serde_json::Value;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn reference(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

pub fn engine(name: &str) -> CandleEngine {
    engine_of(name, Dtype::F32)
}

/// References are in `f32`; other number types come near them.
fn engine_of(name: &str, dtype: Dtype) -> CandleEngine {
    CandleEngine::load(name, &fixture(name), &EngineOptions { dtype, ..EngineOptions::default() }).unwrap()
}

pub fn task(kind: TaskKind) -> Arc<Task> {
    Arc::new(Task {
        model: "m".into(),
        kind,
        system: None,
        template: vec![Piece::Value(0)],
        input: vec![Piece::Value(0)],
    })
}

pub fn request(value: impl Into<String>) -> Request {
    Request { values: [value.into()].into() }
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Makes a token's embedding NaN in a model's folder.
pub fn poison(folder: &Path, tensor: &str, token: u64) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let info: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let (columns, start) =
        (info[tensor]["shape"][1].as_u64().unwrap(), info[tensor]["data_offsets"][0].as_u64().unwrap());
    let at = 8 + header + (start + token * columns * 4) as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
}
