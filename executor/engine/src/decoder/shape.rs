//! What a model's architecture is, as data: shapes and switches read from `config.json` or GGUF metadata. The decoder and
//! the encoder are each written once and driven by this. Refuses architectures and variants that they do not compute.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::config::{number, optional_size, size, text, unsupported_value};
use crate::descriptor::unsupported;
use crate::gguf::GgufFile;
use crate::rope::{self, Rope, RopeScaling};

/// Architectures the decoder computes, by the names weights give them.
pub(crate) const ARCHITECTURES: [&str; 4] =
    ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"];

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

/// Reads the `config.json` of one of [`ARCHITECTURES`].
pub(crate) fn from_config(architecture: &str, config: &Value) -> Result<DecoderShape> {
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
        rope: rope::from_config(config)?,
        context,
        tied: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        qk_norm: architecture == "Qwen3ForCausalLM",
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_sliding_window_bounds_the_context() {
        let mut config = json!({"architectures": ["MistralForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 32768,
            "sliding_window": 4096});
        let shape = from_config("MistralForCausalLM", &config).unwrap();
        assert_eq!(shape.context, 4096);
        config["use_sliding_window"] = json!(false);
        let shape = from_config("MistralForCausalLM", &config).unwrap();
        assert_eq!(shape.context, 32768);
    }
}
