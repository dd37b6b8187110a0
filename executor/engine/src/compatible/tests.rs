//! What the compatible path feeds its models, and that no configuration makes them panic.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;

use serde_json::Value;

use super::*;
use crate::attention::BLOCK;
use crate::model::{EngineOptions, Model, Network};
use crate::odd::no_configuration_panics;
use crate::synthetic::{checkpoint, fixtures};
use crate::writer::Writer;

fn load(fixture: &Value) -> Result<Box<Compatible>> {
    let folder = checkpoint(fixture);
    match Model::load(folder.path(), &EngineOptions::default())?.network {
        Network::Writer(Writer::Compatible(model)) => Ok(model),
        network => panic!("not of the compatible path: {network:?}"),
    }
}

fn named(name: &str) -> Box<Compatible> {
    load(&fixtures("compatible").into_iter().find(|(found, _)| found == name).unwrap().1).unwrap()
}

/// Rows one after the other, `unwanted` of each in a batch of its own first, as a beginning that rows share is.
fn run(model: &mut Compatible, rows: &[Vec<u32>], unwanted: usize) -> Vec<Vec<f32>> {
    let mut cache = KvCache::of(KvCache::ID_HEADS, 1, crate::kv::KvForm::Ids, 4096);
    let mut answers = Vec::new();
    for row in rows {
        let mut table = Vec::new();
        cache.grow(&mut table, row.len()).unwrap();
        for (from, to) in [(0, unwanted), (unwanted, row.len())] {
            let mut pack = Pack::new();
            pack.push(&row[from..to], from, &table);
            if to == row.len() {
                pack.want_last();
            }
            pack.finish();
            let logits = model.logits(&pack, &mut cache).unwrap();
            if to == row.len() {
                answers.push(logits);
            }
        }
    }
    answers
}

/// A template of 40 tokens, then rows of 10.
fn rows() -> Vec<Vec<u32>> {
    (0..6u32).map(|row| (3..43).chain((0..10).map(|i| 50 + row * 10 + i)).collect()).collect()
}

#[test]
fn what_rows_share_is_fed_once_where_the_model_can_go_back() {
    let rows = rows();
    let distinct = rows.iter().flat_map(|row| (1..=row.len()).map(|end| &row[..end])).collect::<HashSet<_>>().len();
    for name in ["compatible-smollm3", "compatible-glm4", "compatible-olmo", "compatible-mamba"] {
        let mut model = named(name);
        model.tokens_fed = 0;
        let answers = run(&mut model, &rows, 40);
        assert_eq!(model.tokens_fed, distinct, "{name}");
        assert!(model.kept.len() <= KEPT_MAX, "{name}");
        for (row, answer) in rows.iter().zip(&answers) {
            let alone = run(&mut named(name), std::slice::from_ref(row), 40).remove(0);
            let near = alone.iter().zip(answer).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(near, "{name}: a row is not what it is alone");
        }
    }
    // These read a row from its beginning each time: for them what nobody asks for is not computed.
    for name in ["compatible-phi", "compatible-lfm2", "compatible-stablelm"] {
        let mut model = named(name);
        model.tokens_fed = 0;
        run(&mut model, &rows, 40);
        assert_eq!(model.tokens_fed, rows.len() * 50, "{name}");
    }
}

/// Beginnings within beginnings, rows that leave them early, others that return: what was kept of one row's tokens, and what
/// it wrote into the memory that it shares, is not in another's answer.
#[test]
fn rows_that_part_and_meet_again_are_what_they_are_alone() {
    let tokens = |from: u32, count: u32| (0..count).map(move |i| 3 + (from + i * 7) % 150).collect::<Vec<u32>>();
    let (a, b) = (tokens(0, 40), tokens(60, 30));
    let longer = [&a[..], &tokens(90, 20)].concat();
    let row = |beginning: &[u32], own: u32| [beginning, &tokens(own, 9)].concat();
    // Each row with so many tokens of it as a beginning.
    let order = [
        (row(&a, 1), 40),
        (row(&longer, 2), 60),
        (row(&longer, 3), 60),
        (row(&longer[..55], 4), 40),
        (row(&longer, 5), 60),
        (row(&a, 6), 40),
        (row(&a[..30], 7), 30),
        (row(&b, 8), 30),
        (row(&b, 9), 20),
        (row(&longer, 10), 60),
        (row(&a, 1), 40),
    ];
    for (name, fixture) in fixtures("compatible") {
        let mut model = load(&fixture).unwrap();
        let mut most_kept = 0;
        for (at, (row, beginning)) in order.iter().enumerate() {
            let rows = std::slice::from_ref(row);
            let answer = run(&mut model, rows, *beginning).remove(0);
            let alone = run(&mut load(&fixture).unwrap(), rows, row.len() - 1).remove(0);
            let near = alone.iter().zip(&answer).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(near, "{name}: row {at} is not what it is alone");
            most_kept = most_kept.max(model.kept.len());
        }
        let goes_back = model.pieces != Pieces::AtFirst && !name.contains("stablelm");
        assert_eq!(most_kept, if goes_back { 2 } else { 0 }, "{name}");
    }
}

#[test]
fn a_row_is_written_on_by_feeding_its_last_token() {
    for (name, _) in fixtures("compatible") {
        let mut model = named(&name);
        let mut row = rows().remove(0);
        run(&mut model, &[row.clone()], 40);
        model.tokens_fed = 0;
        for id in [9, 8, 7] {
            row.push(id);
            let next = model.next(&row).unwrap();
            assert_eq!(next.len(), model.vocab());
        }
        assert_eq!(model.tokens_fed, 3, "{name}");
    }
}

#[test]
fn a_label_may_reach_beyond_the_context_and_what_is_longer_is_refused() {
    let mut model = named("compatible-olmo");
    let long: Vec<u32> = (0..).map(|i| 3 + i % 100).take(512 + 3).collect();
    assert!(model.next(&long).unwrap().iter().all(|logit| logit.is_finite()));
    let longer: Vec<u32> = (0..).map(|i| 3 + i % 100).take(512 + 2000).collect();
    assert!(model.next(&longer).is_err());
    // And it goes on.
    assert!(model.next(&long[..BLOCK]).is_ok());
}

#[test]
fn what_loads_computes() {
    no_configuration_panics(fixtures("compatible"), from_config, |shape, weights| {
        Compatible::check(shape, weights)?;
        let mut model = Compatible::load(&shape.clone().used_with(Some(64)), weights)?;
        for row in [&[3, 4, 5][..], &[3, 4, 5, 6], &[3, 7]] {
            assert!(model.next(row).is_ok(), "{shape:?} loads but does not compute");
        }
        Ok(())
    });
}
