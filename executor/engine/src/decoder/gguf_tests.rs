//! Decoders from GGUF files, family by family: the fixtures are written as llama.cpp's converter would, in its names, orders
//! and keys, and the reference is transformers' with the same weights (tests/fixtures/make_decoders.py).

#![allow(clippy::unwrap_used)]

use crate::linear::Precision;
use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value as Entry};
use candle_core::quantized::{GgmlDType, QTensor};
use serde_json::Value;

use super::switch_tests::error;
use super::{Decoder, GGUF_FAMILIES, from_gguf};
use crate::gguf::GgufFile;
use crate::synthetic::{fixtures, tensors};
use crate::weights::{Kept, Weights};

/// A GGUF file of the fixture; matrices in `kind`.
pub(super) fn write(fixture: &Value, kind: GgmlDType) -> tempfile::NamedTempFile {
    let entry = |value: &Value| match value {
        Value::Bool(flag) => Entry::Bool(*flag),
        Value::String(text) => Entry::String(text.clone()),
        number => match number.as_u64() {
            Some(integer) => u32::try_from(integer).map_or(Entry::U64(integer), Entry::U32),
            None => Entry::F32(number.as_f64().unwrap() as f32),
        },
    };
    let metadata = fixture["metadata"].as_object().unwrap();
    let metadata: Vec<(&str, Entry)> = metadata.iter().map(|(key, value)| (key.as_str(), entry(value))).collect();
    let metadata: Vec<(&str, &Entry)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let quantised = |(name, tensor): (String, Tensor)| {
        let matrix = tensor.dims().last().is_some_and(|last| last.is_multiple_of(32)) && tensor.rank() > 1;
        (name, QTensor::quantize(&tensor, if matrix { kind } else { GgmlDType::F32 }).unwrap())
    };
    let tensors: Vec<(String, QTensor)> = tensors(fixture).into_iter().map(quantised).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    file
}

#[test]
fn every_family_of_gguf_files() {
    let mut seen = Vec::new();
    for (name, fixture) in fixtures("gguf") {
        let written = write(&fixture, GgmlDType::F32);
        let file = GgufFile::open(written.path()).unwrap();
        let (architecture, shape) = from_gguf(&file).unwrap();
        let shape = shape.used_with(None);
        let decoder = Decoder::load(&shape, &Weights::Gguf { file, kept: Kept::None }, Precision::F32).unwrap();
        for item in fixture["items"].as_array().unwrap() {
            let error = error(&decoder, &shape, item);
            assert!(error < 2e-5, "{name}: {} tokens: error {error}", item["ids"].as_array().unwrap().len());
        }
        seen.push(architecture);
    }
    for (family, architecture) in
        GGUF_FAMILIES.iter().filter(|(family, _)| !["llama", "qwen2", "qwen3"].contains(family))
    {
        assert!(seen.iter().any(|seen| seen == architecture), "no fixture of {family}");
    }
}

/// Rows and slabs of quantised matrices are put in order as bytes: the same model as when they are widened first.
#[test]
fn quantised_matrices_stay_near_those_that_are_widened() {
    for (name, fixture) in fixtures("gguf") {
        let written = write(&fixture, GgmlDType::Q8_0);
        let item = &fixture["items"].as_array().unwrap()[1];
        let errors = [Kept::All, Kept::None].map(|kept| {
            let file = GgufFile::open(written.path()).unwrap();
            let (_, shape) = from_gguf(&file).unwrap();
            let shape = shape.used_with(None);
            let decoder = Decoder::load(&shape, &Weights::Gguf { file, kept }, Precision::F32).unwrap();
            error(&decoder, &shape, item)
        });
        assert!(errors.iter().all(|error| *error < 0.1), "{name}: {errors:?}");
        assert_ne!(errors[0], errors[1], "{name}: nothing has stayed quantised");
    }
}

/// What a device has kernels for stays as it is stored, and nothing else does.
#[test]
fn a_device_gets_the_blocks_that_it_multiplies() {
    let (_, fixture) = fixtures("gguf").into_iter().next().unwrap();
    for (kind, stays) in [(GgmlDType::Q8_0, true), (GgmlDType::Q5_1, true), (GgmlDType::F16, false)] {
        let written = write(&fixture, kind);
        let file = GgufFile::open(written.path()).unwrap();
        let weights = Weights::Gguf { file, kept: Kept::Carried };
        let kept = |name| weights.quantised(name).unwrap().map(|tensor| tensor.dtype());
        assert_eq!(kept("token_embd.weight"), stays.then_some(kind));
        assert_eq!(kept("output_norm.weight"), None);
    }
}
