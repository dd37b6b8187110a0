//! What the engine refuses, and that it says the file, what is wrong and what to do; `inspect` and `load` alike.

use std::collections::HashMap;
use std::path::Path;

use rowmill_engine::{CandleEngine, EngineOptions, inspect};
use rowmill_jobs::infer::{Answer, Engine, TaskKind};
use tempfile::TempDir;

use crate::{fixture, request, task};

fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// Both faces refuse; the report contains all of `words`.
fn refused(source: &Path, words: &[&str]) {
    let reports = [
        inspect(source).unwrap_err().report(),
        CandleEngine::load("m", source, &EngineOptions::default()).unwrap_err().report(),
    ];
    for report in reports {
        for word in words {
            assert!(report.contains(word), "`{word}` is not in:\n{report}");
        }
        assert!(report.contains("hint:"), "no hint in:\n{report}");
    }
}

fn edit_config(folder: &TempDir, from: &str, to: &str) {
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn missing_files_are_named() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = copy("llama-tiny");
        std::fs::remove_file(folder.path().join(name)).unwrap();
        refused(folder.path(), &[name, &folder.path().display().to_string()]);
    }
    refused(Path::new("/nowhere/at/all"), &["/nowhere/at/all"]);
}

#[test]
fn truncated_and_corrupt_weights_are_found_in_the_header() {
    for keep in [0, 5, 200, 100_000] {
        let folder = copy("llama-tiny");
        let path = folder.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..keep]).unwrap();
        refused(folder.path(), &["model.safetensors", "not downloaded whole"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let bytes = std::fs::read(fixture("llama-tiny.gguf")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(&path, &["model.gguf", "not downloaded whole"]);
    std::fs::write(&path, &bytes[..100]).unwrap();
    refused(&path, &["model.gguf", "not downloaded whole"]);
    std::fs::write(&path, b"nothing like it").unwrap();
    refused(&path, &["model.gguf"]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let folder = copy("llama-tiny");
    edit_config(&folder, "\"intermediate_size\": 96", "\"intermediate_size\": 128");
    refused(folder.path(), &["model.layers.0.mlp.gate_proj.weight", "[96, 64]", "[128, 64]"]);
    let folder = copy("bert-tiny");
    edit_config(&folder, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    refused(folder.path(), &["encoder.layer.2.attention.self.query.weight", "missing"]);
}

#[test]
fn unsupported_architectures_are_refused_with_the_supported_ones() {
    let folder = copy("llama-tiny");
    edit_config(&folder, "LlamaForCausalLM", "RwkvForCausalLM");
    let known = ["LlamaForCausalLM", "Qwen3ForCausalLM", "BertModel", "PhiForCausalLM"];
    refused(folder.path(), &[&["RwkvForCausalLM"][..], &known].concat());
    let folder = copy("llama-tied");
    edit_config(&folder, "\"llama3\"", "\"spiral\"");
    refused(folder.path(), &["rope_type", "spiral"]);
}

#[test]
fn pickle_is_refused_under_any_name() {
    let words = ["safetensors and GGUF only; convert with"];
    for name in ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"] {
        let folder = copy("llama-tiny");
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join(name), b"PK\x03\x04 and so on").unwrap();
        refused(folder.path(), &[name, words[0]]);
        refused(&folder.path().join(name), &[name, words[0]]);
    }
    for magic in [&b"PK\x03\x04\x00\x00\x08\x08"[..], b"\x80\x02\x8a\x0al\xfc\x9c\x46"] {
        let folder = copy("llama-tiny");
        std::fs::write(folder.path().join("model.safetensors"), magic).unwrap();
        refused(folder.path(), &["model.safetensors", words[0]]);
    }
}

#[test]
fn shards_are_read_through_their_index_and_missing_ones_are_named() {
    let folder = copy("llama-tiny");
    std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("model-00001-of-00001.safetensors"))
        .unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map":{"a":"model-00001-of-00001.safetensors"}}"#).unwrap();
    let facts = inspect(folder.path()).unwrap();
    assert!(
        facts.files.contains(&index) && facts.files.is_sorted() && facts.files.iter().all(|file| file.is_absolute())
    );
    assert!(CandleEngine::load("m", folder.path(), &EngineOptions::default()).is_ok());
    std::fs::write(&index, r#"{"weight_map":{"a":"model-00002-of-00002.safetensors"}}"#).unwrap();
    refused(folder.path(), &["model-00002-of-00002.safetensors", "missing"]);
    std::fs::write(&index, r#"{"weight_map":{"a":"../model.safetensors"}}"#).unwrap();
    assert!(inspect(folder.path()).unwrap_err().report().contains("../model.safetensors"));
}

/// The same weights in two files, as large models are published, answer alike.
#[tokio::test(flavor = "multi_thread")]
async fn weights_in_several_files_are_one_model() {
    let folder = copy("llama-tiny");
    let whole = folder.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&whole, &candle_core::Device::Cpu).unwrap();
    std::fs::remove_file(whole).unwrap();
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    let mut map = serde_json::Map::new();
    for (number, names) in names.chunks(names.len() / 2 + 1).enumerate() {
        let file = format!("model-{number:05}-of-00002.safetensors");
        let part: HashMap<&str, _> = names.iter().map(|name| (name.as_str(), tensors[*name].clone())).collect();
        candle_core::safetensors::save(&part, folder.path().join(&file)).unwrap();
        map.extend(names.iter().map(|name| ((*name).clone(), file.clone().into())));
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let files = inspect(folder.path()).unwrap().files;
    assert_eq!(files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "safetensors")).count(), 2);
    let choose = task(TaskKind::Choose { labels: vec!["billing".into(), "bug".into()], calibrate: false });
    let mut scores = Vec::new();
    for source in [fixture("llama-tiny"), folder.path().to_path_buf()] {
        let engine = CandleEngine::load("m", &source, &EngineOptions::default()).unwrap();
        let outcome = engine.infer(&choose, vec![request("I was charged twice.")]).await.unwrap().remove(0);
        let Answer::Choice { scores: own, .. } = outcome.unwrap().answer else { panic!("not a choice") };
        scores.push(own);
    }
    assert_eq!(scores[0], scores[1]);
    std::fs::remove_file(folder.path().join("model-00001-of-00002.safetensors")).unwrap();
    refused(folder.path(), &["model-00001-of-00002.safetensors", "missing"]);
}
