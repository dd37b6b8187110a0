//! Adapters merge as PEFT merges them, and those that cannot be merged are refused. The fixture is that of
//! tests/fixtures/make_lora.py.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Adapter;
use crate::alone::{errors, last_logits, range};
use crate::model::{EngineOptions, Model, Network, inspect_adapted};
use crate::pack::Pack;
use crate::safetensors::SafetensorsFiles;
use crate::synthetic::tensor;
use crate::writer::{Head, Writer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn adapters() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(fixture("lora.json")).unwrap()).unwrap()
}

/// Writes an adapter's folder.
fn folder(adapter: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), adapter["config"].to_string()).unwrap();
    let tensors: HashMap<String, Tensor> = adapter["tensors"].as_array().unwrap().iter().map(tensor).collect();
    candle_core::safetensors::save(&tensors, folder.path().join("adapter_model.safetensors")).unwrap();
    folder
}

fn load(base: &str, adapter: &Path) -> Model {
    let options = EngineOptions { adapter: Some(adapter.to_path_buf()), ..EngineOptions::default() };
    Model::load(&fixture(base), &options).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn adapted_models_answer_as_peft_merges_them() {
    let adapters = adapters();
    assert_eq!(adapters.len(), 4);
    for adapter in &adapters {
        let (name, folder) = (adapter["name"].as_str().unwrap(), folder(adapter));
        let ids: Vec<u32> = floats(&adapter["ids"]).into_iter().map(|id| id as u32).collect();
        match load(adapter["base"].as_str().unwrap(), folder.path()).network {
            Network::Writer(Writer::Packed { decoder, shape }) => {
                let logits = last_logits(&decoder, &shape, &ids);
                for error in errors(&logits, &adapter["top_logits"], range(&logits)) {
                    assert!(error < 1e-3, "{name}: a logit is {error} of the range off");
                }
            }
            Network::Embedder(embedder) => {
                let vector = embedder.embed(&[&ids]).unwrap().remove(0).unwrap();
                for (given, expected) in vector.iter().zip(floats(&adapter["vector"])) {
                    assert!((given - expected).abs() < 1e-4, "{name}: {given} should be {expected}");
                }
            }
            network => panic!("{name}: {network:?}"),
        }
    }
}

/// The compatible path reads through the same merging: a Llama is also a SmolLM3 whose layers all rotate.
#[test]
fn adapters_merge_on_the_compatible_path_too() {
    let adapters = adapters();
    let of_llama: Vec<&Value> = adapters.iter().filter(|adapter| adapter["base"] == "llama-tiny").collect();
    assert!(!of_llama.is_empty());
    let base = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "model.safetensors"] {
        std::fs::copy(fixture("llama-tiny").join(name), base.path().join(name)).unwrap();
    }
    let config = std::fs::read(fixture("llama-tiny/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["architectures"] = json!(["SmolLM3ForCausalLM"]);
    config["no_rope_layers"] = json!([1, 1, 1]);
    std::fs::write(base.path().join("config.json"), config.to_string()).unwrap();
    for adapter in of_llama {
        let (name, folder) = (adapter["name"].as_str().unwrap(), folder(adapter));
        let ids: Vec<u32> = floats(&adapter["ids"]).into_iter().map(|id| id as u32).collect();
        let options = EngineOptions { adapter: Some(folder.path().to_path_buf()), ..EngineOptions::default() };
        let Network::Writer(mut writer) = Model::load(base.path(), &options).unwrap().network else {
            panic!("writes no text")
        };
        let (mut cache, mut table, mut pack) = (writer.cache(8), Vec::new(), Pack::new());
        cache.grow(&mut table, ids.len()).unwrap();
        pack.push(&ids, 0, &table);
        pack.want_last();
        pack.finish();
        let logits = writer.logits(&pack, &mut cache, &Head::Whole).unwrap();
        for error in errors(&logits, &adapter["top_logits"], range(&logits)) {
            assert!(error < 1e-3, "{name}: a logit is {error} of the range off");
        }
    }
}

/// A matrix that is stored the other way round changes by the same numbers, the other way round.
#[test]
fn matrices_of_inputs_by_outputs_change_alike() {
    let base = tempfile::tempdir().unwrap();
    let entries = |names: &[(&str, [usize; 2])]| -> HashMap<String, Tensor> {
        names.iter().map(|(name, shape)| tensor(&json!([name, shape, 0.0, 1.0]))).collect()
    };
    let weights = entries(&[("straight.weight", [3, 5]), ("turned.weight", [5, 3])]);
    candle_core::safetensors::save(&weights, base.path().join("base.safetensors")).unwrap();
    let base = SafetensorsFiles::open(&[base.path().join("base.safetensors")]).unwrap();
    let change = |module: &str, turned: bool| {
        let root = format!("base_model.model.{module}");
        let pair = [entries(&[("A", [2, 5])]).remove("A").unwrap(), entries(&[("B", [3, 2])]).remove("B").unwrap()];
        let names = ["lora_A", "lora_B"].map(|part| format!("{root}.{part}.weight"));
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "fan_in_fan_out": turned});
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        let tensors: HashMap<String, Tensor> = names.into_iter().zip(pair).collect();
        candle_core::safetensors::save(&tensors, folder.path().join("adapter_model.safetensors")).unwrap();
        let adapter = Adapter::open(folder.path(), &base).unwrap();
        let mut values = vec![0.0; 15];
        assert!(adapter.check_merged().is_err());
        adapter.merge(&format!("{module}.weight"), if turned { 3 } else { 5 }, &mut values).unwrap();
        adapter.check_merged().unwrap();
        values
    };
    let (straight, turned) = (change("straight", false), change("turned", true));
    assert!(straight.iter().any(|value| value.abs() > 0.1));
    for (row, column) in (0..3).flat_map(|row| (0..5).map(move |column| (row, column))) {
        assert!((straight[row * 5 + column] - turned[column * 3 + row]).abs() < 1e-6);
    }
}

