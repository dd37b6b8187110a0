//! Blocks of every number type hold what gguf-py says they hold, and a model that mixes them answers as the same model does
//! in `f32`. The fixture, and the formula for the bytes, is that of tests/fixtures/make_gguf_types.py.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content, Value as Stored};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

use super::GgufFile;
use crate::alone::{errors as logit_errors, ids, last_logits, range};
use crate::linear::from_bytes;
use crate::model::{EngineOptions, Model, Network};
use crate::synthetic::{noise, values};
use crate::writer::Writer;
use rowmill_jobs::spec::Dtype;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("gguf-types.json")).unwrap()).unwrap()
}

/// The type of a name, and where in its blocks the scales are, with the exponents they get.
fn number_type(name: &str) -> (GgmlDType, &'static [(usize, u8)]) {
    match name {
        "F16" => (GgmlDType::F16, &[(0, 11)]),
        "BF16" => (GgmlDType::BF16, &[]),
        "Q4_0" => (GgmlDType::Q4_0, &[(0, 9)]),
        "Q4_1" => (GgmlDType::Q4_1, &[(0, 9), (2, 11)]),
        "Q5_0" => (GgmlDType::Q5_0, &[(0, 8)]),
        "Q5_1" => (GgmlDType::Q5_1, &[(0, 8), (2, 11)]),
        "Q8_0" => (GgmlDType::Q8_0, &[(0, 5)]),
        "Q2_K" => (GgmlDType::Q2K, &[(80, 7), (82, 7)]),
        "Q3_K" => (GgmlDType::Q3K, &[(108, 6)]),
        "Q4_K" => (GgmlDType::Q4K, &[(0, 3), (2, 5)]),
        "Q5_K" => (GgmlDType::Q5K, &[(0, 2), (2, 5)]),
        "Q6_K" => (GgmlDType::Q6K, &[(208, 1)]),
        "Q8_K" => (GgmlDType::Q8K, &[]),
        other => panic!("{other}"),
    }
}

/// A tensor of bytes from its name.
fn quantised(name: &str, kind: &str, rows: usize, columns: usize) -> QTensor {
    let (dtype, scales) = number_type(kind);
    let mut bytes = noise(name, rows * columns / dtype.block_size() * dtype.type_size());
    for block in bytes.chunks_exact_mut(dtype.type_size()) {
        for (offset, exponent) in scales {
            block[offset + 1] = (block[offset + 1] & 0x83) | (exponent << 2);
        }
        match dtype {
            GgmlDType::BF16 => {
                block[1] = (block[1] & 0x80) | (123 >> 1);
                block[0] |= 0x80;
            }
            GgmlDType::Q8K => {
                block[3] = (block[3] & 0x80) | (117 >> 1);
                block[2] |= 0x80;
            }
            _ => {}
        }
    }
    from_bytes(bytes, dtype, rows, columns).unwrap()
}

fn write(path: &Path, metadata: &[(&str, &Stored)], tensors: &[(String, QTensor)]) {
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), metadata, &tensors).unwrap();
}

#[test]
fn blocks_of_every_type_hold_what_gguf_py_says() {
    let reference = reference();
    let types = reference["types"].as_object().unwrap();
    let tensor = |kind: &String| (kind.clone(), quantised(&format!("types.{kind}"), kind, 1, 256));
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), &[], &types.keys().map(tensor).collect::<Vec<_>>());
    let file = GgufFile::open(file.path()).unwrap();
    assert_eq!(types.len(), 13);
    for (kind, expected) in types {
        let expected: Vec<u32> =
            expected.as_array().unwrap().iter().map(|bits| bits.as_u64().unwrap() as u32).collect();
        let given: Vec<u32> = file.read(kind).unwrap().into_iter().map(f32::to_bits).collect();
        assert_eq!(given.len(), 256);
        for (at, (given, expected)) in given.iter().zip(&expected).enumerate() {
            let (given, expected) = (f32::from_bits(*given), f32::from_bits(*expected));
            // The same products and sums in another order differ in the last bits.
            let tolerance = 1e-6 * expected.abs().max(0.01);
            assert!((given - expected).abs() <= tolerance, "{kind} {at}: {given} should be {expected}");
        }
    }
}

/// The fixture's model as a GGUF file, with the tokenizer of another.
fn model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let reference = reference();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let size = |value: &Value| value.as_u64().unwrap() as usize;
    let matrices = reference["model"]["tensors"].as_array().unwrap().iter();
    let mut tensors: Vec<(String, QTensor)> =
        matrices.map(|m| (text(&m[0]), quantised(&text(&m[0]), &text(&m[1]), size(&m[2]), size(&m[3])))).collect();
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm"] {
        let name = format!("{name}.weight");
        let norm = Tensor::from_vec(values(&name, 256, 1.0, 0.2), 256, &Device::Cpu).unwrap();
        tensors.push((name, QTensor::quantize(&norm, GgmlDType::F32).unwrap()));
    }
    let mut other = Content::read(&mut File::open(fixture("llama-tiny.gguf")).unwrap()).unwrap().metadata;
    for (key, value) in [
        ("llama.block_count", 2),
        ("llama.embedding_length", 256),
        ("llama.feed_forward_length", 256),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.dimension_count", 64),
    ] {
        other.insert(key.to_owned(), Stored::U32(value));
    }
    let metadata: Vec<(&str, &Stored)> = other.iter().map(|(key, value)| (key.as_str(), value)).collect();
    write(&folder.path().join("model.gguf"), &metadata, &tensors);
    folder
}

/// Errors of the 20 highest logits, as parts of the range of all.
fn errors(model: Model) -> Vec<f32> {
    let Network::Writer(Writer::Packed { decoder, shape }) = model.network else { panic!("not a decoder") };
    let reference = reference();
    let items = reference["model"]["items"].as_array().unwrap().iter();
    let of = |item: &Value| {
        let logits = last_logits(&decoder, &shape, &ids(&item["ids"]));
        logit_errors(&logits, &item["top_logits"], range(&logits))
    };
    items.flat_map(of).collect()
}

#[test]
fn a_model_of_mixed_types_answers_as_in_f32() {
    let folder = model();
    let path = folder.path().join("model.gguf");
    let widened = errors(Model::load(&path, &EngineOptions { dtype: Dtype::F32, ..EngineOptions::default() }).unwrap());
    assert!(widened.iter().all(|error| *error < 1e-4), "{widened:?}");
    // Products with quantised matrices round the other side to 8 bits.
    let kept = errors(Model::load_quantised(&path).unwrap());
    let mean = kept.iter().sum::<f32>() / kept.len() as f32;
    assert!(mean > 1e-6 && mean < 0.02, "mean error {mean} of the logits' range");
}
