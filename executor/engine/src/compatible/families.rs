//! What each family says in its `config.json`, in the spelling that candle-transformers reads, with the defaults of families
//! that leave it out. Everything that the library would misread, compute otherwise than the model's authors or panic on is
//! refused here, by its key.

use candle_nn::Activation;
use candle_transformers::models::lfm2::{Config as Lfm2Config, LayerType};
use rowmill_jobs::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{flag, layers, number, optional_size, size, text, unsupported_value};
use crate::rope::{self, RopeScaling};

/// What the families of attention differ in, before their own keys.
struct Attention {
    /// The length of a head where the model says it; `None`: the hidden size shared out.
    head_dim: Option<usize>,
    /// The part of a head that is rotated, where the model says nothing.
    rotary: f64,
    tied: bool,
    activation: &'static str,
}

/// The keys that all models with attention have.
fn attention(config: &Value, family: Attention) -> Result<Map<String, Value>> {
    let (hidden, heads) = (size(config, "hidden_size")?, size(config, "num_attention_heads")?);
    let kv_heads = optional_size(config, "num_key_value_heads").unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(unsupported_value("num_key_value_heads", &kv_heads.to_string()));
    }
    if family.head_dim.is_none() && !hidden.is_multiple_of(heads) {
        return Err(unsupported_value("num_attention_heads", &heads.to_string()));
    }
    let head_dim = family.head_dim.unwrap_or(hidden / heads);
    let rope = rope::from_config(config)?;
    if rope.scaling != RopeScaling::None {
        return Err(unsupported_value("rope_scaling", "anything but default")
            .hint("this architecture is computed by candle-transformers, which does not scale its positions"));
    }
    let nested = config.get("rope_parameters").and_then(|value| number(value, "partial_rotary_factor"));
    let partial = nested.or_else(|| number(config, "partial_rotary_factor")).unwrap_or(family.rotary);
    let rotary = partial * head_dim as f64;
    if !(2.0..=head_dim as f64).contains(&rotary) || !(rotary as usize).is_multiple_of(2) {
        return Err(unsupported_value("partial_rotary_factor", &partial.to_string()));
    }
    if !(rope.theta.is_finite() && rope.theta > 0.0) {
        return Err(unsupported_value("rope_theta", &rope.theta.to_string()));
    }
    let read = json!({
        "vocab_size": size(config, "vocab_size")?,
        "hidden_size": hidden,
        "num_hidden_layers": layers(config, "num_hidden_layers")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": size(config, "max_position_embeddings")?,
        "rope_theta": rope.theta,
        "partial_rotary_factor": partial,
        "hidden_act": activation(config, "hidden_act", family.activation)?,
        "tie_word_embeddings": flag(config, "tie_word_embeddings", family.tied),
    });
    let mut read = object(read);
    if let Some(inner) = optional_size(config, "intermediate_size") {
        read.insert("intermediate_size".to_owned(), inner.into());
    }
    Ok(read)
}

