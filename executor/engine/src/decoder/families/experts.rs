//! Families with experts: Mixtral, Qwen's, DeepSeek's (which have latent attention, too).

use rowmill_jobs::Result;
use serde_json::Value;

use super::{either, llama, qwen_windows, qwen2, qwen3, windows, yarn_scale};
use crate::attention::Heads;
use crate::config::{flag, number, optional_size, size, text, unsupported_value};
use crate::decoder::names;
use crate::decoder::shape::{Biases, DecoderShape, Experts, Feed, Groups, Latent, Scoring};

pub(super) fn mixtral(config: &Value) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    windows(&mut shape, config, optional_size(config, "sliding_window"), |_| true)?;
    shape.experts = Some(Experts {
        count: size(config, "num_local_experts")?,
        chosen: size(config, "num_experts_per_tok")?,
        intermediate: size(config, "intermediate_size")?,
        scoring: Scoring::Softmax,
        normalised: true,
        scale: 1.0,
        groups: None,
        shared: None,
        shared_gate: false,
    });
    shape.layers.iter_mut().for_each(|layer| layer.feed = Feed::Experts);
    shape.names = &names::MIXTRAL;
    Ok(shape)
}

/// Experts of Qwen's families, and the layers that have them.
fn qwen_experts(shape: &mut DecoderShape, config: &Value, shared: Option<usize>) -> Result<()> {
    shape.experts = Some(Experts {
        count: either(config, &["num_experts", "num_local_experts"])?,
        chosen: size(config, "num_experts_per_tok")?,
        intermediate: size(config, "moe_intermediate_size")?,
        scoring: Scoring::Softmax,
        normalised: flag(config, "norm_topk_prob", false),
        scale: 1.0,
        groups: None,
        shared,
        shared_gate: shared.is_some(),
    });
    let step = optional_size(config, "decoder_sparse_step").unwrap_or(1);
    let dense = config.get("mlp_only_layers").and_then(Value::as_array);
    for (index, layer) in shape.layers.iter_mut().enumerate() {
        let listed = dense.is_some_and(|list| list.iter().any(|layer| layer.as_u64() == Some(index as u64)));
        if !listed && (index + 1).is_multiple_of(step) {
            layer.feed = Feed::Experts;
        }
    }
    Ok(())
}

pub(super) fn qwen2_moe(config: &Value) -> Result<DecoderShape> {
    let mut shape = qwen2(config)?;
    shape.biases = Biases { qkv: flag(config, "qkv_bias", true), ..Biases::default() };
    qwen_experts(&mut shape, config, Some(size(config, "shared_expert_intermediate_size")?))?;
    Ok(shape)
}

pub(super) fn qwen3_moe(config: &Value) -> Result<DecoderShape> {
    let mut shape = qwen3(config)?;
    qwen_windows(&mut shape, config)?;
    if flag(config, "use_sliding_window", false) {
        // Here the window is all layers' where it is switched on.
        windows(&mut shape, config, optional_size(config, "sliding_window"), |_| true)?;
    }
    qwen_experts(&mut shape, config, None)?;
    Ok(shape)
}

/// Refuses a text value other than the one that is computed.
fn only(config: &Value, key: &str, computed: &str) -> Result<()> {
    match text(config, key) {
        Some(other) if other != computed => Err(unsupported_value(key, other)),
        _ => Ok(()),
    }
}

/// What DeepSeek's families have in common; `scoring` and the rest of the router are each one's own.
fn deepseek(config: &Value, router: &Experts) -> Result<DecoderShape> {
    let mut shape = llama(config)?;
    let (own, rotary) = (size(config, "qk_nope_head_dim")?, size(config, "qk_rope_head_dim")?);
    let heads = shape.heads.heads;
    shape.heads = Heads { heads, kv_heads: heads, head_dim: own + rotary, value_dim: size(config, "v_head_dim")? };
    shape.rotary = rotary;
    shape.interleaved = flag(config, "rope_interleave", true);
    shape.latent = Some(Latent { q: optional_size(config, "q_lora_rank"), kv: size(config, "kv_lora_rank")? });
    shape.scale = yarn_scale(&shape) / ((own + rotary) as f32).sqrt();
    shape.names = &names::DEEPSEEK;
    if shape.biases.feed {
        return Err(unsupported_value("mlp_bias", "true"));
    }
    if optional_size(config, "moe_layer_freq").is_some_and(|step| step != 1) {
        return Err(unsupported_value("moe_layer_freq", "other than 1"));
    }
    let Some(count) = optional_size(config, "n_routed_experts") else { return Ok(shape) };
    let intermediate = size(config, "moe_intermediate_size")?;
    let shared = optional_size(config, "n_shared_experts").map(|shared| shared.saturating_mul(intermediate));
    let chosen = size(config, "num_experts_per_tok")?;
    let dense = config.get("first_k_dense_replace").and_then(Value::as_u64).unwrap_or(0) as usize;
    shape.layers.iter_mut().skip(dense).for_each(|layer| layer.feed = Feed::Experts);
    shape.experts = Some(Experts { count, chosen, intermediate, shared, ..router.clone() });
    Ok(shape)
}

fn groups(config: &Value, best: usize) -> Result<Option<Groups>> {
    Ok(Some(Groups { count: size(config, "n_group")?, kept: size(config, "topk_group")?, best }))
}

/// What both fill in.
const ROUTER: Experts = Experts {
    count: 0,
    chosen: 0,
    intermediate: 0,
    scoring: Scoring::Softmax,
    normalised: false,
    scale: 1.0,
    groups: None,
    shared: None,
    shared_gate: false,
};

pub(super) fn deepseek_v2(config: &Value) -> Result<DecoderShape> {
    only(config, "scoring_func", "softmax")?;
    if flag(config, "norm_topk_prob", false) {
        return Err(unsupported_value("norm_topk_prob", "true"));
    }
    let groups = match text(config, "topk_method").unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => groups(config, 1)?,
        other => return Err(unsupported_value("topk_method", other)),
    };
    let scale = number(config, "routed_scaling_factor").unwrap_or(1.0) as f32;
    deepseek(config, &Experts { scale, groups, ..ROUTER })
}

pub(super) fn deepseek_v3(config: &Value) -> Result<DecoderShape> {
    only(config, "scoring_func", "sigmoid")?;
    only(config, "topk_method", "noaux_tc")?;
    let router = Experts {
        scoring: Scoring::CorrectedSigmoid,
        normalised: flag(config, "norm_topk_prob", true),
        scale: number(config, "routed_scaling_factor").unwrap_or(2.5) as f32,
        groups: groups(config, 2)?,
        ..ROUTER
    };
    deepseek(config, &router)
}
