//! Parity of every family of encoders with its reference implementation (tests/fixtures/make_encoders.py): vectors and
//! logits of each fixture, row by row and in ragged batches of any order.

#![allow(clippy::unwrap_used, clippy::panic)]

use rowmill_jobs::spec::Pooling;
use serde_json::Value;

use crate::model::{EngineOptions, Model, Network};
use crate::synthetic::{checkpoint, fixtures};

fn ids(item: &Value) -> Vec<u32> {
    item["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Indices into `items`: each alone, then batches of growing size in an order that a seed decides.
fn batches(items: usize) -> Vec<Vec<usize>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % items
    };
    let alone = (0..items).map(|item| vec![item]);
    let mixed: Vec<Vec<usize>> = [2, 3, 7, 20, 64].map(|size| (0..size).map(|_| next()).collect()).to_vec();
    alone.chain(mixed).collect()
}

/// Runs `compute` on every batch and `check` on each row's result.
fn each_row(items: &[Value], compute: impl Fn(&[&[u32]]) -> Vec<Vec<f32>>, check: impl Fn(&Value, &[f32], &str)) {
    let rows: Vec<Vec<u32>> = items.iter().map(ids).collect();
    for batch in batches(items.len()) {
        let packed: Vec<&[u32]> = batch.iter().map(|row| rows[*row].as_slice()).collect();
        let results = compute(&packed);
        assert_eq!(results.len(), batch.len());
        for (row, result) in batch.iter().zip(&results) {
            check(&items[*row], result, &format!("{} tokens among {} rows", rows[*row].len(), batch.len()));
        }
    }
}

#[test]
fn vectors_agree_with_the_reference() {
    let fixtures = fixtures("encoder");
    assert!(!fixtures.is_empty());
    for (name, fixture) in fixtures {
        let items = fixture["items"].as_array().unwrap();
        for (key, pooling) in [("mean", Pooling::Mean), ("cls", Pooling::Cls)] {
            let options = EngineOptions { pooling: Some(pooling), ..EngineOptions::default() };
            let folder = checkpoint(&fixture);
            let Network::Embedder(embedder) = Model::load(folder.path(), &options).unwrap().network else {
                panic!("{name} does not embed")
            };
            let compute = |rows: &[&[u32]]| embedder.embed(rows).unwrap().into_iter().map(Option::unwrap).collect();
            each_row(items, compute, |item, vector, place| {
                let expected = floats(&item[key]);
                assert_eq!(vector.len(), expected.len());
                let cosine: f32 = vector.iter().zip(&expected).map(|(a, b)| a * b).sum();
                let error = vector.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(cosine > 0.9999 && error < 1e-4, "{name}, {key}, {place}: cosine {cosine}, off by {error}");
            });
        }
    }
}

#[test]
fn logits_agree_with_the_reference() {
    let fixtures = fixtures("classifier");
    assert!(!fixtures.is_empty());
    for (name, fixture) in fixtures {
        let folder = checkpoint(&fixture);
        let Network::Classifier(classifier) = Model::load(folder.path(), &EngineOptions::default()).unwrap().network
        else {
            panic!("{name} does not classify")
        };
        let labels = classifier.labels().len();
        let compute = |rows: &[&[u32]]| {
            let logits = classifier.logits(rows).unwrap();
            logits.chunks_exact(labels).map(<[f32]>::to_vec).collect()
        };
        each_row(fixture["items"].as_array().unwrap(), compute, |item, logits, place| {
            let expected = floats(&item["logits"]);
            assert_eq!(logits.len(), expected.len());
            let top = expected.iter().copied().fold(f32::MIN, f32::max);
            let range = top - expected.iter().copied().fold(f32::MAX, f32::min);
            let error = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-3 * range, "{name}, {place}: {logits:?} should be {expected:?}");
        });
    }
}
