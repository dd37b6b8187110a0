//! The compatible path through the engine's public face. A Llama is also a SmolLM3 without layers that do not rotate: the same
//! checkpoint answers alike whoever computes it, whatever is asked. And what the path refuses.

use std::path::Path;

use rowmill_engine::verify::{Reference, verify};
use rowmill_engine::{CandleEngine, EngineOptions, inspect};
use rowmill_jobs::infer::{Answer, Engine, Outcome, RowErrorCode, TaskKind, TextFormat};
use rowmill_jobs::plan::Ability;
use rowmill_jobs::spec::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::synthetic::{checkpoint, fixtures};
use crate::{fixture, request, task};

/// The tiny Llama under this name, whose texts end at any of these tokens.
fn llama_as(architecture: &str, ends: &[u32]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama-tiny")).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["architectures"] = json!([architecture]);
    config["no_rope_layers"] = json!([1, 1, 1]);
    config["eos_token_id"] = json!(ends);
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

fn load(source: &Path, options: &EngineOptions) -> CandleEngine {
    CandleEngine::load("m", source, options).unwrap_or_else(|error| panic!("{}", error.report()))
}

fn tasks() -> Vec<TaskKind> {
    let labels = || ["billing", "bug", "a bug that came back", "other"].map(str::to_owned).to_vec();
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["product", "severity"],
        "properties": {"product": {"type": "string", "maxLength": 6},
                       "severity": {"type": "integer", "minimum": 0, "maximum": 9}}});
    vec![
        TaskKind::Choose { labels: labels(), calibrate: false },
        TaskKind::Choose { labels: labels(), calibrate: true },
        TaskKind::Complete { tokens_max: 200, format: TextFormat::Json { schema } },
        TaskKind::Complete { tokens_max: 40, format: TextFormat::Pattern { pattern: "[a-z]{5}".into() } },
        TaskKind::Complete { tokens_max: 24, format: TextFormat::Free },
    ]
}

