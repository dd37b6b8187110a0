//! What is measured of tiny models, and what is refused.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::synthetic::{checkpoint, fixtures};
use std::sync::Mutex;

/// What `begun` was told.
type Begun = Vec<(Work, usize, (usize, usize))>;

fn measured(model: &str, load: &Load) -> (Result<Vec<Measurement>>, Begun) {
    measured_at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model), load)
}

fn measured_at(source: &Path, load: &Load) -> (Result<Vec<Measurement>>, Begun) {
    let begun: Mutex<Begun> = Mutex::default();
    let note = |work, rows, done| begun.lock().unwrap().push((work, rows, done));
    let result = bench(source, &EngineOptions { threads: Some(2), ..EngineOptions::default() }, load, &note);
    (result, begun.into_inner().unwrap())
}

fn short(prompt_tokens: usize, rows: &[usize]) -> Load {
    Load { time: Duration::from_millis(40), prompt_tokens, output_tokens: 3, shared_tokens: 0, rows: rows.to_vec() }
}

#[test]
fn each_kind_of_work_is_measured_with_each_number_of_rows() {
    let (measurements, begun) = measured("llama-tiny", &short(100, &[1, 12]));
    let measurements = measurements.unwrap();
    let of: Vec<(Work, usize)> = measurements.iter().map(|one| (one.work, one.rows)).collect();
    let (prefill, decode) = (Work::Prefill, Work::Decode);
    assert_eq!(of, [(prefill, 1), (prefill, 12), (decode, 1), (decode, 12)]);
    assert_eq!(begun[3], (decode, 12, (3, 4)));
    for one in measurements {
        assert!(one.seconds > 0.0 && one.tokens_per_second() > 0.0, "{one:?}");
        // Steps of writing have a token of each row; those of 12 prompts of 100 tokens have 1024 and 176 tokens.
        let whole = match (one.work, one.rows) {
            (Work::Prefill, 1) => 100,
            (Work::Prefill, _) => 16,
            (_, rows) => rows,
        };
        assert!(one.tokens % whole == 0, "{one:?}");
    }
    let (measurements, _) = measured("bert-tiny", &short(30, &[5]));
    let one = measurements.unwrap()[0];
    assert!(one.work == Work::Embedding && one.tokens > 0 && one.tokens % 150 == 0, "{one:?}");
}

#[test]
fn choices_are_measured_after_a_beginning_that_all_prompts_share() {
    let load = Load { shared_tokens: 75, ..short(100, &[1, 50]) };
    let (measurements, begun) = measured("llama-tiny", &load);
    let measurements = measurements.unwrap();
    assert_eq!(begun.last(), Some(&(Work::Choice, 50, (5, 6))));
    let one = measurements[5];
    assert!(one.work == Work::Choice && one.tokens > 0 && one.tokens.is_multiple_of(100), "{one:?}");
    let all = Load { shared_tokens: 100, ..short(100, &[1]) };
    assert!(measured("llama-tiny", &all).0.unwrap_err().report().contains("fewer shared tokens"));
}

#[test]
fn a_model_that_holds_one_row_is_measured_row_after_row() {
    let (_, fixture) = fixtures("compatible").remove(0);
    let folder = checkpoint(&fixture);
    let measurements = measured_at(folder.path(), &short(100, &[1, 3])).0.unwrap();
    assert_eq!(measurements.len(), 4);
    for one in &measurements {
        assert!(one.tokens > 0 && one.seconds > 0.0, "{one:?}");
    }
    // A step of prompts has those of one row, a step of writing one token.
    assert!(measurements[1].tokens.is_multiple_of(100), "{:?}", measurements[1]);
}

#[test]
fn loads_that_a_model_cannot_hold_are_refused() {
    let refused = |model, load: &Load, words: &str| {
        let report = measured(model, load).0.unwrap_err().report();
        assert!(report.contains(words), "`{words}` is not in:\n{report}");
    };
    refused("llama-tiny", &short(510, &[1]), "513 tokens a row; the model takes 512");
    refused("bert-tiny", &short(65, &[1]), "takes 64");
    refused("llama-tiny", &short(500, &[1 << 20]), "pages of KV cache");
    refused("llama-tiny", &short(8, &[]), "1 at least");
}

#[test]
fn prompts_are_counted_with_the_texts_that_they_are_made_of() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let texts: Vec<String> = (0..1500).map(|row| format!("the answer to {row}")).collect();
    for (source, for_vectors) in [("bert-tiny", true), ("llama-tiny", false), ("llama-tiny.gguf", false)] {
        let prompting = Prompting::open(&fixtures.join(source), 200, 2).unwrap();
        let one = prompting.measure(&texts, for_vectors).unwrap();
        assert_eq!((one.rows, one.bytes), (1500, texts.iter().map(String::len).sum::<usize>()));
        assert!(one.tokens > 0 && one.seconds > 0.0, "{source}: {one:?}");
        assert_eq!(one.tokens, prompting.measure(&texts, for_vectors).unwrap().tokens);
    }
    assert!(Prompting::open(&fixtures, 200, 1).unwrap_err().report().contains("tokenizer.json"));
}
