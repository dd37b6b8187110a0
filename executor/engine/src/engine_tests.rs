//! What no row and no model file may do to an engine: an engine that is asked as a job asks it, with rows without tokens, rows
//! at the context's end, and files whose token ids are none of the model's.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use rowmill_jobs::infer::{Engine, Outcome, Piece, Request, RowErrorCode, Task, TaskKind, TextFormat};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::CandleEngine;
use crate::answer::Answerer;
use crate::model::{EngineOptions, Model, Network};
use crate::row::End;
use crate::synthetic::{checkpoint, fixtures};

fn write(tokens_max: u32) -> TaskKind {
    TaskKind::Complete { tokens_max, format: TextFormat::Free }
}

fn choose(labels: [&str; 2], calibrate: bool) -> TaskKind {
    TaskKind::Choose { labels: labels.map(str::to_owned).to_vec(), calibrate }
}

fn named(kind: &str, name: &str) -> TempDir {
    checkpoint(&fixtures(kind).into_iter().find(|(found, _)| found == name).unwrap().1)
}

/// Asks an engine for rows whose prompt is their text and nothing else.
fn ask(engine: &CandleEngine, kind: TaskKind, texts: &[&str]) -> rowmill_jobs::Result<Vec<Outcome>> {
    let template = vec![Piece::Value(0)];
    let task = Arc::new(Task { model: "m".into(), kind, system: None, template: template.clone(), input: template });
    let requests = texts.iter().map(|text| Request { values: [(*text).to_owned()].into() }).collect();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(engine.infer(&task, requests))
}

fn engine(source: &Path) -> CandleEngine {
    CandleEngine::load("m", source, &EngineOptions { threads: Some(2), ..EngineOptions::default() }).unwrap()
}

/// Whether a row was computed: models of random numbers seldom end by themselves.
fn answered(outcome: &Outcome) -> bool {
    outcome.as_ref().map_or_else(|error| error.code == RowErrorCode::Truncated, |_| true)
}

#[test]
fn a_row_without_tokens_is_its_own_trouble() {
    for (kind, name) in [("decoder", "llama"), ("compatible", "compatible-phi"), ("compatible", "compatible-mamba")] {
        let engine = engine(named(kind, name).path());
        for task in [write(3), choose(["x", "y"], false)] {
            let outcomes = ask(&engine, task, &["xqz", "", "zqx"]).unwrap();
            assert!(answered(&outcomes[0]) && answered(&outcomes[2]), "{name}: {outcomes:?}");
            let error = outcomes[1].as_ref().unwrap_err();
            assert!(error.message.contains("no tokens"), "{name}: {error:?}");
        }
        let error = ask(&engine, choose(["x", "y"], true), &["xqz"]).unwrap_err();
        assert!(error.to_string().contains("cannot be calibrated"), "{}", error.report());
    }
}

/// A schema's beginning that has no alternative is written before anything is computed: prompt and beginning together must
/// stay within the context, where positions end.
#[test]
fn an_answer_that_begins_beyond_the_context_is_too_long() {
    let schema = json!({"type": "object", "required": ["product"], "additionalProperties": false,
        "properties": {"product": {"enum": ["a", "b"]}}});
    let kind = TaskKind::Complete { tokens_max: 100, format: TextFormat::Json { schema } };
    for (of, name) in [("decoder", "gpt-bigcode"), ("decoder", "llama"), ("compatible", "compatible-olmo")] {
        let model = Model::load(named(of, name).path(), &EngineOptions::default()).unwrap();
        let Network::Writer(writer) = model.network else { panic!("writes no text") };
        let context = model.prompter.context;
        let mut answerer = Answerer::new(writer, Arc::new(model.prompter), 1 << 24);
        let prompt = |tokens: usize| (0..tokens as u32).map(|i| 60 + i % 20).collect::<Vec<u32>>();
        let prompts: Vec<Vec<u32>> = [1, 5, 12, 40].map(|left| prompt(context - left)).to_vec();
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let ends = answerer.run(&kind, &rows, &|| false).unwrap().unwrap().ends;
        for (end, left) in ends.iter().zip([1, 5]) {
            let End::Failed(error) = end else { panic!("{name}, {left} left: {end:?}") };
            assert_eq!(error.code, RowErrorCode::TooLong, "{name}: {error:?}");
        }
        assert!(matches!(&ends[3], End::Written(_)), "{name}: {:?}", ends[3]);
        let free = answerer.run(&write(1), &rows[..1], &|| false).unwrap().unwrap().ends.remove(0);
        assert!(matches!(free, End::Written(_) | End::Cut(_)), "{name}: {free:?}");
    }
}

#[test]
fn ends_and_labels_that_are_none_of_the_vocabulary_are_not_used() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny");
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let pattern = || TaskKind::Complete { tokens_max: 5, format: TextFormat::Pattern { pattern: "[ab]".to_owned() } };
    let with_ends = |ends: Value| {
        std::fs::write(folder.path().join("generation_config.json"), json!({"eos_token_id": ends}).to_string())
            .unwrap();
        engine(folder.path())
    };
    // The last but one would be 2 if it were cut to 32 bits.
    let one_known = with_ends(json!([320, 999_999, (1u64 << 32) + 2, u64::MAX, 2]));
    assert!(ask(&one_known, pattern(), &["why"]).unwrap()[0].is_ok());
    assert!(ask(&one_known, choose(["x", "y"], false), &["why"]).unwrap()[0].is_ok());
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    config["eos_token_id"] = json!(320);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let none_known = with_ends(json!([999_999]));
    for task in [pattern(), choose(["x", "y"], false)] {
        let error = ask(&none_known, task, &["why"]).unwrap_err();
        assert!(error.to_string().contains("names no token that ends an answer"), "{}", error.report());
        assert!(answered(&ask(&none_known, write(2), &["why"]).unwrap()[0]), "the engine goes on");
    }
    // The tokenizer has 320 tokens, this model 160.
    for (kind, name) in [("decoder", "llama"), ("compatible", "compatible-phi")] {
        let engine = engine(named(kind, name).path());
        let error = ask(&engine, choose(["x", "the other"], false), &["xqz"]).unwrap_err();
        assert!(error.to_string().contains("labels cannot be scored"), "{}", error.report());
        assert!(answered(&ask(&engine, write(2), &["xqz"]).unwrap()[0]), "{name} goes on");
    }
}
