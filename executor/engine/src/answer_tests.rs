//! Rows through a tiny model, where tokens and pages can be counted: what is computed once, memory that is short, steps that
//! fail, constrained output, and that nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rowmill_jobs::infer::{Answer, Piece, Request, RowErrorCode, Task, TaskKind, TextFormat};
use serde_json::json;

use crate::answer::Answerer;
use crate::model::{EngineOptions, Model, Network};
use crate::prompt::Prompter;
use crate::row::{Choice, End, Row, advance};

pub(crate) const MANY: usize = 4096;

/// The tiny Llama with a cache of so many pages.
pub(crate) fn tiny(pages: usize) -> (Answerer, Arc<Prompter>) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny");
    let mut model = Model::load(&source, &EngineOptions::default()).unwrap();
    // Longer than its own, so that a row may take more than one step.
    model.prompter.context = 1024;
    let Network::Writer(writer) = model.network else { panic!("writes no text") };
    let prompter = Arc::new(model.prompter);
    let bytes = pages * writer.page_bytes();
    (Answerer::new(writer, Arc::clone(&prompter), bytes), prompter)
}

pub(crate) fn write(tokens_max: u32) -> TaskKind {
    TaskKind::Complete { tokens_max, format: TextFormat::Free }
}

pub(crate) fn choose(labels: [&str; 3]) -> TaskKind {
    TaskKind::Choose { labels: labels.map(str::to_owned).to_vec(), calibrate: false }
}

pub(crate) fn run(answerer: &mut Answerer, kind: &TaskKind, prompts: &[Vec<u32>]) -> Vec<End> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    answerer.run(kind, &prompts, &|| false).unwrap().unwrap().ends
}

/// Rows of a join: a template, two columns with few values, one with many. Tokens are words of the vocabulary.
pub(crate) fn joined(rows: usize) -> Vec<Vec<u32>> {
    let value = |column: usize, value: usize, tokens: usize| {
        (0..tokens).map(move |t| 10 + ((column * 7919 + value * 104_729 + t * 31) % 300) as u32)
    };
    (0..rows)
        .map(|row| {
            let own = [10 + (row % 300) as u32, 10 + (row / 300) as u32, 11];
            value(1, 0, 37).chain(value(2, row % 3, 20)).chain(value(3, row % 7, 45)).chain(own).collect()
        })
        .collect()
}

fn distinct(rows: &[Vec<u32>]) -> usize {
    rows.iter().flat_map(|row| (1..=row.len()).map(|end| &row[..end])).collect::<HashSet<_>>().len()
}

#[test]
fn tokens_computed_are_the_distinct_beginnings_and_answers_are_those_of_rows_alone() {
    let rows = joined(200);
    let (mut answerer, _) = tiny(MANY);
    let ends = run(&mut answerer, &write(1), &rows);
    let all: usize = rows.iter().map(Vec::len).sum();
    assert_eq!(answerer.observer.computed, distinct(&rows));
    assert!(distinct(&rows) * 10 < all);
    // The template is kept for the next call.
    run(&mut answerer, &write(1), &rows);
    assert_eq!(answerer.observer.computed, 2 * distinct(&rows) - 37);
    assert_eq!(answerer.held(MANY).0, 0);
    for row in [0, 1, 2, 77, 199] {
        assert_eq!(run(&mut answerer, &write(1), &rows[row..=row]), ends[row..=row], "row {row}");
    }
}

