//! Families of decoders: what each says in its `config.json`, with the defaults it has where it says nothing. Copes with the
//! spellings of transformers 4 and 5. Refuses variants that the decoder does not compute, by the key that asks for them.

mod experts;
mod gpt;

use rowmill_jobs::Result;
use serde_json::Value;

use super::names;
use super::shape::{Activation, Biases, DecoderShape, Feed, LayerShape, NormKind, QkNorm, Residual};
use crate::attention::Heads;
use crate::config::{flag, layers, number, optional_size, size, text, unsupported_value};
use crate::descriptor::names_of;
use crate::rope::{self, RopeScaling};

type Read = fn(&Value) -> Result<DecoderShape>;

/// Architectures and what reads their configuration. Those that end in `Model` are without an output matrix.
const FAMILIES: [(&str, Read); 26] = [
    ("LlamaForCausalLM", llama),
    ("LlamaModel", llama),
    ("MistralForCausalLM", mistral),
    ("MistralModel", mistral),
    ("MixtralForCausalLM", experts::mixtral),
    ("Qwen2ForCausalLM", qwen2),
    ("Qwen2Model", qwen2),
    ("Qwen2MoeForCausalLM", experts::qwen2_moe),
    ("Qwen3ForCausalLM", qwen3),
    ("Qwen3Model", qwen3),
    ("Qwen3MoeForCausalLM", experts::qwen3_moe),
    ("DeepseekV2ForCausalLM", experts::deepseek_v2),
    ("DeepseekV3ForCausalLM", experts::deepseek_v3),
    ("Phi3ForCausalLM", phi3),
    ("GemmaForCausalLM", gemma),
    ("Gemma2ForCausalLM", gemma2),
    ("Gemma2Model", gemma2),
    ("Gemma3ForCausalLM", gemma3),
    ("Gemma3ForConditionalGeneration", gemma3),
    ("Gemma3TextModel", gemma3),
    ("Olmo2ForCausalLM", olmo2),
    ("GraniteForCausalLM", granite),
    ("GPTNeoXForCausalLM", gpt::neox),
    ("FalconForCausalLM", gpt::falcon),
    ("GPTBigCodeForCausalLM", gpt::big_code),
    ("Starcoder2ForCausalLM", gpt::starcoder2),
];

/// Architectures the decoder computes, by the names weights give them.
pub(crate) const ARCHITECTURES: [&str; FAMILIES.len()] = names_of(&FAMILIES);

/// Reads the `config.json` of one of [`ARCHITECTURES`].
pub(crate) fn from_config(architecture: &str, config: &Value) -> Result<DecoderShape> {
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == architecture) else {
        return Err(unsupported_value("architectures", architecture));
    };
    let shape = read(config)?;
    if !flag(config, "is_causal", true) {
        return Err(unsupported_value("is_causal", "false"));
    }
    let shape = if architecture.ends_with("Model") { shape.headless() } else { shape };
    shape.checked()
}

/// The first of these keys that is there.
fn either(config: &Value, keys: &[&str]) -> Result<usize> {
    match keys.iter().find_map(|key| optional_size(config, key)) {
        Some(size) => Ok(size),
        None => size(config, keys.first().copied().unwrap_or_default()),
    }
}

fn activation(config: &Value, keys: &[&str], default: Activation) -> Result<Activation> {
    let Some((key, name)) = keys.iter().find_map(|key| text(config, key).map(|name| (*key, name))) else {
        return Ok(default);
    };
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return Err(unsupported_value(key, other)),
    })
}

/// Gives layers their windows: as `layer_types` says, else all for which `default` holds.
fn windows(shape: &mut DecoderShape, config: &Value, window: Option<usize>, default: fn(usize) -> bool) -> Result<()> {
    let types = config.get("layer_types").and_then(Value::as_array);
    for (index, layer) in shape.layers.iter_mut().enumerate() {
        let sliding = match types.and_then(|types| types.get(index)).and_then(Value::as_str) {
            None => default(index),
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(other) => return Err(unsupported_value("layer_types", other)),
        };
        layer.window = window.filter(|_| sliding);
    }
    Ok(())
}

