//! Steps that are begun before the ones before them are read, as a device's are: they give what they give one after the other, whatever
//! ends, outgrows its pages, is put back or fails meanwhile, and what they compute for nothing is bounded.

#![allow(clippy::unwrap_used, clippy::panic)]

use rowmill_jobs::infer::{TaskKind, TextFormat};
use serde_json::json;

use crate::answer::Answerer;
use crate::answer_tests::{MANY, alike, beginning_with, choose, joined, run, stop_at, tiny, write};
use crate::pack::Pack;
use crate::row::End;

/// The tiny Llama whose steps run ahead.
fn ahead(pages: usize) -> Answerer {
    let (mut answerer, _) = tiny(pages);
    answerer.observer.ahead = true;
    answerer
}

fn assert_alike(ends: &[End], expected: &[End], how: &str) {
    assert_eq!(ends.len(), expected.len());
    for (row, (end, expected)) in ends.iter().zip(expected).enumerate() {
        assert!(alike(end, expected), "{how}, row {row}: {end:?} is not {expected:?}");
    }
}

fn pattern(pattern: &str) -> TaskKind {
    TaskKind::Complete { tokens_max: 60, format: TextFormat::Pattern { pattern: pattern.to_owned() } }
}

/// Kinds of work: free text of some lengths, text with forced parts, labels.
fn kinds() -> Vec<TaskKind> {
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["note", "n"], "properties": {
        "note": {"enum": ["the answer is the answer", "the answer, it broke", "no"]}, "n": {"type": "integer"}}});
    let extract = TaskKind::Complete { tokens_max: 90, format: TextFormat::Json { schema } };
    let mut kinds = vec![extract, pattern("[A-Z]{2}-[0-9]{3}(, and so on)?"), choose(["billing", "bug", "bug report"])];
    kinds.extend([1, 2, 7, 60].map(write));
    kinds
}

#[test]
fn every_answer_is_that_of_steps_one_after_the_other() {
    let rows = joined(150);
    for kind in kinds() {
        let how = format!("{kind:?}");
        let (mut plain, _) = tiny(MANY);
        let expected = run(&mut plain, &kind, &rows);
        let mut answerer = ahead(MANY);
        for _ in 0..2 {
            assert_alike(&run(&mut answerer, &kind, &rows), &expected, &how);
            assert_eq!(answerer.held(MANY).0, 0, "{how}");
        }
        let writes = matches!(&kind, TaskKind::Complete { tokens_max, .. } if *tokens_max > 1);
        assert_eq!(answerer.observer.followed > 0, writes, "{how}");
        let (for_nothing, all) = (answerer.observer.computed, 2 * plain.observer.computed + 2 * rows.len());
        assert!(for_nothing <= all, "{how}: a row computes one token for nothing at most");
    }
}

#[test]
fn rows_that_outgrow_their_pages_or_are_put_back_answer_the_same() {
    let rows: Vec<Vec<u32>> = joined(8).into_iter().map(|row| row[60..].to_vec()).collect();
    let kind = write(360);
    let expected = run(&mut tiny(MANY).0, &kind, &rows);
    for pages in [14, 15, 16, 27, 60] {
        let mut little = ahead(pages);
        assert_alike(&run(&mut little, &kind, &rows), &expected, &format!("{pages} pages"));
        assert_eq!(little.held(pages).0, 0);
        assert!(little.observer.followed > 0);
    }
    // Forced parts outgrow a row's pages while a step with it is under way.
    let long = pattern(&format!("({})[0-9]", "the answer is the answer ".repeat(4)));
    let expected = run(&mut tiny(MANY).0, &long, &rows);
    for pages in [6, 9, 14] {
        assert_alike(&run(&mut ahead(pages), &long, &rows), &expected, &format!("{pages} pages"));
    }
}

#[test]
fn steps_that_lack_memory_change_no_answer() {
    let rows = joined(90);
    let too_much: [fn(&Pack) -> bool; 3] =
        [|pack| pack.tokens() > 150, |pack| pack.starts.len() > 9, |pack| pack.tokens() % 7 == 3 && pack.tokens() > 20];
    for kind in kinds() {
        let expected = run(&mut tiny(MANY).0, &kind, &rows);
        for refuses in too_much {
            let mut answerer = ahead(MANY);
            answerer.observer.refuses = Some(refuses);
            assert_alike(&run(&mut answerer, &kind, &rows), &expected, &format!("{kind:?}"));
            assert_eq!(answerer.held(MANY).0, 0, "{kind:?}");
        }
    }
}

#[test]
fn what_was_stopped_or_broke_leaves_nothing_behind() {
    for tokens in [40, 600] {
        let rows = beginning_with(tokens);
        let expected = run(&mut tiny(MANY).0, &write(8), &rows);
        for step in [1, 2, 3, 5] {
            let mut answerer = ahead(MANY);
            stop_at(&mut answerer, step, &rows);
            assert_eq!(answerer.held(MANY).0, 0, "{tokens} tokens, stopped at step {step}");
            assert_eq!(run(&mut answerer, &write(8), &rows), expected, "{tokens} tokens, stopped at step {step}");

            let mut answerer = ahead(MANY);
            answerer.observer.breaks_at = Some(step);
            let prompts: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            assert!(answerer.run(&write(8), &prompts, &|| false).is_err());
            answerer.observer.breaks_at = None;
            assert_eq!(answerer.held(MANY).0, 0, "{tokens} tokens, failed at step {step}");
            assert_eq!(run(&mut answerer, &write(8), &rows), expected, "{tokens} tokens, failed at step {step}");
        }
    }
}