#[test]
fn little_memory_changes_no_answer_and_long_answers_wait_for_their_pages() {
    let rows: Vec<Vec<u32>> = joined(8).into_iter().map(|row| row[60..].to_vec()).collect();
    let kind = write(360);
    let (mut much, _) = tiny(MANY);
    let expected = run(&mut much, &kind, &rows);
    let longest = expected.iter().map(|end| match end {
        End::Written(ids) | End::Cut(ids) => ids.len(),
        other => panic!("{other:?}"),
    });
    assert!(longest.max().unwrap() > 300, "some answers outgrow their first pages");
    for pages in [14, 27] {
        let (mut little, _) = tiny(pages);
        assert_eq!(run(&mut little, &kind, &rows), expected, "{pages} pages");
        assert_eq!(little.held(pages).0, 0);
        assert!(little.observer.computed >= much.observer.computed);
    }
    // A cache that takes the prompt, and not the answer.
    let (mut least, _) = tiny(4);
    for (end, expected) in run(&mut least, &kind, &rows).iter().zip(&expected) {
        match (end, expected) {
            (End::Failed(error), _) => assert_eq!(error.code, RowErrorCode::OutOfMemory, "{error:?}"),
            _ => assert_eq!(end, expected),
        }
    }
    assert_eq!(least.held(4).0, 0);
}

#[test]
fn a_limit_that_was_asked_for_stays_one() {
    let (mut answerer, _) = tiny(MANY);
    let rows = joined(3);
    for limit in [1, 7, 255, 256, 257, 300] {
        for end in run(&mut answerer, &write(limit), &rows) {
            match end {
                End::Cut(ids) => assert_eq!(ids.len(), limit as usize),
                End::Written(ids) => assert!(ids.len() <= limit as usize),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn steps_that_lack_memory_are_halved_and_change_no_answer() {
    let rows = joined(90);
    for kind in [write(12), choose(["billing", "bug", "bug report"])] {
        let (mut answerer, _) = tiny(MANY);
        let expected = run(&mut answerer, &kind, &rows);
        for refuses in
            [|pack: &crate::pack::Pack| pack.tokens() > 150, |pack: &crate::pack::Pack| pack.starts.len() > 9]
        {
            let (mut answerer, _) = tiny(MANY);
            answerer.observer.refuses = Some(refuses);
            let ends = run(&mut answerer, &kind, &rows);
            assert!(answerer.observer.failed_steps > 0);
            assert_eq!(answerer.held(MANY).0, 0);
            for (row, (end, expected)) in ends.iter().zip(&expected).enumerate() {
                assert!(alike(end, expected), "row {row}: {end:?} is not {expected:?}");
            }
        }
    }
}

pub(crate) fn alike(a: &End, b: &End) -> bool {
    match (a, b) {
        (End::Scored(a), End::Scored(b)) => a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4),
        _ => a == b,
    }
}

#[test]
fn a_row_that_lacks_memory_alone_is_its_own_trouble() {
    const TOO_MUCH: u32 = 319;
    let mut rows = joined(40);
    let (mut answerer, _) = tiny(MANY);
    let expected = run(&mut answerer, &write(6), &rows);
    rows[23].push(TOO_MUCH);
    answerer.observer.refuses = Some(|pack| pack.ids.contains(&TOO_MUCH));
    for (row, (end, expected)) in run(&mut answerer, &write(6), &rows).iter().zip(&expected).enumerate() {
        match end {
            End::Failed(error) if row == 23 => assert_eq!(error.code, RowErrorCode::OutOfMemory),
            _ => assert_eq!(end, expected, "row {row}"),
        }
    }
    assert_eq!(answerer.held(MANY).0, 0);
    answerer.observer.refuses = None;
    rows.remove(23);
    assert_eq!(run(&mut answerer, &write(6), &rows)[30], expected[31], "the engine is well afterwards");
}

#[test]
fn tokens_without_an_alternative_are_appended_as_the_tokenizer_would_write_them() {
    let (mut answerer, prompter) = tiny(MANY);
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["note", "n"], "properties": {
        "note": {"const": "the answer is the answer, it broke"}, "n": {"enum": [1, 2]}}});
    let kind = TaskKind::Complete { tokens_max: 200, format: TextFormat::Json { schema } };
    let prompt = prompter.tokens.encode("Hello").unwrap();
    let End::Written(ids) = run(&mut answerer, &kind, std::slice::from_ref(&prompt)).remove(0) else {
        panic!("not written")
    };
    let text = prompter.tokens.decode(&ids).unwrap();
    assert!(text.starts_with("{\"note\":\"the answer is the answer, it broke\",\"n\":"), "{text}");
    assert_eq!(ids, prompter.tokens.encode_data(&text).unwrap(), "{text}");
    assert!(answerer.observer.steps <= 3, "{} steps for {} tokens", answerer.observer.steps, ids.len());
}

/// Rows that share a beginning of so many tokens.
pub(crate) fn beginning_with(tokens: usize) -> Vec<Vec<u32>> {
    let shared: Vec<u32> = (0..tokens as u32).map(|t| 10 + t * 31 % 300).collect();
    (0..6).map(|row| [&shared[..], &[20 + row, 11]].concat()).collect()
}

/// Runs prompts and stops before this step.
pub(crate) fn stop_at(answerer: &mut Answerer, step: usize, prompts: &[Vec<u32>]) {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let asked = AtomicUsize::new(0);
    let stopped = || asked.fetch_add(1, Ordering::Relaxed) + 1 >= step;
    assert!(answerer.run(&write(8), &prompts, &stopped).unwrap().is_none());
}

/// A step takes 512 tokens, so the longer beginnings are not computed before the second step, the shorter ones in the first.
#[test]
fn a_beginning_whose_computation_was_stopped_or_failed_is_not_taken_for_computed() {
    for tokens in [40, 500, 600] {
        let rows = beginning_with(tokens);
        let expected = run(&mut tiny(MANY).0, &write(8), &rows);
        for step in [1, 2, 3] {
            let (mut answerer, _) = tiny(MANY);
            stop_at(&mut answerer, step, &rows);
            assert_eq!(answerer.held(MANY).0, 0, "{tokens} tokens, stopped at step {step}");
            assert_eq!(run(&mut answerer, &write(8), &rows), expected, "{tokens} tokens, stopped at step {step}");

            let (mut answerer, _) = tiny(MANY);
            answerer.observer.breaks_at = Some(step);
            let prompts: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            assert!(answerer.run(&write(8), &prompts, &|| false).is_err());
            answerer.observer.breaks_at = None;
            assert_eq!(answerer.held(MANY).0, 0, "{tokens} tokens, failed at step {step}");
            assert_eq!(run(&mut answerer, &write(8), &rows), expected, "{tokens} tokens, failed at step {step}");
        }
    }
}

fn answer(answerer: &mut Answerer, kind: &TaskKind, prompts: &[Vec<u32>]) -> Vec<Result<String, RowErrorCode>> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let outcomes = answerer.answer(kind, None, &prompts, &|| false).unwrap().unwrap();
    let text = |answer| match answer {
        Answer::Text(text) => text,
        other => panic!("{other:?}"),
    };
    outcomes
        .into_iter()
        .map(|outcome| outcome.map(|answered| text(answered.answer)).map_err(|error| error.code))
        .collect()
}

