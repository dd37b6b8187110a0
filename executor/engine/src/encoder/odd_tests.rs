//! No configuration makes an encoder or a classifier panic or take memory for what is not there, and what loads computes.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::Encoder;
use super::families::{ARCHITECTURES, from_config};
use super::head::Classifier;
use super::pool::States;
use crate::linear::Precision;
use crate::odd::no_configuration_panics;
use crate::synthetic::fixtures;

#[test]
fn what_loads_computes() {
    let fixtures = [fixtures("encoder"), fixtures("classifier")].concat().into_iter();
    let ours = |fixture: &Value| ARCHITECTURES.iter().any(|name| fixture["config"]["architectures"][0] == *name);
    let fixtures: Vec<_> = fixtures.filter(|(_, fixture)| ours(fixture)).collect();
    no_configuration_panics(fixtures, from_config, |shape, weights| {
        Encoder::check(shape, weights)?;
        let rows = [1, 5, shape.context.min(64)].map(|tokens| vec![3u32; tokens.min(shape.context)]);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        match &shape.head {
            None => assert!(Encoder::load(shape, weights, Precision::F32)?.states(&rows).is_ok()),
            Some(head) => {
                Classifier::check(shape, head, weights)?;
                let states = States::Packed(Box::new(Encoder::load(shape, weights, Precision::F32)?));
                let classifier = Classifier::load(states, (shape, head), weights, Precision::F32)?;
                assert!(classifier.logits(&rows).is_ok());
            }
        }
        Ok(())
    });
}

#[test]
fn what_tensors_do_not_bound_is_refused() {
    let config = |changes: &[(&str, Value)]| {
        let mut config = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 512, "local_attention": 8,
            "position_embedding_type": "alibi", "feed_forward_type": "geglu", "relative_attention": true,
            "position_biased_input": false});
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        config
    };
    for architecture in ["ModernBertModel", "NomicBertModel", "JinaBertModel", "DebertaV2Model"] {
        assert!(from_config(architecture, &config(&[])).is_ok(), "{architecture}");
        for (key, value) in [
            ("max_position_embeddings", 1u64 << 31),
            ("num_hidden_layers", u64::from(u32::MAX)),
            ("num_attention_heads", 1 << 30),
        ] {
            assert!(from_config(architecture, &config(&[(key, json!(value))])).is_err(), "{architecture}, {key}");
        }
    }
    // A window is counted on both sides; one that hides nothing is none.
    for (tokens, window) in [(8, Some(5)), (1020, Some(511)), (1022, None), (u32::MAX, None)] {
        let shape = from_config("ModernBertModel", &config(&[("local_attention", json!(tokens))])).unwrap();
        assert_eq!(shape.layers[1].window, window, "{tokens}");
    }
    let longrope = json!({"rope_type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8],
        "original_max_position_embeddings": 128});
    for architecture in ["ModernBertModel", "NomicBertModel"] {
        let error = from_config(architecture, &config(&[("rope_scaling", longrope.clone())])).unwrap_err();
        assert!(error.to_string().contains("longrope"), "{architecture}: {error}");
    }
    let absolute = ("position_embedding_type", json!("absolute"));
    assert!(from_config("MPNetModel", &config(&[("relative_attention_num_buckets", json!(16))])).is_err());
    assert!(from_config("RobertaModel", &config(&[absolute, ("pad_token_id", json!(u64::MAX))])).is_err());
}
