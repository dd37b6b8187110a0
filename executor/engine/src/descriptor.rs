//! What a model's architecture is, as data: shapes and switches read from `config.json` or GGUF metadata. The decoder and
//! the encoder are each written once and driven by this. Refuses architectures and variants that they do not compute.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::gguf::GgufFile;

/// Architectures, by the names weights give them.
pub(crate) const SUPPORTED: [&str; 5] =
    ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "BertModel"];

/// A model's architecture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Descriptor {
    /// Writes text.
    Decoder(DecoderShape),
    /// Makes vectors.
    Encoder(EncoderShape),
}

/// A decoder-only transformer with RMS norms, rotary positions and a gated feed-forward.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecoderShape {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) rope: Rope,
    /// Longest sequence it was made for, in tokens; never more than its attention window.
    pub(crate) context: usize,
    /// The output matrix is the embedding matrix.
    pub(crate) tied: bool,
    /// RMS norm over each head of q and k (Qwen3).
    pub(crate) qk_norm: bool,
    /// q and k rows are stored in llama.cpp's interleaved order.
    pub(crate) interleaved: bool,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: RopeScaling,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// Every frequency divided by this factor.
    Linear(f64),
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
}

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

/// The architecture's name in a `config.json`.
pub(crate) fn architecture_of(config: &Value) -> String {
    let named = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    named.or_else(|| text(config, "model_type")).unwrap_or("unknown").to_owned()
}

/// Reads a `config.json`.
pub(crate) fn from_config(config: &Value) -> Result<Descriptor> {
    let architecture = architecture_of(config);
    match architecture.as_str() {
        "LlamaForCausalLM" | "MistralForCausalLM" | "Qwen2ForCausalLM" | "Qwen3ForCausalLM" => {
            decoder_from_config(config, architecture == "Qwen3ForCausalLM").map(Descriptor::Decoder)
        }
        // Masked-language-model checkpoints hold the same encoder under the prefix `bert.`.
        "BertModel" | "BertForMaskedLM" | "bert" => encoder_from_config(config).map(Descriptor::Encoder),
        _ => Err(unsupported(&architecture)),
    }
}

fn unsupported(architecture: &str) -> Error {
    Error::invalid(format!("the engine does not know the architecture {architecture}"))
        .hint(format!("it knows {} and GGUF files of `llama`, `qwen2` and `qwen3`", SUPPORTED.join(", ")))
}

fn decoder_from_config(config: &Value, qk_norm: bool) -> Result<DecoderShape> {
    let hidden = size(config, "hidden_size")?;
    let heads = size(config, "num_attention_heads")?;
    let activation = text(config, "hidden_act").unwrap_or("silu");
    if activation != "silu" {
        return Err(unsupported_value("hidden_act", activation));
    }
    let mut context = size(config, "max_position_embeddings")?;
    let windowed = config.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(true);
    if let Some(window) = optional_size(config, "sliding_window").filter(|_| windowed) {
        // Up to the window's length, windowed and full attention are the same: that much context is exact.
        context = context.min(window);
    }
    let shape = DecoderShape {
        hidden,
        intermediate: size(config, "intermediate_size")?,
        layers: size(config, "num_hidden_layers")?,
        heads,
        kv_heads: optional_size(config, "num_key_value_heads").unwrap_or(heads),
        head_dim: optional_size(config, "head_dim").unwrap_or(hidden / heads),
        vocab: size(config, "vocab_size")?,
        norm_epsilon: number(config, "rms_norm_eps").unwrap_or(1e-6) as f32,
        rope: rope_from_config(config)?,
        context,
        tied: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        qk_norm,
        interleaved: false,
    };
    check_heads(&shape)?;
    Ok(shape)
}

fn check_heads(shape: &DecoderShape) -> Result<()> {
    if !shape.heads.is_multiple_of(shape.kv_heads) || !shape.head_dim.is_multiple_of(2) {
        return Err(Error::invalid(format!(
            "the model's attention cannot be computed: {} heads, {} key heads, head size {}",
            shape.heads, shape.kv_heads, shape.head_dim
        )));
    }
    Ok(())
}

fn rope_from_config(config: &Value) -> Result<Rope> {
    // transformers 5 nests everything in `rope_parameters`; before, theta was flat and scaling had its own object.
    let nested = config.get("rope_parameters").filter(|value| value.is_object());
    let theta = nested.and_then(|value| number(value, "rope_theta")).or_else(|| number(config, "rope_theta"));
    let scaling = nested.or_else(|| config.get("rope_scaling").filter(|value| value.is_object()));
    let scaling = match scaling {
        None => RopeScaling::None,
        Some(value) => {
            let needed = |key: &str| {
                number(value, key).ok_or_else(|| Error::invalid(format!("config.json: rope scaling has no `{key}`")))
            };
            match text(value, "rope_type").or_else(|| text(value, "type")).unwrap_or("default") {
                "default" => RopeScaling::None,
                "linear" => RopeScaling::Linear(needed("factor")?),
                "llama3" => RopeScaling::Llama3 {
                    factor: needed("factor")?,
                    low: needed("low_freq_factor")?,
                    high: needed("high_freq_factor")?,
                    original_context: needed("original_max_position_embeddings")?,
                },
                other => return Err(unsupported_value("rope_type", other)),
            }
        }
    };
    Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling })
}

