//! What an encoder's architecture is, as data: shapes and switches read from `config.json`. Refuses variants that the
//! encoder does not compute.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::config::{number, optional_size, size, text, unsupported_value};

/// Architectures the encoder computes, by the names weights give them. Masked-language-model checkpoints hold the same
/// encoder under the prefix `bert.`.
pub(crate) const ARCHITECTURES: [&str; 3] = ["BertModel", "BertForMaskedLM", "bert"];

/// BERT: learned positions, post-layer norms, bidirectional attention.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncoderShape {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) vocab: usize,
    pub(crate) types: usize,
    pub(crate) context: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) activation: Activation,
}

/// The feed-forward's activation of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// GELU with the error function.
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    Relu,
}

/// Reads the `config.json` of one of [`ARCHITECTURES`].
pub(crate) fn from_config(_architecture: &str, config: &Value) -> Result<EncoderShape> {
    let position = text(config, "position_embedding_type").unwrap_or("absolute");
    if position != "absolute" {
        return Err(unsupported_value("position_embedding_type", position));
    }
    let hidden = size(config, "hidden_size")?;
    let heads = size(config, "num_attention_heads")?;
    if !hidden.is_multiple_of(heads) {
        return Err(Error::invalid(format!("config.json: {heads} heads do not divide the hidden size {hidden}")));
    }
    Ok(EncoderShape {
        hidden,
        intermediate: size(config, "intermediate_size")?,
        layers: size(config, "num_hidden_layers")?,
        heads,
        vocab: size(config, "vocab_size")?,
        types: optional_size(config, "type_vocab_size").unwrap_or(2),
        context: size(config, "max_position_embeddings")?,
        norm_epsilon: number(config, "layer_norm_eps").unwrap_or(1e-12) as f32,
        activation: match text(config, "hidden_act").unwrap_or("gelu") {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => return Err(unsupported_value("hidden_act", other)),
        },
    })
}
