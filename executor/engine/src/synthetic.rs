//! Checkpoints made of a formula, for parity tests: a fixture holds a model's configuration, its tensors' names and shapes
//! and the reference's answers, and both sides compute the same weights from a tensor's name. So many architectures and
//! shapes cost a few kilobytes each. The other side is tests/fixtures/synthetic.py.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

/// The fixtures of `tests/fixtures/architectures` whose `kind` is this, by name, sorted.
pub(crate) fn fixtures(kind: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/architectures");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path.file_stem().unwrap().to_string_lossy().into_owned(), value)
    };
    paths.into_iter().map(read).filter(|(_, value)| value["kind"] == kind).collect()
}

/// Writes a fixture's `config.json` and `model.safetensors`, beside a tokenizer that loading needs and parity does not.
pub(crate) fn checkpoint(fixture: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), fixture["config"].to_string()).unwrap();
    let tensors: HashMap<String, Tensor> = tensors(fixture).into_iter().collect();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

/// A fixture's tensors with their names.
pub(crate) fn tensors(fixture: &Value) -> Vec<(String, Tensor)> {
    fixture["tensors"].as_array().unwrap().iter().map(tensor).collect()
}

/// `[name, shape, centre, spread]` to its values: uniform in `centre ± spread`.
pub(crate) fn tensor(entry: &Value) -> (String, Tensor) {
    let name = entry[0].as_str().unwrap().to_owned();
    let shape: Vec<usize> = entry[1].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
    let (centre, spread) = (entry[2].as_f64().unwrap() as f32, entry[3].as_f64().unwrap() as f32);
    let values = values(&name, shape.iter().product(), centre, spread);
    (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
}

/// The first `count` values of a tensor of this name.
pub(crate) fn values(name: &str, count: usize, centre: f32, spread: f32) -> Vec<f32> {
    let seed = fnv1a(name.as_bytes());
    (0..count).map(|i| centre + spread * (2.0 * unit(seed, i as u64) - 1.0)).collect()
}

/// The first `count` bytes of a quantised tensor of this name.
pub(crate) fn noise(name: &str, count: usize) -> Vec<u8> {
    let seed = fnv1a(name.as_bytes());
    (0..count).map(|i| (split_mix(seed, i as u64) >> 56) as u8).collect()
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The `i`-th number in [0, 1) of a seed: the upper 24 bits.
fn unit(seed: u64, i: u64) -> f32 {
    (split_mix(seed, i) >> 40) as f32 / (1u32 << 24) as f32
}

/// SplitMix64's output function.
fn split_mix(seed: u64, i: u64) -> u64 {
    let mut x = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[test]
fn the_formula_is_that_of_the_script() {
    let (_, tensor) = tensor(&serde_json::json!(["abc", [3], 0.5, 0.25]));
    assert_eq!(tensor.to_vec1::<f32>().unwrap(), [0.331_811_3, 0.393_492, 0.254_518_12]);
}