#[test]
fn text_of_a_pattern_matches_it_and_is_never_cut_short() {
    let (mut answerer, _) = tiny(MANY);
    let prompts = joined(20);
    let pattern = |pattern: &str, tokens_max| TaskKind::Complete {
        tokens_max,
        format: TextFormat::Pattern { pattern: pattern.to_owned() },
    };
    let code = |text: &str| {
        let (letters, digits) = text.split_once('-').unwrap();
        letters.len() == 2
            && letters.chars().all(|c| c.is_ascii_uppercase())
            && digits.len() == 3
            && digits.chars().all(|c| c.is_ascii_digit())
    };
    for kind in [pattern(r"[A-Z]{2}-[0-9]{3}", 50), pattern(r"^([A-Z]{2}-[0-9]{3})$", 50)] {
        for text in answer(&mut answerer, &kind, &prompts) {
            assert!(code(&text.clone().unwrap()), "{text:?}");
        }
    }
    let words = ["ja / nein \"?\"", "vielleicht"];
    for text in answer(&mut answerer, &pattern(r#"ja / nein "\?"|vielleicht|über"#, 50), &prompts) {
        assert!(words.contains(&text.clone().unwrap().as_str()) || text.as_deref() == Ok("über"), "{text:?}");
    }
    for text in answer(&mut answerer, &pattern("x{80,}", 20), &prompts) {
        assert_eq!(text, Err(RowErrorCode::Truncated));
    }
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let error = answerer.answer(&pattern(r"a(?=b)", 5), None, &prompts, &|| false).unwrap_err();
    assert!(error.to_string().contains("pattern cannot be enforced"), "{}", error.report());
}

#[test]
fn a_grammar_that_failed_fails_no_other_row_and_no_later_call() {
    let (mut answerer, _) = tiny(MANY);
    let prompts = joined(6);
    let format = TextFormat::Pattern { pattern: "[A-Z]{2}-[0-9]{3}".to_owned() };
    let kind = TaskKind::Complete { tokens_max: 50, format: format.clone() };
    let expected = answer(&mut answerer, &kind, &prompts);
    assert!(expected.iter().all(Result::is_ok), "{expected:?}");
    // As one row would, that meets a limit of the lexer.
    answerer.guide_of(&format).unwrap().fail();
    for _ in 0..2 {
        assert_eq!(answer(&mut answerer, &kind, &prompts), expected);
    }
    assert_eq!(answerer.held(MANY).0, 0);
}

#[test]
fn a_row_that_breaks_its_lexer_fails_alone() {
    let (mut answerer, _) = tiny(MANY);
    let prompts = joined(40);
    let format = TextFormat::Pattern { pattern: "[A-Z]{2}-[0-9]{3}".to_owned() };
    let kind = TaskKind::Complete { tokens_max: 50, format };
    let mut expected = answer(&mut answerer, &kind, &prompts);
    assert!(expected.iter().all(Result::is_ok), "{expected:?}");
    // A row's last tokens but one are its own.
    let own = |ids: &[u32]| ids[ids.len() - 3] == 10 + 7;
    for row in prompts.iter().enumerate().filter(|(_, ids)| own(ids)).map(|(row, _)| row) {
        expected[row] = Err(RowErrorCode::InvalidOutput);
    }
    assert_eq!(expected.iter().filter(|text| text.is_err()).count(), 1);
    answerer.observer.breaks_its_lexer = Some(own);
    for _ in 0..2 {
        assert_eq!(answer(&mut answerer, &kind, &prompts), expected);
    }
    assert_eq!(answerer.held(MANY).0, 0);
}

#[test]
fn an_answer_whose_grammar_fails_is_no_answer() {
    let (mut answerer, prompter) = tiny(MANY);
    let format = TextFormat::Pattern { pattern: "[a-z]{3,9}".to_owned() };
    let token = prompter.tokens.encode_data("a").unwrap()[0];
    let mut guide = answerer.guide_of(&format).unwrap();
    guide.fail();
    let mut row = Row {
        ids: vec![7],
        prompt: 1,
        cached: 0,
        table: vec![],
        reserved: 0,
        after: 0,
        begun: 0,
        place: 0,
        guide: Some(guide),
        end: None,
    };
    advance(&mut row, Choice::Token(token), 100, &prompter.ends);
    let Some(End::Failed(error)) = row.end else { panic!("{:?}", row.end) };
    assert_eq!(error.code, RowErrorCode::InvalidOutput);
}

#[test]
fn calibrated_scores_are_relative_to_those_of_an_empty_text() {
    let (mut answerer, prompter) = tiny(MANY);
    let labels = ["billing", "bug", "bug report"];
    let plain = choose(labels);
    let kind = TaskKind::Choose { labels: labels.map(str::to_owned).to_vec(), calibrate: true };
    let task = Task {
        model: "m".into(),
        kind: kind.clone(),
        system: None,
        template: vec![Piece::Text("Which one?\n".into()), Piece::Value(0)],
        input: vec![Piece::Value(0)],
    };
    let request = |text: &str| Request { values: [text.to_owned()].into() };
    let texts = ["", "it broke", "the invoice is wrong", "why"].map(request);
    let prompts: Vec<Vec<u32>> =
        prompter.decoder_prompts(&task, &texts).unwrap().into_iter().map(Result::unwrap).collect();
    let neutral = prompter.neutral_prompt(&task).unwrap().unwrap();
    assert_eq!(neutral, prompts[0]);
    let scores = |answerer: &mut Answerer, kind: &TaskKind, neutral: Option<&[u32]>, prompts: &[&[u32]]| {
        let outcomes = answerer.answer(kind, neutral, prompts, &|| false).unwrap().unwrap();
        outcomes
            .into_iter()
            .map(|outcome| match outcome.unwrap().answer {
                Answer::Choice { index, scores } => {
                    assert!(scores.iter().all(|score| *score <= scores[index]));
                    scores
                }
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let raw = scores(&mut answerer, &plain, None, &slices);
    let computed = answerer.observer.computed;
    let calibrated = scores(&mut answerer, &kind, Some(&neutral), &slices);
    let first = answerer.observer.computed - computed;
    for (raw_scores, calibrated) in raw.iter().zip(&calibrated) {
        let quotients: Vec<f32> = raw_scores.iter().zip(&raw[0]).map(|(score, prior)| score / prior).collect();
        let sum: f32 = quotients.iter().sum();
        for (quotient, calibrated) in quotients.iter().zip(calibrated) {
            assert!((quotient / sum - calibrated).abs() < 1e-4, "{raw_scores:?} {calibrated:?}");
        }
    }
    assert!(calibrated[0].iter().all(|score| (score - 1.0 / 3.0).abs() < 1e-4), "{:?}", calibrated[0]);
    assert!(raw[0].iter().any(|score| (score - 1.0 / 3.0).abs() > 1e-2), "the model has preferences: {:?}", raw[0]);
    // Measured once: the next call of the task computes its rows only, and alone a row gets what it got beside others.
    let computed = answerer.observer.computed;
    let again = scores(&mut answerer, &kind, Some(&neutral), &slices);
    assert!(answerer.observer.computed - computed < first);
    assert_eq!(again, calibrated);
    let alone = scores(&mut answerer, &kind, Some(&neutral), &slices[2..3]);
    assert!(alone[0].iter().zip(&calibrated[2]).all(|(a, b)| (a - b).abs() < 1e-4));
}

/// The row contract in large: nothing is left behind, however many rows and tasks there were.
#[test]
fn many_short_rows_leave_no_pages_and_no_tables_behind() {
    const PAGES: usize = 512;
    let (mut answerer, prompter) = tiny(PAGES);
    let mut ended = 0;
    for call in 0..20 {
        let kind = match call % 4 {
            0 => write(2),
            1 => TaskKind::Complete { tokens_max: 8, format: TextFormat::Pattern { pattern: format!("[a-z]{call}") } },
            2 => TaskKind::Complete {
                tokens_max: 12,
                format: TextFormat::Json { schema: json!({"enum": [call, true, "x"]}) },
            },
            _ => TaskKind::Choose { labels: vec!["yes".into(), "no".into()], calibrate: true },
        };
        let template = vec![Piece::Text(format!("Task {call}: ")), Piece::Value(0)];
        let task = Task { model: "m".into(), kind: kind.clone(), system: None, template, input: vec![Piece::Value(0)] };
        let requests: Vec<Request> =
            (0..1000).map(|row| Request { values: [format!("{} {row}", row % 9)].into() }).collect();
        let prompts: Vec<Vec<u32>> =
            prompter.decoder_prompts(&task, &requests).unwrap().into_iter().map(Result::unwrap).collect();
        let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let neutral = prompter.neutral_prompt(&task).unwrap().unwrap();
        let neutral = matches!(kind, TaskKind::Choose { .. }).then_some(neutral.as_slice());
        let outcomes = answerer.answer(&kind, neutral, &slices, &|| false).unwrap().unwrap();
        ended += outcomes.len();
        let (pages, tasks) = answerer.held(PAGES);
        assert_eq!(pages, 0, "after call {call}");
        assert!(tasks <= 8);
    }
    assert_eq!(ended, 20_000);
}
