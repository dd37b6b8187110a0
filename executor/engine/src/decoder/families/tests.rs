//! What families say, and what is refused of them, without weights.

#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::json;

fn config() -> Value {
    json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "vocab_size": 100, "max_position_embeddings": 32768})
}

fn with_experts(config: &Value) -> Value {
    let mut config = config.clone();
    (config["num_experts"], config["num_experts_per_tok"], config["moe_intermediate_size"]) =
        (json!(4), json!(2), json!(32));
    config
}

fn windows_of(architecture: &str, changes: &[(&str, Value)]) -> Vec<Option<usize>> {
    let mut config = config();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    from_config(architecture, &config).unwrap().layers.iter().map(|layer| layer.window).collect()
}

#[test]
fn windows_are_as_each_family_says_them() {
    let window = ("sliding_window", json!(8));
    let all = vec![Some(8); 4];
    assert_eq!(windows_of("MistralForCausalLM", std::slice::from_ref(&window)), all);
    assert_eq!(windows_of("MistralForCausalLM", &[("sliding_window", Value::Null)]), [None; 4]);
    assert_eq!(windows_of("Qwen2ForCausalLM", std::slice::from_ref(&window)), [None; 4]);
    let on = [window.clone(), ("use_sliding_window", json!(true)), ("max_window_layers", json!(3))];
    assert_eq!(windows_of("Qwen2ForCausalLM", &on), [None, None, None, Some(8)]);
    assert_eq!(windows_of("Gemma2ForCausalLM", std::slice::from_ref(&window)), [Some(8), None, Some(8), None]);
    let pattern = [window.clone(), ("sliding_window_pattern", json!(3))];
    assert_eq!(windows_of("Gemma3ForCausalLM", &pattern), [Some(8), Some(8), None, Some(8)]);
    let full = json!(["full_attention", "sliding_attention", "full_attention", "full_attention"]);
    for family in ["Gemma2ForCausalLM", "Gemma3ForCausalLM", "MistralForCausalLM"] {
        let listed = windows_of(family, &[window.clone(), ("layer_types", full.clone())]);
        assert_eq!(listed, [None, Some(8), None, None], "{family}");
    }
}

#[test]
fn a_window_that_hides_nothing_is_none() {
    for (tokens, window) in [(32_767, Some(32_767)), (32_768, None), (u32::MAX - 1, None), (u32::MAX, None)] {
        for family in ["MistralForCausalLM", "Gemma3ForCausalLM"] {
            assert_eq!(windows_of(family, &[("sliding_window", json!(tokens))])[0], window, "{family}, {tokens}");
        }
    }
}

/// A table of a hundred bytes for each position of four thousand million would end the process.
#[test]
fn a_context_longer_than_any_models_is_cut() {
    for (asked, taken) in [(1u64 << 20, 1 << 20), ((1 << 20) + 1, 1 << 20), (u64::from(u32::MAX), 1 << 20)] {
        let mut config = config();
        config["max_position_embeddings"] = json!(asked);
        for family in ["LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen3MoeForCausalLM"] {
            let shape = from_config(family, &with_experts(&config)).unwrap();
            assert_eq!(shape.clone().used_with(None).context, taken, "{family}");
            assert_eq!(shape.used_with(Some(usize::MAX)).context, taken, "{family}");
        }
    }
}

#[test]
fn what_is_not_computed_is_refused_by_its_key() {
    for (architecture, key, value) in [
        ("LlamaForCausalLM", "hidden_act", json!("xielu")),
        ("MistralForCausalLM", "layer_types", json!(["chunked_attention"])),
        ("FalconForCausalLM", "alibi", json!(true)),
        ("DeepseekV2ForCausalLM", "topk_method", json!("noaux_tc")),
        ("DeepseekV3ForCausalLM", "scoring_func", json!("softmax")),
        ("Gemma3ForCausalLM", "use_bidirectional_attention", json!(true)),
    ] {
        let mut config = config();
        config[key] = value;
        let error = from_config(architecture, &config).unwrap_err();
        assert!(error.to_string().contains(key), "{architecture}: {error}");
    }
}

#[test]
fn longrope_takes_the_long_factors_only_when_more_than_the_original_context_is_asked_for() {
    let mut config = config();
    config["original_max_position_embeddings"] = json!(4096);
    config["rope_scaling"] = json!({"type": "su", "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8]});
    let shape = from_config("Phi3ForCausalLM", &config).unwrap();
    let angle = |shape: &DecoderShape| shape.ropes[0].frequencies(16, None)[0];
    let plain = shape.clone().used_with(None);
    assert_eq!((plain.context, angle(&plain)), (4096, 1.0));
    let less = shape.clone().used_with(Some(100));
    assert_eq!((less.context, angle(&less)), (100, 1.0));
    let more = shape.used_with(Some(8192));
    assert_eq!((more.context, angle(&more)), (8192, 0.5));
}
