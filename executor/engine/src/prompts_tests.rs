//! The threads that make prompts: how many there are, and that calls come out as they went in, however long each takes.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rowmill_jobs::Result;
use rowmill_jobs::infer::{Outcome, Piece, Request, Task, TaskKind, TextFormat};
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Skill, prompt_threads, threads};
use crate::model::{EngineOptions, Model};
use crate::prompt::Prompter;
use crate::prompts::{Call, Maker};
use crate::worker::{Post, Worker};

const LONG: Duration = Duration::from_secs(60);

fn model() -> Model {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny");
    Model::load(&source, &EngineOptions::default()).unwrap()
}

fn maker(prompter: &Arc<Prompter>) -> Maker {
    let pool = threads("prompts", 3).unwrap();
    Maker { name: "m".into(), prompter: Arc::clone(prompter), skill: Skill::Writes, pool }
}

/// A task with this text before each row's.
fn task(text: &str) -> Arc<Task> {
    let template = vec![Piece::Text(text.to_owned()), Piece::Value(0)];
    let kind = TaskKind::Complete { tokens_max: 1, format: TextFormat::Free };
    Arc::new(Task { model: "m".into(), kind, system: None, template: template.clone(), input: template })
}

/// Texts of some rows, the longest first.
fn requests(call: usize, rows: usize) -> Vec<Request> {
    let text = |row: usize| format!("{call} and {row}: {}", "so on ".repeat(3000 / (row * 7 + call + 1)));
    (0..rows).map(|row| Request { values: [text(row)].into() }).collect()
}

fn call(task: &Arc<Task>, requests: Vec<Request>) -> (Call, oneshot::Receiver<Result<Vec<Outcome>>>) {
    let (reply, answer) = oneshot::channel();
    (Call { task: Arc::clone(task), requests, reply }, answer)
}

#[test]
fn where_a_device_computes_as_many_threads_make_prompts_as_compute_elsewhere() {
    let made = |devices: &[Option<usize>]| {
        let post = |device: &Option<usize>| {
            let model = model();
            let worker = Worker::new(model.network, &Arc::new(model.prompter), &EngineOptions::default());
            Post { worker, pool: threads("engine", 6).unwrap(), device: *device }
        };
        prompt_threads(&devices.iter().map(post).collect::<Vec<_>>())
    };
    assert_eq!(made(&[None]), 2, "a quarter");
    assert_eq!(made(&[Some(60)]), 6);
    assert_eq!(made(&[Some(60), Some(61)]), 12, "each has its share of the cores");
}

#[tokio::test]
async fn calls_come_out_in_their_order_with_their_rows_in_theirs() {
    let prompter = Arc::new(model().prompter);
    let (calls, waiting) = mpsc::channel(64);
    let (ready, made) = sync_channel(64);
    maker(&prompter).start(waiting, ready).unwrap();
    let sizes = [100, 1, 33, 2, 257, 1, 1, 64, 3];
    let mut answers = Vec::new();
    for (number, rows) in sizes.into_iter().enumerate() {
        let (call, answer) = call(&task(&number.to_string()), requests(number, rows));
        calls.send(call).await.unwrap();
        answers.push(answer);
    }
    for (number, rows) in sizes.into_iter().enumerate() {
        let ready = made.recv_timeout(LONG).unwrap();
        assert_eq!(ready.task, task(&number.to_string()));
        assert_eq!(ready.prompts, prompter.decoder_prompts(&ready.task, &requests(number, rows)).unwrap());
    }
    // When nobody takes prompts any more, nobody is kept waiting.
    drop(made);
    answers.clear();
    while !calls.is_closed() {
        let (call, answer) = call(&task("x"), requests(1, 1));
        drop(calls.send(call).await);
        answers.push(answer);
    }
}

#[test]
fn a_call_is_begun_before_the_one_before_it_is_done() {
    let prompter = Arc::new(model().prompter);
    let maker = maker(&prompter);
    let (begin, done) = (Arc::new(Barrier::new(4)), Arc::new(Barrier::new(4)));
    for _ in 0..3 {
        let (begin, done) = (Arc::clone(&begin), Arc::clone(&done));
        maker.pool.spawn_fifo(move || {
            begin.wait();
            done.wait();
        });
    }
    begin.wait();
    // No thread makes prompts now, and yet calls are taken.
    let (begun, making) = channel();
    let mut answers = Vec::new();
    for number in 0..3 {
        let (call, answer) = call(&task("x"), requests(number, 40));
        begun.send(maker.begin(call).unwrap()).unwrap();
        answers.push(answer);
    }
    done.wait();
    for number in 0..3 {
        let prompts = making.recv_timeout(LONG).unwrap().prompts().unwrap();
        assert_eq!(prompts, prompter.decoder_prompts(&task("x"), &requests(number, 40)).unwrap());
    }
}

#[test]
fn what_nobody_waits_for_is_not_made_and_what_cannot_be_done_is_said() {
    let maker = maker(&Arc::new(model().prompter));
    let (unwanted, answer) = call(&task("x"), requests(1, 1));
    drop(answer);
    assert!(maker.begin(unwanted).is_none());
    let embed = Arc::new(Task { kind: TaskKind::Embed, ..Task::clone(&task("x")) });
    let (impossible, mut answer) = call(&embed, requests(1, 1));
    assert!(maker.begin(impossible).is_none());
    let report = answer.try_recv().unwrap().unwrap_err().report();
    assert!(report.contains("does not make vectors") && report.contains("hint:"), "{report}");
}

#[test]
fn a_part_that_is_never_made_fails_its_call_alone() {
    let prompter = Arc::new(model().prompter);
    let maker = maker(&prompter);
    let (first, _answer) = call(&task("x"), requests(1, 70));
    let mut making = maker.begin(first).unwrap();
    making.parts += 1;
    assert!(making.prompts().unwrap_err().to_string().contains("failed"));
    let (second, _answer) = call(&task("x"), requests(2, 5));
    assert_eq!(maker.begin(second).unwrap().prompts().unwrap().len(), 5);
}