fn alike(ours: &Outcome, theirs: &Outcome, what: &str) {
    let (Ok(ours), Ok(theirs)) = (ours, theirs) else {
        let code = |outcome: &Outcome| outcome.as_ref().err().map(|error| error.code);
        assert_eq!(code(ours), code(theirs), "{what}");
        return;
    };
    assert_eq!(ours.usage, theirs.usage, "{what}");
    match (&ours.answer, &theirs.answer) {
        (Answer::Choice { index, scores }, Answer::Choice { index: other, scores: others }) => {
            assert_eq!(index, other, "{what}");
            let near = scores.iter().zip(others).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(near, "{what}: {scores:?} should be {others:?}");
        }
        (ours, theirs) => assert_eq!(ours, theirs, "{what}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_checkpoint_answers_alike_on_both_paths() {
    let options = EngineOptions { dtype: Dtype::F32, ..EngineOptions::default() };
    let both = |ends: &[u32]| {
        ["LlamaForCausalLM", "SmolLM3ForCausalLM"].map(|name| load(llama_as(name, ends).path(), &options))
    };
    // Untrained, it hardly ever ends a text at one token alone; tokens that end it are not to be had in a constrained one.
    let (constrained, free) = (both(&[2]), both(&(270..320).step_by(2).collect::<Vec<_>>()));
    for kind in tasks() {
        let is_free = matches!(kind, TaskKind::Complete { format: TextFormat::Free, .. });
        let [packed, compatible] = if is_free { &free } else { &constrained };
        let what = format!("{kind:?}");
        let task = task(kind);
        let beginnings = ["ticket of Monday: ", "ticket of Tuesday, sent again: ", ""];
        let mut rows: Vec<String> = (0..24).map(|i| format!("{}row {}, it broke", beginnings[i % 3], i / 2)).collect();
        rows.extend(["", "<|im_end|>", "row 1, it broke"].map(str::to_owned));
        rows.push("long ".repeat(2000));
        // More than one step's tokens, so that prompts are cut into pieces.
        rows.push("long ".repeat(60));
        let requests = || rows.iter().map(request).collect();
        let (ours, theirs) =
            (compatible.infer(&task, requests()).await.unwrap(), packed.infer(&task, requests()).await.unwrap());
        assert!(ours.iter().filter(|outcome| outcome.is_ok()).count() > 1, "{what}: {:?}", ours[0]);
        for (row, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            alike(ours, theirs, &format!("{what}: row {row}"));
        }
    }
}

/// The rows that come after one with NaN see nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_not_finite_are_that_rows_error_only() {
    let folder = llama_as("SmolLM3ForCausalLM", &[2]);
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    crate::poison(folder.path(), "model.embed_tokens.weight", tokenizer["model"]["vocab"]["%"].as_u64().unwrap());
    let engine = load(folder.path(), &EngineOptions::default());
    for kind in tasks() {
        let rows = ["aaa", "aaa % b", "aaa c"].map(request).to_vec();
        let outcomes = engine.infer(&task(kind), rows).await.unwrap();
        let codes = outcomes.iter().map(|outcome| outcome.as_ref().err().map(|error| error.code));
        let numeric: Vec<bool> = codes.map(|code| code == Some(RowErrorCode::Numeric)).collect();
        assert_eq!(numeric, [false, true, false]);
    }
}

#[test]
fn verify_proves_it_like_any_other() {
    let folder = llama_as("SmolLM3ForCausalLM", &[2]);
    let facts = inspect(folder.path()).unwrap();
    assert_eq!((facts.abilities, facts.context_tokens), (vec![Ability::Complete, Ability::Choose], 512));
    let reference = Reference::read(&fixture("llama-tiny/reference.json")).unwrap();
    let report = verify(folder.path(), &reference, &EngineOptions::default()).unwrap();
    assert!(report.passed());
    for item in &report.items {
        let worst = item.alone.unwrap().max(item.together.unwrap());
        assert!(worst > 0.0 && worst < 1e-4, "{worst}");
        assert_eq!(item.greedy, Some((24, 24)));
    }
}

/// The checkpoint of a parity fixture with some keys of its configuration changed.
fn changed(name: &str, changes: &Value) -> TempDir {
    let kind = if name.starts_with("encoder") { "encoder" } else { "compatible" };
    let mut fixture = fixtures(kind).into_iter().find(|(found, _)| found == name).unwrap().1;
    for (key, value) in changes.as_object().unwrap() {
        fixture["config"][key] = value.clone();
    }
    checkpoint(&fixture)
}

fn refused(name: &str, changes: &Value, words: &[&str]) {
    let folder = changed(name, changes);
    let reports = [
        inspect(folder.path()).unwrap_err().report(),
        CandleEngine::load("m", folder.path(), &EngineOptions::default()).unwrap_err().report(),
    ];
    for report in reports {
        for word in words.iter().chain(&["hint:"]) {
            assert!(report.contains(word), "{name} with {changes}: `{word}` is not in:\n{report}");
        }
    }
}

#[test]
fn variants_that_would_be_computed_otherwise_are_refused_by_their_key() {
    for (name, changes, word) in [
        ("compatible-phi", json!({"qk_layernorm": true}), "qk_layernorm"),
        ("compatible-phi-flat", json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_scaling"),
        ("compatible-phi-flat", json!({"partial_rotary_factor": 0.2}), "partial_rotary_factor"),
        ("compatible-phi", json!({"hidden_act": "swoosh"}), "swoosh"),
        ("compatible-stablelm", json!({"use_parallel_residual": true}), "use_parallel_residual"),
        ("compatible-stablelm", json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        ("compatible-glm4", json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
        ("compatible-helium", json!({"attention_bias": true}), "attention_bias"),
        ("compatible-olmo", json!({"num_attention_heads": 5, "num_key_value_heads": 5}), "num_attention_heads"),
        ("compatible-olmo", json!({"num_hidden_layers": 4_000_000_000u64}), "num_hidden_layers"),
        ("compatible-smollm3", json!({"use_sliding_window": true}), "use_sliding_window"),
        ("compatible-granite-hybrid", json!({"layer_types": ["attention", "mamba"]}), "layer_types"),
        ("compatible-granite-hybrid", json!({"num_local_experts": 4}), "num_local_experts"),
        ("compatible-granite-hybrid", json!({"position_embedding_type": "nope"}), "position_embedding_type"),
        ("compatible-granite-hybrid", json!({"tie_word_embeddings": false}), "tie_word_embeddings"),
        ("compatible-lfm2", json!({"conv_bias": true}), "conv_bias"),
        ("compatible-lfm2", json!({"layer_types": ["conv", "conv", "conv", "spiral"]}), "layer_types"),
        ("compatible-mamba", json!({"state_size": 32}), "state_size"),
        ("compatible-mamba", json!({"time_step_rank": 5}), "time_step_rank"),
        ("compatible-mamba", json!({"layer_norm_epsilon": 0.1}), "layer_norm_epsilon"),
        ("compatible-mamba", json!({"tie_word_embeddings": false}), "tie_word_embeddings"),
        ("encoder-t5", json!({"feed_forward_proj": "gated-swoosh"}), "gated-swoosh"),
        ("encoder-t5", json!({"relative_attention_num_buckets": 2}), "relative_attention_num_buckets"),
        ("encoder-t5", json!({"num_layers": 70_000}), "num_layers"),
        ("compatible-recurrent-gemma", json!({"block_types": []}), "block_types"),
        ("compatible-recurrent-gemma", json!({"lru_width": 50}), "lru_width"),
    ] {
        refused(name, &changes, &[word, "config.json"]);
    }
    let narrow = json!({"intermediate_size": 64});
    refused("compatible-phi", &narrow, &["model.layers.0.mlp.fc1.weight", "[80, 48]", "[64, 48]"]);
    let deep = json!({"num_hidden_layers": 3});
    refused("compatible-phi", &deep, &["model.layers.2.self_attn.q_proj.weight", "missing"]);
}

#[test]
fn number_types_that_are_not_computed_are_refused() {
    for (name, architecture) in [("compatible-olmo", "OlmoForCausalLM"), ("encoder-t5", "T5EncoderModel")] {
        let folder = changed(name, &json!({}));
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let options = EngineOptions { dtype, ..EngineOptions::default() };
            let report = CandleEngine::load("m", folder.path(), &options).unwrap_err().report();
            let words = format!("{architecture} is computed in f32 only");
            assert!(report.contains(&words) && report.contains("hint:"), "{report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_get_vectors_of_t5() {
    let folder = changed("encoder-t5", &json!({}));
    let facts = inspect(folder.path()).unwrap();
    assert_eq!((facts.abilities, facts.dimensions, facts.context_tokens), (vec![Ability::Embed], Some(48), 256));
    let engine = load(folder.path(), &EngineOptions::default());
    // Ids of the tokenizer beside it are of another vocabulary, of which the first 160 are letters.
    let outcomes =
        engine.infer(&task(TaskKind::Embed), vec![request("ab"), request("ba"), request("ab")]).await.unwrap();
    let vectors = outcomes.into_iter().map(|outcome| match outcome.unwrap().answer {
        Answer::Vector(vector) => vector,
        other => panic!("{other:?}"),
    });
    let vectors: Vec<Vec<f32>> = vectors.collect();
    assert!(vectors[0].len() == 48 && vectors[0] == vectors[2] && vectors[0] != vectors[1]);
}