/// The name of an activation that the library has.
fn activation(config: &Value, key: &str, default: &str) -> Result<Value> {
    let name: Value = text(config, key).unwrap_or(default).into();
    match Activation::deserialize(&name) {
        Ok(_) => Ok(name),
        Err(error) => Err(unsupported_value(key, text(config, key).unwrap_or(default)).caused_by(error)),
    }
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// Refuses a switch that the library does not know.
fn refuse(config: &Value, key: &str) -> Result<()> {
    if flag(config, key, false) { Err(unsupported_value(key, "true")) } else { Ok(()) }
}

/// Refuses another size than the one that the library has built in.
fn demand(config: &Value, key: &str, fixed: usize) -> Result<()> {
    match config.get(key).filter(|value| !value.is_null()) {
        Some(value) if value.as_u64() != Some(fixed as u64) => Err(unsupported_value(key, &value.to_string())),
        _ => Ok(()),
    }
}

/// The epsilon of norms.
pub(super) fn epsilon(config: &Value, key: &str, default: f64) -> Result<Value> {
    let value = number(config, key).unwrap_or(default);
    if value.is_finite() && value > 0.0 { Ok(value.into()) } else { Err(unsupported_value(key, &value.to_string())) }
}

fn add(read: &mut Map<String, Value>, more: Value) {
    read.extend(object(more));
}

pub(super) fn phi(config: &Value) -> Result<Map<String, Value>> {
    refuse(config, "qk_layernorm")?;
    let mut read = attention(config, Attention { head_dim: None, rotary: 0.5, tied: false, activation: "gelu_new" })?;
    add(&mut read, json!({"layer_norm_eps": epsilon(config, "layer_norm_eps", 1e-5)?, "qk_layernorm": false}));
    Ok(read)
}

pub(super) fn stablelm(config: &Value) -> Result<Map<String, Value>> {
    refuse(config, "qk_layernorm")?;
    refuse(config, "use_parallel_residual")?;
    let mut read = attention(config, Attention { head_dim: None, rotary: 0.25, tied: false, activation: "silu" })?;
    add(
        &mut read,
        json!({
            "layer_norm_eps": epsilon(config, "layer_norm_eps", 1e-5)?,
            "use_qkv_bias": flag(config, "use_qkv_bias", false),
            "use_cache": true,
        }),
    );
    Ok(read)
}

pub(super) fn glm4(config: &Value) -> Result<Map<String, Value>> {
    let head_dim = Some(optional_size(config, "head_dim").unwrap_or(128));
    let mut read = attention(config, Attention { head_dim, rotary: 0.5, tied: false, activation: "silu" })?;
    let bias = flag(config, "attention_bias", true);
    add(&mut read, json!({"rms_norm_eps": epsilon(config, "rms_norm_eps", 1.5625e-7)?, "attention_bias": bias}));
    Ok(read)
}

pub(super) fn helium(config: &Value) -> Result<Map<String, Value>> {
    // The library gives the attention's output a bias where the authors' has none.
    refuse(config, "attention_bias")?;
    let head_dim = Some(optional_size(config, "head_dim").unwrap_or(128));
    let mut read = attention(config, Attention { head_dim, rotary: 1.0, tied: false, activation: "silu" })?;
    add(
        &mut read,
        json!({
            "rms_norm_eps": epsilon(config, "rms_norm_eps", 1e-8)?,
            "attention_bias": false,
            "mlp_bias": flag(config, "mlp_bias", false),
            // Asked for and not used.
            "bos_token_id": 0,
            "eos_token_id": 0,
        }),
    );
    Ok(read)
}

pub(super) fn olmo(config: &Value) -> Result<Map<String, Value>> {
    let mut read = attention(config, Attention { head_dim: None, rotary: 1.0, tied: false, activation: "silu" })?;
    let clip = number(config, "clip_qkv").filter(|clip| *clip > 0.0);
    add(&mut read, json!({"attention_bias": flag(config, "attention_bias", false), "clip_qkv": clip}));
    Ok(read)
}

pub(super) fn smollm3(config: &Value) -> Result<Map<String, Value>> {
    refuse(config, "use_sliding_window")?;
    let mut read = attention(config, Attention { head_dim: None, rotary: 1.0, tied: true, activation: "silu" })?;
    let named: Option<Vec<u64>> = config
        .get("no_rope_layers")
        .and_then(Value::as_array)
        .and_then(|list| list.iter().map(Value::as_u64).collect());
    add(
        &mut read,
        json!({
            "rms_norm_eps": epsilon(config, "rms_norm_eps", 1e-6)?,
            "attention_bias": flag(config, "attention_bias", false),
            "mlp_bias": flag(config, "mlp_bias", false),
            "no_rope_layers": named,
            "no_rope_layer_interval": optional_size(config, "no_rope_layer_interval").unwrap_or(4),
        }),
    );
    Ok(read)
}

pub(super) fn granite_hybrid(config: &Value) -> Result<Map<String, Value>> {
    let kinds = config.get("layer_types").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    // The second spelling is that of transformers 5.
    let attends = |kind: &Value| ["attention", "full_attention"].iter().any(|name| kind == name);
    if kinds.len() != layers(config, "num_hidden_layers")? || !kinds.iter().all(attends) {
        return Err(unsupported_value("layer_types", "anything but attention in every layer")
            .hint("of this family, models without recurrent layers can be used"));
    }
    demand(config, "num_local_experts", 0)?;
    refuse(config, "attention_bias")?;
    if text(config, "position_embedding_type") != Some("rope") {
        let found = text(config, "position_embedding_type").unwrap_or("nope");
        return Err(unsupported_value("position_embedding_type", found));
    }
    let mut read = attention(config, Attention { head_dim: None, rotary: 1.0, tied: false, activation: "silu" })?;
    if read.get("tie_word_embeddings") != Some(&Value::Bool(true)) {
        return Err(unsupported_value("tie_word_embeddings", "false"));
    }
    let inner = size(config, "shared_intermediate_size")?;
    let multiplier = |key: &str| number(config, key).unwrap_or(1.0);
    add(
        &mut read,
        json!({
            "rms_norm_eps": epsilon(config, "rms_norm_eps", 1e-6)?,
            "intermediate_size": inner,
            "shared_intermediate_size": inner,
            "embedding_multiplier": multiplier("embedding_multiplier"),
            "attention_multiplier": multiplier("attention_multiplier"),
            "residual_multiplier": multiplier("residual_multiplier"),
            "logits_scaling": multiplier("logits_scaling"),
        }),
    );
    Ok(read)
}

/// Layers of attention and of short convolutions.
pub(super) fn lfm2(config: &Value) -> Result<Map<String, Value>> {
    refuse(config, "conv_bias")?;
    let tied = flag(config, "tie_embedding", true);
    let mut read = attention(config, Attention { head_dim: None, rotary: 1.0, tied, activation: "silu" })?;
    let count = layers(config, "num_hidden_layers")?;
    let whole = |index: usize| {
        config.get("full_attn_idxs").and_then(Value::as_array).is_some_and(|all| all.contains(&index.into()))
    };
    let named = config.get("layer_types").and_then(Value::as_array).cloned();
    let kinds = named.unwrap_or_else(|| {
        (0..count).map(|index| if whole(index) { "full_attention" } else { "conv" }.into()).collect()
    });
    if kinds.len() != count {
        return Err(Error::invalid("config.json: `layer_types` has another number than `num_hidden_layers`"));
    }
    let mut inner = optional_size(config, "block_ff_dim").map_or_else(|| size(config, "intermediate_size"), Ok)?;
    if flag(config, "block_auto_adjust_ff_dim", true) {
        let multiple = optional_size(config, "block_multiple_of").unwrap_or(256);
        let multiplier = number(config, "block_ffn_dim_multiplier").unwrap_or(1.0);
        if !(0.0..=64.0).contains(&multiplier) {
            return Err(unsupported_value("block_ffn_dim_multiplier", &multiplier.to_string()));
        }
        inner = (multiplier * (2 * inner / 3) as f64) as usize;
        inner = inner.div_ceil(multiple) * multiple;
    }
    add(
        &mut read,
        json!({
            "norm_eps": epsilon(config, "norm_eps", 1e-5)?,
            "conv_l_cache": optional_size(config, "conv_L_cache").unwrap_or(3),
            "layer_types": kinds,
            "intermediate_size": inner,
        }),
    );
    lfm2_config(&Value::Object(read.clone()))?;
    Ok(read)
}

/// What [`lfm2`] read, as the library has it: its own reading computes another inner size than the model's authors.
pub(super) fn lfm2_config(read: &Value) -> Result<Lfm2Config> {
    let kinds: Vec<LayerType> = serde_json::from_value(read.get("layer_types").cloned().unwrap_or_default())
        .map_err(|error| unsupported_value("layer_types", "another kind").caused_by(error))?;
    Ok(Lfm2Config {
        vocab_size: size(read, "vocab_size")?,
        hidden_size: size(read, "hidden_size")?,
        intermediate_size: size(read, "intermediate_size")?,
        num_hidden_layers: size(read, "num_hidden_layers")?,
        num_attention_heads: size(read, "num_attention_heads")?,
        num_key_value_heads: size(read, "num_key_value_heads")?,
        norm_eps: number(read, "norm_eps").unwrap_or(1e-5),
        rope_theta: number(read, "rope_theta").unwrap_or(1e6) as f32,
        max_position_embeddings: size(read, "max_position_embeddings")?,
        conv_l_cache: size(read, "conv_l_cache")?,
        conv_bias: false,
        layer_types: kinds,
        tie_embedding: flag(read, "tie_word_embeddings", true),
        bos_token_id: None,
        eos_token_id: None,
        use_flash_attn: false,
    })
}

/// The first Mamba: the library has its sizes built in.
pub(super) fn mamba(config: &Value) -> Result<Map<String, Value>> {
    let hidden = size(config, "hidden_size")?;
    demand(config, "state_size", 16)?;
    demand(config, "conv_kernel", 4)?;
    demand(config, "expand", 2)?;
    demand(config, "intermediate_size", 2 * hidden)?;
    if config.get("time_step_rank") != Some(&"auto".into()) {
        demand(config, "time_step_rank", hidden.div_ceil(16))?;
    }
    refuse(config, "use_bias")?;
    for key in ["use_conv_bias", "tie_word_embeddings"] {
        if !flag(config, key, true) {
            return Err(unsupported_value(key, "false"));
        }
    }
    let epsilon = number(config, "layer_norm_epsilon").unwrap_or(1e-5);
    if epsilon != 1e-5 {
        return Err(unsupported_value("layer_norm_epsilon", &epsilon.to_string()));
    }
    match text(config, "hidden_act") {
        None | Some("silu") => {}
        Some(other) => return Err(unsupported_value("hidden_act", other)),
    }
    Ok(object(json!({
        "d_model": hidden,
        "n_layer": layers(config, "num_hidden_layers")?,
        "vocab_size": size(config, "vocab_size")?,
        "pad_vocab_size_multiple": 1,
    })))
}

/// Layers of attention within a window and of linear recurrence. The library knows no window: rows are as long as one at most.
pub(super) fn recurrent_gemma(config: &Value) -> Result<Map<String, Value>> {
    let mut config = config.clone();
    let window = optional_size(&config, "attention_window_size").unwrap_or(2048);
    config["max_position_embeddings"] = window.into();
    let config = &config;
    let mut read =
        attention(config, Attention { head_dim: None, rotary: 0.5, tied: true, activation: "gelu_pytorch_tanh" })?;
    if read.get("tie_word_embeddings") != Some(&Value::Bool(true)) {
        return Err(unsupported_value("tie_word_embeddings", "false"));
    }
    let kinds = ["block_types", "_block_types"].iter().find_map(|key| config.get(key)).cloned();
    let kinds = kinds.unwrap_or_else(|| json!(["recurrent", "recurrent", "attention"]));
    if kinds.as_array().is_none_or(Vec::is_empty) {
        return Err(unsupported_value("block_types", "[]"));
    }
    let heads = size(config, "num_attention_heads")?;
    let width = optional_size(config, "lru_width").map_or_else(|| size(config, "hidden_size"), Ok)?;
    if !width.is_multiple_of(heads) {
        return Err(unsupported_value("lru_width", &width.to_string()));
    }
    let cap = number(config, "logits_soft_cap").unwrap_or(30.0);
    if !(cap.is_finite() && cap > 0.0) {
        return Err(unsupported_value("logits_soft_cap", &cap.to_string()));
    }
    add(
        &mut read,
        json!({
            "intermediate_size": size(config, "intermediate_size")?,
            "lru_width": width,
            "attention_window_size": window,
            "max_seq_len": window,
            "conv1d_width": optional_size(config, "conv1d_width").unwrap_or(4),
            "logits_soft_cap": cap,
            "hidden_activation": activation(config, "hidden_activation", "gelu_pytorch_tanh")?,
            "rms_norm_eps": epsilon(config, "rms_norm_eps", 1e-6)?,
            "block_types": kinds,
            "attention_bias": flag(config, "attention_bias", false),
        }),
    );
    Ok(read)
}
