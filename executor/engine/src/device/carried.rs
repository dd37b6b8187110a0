//! Which models a GPU carries. What it does not compute is refused before any weight is read, by the model's name and the reason;
//! the build for processors computes all of them.

use rowmill_jobs::{Error, Result};

use crate::decoder::shape::{DecoderShape, Feed, NormKind, QkNorm, Residual};
use crate::descriptor::Descriptor;
use crate::encoder::shape::{Activation, EncoderShape, NormPlace, Relation};

/// Head sizes that attention is compiled for.
const HEAD_SIZES: [usize; 5] = [32, 64, 96, 128, 256];
/// Heads that may share a key: those of one token fill a tile at most.
const GROUP_MAX: usize = 16;
/// Longest vector of an encoder's token: its norm keeps it in registers.
const ENCODER_HIDDEN_MAX: usize = 1024;
/// Numbers that are read at once.
const UNIT: usize = 8;

/// Refuses a model that is not carried.
pub(crate) fn check(architecture: &str, descriptor: &Descriptor) -> Result<()> {
    match descriptor {
        Descriptor::Decoder(shape) | Descriptor::Embedder(shape) => check_decoder(architecture, shape),
        Descriptor::Encoder(shape) => check_encoder(architecture, shape),
        Descriptor::Compatible(_) | Descriptor::CompatibleEncoder(_) => {
            Err(refused(architecture, "candle-transformers computes it, on processors"))
        }
    }
}

fn refused(architecture: &str, why: &str) -> Error {
    Error::invalid(format!("the CUDA build does not compute {architecture}: {why}"))
        .hint("run the job on an executor of the CPU build, which computes every architecture that Rowmill knows")
}

fn check_decoder(architecture: &str, shape: &DecoderShape) -> Result<()> {
    let heads = shape.heads;
    let normed = |place: Option<&str>| place.is_some();
    let inner = shape.layers.iter().filter_map(|layer| match layer.feed {
        Feed::Dense(inner) => Some(inner),
        Feed::Experts => None,
    });
    let why = if shape.layers.iter().any(|layer| layer.feed == Feed::Experts) {
        "it has a mixture of experts"
    } else if shape.latent.is_some() || heads.value_dim != heads.head_dim {
        "its attention is latent"
    } else if shape.residual == Residual::Parallel {
        "its attention and feed-forward stand side by side"
    } else if !HEAD_SIZES.contains(&heads.head_dim) {
        "its heads are not of 32, 64, 96, 128 or 256 numbers"
    } else if heads.heads / heads.kv_heads > GROUP_MAX {
        "more than 16 of its heads share a key"
    } else if !normed(shape.names.attention_before) || !normed(shape.names.feed_before) {
        "its layers do not norm what they read"
    } else if shape.qk_norm != QkNorm::None && shape.norm == NormKind::Layer {
        "its queries have layer norms"
    } else if shape.biases.output {
        "its output matrix has a bias"
    } else if !shape.hidden.is_multiple_of(UNIT) || inner.into_iter().any(|inner| !inner.is_multiple_of(UNIT)) {
        "its sizes are not multiples of 8"
    } else {
        return Ok(());
    };
    Err(refused(architecture, why))
}

fn check_encoder(architecture: &str, shape: &EncoderShape) -> Result<()> {
    let why = if shape.relation != Relation::None {
        "its attention knows of distances"
    } else if shape.norm_place == NormPlace::Before {
        "its norms stand before its layers"
    } else if shape.layers.iter().any(|layer| layer.rope.is_some()) {
        "it rotates queries and keys"
    } else if !HEAD_SIZES.contains(&(shape.hidden / shape.heads)) {
        "its heads are not of 32, 64, 96, 128 or 256 numbers"
    } else if matches!(shape.activation, Activation::Tanh | Activation::Identity) {
        "it has an activation that was not expected"
    } else if shape.hidden > ENCODER_HIDDEN_MAX {
        "its vectors are longer than 1024"
    } else if !shape.hidden.is_multiple_of(UNIT) || !shape.intermediate.is_multiple_of(UNIT) {
        "its sizes are not multiples of 8"
    } else {
        return Ok(());
    };
    Err(refused(architecture, why))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::descriptor::{architecture_of, from_config};

    fn checked(config: &Value) -> Result<()> {
        check(&architecture_of(config), &from_config(config).unwrap())
    }

    fn llama(head_dim: usize) -> Value {
        json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 8 * head_dim, "intermediate_size": 512,
            "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5})
    }

    fn bert(hidden: usize, heads: usize) -> Value {
        json!({"architectures": ["BertModel"], "hidden_size": hidden, "intermediate_size": 4 * hidden,
            "num_hidden_layers": 2, "num_attention_heads": heads, "vocab_size": 100, "type_vocab_size": 2,
            "max_position_embeddings": 128})
    }

    #[test]
    fn shapes_of_known_models_are_carried() {
        for head_dim in HEAD_SIZES {
            checked(&llama(head_dim)).unwrap();
        }
        checked(&bert(384, 12)).unwrap();
        checked(&bert(1024, 16)).unwrap();
    }

    #[test]
    fn what_is_not_carried_is_refused_by_name_with_the_build_that_computes_it() {
        let error = checked(&llama(80)).unwrap_err();
        assert!(error.to_string().contains("LlamaForCausalLM: its heads are not of"), "{error}");
        assert!(error.hint_text().unwrap().contains("CPU build"));
        let mut experts = llama(64);
        (experts["architectures"], experts["num_experts"]) = (json!(["Qwen3MoeForCausalLM"]), json!(4));
        (experts["num_experts_per_tok"], experts["moe_intermediate_size"]) = (json!(2), json!(64));
        assert!(checked(&experts).unwrap_err().to_string().contains("mixture of experts"));
        let mut compatible = llama(64);
        compatible["architectures"] = json!(["OlmoForCausalLM"]);
        assert!(checked(&compatible).unwrap_err().to_string().contains("candle-transformers computes it"));
        assert!(checked(&bert(1280, 20)).unwrap_err().to_string().contains("longer than 1024"));
        assert!(checked(&bert(192, 12)).unwrap_err().to_string().contains("heads"));
    }
}
