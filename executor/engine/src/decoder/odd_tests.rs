//! No configuration and no metadata makes the decoder panic or take memory for what is not there, and what loads computes.

#![allow(clippy::unwrap_used)]

use candle_core::quantized::GgmlDType;
use rowmill_jobs::Result;
use serde_json::{Value, json};

use super::gguf_tests::write;
use super::shape::DecoderShape;
use super::{Decoder, from_config, from_gguf};
use crate::alone::last_logits;
use crate::gguf::GgufFile;
use crate::linear::Precision;
use crate::odd::{no_configuration_panics, odd};
use crate::synthetic::fixtures;
use crate::weights::{Kept, Weights};

/// Loads and runs what is not refused.
fn compute(shape: &DecoderShape, weights: &Weights) -> Result<()> {
    Decoder::check(shape, weights)?;
    let shape = shape.clone().used_with(Some(64));
    let decoder = Decoder::load(&shape, weights, Precision::F32)?;
    for tokens in [1, 7, shape.context] {
        let ids: Vec<u32> = (0..tokens.min(shape.context) as u32).map(|i| 3 + i).collect();
        assert_eq!(last_logits(&decoder, &shape, &ids).len(), shape.vocab);
    }
    Ok(())
}

#[test]
fn what_loads_computes() {
    let fixtures = [fixtures("decoder"), fixtures("embedder")].concat();
    no_configuration_panics(fixtures, from_config, compute);
}

#[test]
fn no_metadata_panics_and_what_loads_computes() {
    let fixtures = fixtures("gguf");
    assert!(!fixtures.is_empty());
    for (name, fixture) in fixtures {
        let (mut refused, mut ran) = (0, 0);
        let keys: Vec<&String> = fixture["metadata"].as_object().unwrap().keys().collect();
        let values = || odd().into_iter().filter(|value| !value.is_null() && !value.is_array() && !value.is_object());
        for (key, value) in keys.iter().flat_map(|key| values().map(move |value| (key, value))) {
            let mut changed = fixture.clone();
            changed["metadata"][key.as_str()] = value;
            let file = write(&changed, GgmlDType::F32);
            let read = GgufFile::open(file.path()).and_then(|file| {
                let (_, shape) = from_gguf(&file)?;
                compute(&shape, &Weights::Gguf { file, kept: Kept::None })
            });
            *(if read.is_ok() { &mut ran } else { &mut refused }) += 1;
        }
        assert!(refused > 20 && ran > 20, "{name}: {refused} refused, {ran} ran");
    }
}

/// What cannot be met by one value beside a whole model.
#[test]
fn sizes_that_fit_together_and_nothing_else_are_refused() {
    let sizes = |hidden: u64, heads: u64, layers: u64| {
        json!({"hidden_size": hidden, "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": heads,
            "vocab_size": 100, "max_position_embeddings": 512})
    };
    let refused = |architecture: &str, config: &Value| from_config(architecture, config).unwrap_err().to_string();
    assert!(refused("LlamaForCausalLM", &sizes(4, 8, 2)).contains("head size 0"));
    assert!(refused("LlamaForCausalLM", &sizes(1 << 31, 1 << 25, 2)).contains("cannot be computed"));
    assert!(refused("LlamaForCausalLM", &sizes(64, 4, 1 << 30)).contains("num_hidden_layers"));
    for inner in [json!([]), json!("text"), json!(3), json!(true)] {
        let config = json!({"text_config": inner});
        assert!(refused("Gemma3ForConditionalGeneration", &config).contains("text_config"));
    }
}
