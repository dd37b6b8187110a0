//! Folders of encoders from text to answer: a fine-tuned classifier that serves labels, and an embedding model with a dense
//! layer. References are those of tests/fixtures/make_encoders.py.

use std::sync::Arc;

use rowmill_engine::{CandleEngine, EngineOptions, inspect};
use rowmill_jobs::infer::{Answer, Engine, Piece, Task, TaskKind, TextFormat};
use rowmill_jobs::plan::Ability;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::synthetic::{checkpoint, fixtures};
use crate::{fixture, floats, request, task};

fn one(kind: &str) -> Value {
    fixtures(kind).remove(0).1
}

fn classifier(fixture_value: &Value) -> TempDir {
    let folder = checkpoint(fixture_value);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("bert-tiny").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn load(folder: &TempDir) -> CandleEngine {
    CandleEngine::load("topics", folder.path(), &EngineOptions::default()).unwrap()
}

/// A task as `ai_classify` makes it: instructions around the row's text.
fn choose(labels: &[&str]) -> Arc<Task> {
    let kind = TaskKind::Choose { labels: labels.iter().map(|label| (*label).to_owned()).collect(), calibrate: false };
    let template = vec![Piece::Text("Which category fits? billing or bug\n".into()), Piece::Value(0)];
    Arc::new(Task { template, ..task(kind).as_ref().clone() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classifier_answers_with_its_own_labels_and_probabilities() {
    let fixture = one("text-classifier");
    let folder = classifier(&fixture);
    let facts = inspect(folder.path()).unwrap();
    assert_eq!((facts.abilities.as_slice(), facts.dimensions), (&[Ability::Choose][..], None));
    assert_eq!(facts.labels.unwrap(), ["billing", "Bug", "how-to", "other"]);
    assert_eq!(facts.context_tokens, 80);
    let engine = load(&folder);
    let items = fixture["items"].as_array().unwrap();
    // Indices into the model's labels, in the order in which they are asked for.
    for (labels, asked) in [
        (&["billing", "Bug", "how-to", "other"][..], vec![0, 1, 2, 3]),
        (&["HOW-TO", "bug", "Billing"], vec![2, 1, 0]),
        (&["other", "billing"], vec![3, 0]),
    ] {
        let requests = items.iter().map(|item| request(item["text"].as_str().unwrap())).collect();
        for (item, outcome) in items.iter().zip(engine.infer(&choose(labels), requests).await.unwrap()) {
            let answered = outcome.unwrap();
            let Answer::Choice { index, scores } = answered.answer else { panic!("not a choice") };
            let all = floats(&item["scores"]);
            let whole: f32 = asked.iter().map(|label: &usize| all[*label]).sum();
            for (score, label) in scores.iter().zip(&asked) {
                let expected = all[*label] / whole;
                assert!((score - expected).abs() < 1e-3, "{}: {scores:?}, of all {all:?}", item["text"]);
            }
            assert!(scores.iter().all(|score| *score <= scores[index]));
            assert_eq!(answered.usage.input_tokens, item["ids"].as_array().unwrap().len() as u64);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classifier_refuses_what_it_was_not_trained_for() {
    let engine = load(&classifier(&one("text-classifier")));
    let refused = async |task: &Arc<Task>, words: &[&str]| {
        let report = engine.infer(task, vec![request("x")]).await.unwrap_err().report();
        for word in words {
            assert!(report.contains(word), "`{word}` is not in:\n{report}");
        }
    };
    refused(&choose(&["billing", "praise"]), &["`praise`", "billing, Bug, how-to, other", "topics"]).await;
    refused(&choose(&["bug", "BUG"]), &["one label of the model"]).await;
    refused(&task(TaskKind::Embed), &["chooses labels; it does not make vectors"]).await;
    let write = TaskKind::Complete { tokens_max: 4, format: TextFormat::Free };
    refused(&task(write), &["chooses labels; it does not write text"]).await;
}

#[test]
fn classifiers_that_do_not_choose_one_of_several_are_refused() {
    for (key, value, word) in [
        ("problem_type", json!("multi_label_classification"), "yes or no"),
        ("problem_type", json!("regression"), "a number"),
        ("id2label", json!({"0": "relevance"}), "a number"),
        ("id2label", json!({"0": "a", "2": "b"}), "number 1"),
        ("id2label", json!({"0": "a", "1": "b"}), "[4, 32]"),
    ] {
        let mut fixture = one("text-classifier");
        fixture["config"][key] = value;
        let report = inspect(classifier(&fixture).path()).unwrap_err().report();
        assert!(report.contains(word), "`{word}` is not in:\n{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dense_layer_follows_the_pooling() {
    let dense = one("dense");
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"] {
        std::fs::copy(fixture("bert-tiny").join(name), folder.path().join(name)).unwrap();
    }
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules = [module("", "Transformer"), module("1_Pooling", "Pooling"), module("2_Dense", "Dense")];
    std::fs::write(folder.path().join("modules.json"), json!(modules).to_string()).unwrap();
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let pooling = json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": false});
    std::fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    std::fs::create_dir(folder.path().join("2_Dense")).unwrap();
    let layer = checkpoint(&dense);
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(layer.path().join(name), folder.path().join("2_Dense").join(name)).unwrap();
    }
    let facts = inspect(folder.path()).unwrap();
    assert_eq!(facts.dimensions, Some(20));
    assert!(facts.files.contains(&folder.path().join("2_Dense/model.safetensors")), "it is pinned, too");
    let items = dense["items"].as_array().unwrap();
    let requests = items.iter().map(|item| request(item["text"].as_str().unwrap())).collect();
    let outcomes = load(&folder).infer(&task(TaskKind::Embed), requests).await.unwrap();
    for (item, outcome) in items.iter().zip(outcomes) {
        let Answer::Vector(vector) = outcome.unwrap().answer else { panic!("not a vector") };
        let expected = floats(&item["vector"]);
        assert_eq!(vector.len(), 20);
        assert!(vector.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{vector:?} should be {expected:?}");
    }
}
