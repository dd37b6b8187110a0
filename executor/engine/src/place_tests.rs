//! One model at several places: each call is answered by whoever is free, as the only one would have answered it.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Barrier};

use rayon::prelude::*;
use rowmill_jobs::infer::{Answer, Engine, Piece, Request, Task, TaskKind};
use rowmill_jobs::spec::Dtype;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::engine::{CandleEngine, shares, threads};
use crate::model::{EngineOptions, Model};
use crate::place::Place;
use crate::worker::{Queue, Ready};

fn task() -> Arc<Task> {
    let text = vec![Piece::Value(0)];
    Arc::new(Task { model: "m".into(), kind: TaskKind::Embed, system: None, template: text.clone(), input: text })
}

async fn vector(engine: &CandleEngine, task: &Arc<Task>, text: String) -> Vec<f32> {
    let outcome = engine.infer(task, vec![Request { values: [text].into() }]).await.unwrap().pop().unwrap();
    let Answer::Vector(vector) = outcome.unwrap().answer else { return Vec::new() };
    vector
}

#[tokio::test(flavor = "multi_thread")]
async fn several_places_answer_as_one_does() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert-tiny");
    let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
    let at = |places: &[Place]| CandleEngine::load_at("m", &source, &options, places).unwrap();
    let (one, three, task) = (at(&[Place::Processor]), Arc::new(at(&[Place::Processor; 3])), task());
    let text = |row: usize| "again ".repeat(row % 7 + 1);
    let mut calls = JoinSet::new();
    for row in 0..60 {
        let (three, task) = (Arc::clone(&three), Arc::clone(&task));
        calls.spawn(async move { (row, vector(&three, &task, text(row)).await) });
    }
    while let Some(answered) = calls.join_next().await {
        let (row, own) = answered.unwrap();
        let expected = vector(&one, &task, text(row)).await;
        let product: f32 = own.iter().zip(&expected).map(|(a, b)| a * b).sum();
        assert!(!own.is_empty() && product > 0.9999, "{row}: {product}");
    }
}

#[test]
fn processors_do_not_compute_in_8_bit_floats() {
    let options = EngineOptions { dtype: Dtype::Fp8, ..EngineOptions::default() };
    for (source, why) in [("llama-tiny", "on GPUs only"), ("llama-tiny.gguf", "not computed in fp8")] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(source);
        let error = Model::load_at(&source, &options, Place::Processor).unwrap_err();
        assert!(error.to_string().contains(why) && error.hint_text().is_some(), "{error}");
    }
}

#[test]
fn of_several_workers_each_takes_one_call_and_a_single_one_takes_what_there_is() {
    let call = || Ready { task: task(), prompts: Vec::new(), neutral: None, reply: oneshot::channel().0 };
    for (together, first, second) in [(0, 1, 1), (64, 2, 1)] {
        let (ready, calls) = sync_channel(4);
        let queue = Queue::new(calls, together);
        ready.send(call()).unwrap();
        ready.send(call()).unwrap();
        let (mut one, mut other) = (VecDeque::new(), VecDeque::new());
        assert!(queue.take(&mut one, || true));
        if together > 0 {
            ready.send(call()).unwrap();
        }
        assert!(queue.take(&mut other, || true));
        assert_eq!((one.len(), other.len()), (first, second));
        drop(ready);
        assert!(queue.take(&mut one, || true), "what a worker has taken it still answers");
        assert!(!queue.take(&mut VecDeque::new(), || true));
    }
}

#[test]
fn each_worker_has_threads_of_its_own() {
    assert_eq!(shares(threads("engine", 4).unwrap(), 1).unwrap().remove(0).current_num_threads(), 4);
    let pools = shares(threads("engine", 4).unwrap(), 2).unwrap();
    assert_eq!(pools.iter().map(|pool| pool.current_num_threads()).collect::<Vec<_>>(), [2, 2]);
    // While all threads of one worker wait, the other's work goes on.
    let both = Barrier::new(3);
    std::thread::scope(|scope| {
        scope.spawn(|| pools[0].broadcast(|_| both.wait()));
        let sum: u64 = pools[1].install(|| (0..1000u64).into_par_iter().sum());
        assert_eq!(sum, 499_500);
        both.wait();
    });
}