fn encoder_from_config(config: &Value) -> Result<EncoderShape> {
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

/// Reads GGUF metadata. Returns the architecture's hub name and its shape.
pub(crate) fn from_gguf(file: &GgufFile) -> Result<(String, DecoderShape)> {
    let family = file.text("general.architecture").unwrap_or("unknown").to_owned();
    let name = match family.as_str() {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        other => return Err(unsupported(&format!("`{other}` of a GGUF file"))),
    };
    let key = |suffix: &str| format!("{family}.{suffix}");
    let needed = |suffix: &str| {
        file.integer(&key(suffix)).map(|value| value as usize).filter(|value| *value > 0).ok_or_else(|| {
            Error::invalid(format!("{} has no `{}`", file.path.display(), key(suffix))).hint("convert the model again")
        })
    };
    if file.integer(&key("expert_count")).unwrap_or(0) > 0 {
        return Err(unsupported("with experts (mixture of experts)"));
    }
    let heads = needed("attention.head_count")?;
    let hidden = needed("embedding_length")?;
    let embedding = file.shape("token_embd.weight").unwrap_or_default();
    let scaling = match file.text(&key("rope.scaling.type")) {
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear(file.float(&key("rope.scaling.factor")).unwrap_or(1.0)),
        Some(other) => return Err(unsupported_value("rope.scaling.type", other)),
    };
    let shape = DecoderShape {
        hidden,
        intermediate: needed("feed_forward_length")?,
        layers: needed("block_count")?,
        heads,
        kv_heads: file.integer(&key("attention.head_count_kv")).map_or(heads, |value| value as usize),
        head_dim: file.integer(&key("attention.key_length")).map_or(hidden / heads, |value| value as usize),
        vocab: embedding.first().copied().unwrap_or(0),
        norm_epsilon: file.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5) as f32,
        rope: Rope { theta: file.float(&key("rope.freq_base")).unwrap_or(10_000.0), scaling },
        context: needed("context_length")?,
        tied: !file.has("output.weight"),
        qk_norm: file.has("blk.0.attn_q_norm.weight"),
        interleaved: family == "llama",
    };
    check_heads(&shape)?;
    Ok((name.to_owned(), shape))
}

fn size(config: &Value, key: &str) -> Result<usize> {
    optional_size(config, key)
        .ok_or_else(|| Error::invalid(format!("config.json has no usable `{key}`")).hint("download the model again"))
}

fn optional_size(config: &Value, key: &str) -> Option<usize> {
    config.get(key).and_then(Value::as_u64).filter(|value| (1..1 << 32).contains(value)).map(|value| value as usize)
}

fn number(config: &Value, key: &str) -> Option<f64> {
    config.get(key).and_then(Value::as_f64)
}

fn text<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

fn unsupported_value(key: &str, value: &str) -> Error {
    Error::invalid(format!("the engine does not compute `{key}` = \"{value}\""))
        .hint("use another model of this family")
}

impl Rope {
    /// The angle per position of each pair of a head: `[head_dim / 2]`. `factors`, where a GGUF file has them, divide it.
    pub(crate) fn frequencies(&self, head_dim: usize, factors: Option<&[f32]>) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                let scaled = match self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear(factor) => plain / factor,
                    RopeScaling::Llama3 { factor, low, high, original_context } => {
                        let turns = original_context * plain / (2.0 * std::f64::consts::PI);
                        let blend = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        (1.0 - blend) * plain / factor + blend * plain
                    }
                };
                (scaled / factors.and_then(|f| f.get(i)).map_or(1.0, |f| f64::from(*f))) as f32
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_architectures_are_refused_with_the_known_ones() {
        let error = from_config(&json!({"architectures": ["MambaForCausalLM"]})).unwrap_err();
        assert!(error.to_string().contains("MambaForCausalLM"));
        assert!(error.hint_text().unwrap().contains("Qwen3ForCausalLM"));
    }

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 64.0 };
        let scaled = Rope { theta: 10_000.0, scaling }.frequencies(16, None);
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None }.frequencies(16, None);
        assert!((scaled[0] / plain[0] - 1.0).abs() < 1e-6);
        assert!((scaled[7] / plain[7] - 0.125).abs() < 1e-6);
    }

    #[test]
    fn a_sliding_window_bounds_the_context() {
        let mut config = json!({"architectures": ["MistralForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 32768,
            "sliding_window": 4096});
        let Descriptor::Decoder(shape) = from_config(&config).unwrap() else { unreachable!() };
        assert_eq!(shape.context, 4096);
        config["use_sliding_window"] = json!(false);
        let Descriptor::Decoder(shape) = from_config(&config).unwrap() else { unreachable!() };
        assert_eq!(shape.context, 32768);
    }
}