/// Llama, with what most others have in common with it.
fn llama(config: &Value) -> Result<DecoderShape> {
    let hidden = size(config, "hidden_size")?;
    let heads = size(config, "num_attention_heads")?;
    let head_dim = optional_size(config, "head_dim").unwrap_or(hidden / heads);
    let kv_heads = optional_size(config, "num_key_value_heads").unwrap_or(heads);
    let layer = LayerShape { window: None, rope: 0, feed: Feed::Dense(size(config, "intermediate_size")?) };
    let attention_bias = flag(config, "attention_bias", false);
    Ok(DecoderShape {
        hidden,
        vocab: size(config, "vocab_size")?,
        context: size(config, "max_position_embeddings")?,
        heads: Heads { heads, kv_heads, head_dim, value_dim: head_dim },
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        norm: NormKind::Rms,
        norm_epsilon: number(config, "rms_norm_eps").unwrap_or(1e-6) as f32,
        residual: Residual::Sequential,
        ropes: vec![rope::from_config(config)?],
        rotary: head_dim,
        interleaved: false,
        positions: None,
        biases: Biases {
            qkv: attention_bias,
            attention_out: attention_bias,
            feed: flag(config, "mlp_bias", false),
            output: false,
        },
        qk_norm: QkNorm::None,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        latent: None,
        activation: activation(config, &["hidden_act"], Activation::Silu)?,
        experts: None,
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        logits_multiplier: 1.0,
        logits_softcap: None,
        tied: flag(config, "tie_word_embeddings", false),
        names: &names::LLAMA,
    })
}

fn mistral(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    windows(&mut shape, config, window(config), |_| true)?;
    Ok(shape)
}

/// The window of families that have one of 4096 tokens where they say nothing, and none where they say null.
fn window(config: &Value) -> Option<usize> {
    if config.get("sliding_window").is_some() { optional_size(config, "sliding_window") } else { Some(4096) }
}

/// Windows of Qwen's families: switched on by a flag, and only from some layer on.
fn qwen_windows(shape: &mut DecoderShape, config: &Value) -> Result<()> {
    let window = optional_size(config, "sliding_window").unwrap_or(4096);
    let window = flag(config, "use_sliding_window", false).then_some(window);
    windows(shape, config, window, |_| true)?;
    let first = config.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28) as usize;
    if config.get("layer_types").is_none_or(Value::is_null) {
        shape.layers.iter_mut().take(first).for_each(|layer| layer.window = None);
    }
    Ok(())
}

fn qwen2(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    shape.biases = Biases { qkv: true, ..Biases::default() };
    qwen_windows(&mut shape, config)?;
    Ok(shape)
}

fn qwen3(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    shape.qk_norm = QkNorm::Head;
    qwen_windows(&mut shape, config)?;
    Ok(shape)
}

fn phi3(config: &Value) -> Result<DecoderShape> {
    let mut config = config.clone();
    // Early checkpoints call LongRoPE other names; one of them means something else everywhere else.
    for key in ["rope_scaling", "rope_parameters"] {
        let kind = config.get_mut(key).and_then(|value| {
            let spelling = if value.get("rope_type").is_some() { "rope_type" } else { "type" };
            value.get_mut(spelling)
        });
        if let Some(kind) = kind.filter(|kind| kind.as_str() == Some("yarn")) {
            *kind = "longrope".into();
        }
    }
    let mut shape = llama(&config)?;
    let nested = config.get("rope_parameters").and_then(|value| number(value, "partial_rotary_factor"));
    let fraction = nested.or_else(|| number(&config, "partial_rotary_factor")).unwrap_or(1.0);
    shape.rotary = (shape.heads.head_dim as f64 * fraction) as usize;
    windows(&mut shape, &config, optional_size(&config, "sliding_window"), |_| true)?;
    shape.names = &names::PHI3;
    Ok(shape)
}

