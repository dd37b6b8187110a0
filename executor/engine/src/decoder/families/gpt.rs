//! Families before and beside Llama: layer norms with biases and a feed-forward without a gate.

use rowmill_jobs::Result;
use serde_json::Value;

use super::{activation, either, llama, windows};
use crate::attention::Heads;
use crate::config::{flag, number, optional_size, unsupported_value};
use crate::decoder::names;
use crate::decoder::shape::{Activation, Biases, DecoderShape, NormKind, Residual};

/// A configuration with its sizes under Llama's keys.
fn renamed(config: &Value, keys: &[(&str, &[&str])], inner: Option<usize>) -> Result<Value> {
    let mut config = config.clone();
    for (key, spellings) in keys {
        config[*key] = either(&config, spellings)?.into();
    }
    if let Some(inner) = inner {
        config["intermediate_size"] = inner.into();
    }
    Ok(config)
}

/// Biases of all matrices but the output.
const WITHIN: Biases = Biases { qkv: true, attention_out: true, feed: true, output: false };

pub(super) fn neox(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    let nested = config.get("rope_parameters").and_then(|value| number(value, "partial_rotary_factor"));
    let fraction = nested.or_else(|| number(config, "rotary_pct")).unwrap_or(0.25);
    shape.rotary = (shape.heads.head_dim as f64 * fraction) as usize;
    shape.heads.kv_heads = shape.heads.heads;
    shape.norm = NormKind::Layer;
    shape.norm_epsilon = number(config, "layer_norm_eps").unwrap_or(1e-5) as f32;
    shape.activation = activation(config, &["hidden_act"], Activation::Gelu)?;
    let bias = flag(config, "attention_bias", true);
    shape.biases = Biases { qkv: bias, attention_out: bias, ..WITHIN };
    if flag(config, "use_parallel_residual", true) {
        shape.residual = Residual::Parallel;
    }
    shape.names = &names::GPT_NEOX;
    Ok(shape)
}

pub(super) fn falcon(config: &Value) -> Result<DecoderShape> {
    if flag(config, "alibi", false) {
        return Err(unsupported_value("alibi", "true"));
    }
    let keys: [(&str, &[&str]); 3] = [
        ("hidden_size", &["hidden_size", "n_embed"]),
        ("num_attention_heads", &["num_attention_heads", "n_head"]),
        ("num_hidden_layers", &["num_hidden_layers", "n_layer"]),
    ];
    let inner = optional_size(config, "ffn_hidden_size");
    let mut config = renamed(config, &keys, inner)?;
    if inner.is_none() {
        config["intermediate_size"] = (4 * either(&config, &["hidden_size"])?).into();
    }
    if config.get("max_position_embeddings").is_none() {
        config["max_position_embeddings"] = 2048.into();
    }
    let mut shape = llama(&config)?;
    let heads = shape.heads.heads;
    let new = flag(&config, "new_decoder_architecture", false);
    let kv_heads = match (new, flag(&config, "multi_query", true)) {
        (true, _) => optional_size(&config, "num_kv_heads").unwrap_or(heads),
        (false, true) => 1,
        (false, false) => heads,
    };
    shape.heads.kv_heads = kv_heads;
    shape.norm = NormKind::Layer;
    shape.norm_epsilon = number(&config, "layer_norm_epsilon").unwrap_or(1e-5) as f32;
    shape.activation = activation(&config, &["activation"], Activation::Gelu)?;
    let bias = flag(&config, "bias", false);
    shape.biases = if bias { WITHIN } else { Biases::default() };
    shape.tied = flag(&config, "tie_word_embeddings", true);
    let norms = optional_size(&config, "num_ln_in_parallel_attn").unwrap_or(if new { 2 } else { 1 });
    let parallel = new || flag(&config, "parallel_attn", true);
    shape.names = match (parallel, new && norms == 2) {
        (true, true) => &names::FALCON_TWO_NORMS,
        (true, false) => &names::FALCON_ONE_NORM,
        (false, _) => &names::FALCON,
    };
    if parallel {
        shape.residual = Residual::Parallel;
    }
    Ok(shape)
}

pub(super) fn big_code(config: &Value) -> Result<DecoderShape> {
    let keys: [(&str, &[&str]); 4] = [
        ("hidden_size", &["n_embd", "hidden_size"]),
        ("num_attention_heads", &["n_head", "num_attention_heads"]),
        ("num_hidden_layers", &["n_layer", "num_hidden_layers"]),
        ("max_position_embeddings", &["n_positions", "max_position_embeddings"]),
    ];
    let hidden = either(config, &["n_embd", "hidden_size"])?;
    let inner = optional_size(config, "n_inner").unwrap_or(4 * hidden);
    let config = renamed(config, &keys, Some(inner))?;
    let mut shape = llama(&config)?;
    if flag(&config, "multi_query", true) {
        shape.heads.kv_heads = 1;
    } else {
        shape.heads = Heads { kv_heads: shape.heads.heads, ..shape.heads };
    }
    if !flag(&config, "scale_attn_weights", true) {
        shape.scale = 1.0;
    }
    shape.ropes = Vec::new();
    shape.rotary = 0;
    shape.positions = Some(shape.context);
    shape.norm = NormKind::Layer;
    shape.norm_epsilon = number(&config, "layer_norm_epsilon").unwrap_or(1e-5) as f32;
    shape.activation = activation(&config, &["activation_function"], Activation::GeluTanh)?;
    shape.biases = WITHIN;
    shape.tied = flag(&config, "tie_word_embeddings", true);
    shape.names = &names::GPT_BIGCODE;
    Ok(shape)
}

pub(super) fn starcoder2(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    shape.norm = NormKind::Layer;
    shape.norm_epsilon = number(config, "norm_epsilon").unwrap_or(1e-5) as f32;
    shape.activation = activation(config, &["hidden_act"], Activation::GeluTanh)?;
    let bias = flag(config, "use_bias", true);
    shape.biases = if bias { WITHIN } else { Biases::default() };
    shape.tied = flag(config, "tie_word_embeddings", true);
    windows(&mut shape, config, optional_size(config, "sliding_window"), |_| true)?;
    shape.names = &names::STARCODER2;
    Ok(shape)
}
