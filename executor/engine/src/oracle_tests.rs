//! candle-transformers as a second oracle: the same random weights through its models and through ours, for every switch
//! of the architecture descriptor (biases, norms of heads, head sizes, grouped queries, tied outputs).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use serde_json::{Value, json};

use crate::decoder::Decoder;
use crate::kv::KvCache;
use crate::model::{EngineOptions, Model, Network};
use crate::pack::Pack;
use crate::writer::Writer;

const PROMPTS: [&[u32]; 4] = [&[5], &[7, 8, 9, 300, 12, 12, 44], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[383, 0]];

/// A folder with this configuration, random weights, and the tokenizer of a fixture.
fn folder(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, d) = (size("hidden_size"), size("head_dim"));
    let (q, kv, inner) = (size("num_attention_heads") * d, size("num_key_value_heads") * d, size("intermediate_size"));
    let mut state = 12345u32;
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize], centre: f32, spread: f32| {
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            centre + spread * ((state >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
        };
        let values: Vec<f32> = std::iter::repeat_with(next).take(shape.iter().product()).collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    };
    add("model.embed_tokens.weight".into(), &[384, hidden], 0.0, 1.0);
    add("model.norm.weight".into(), &[hidden], 1.0, 0.2);
    if config["tie_word_embeddings"] != true {
        add("lm_head.weight".into(), &[384, hidden], 0.0, 1.0);
    }
    for layer in 0..size("num_hidden_layers") {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
            add(name(norm), &[hidden], 1.0, 0.2);
        }
        for (module, rows, columns) in [
            ("self_attn.q_proj", q, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ] {
            add(name(&format!("{module}.weight")), &[rows, columns], 0.0, 0.3);
            if config["model_type"] == "qwen2" && ["q_proj", "k_proj", "v_proj"].iter().any(|m| module.ends_with(m)) {
                add(name(&format!("{module}.bias")), &[rows], 0.0, 0.5);
            }
        }
        if config["model_type"] == "qwen3" {
            for norm in ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] {
                add(name(norm), &[d], 1.0, 0.5);
            }
        }
    }
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

fn config(architecture: &str, model_type: &str, head_dim: usize, kv_heads: usize, tied: bool) -> Value {
    json!({"architectures": [architecture], "model_type": model_type, "vocab_size": 384, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 50000.0,
        "tie_word_embeddings": tied, "hidden_act": "silu", "sliding_window": null, "attention_bias": false})
}

/// Logits after each of [`PROMPTS`], all of them in one packed batch.
fn ours(folder: &Path) -> Vec<Vec<f32>> {
    let model = Model::load(folder, &EngineOptions::default()).unwrap();
    let Network::Writer(Writer::Packed { decoder, shape }) = model.network else { panic!("not a decoder") };
    let mut cache = KvCache::new(Decoder::heads(&shape), shape.layers.len(), 64);
    let mut pack = Pack::new();
    for prompt in PROMPTS {
        let mut table = Vec::new();
        cache.grow(&mut table, prompt.len()).unwrap();
        pack.push(prompt, 0, &table);
        pack.want_last();
    }
    pack.finish();
    let hidden = decoder.forward(&pack, &mut cache).unwrap();
    let logits = decoder.logits(hidden, &decoder.output).unwrap();
    logits.chunks(shape.vocab).map(<[f32]>::to_vec).collect()
}

fn compare(what: &str, folder: &Path, mut oracle: impl FnMut(&Tensor) -> candle_core::Result<Tensor>) {
    for (prompt, ours) in PROMPTS.iter().zip(ours(folder)) {
        let input = Tensor::new(*prompt, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = oracle(&input).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let range = theirs.iter().copied().fold(0f32, |top, x| top.max(x.abs()));
        assert_eq!(theirs.len(), ours.len());
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() / range < 1e-4, "{what}: {a} should be {b}");
        }
    }
}

fn weights(folder: &Path) -> VarBuilder<'static> {
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

fn of<T: serde::de::DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone()).unwrap()
}

#[test]
fn llama() {
    for (kv_heads, tied) in [(2, false), (4, true), (1, false)] {
        let config = config("LlamaForCausalLM", "llama", 16, kv_heads, tied);
        let folder = folder(&config);
        let shape = of::<llama::LlamaConfig>(&config).into_config(false);
        let model = llama::Llama::load(weights(folder.path()), &shape).unwrap();
        compare("llama", folder.path(), |input| {
            let mut cache = llama::Cache::new(false, DType::F32, &shape, &Device::Cpu)?;
            model.forward(input, 0, &mut cache)
        });
    }
}

#[test]
fn mistral_with_heads_of_their_own_size() {
    let config = config("MistralForCausalLM", "mistral", 24, 2, false);
    let folder = folder(&config);
    let mut model = mistral::Model::new(&of(&config), weights(folder.path())).unwrap();
    compare("mistral", folder.path(), |input| {
        model.clear_kv_cache();
        model.forward(input, 0)
    });
}

#[test]
fn qwen2_with_biases() {
    let mut config = config("Qwen2ForCausalLM", "qwen2", 16, 2, true);
    let folder = folder(&config);
    for (key, value) in
        [("sliding_window", json!(4096)), ("max_window_layers", json!(2)), ("use_sliding_window", json!(false))]
    {
        config[key] = value;
    }
    let mut model = qwen2::ModelForCausalLM::new(&of(&config), weights(folder.path())).unwrap();
    compare("qwen2", folder.path(), |input| {
        model.clear_kv_cache();
        model.forward(input, 0)
    });
}

#[test]
fn qwen3_with_norms_of_heads() {
    let mut config = config("Qwen3ForCausalLM", "qwen3", 32, 2, false);
    let folder = folder(&config);
    for (key, value) in [("max_window_layers", json!(2)), ("use_sliding_window", json!(false))] {
        config[key] = value;
    }
    let mut model = qwen3::ModelForCausalLM::new(&of(&config), weights(folder.path())).unwrap();
    compare("qwen3", folder.path(), |input| {
        model.clear_kv_cache();
        model.forward(input, 0)
    });
}