/// Both faces refuse what `change` makes of an adapter; the report contains all of `words`.
fn refused(adapter: &Value, change: impl Fn(&mut Value), words: &[&str]) {
    let mut adapter = adapter.clone();
    change(&mut adapter);
    refused_folder(&fixture(adapter["base"].as_str().unwrap()), folder(&adapter).path(), words);
}

fn refused_folder(base: &Path, adapter: &Path, words: &[&str]) {
    let options = EngineOptions { adapter: Some(adapter.to_path_buf()), ..EngineOptions::default() };
    let reports = [
        inspect_adapted(base, Some(adapter)).unwrap_err().report(),
        Model::load(base, &options).map(|_| ()).unwrap_err().report(),
    ];
    for report in reports {
        for word in words {
            assert!(report.contains(word), "`{word}` is not in:\n{report}");
        }
    }
}

#[test]
fn adapters_that_are_more_than_a_product_are_refused_by_name() {
    let adapter = &adapters()[0];
    for (key, value, word) in [
        ("use_dora", json!(true), "DoRA"),
        ("use_qalora", json!(true), "use_qalora"),
        ("use_anything_new", json!({"a": 1}), "use_anything_new"),
        ("modules_to_save", json!(["score"]), "modules_to_save"),
        ("target_parameters", json!(["experts"]), "target_parameters"),
        ("lora_bias", json!(true), "lora_bias"),
        ("bias", json!("all"), "bias = all"),
        ("init_lora_weights", json!("pissa_niter_4"), "pissa_niter_4"),
        ("peft_type", json!("LOHA"), "LOHA"),
        ("rank_pattern", json!({"^model.*": 3}), "^model.*"),
        ("lora_alpha", json!(null), "lora_alpha"),
    ] {
        refused(adapter, |adapter| adapter["config"][key] = value.clone(), &[word, "hint:"]);
    }
}

#[test]
fn adapters_of_another_base_are_refused_with_names_and_shapes() {
    let adapter = &adapters()[0];
    let first = |adapter: &mut Value, at: usize, value: Value| adapter["tensors"][0][at] = value;
    refused(adapter, |a| a["config"]["r"] = json!(8), &["rank 8", "[4, 64]", "k_proj"]);
    refused(adapter, |a| first(a, 1, json!([4, 48])), &["[4, 48]", "[32, 64]", "layers.0.self_attn.k_proj"]);
    let other = "base_model.model.model.layers.9.self_attn.k_proj.lora_A.weight";
    refused(adapter, |a| first(a, 0, json!(other)), &["k_proj", "only one of two"]);
    refused(adapter, |a| first(a, 0, json!("base_model.model.score.weight")), &["score.weight", "none of LoRA's"]);
    refused(adapter, |a| a["base"] = json!("bert-tiny"), &["which its base does not have", "k_proj"]);
    refused(adapter, |a| a["tensors"] = json!([]), &["no tensors"]);
    let folder = folder(adapter);
    refused_folder(&fixture("llama-tiny.gguf"), folder.path(), &["llama-tiny.gguf cannot be adapted"]);
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    refused_folder(&fixture("llama-tiny"), folder.path(), &["adapter_model.safetensors"]);
}

/// A module of the base that the engine never reads would leave a part of the adapter out.
#[test]
fn adapters_of_modules_that_are_not_computed_are_refused() {
    let mut adapter = adapters().remove(3);
    let dense = "base_model.model.pooler.dense";
    adapter["tensors"] = json!([
        [format!("{dense}.lora_A.weight"), [4, 48], 0.0, 0.4],
        [format!("{dense}.lora_B.weight"), [48, 4], 0.0, 0.4]
    ]);
    let folder = folder(&adapter);
    let options = EngineOptions { adapter: Some(folder.path().to_path_buf()), ..EngineOptions::default() };
    let report = Model::load(&fixture("bert-tiny"), &options).map(|_| ()).unwrap_err().report();
    assert!(report.contains("pooler.dense.weight") && report.contains("does not compute"), "{report}");
}