/// What Gemma's families have in common.
fn gemma(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    let head_dim = optional_size(config, "head_dim").unwrap_or(256);
    shape.heads = Heads { head_dim, value_dim: head_dim, ..shape.heads };
    shape.rotary = head_dim;
    shape.scale = 1.0 / (head_dim as f32).sqrt();
    shape.norm = NormKind::RmsPlusOne;
    // `hidden_act` is older and says "gelu" where the tanh approximation is meant.
    shape.activation = activation(config, &["hidden_activation"], Activation::GeluTanh)?;
    shape.embedding_multiplier = (shape.hidden as f32).sqrt();
    shape.tied = flag(config, "tie_word_embeddings", true);
    if flag(config, "use_bidirectional_attention", false) {
        return Err(unsupported_value("use_bidirectional_attention", "true"));
    }
    Ok(shape)
}

fn gemma2(config: &Value) -> Result<DecoderShape> {
    let mut shape = gemma(config)?;
    let cap = |key: &str, default: f64| match config.get(key) {
        None => Some(default as f32),
        Some(value) => value.as_f64().map(|cap| cap as f32),
    };
    shape.scale = 1.0 / number(config, "query_pre_attn_scalar").unwrap_or(256.0).sqrt() as f32;
    shape.softcap = cap("attn_logit_softcapping", 50.0);
    shape.logits_softcap = cap("final_logit_softcapping", 30.0);
    windows(&mut shape, config, window(config), |layer| layer % 2 == 0)?;
    shape.names = &names::GEMMA;
    Ok(shape)
}

fn gemma3(config: &Value) -> Result<DecoderShape> {
    // Checkpoints that read pictures keep the language model's configuration inside, and leave out what is by default.
    let mut config = match config.get("text_config").filter(|inner| !inner.is_null()) {
        Some(inner) if inner.is_object() => inner.clone(),
        Some(_) => return Err(unsupported_value("text_config", "anything but an object")),
        None => config.clone(),
    };
    let defaults = [
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("vocab_size", 262_208),
        ("max_position_embeddings", 131_072),
    ];
    for (key, default) in defaults {
        if config.get(key).is_none() {
            config[key] = default.into();
        }
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if config.get(key).is_none() {
            config[key] = Value::Null;
        }
    }
    let mut shape = gemma2(&config)?;
    let pattern =
        ["sliding_window_pattern", "_sliding_window_pattern"].iter().find_map(|key| optional_size(&config, key));
    let pattern = pattern.unwrap_or(6);
    windows(&mut shape, &config, window(&config), |_| true)?;
    if config.get("layer_types").is_none_or(Value::is_null) {
        shape.layers.iter_mut().skip(pattern - 1).step_by(pattern).for_each(|layer| layer.window = None);
    }
    shape.layers.iter_mut().for_each(|layer| layer.rope = usize::from(layer.window.is_some()));
    let nested = config.get("rope_parameters").filter(|value| value.is_object());
    let of = |kind: &str, flat: Option<&Value>, key: &str, default: f64| {
        let parameters = nested.and_then(|value| value.get(kind)).or(flat);
        rope::from_parameters(&config, parameters, number(&config, key).unwrap_or(default))
    };
    shape.ropes = vec![
        of("full_attention", config.get("rope_scaling"), "rope_theta", 1_000_000.0)?,
        of("sliding_attention", None, "rope_local_base_freq", 10_000.0)?,
    ];
    shape.qk_norm = QkNorm::Head;
    Ok(shape)
}

fn olmo2(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    shape.qk_norm = QkNorm::Whole;
    shape.names = &names::OLMO2;
    Ok(shape)
}

fn granite(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    let multiplier = |key: &str| number(config, key).unwrap_or(1.0) as f32;
    shape.embedding_multiplier = multiplier("embedding_multiplier");
    shape.residual_multiplier = multiplier("residual_multiplier");
    shape.scale = multiplier("attention_multiplier");
    shape.logits_multiplier = 1.0 / multiplier("logits_scaling");
    Ok(shape)
}

/// The scale of attention that rotary scaling asks for beside its angles.
fn yarn_scale(shape: &DecoderShape) -> f32 {
    shape
        .ropes
        .iter()
        .map(|rope| if let RopeScaling::Yarn(yarn) = &rope.scaling { yarn.attention as f32 } else { 1.0 })
        .product()
}

#[cfg(test)]
mod tests;
