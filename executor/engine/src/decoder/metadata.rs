//! Reads a decoder's shape from the metadata of a GGUF file: llama.cpp's keys are the same for all families, and most
//! switches are there when a tensor is. Refuses families and variants that the decoder does not compute.

use rowmill_jobs::{Error, Result};

use super::names;
use super::shape::{Activation, Biases, DecoderShape, Feed, LayerShape, NormKind, QkNorm, Residual};
use crate::attention::Heads;
use crate::config::unsupported_value;
use crate::descriptor::unsupported;
use crate::gguf::GgufFile;
use crate::rope::{Rope, RopeScaling};

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
    let head_dim = file.integer(&key("attention.key_length")).map_or(hidden / heads, |value| value as usize);
    let kv_heads = file.integer(&key("attention.head_count_kv")).map_or(heads, |value| value as usize);
    let embedding = file.shape("token_embd.weight").unwrap_or_default();
    let scaling = match file.text(&key("rope.scaling.type")) {
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear(file.float(&key("rope.scaling.factor")).unwrap_or(1.0)),
        Some(other) => return Err(unsupported_value("rope.scaling.type", other)),
    };
    let layer = LayerShape { window: None, rope: 0, feed: Feed::Dense(needed("feed_forward_length")?) };
    let shape = DecoderShape {
        hidden,
        vocab: embedding.first().copied().unwrap_or(0),
        context: needed("context_length")?,
        heads: Heads { heads, kv_heads, head_dim, value_dim: head_dim },
        layers: vec![layer; needed("block_count")?],
        norm: NormKind::Rms,
        norm_epsilon: file.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5) as f32,
        residual: Residual::Sequential,
        ropes: vec![Rope { theta: file.float(&key("rope.freq_base")).unwrap_or(10_000.0), scaling }],
        rotary: head_dim,
        interleaved: family == "llama",
        positions: None,
        biases: Biases {
            qkv: file.has("blk.0.attn_q.bias"),
            attention_out: file.has("blk.0.attn_output.bias"),
            feed: file.has("blk.0.ffn_down.bias"),
            output: false,
        },
        qk_norm: if file.has("blk.0.attn_q_norm.weight") { QkNorm::Head } else { QkNorm::None },
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        latent: None,
        activation: Activation::Silu,
        experts: None,
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        logits_multiplier: 1.0,
        logits_softcap: None,
        tied: !file.has("output.weight"),
        names: &names::GGUF,
    };
    Ok((name.to_owned(), shape.checked()?))
}
