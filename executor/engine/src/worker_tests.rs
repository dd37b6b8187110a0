//! A device that fails in the middle of its work: who is told what, who goes on, and when the engine has ended.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use rowmill_jobs::infer::{Engine, Outcome, Piece, Request, Task, TaskKind, TextFormat};
use rowmill_jobs::{Error, Kind, Result};
use tokio::task::JoinSet;

use crate::answer::Answerer;
use crate::drive::is_out_of_memory;
use crate::engine::{CandleEngine, at_each, threads};
use crate::lost::{device_error, is_lasting, is_lost, lost_device};
use crate::model::{EngineOptions, Model, Network};
use crate::worker::{Post, Worker};

/// The tiny Llama, once for each step at which its device breaks, if it does. Devices are numbered from `first` on: which of
/// them are lost is the process's to know, so each test has numbers of its own.
fn engine(breaks_at: &[Option<usize>], first: Option<usize>) -> CandleEngine {
    let posts: Vec<_> = (0..).zip(breaks_at).map(|(at, step)| (*step, first.map(|first| first + at))).collect();
    engine_of(&posts)
}

/// The same for workers with these steps and devices.
fn engine_of(posts: &[(Option<usize>, Option<usize>)]) -> CandleEngine {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny");
    let mut prompter = None;
    let post = |&(breaks_at, device): &(Option<usize>, Option<usize>)| {
        let model = Model::load(&source, &EngineOptions::default()).unwrap();
        let Network::Writer(writer) = model.network else { panic!("writes no text") };
        let own = Arc::clone(prompter.get_or_insert_with(|| Arc::new(model.prompter)));
        let mut answerer = Answerer::new(writer, own, 1 << 24);
        answerer.observer.breaks_at = breaks_at;
        answerer.observer.panics_at_its_end = device.is_some() && breaks_at.is_some();
        let pool = threads("engine", 1).unwrap();
        Post { worker: Worker::Writer(Box::new(answerer)), pool, device }
    };
    let posts = posts.iter().map(post).collect();
    CandleEngine::start("m", prompter.unwrap(), posts).unwrap()
}

async fn ask(engine: &CandleEngine, format: TextFormat) -> Result<Vec<Outcome>> {
    let template = vec![Piece::Value(0)];
    let kind = TaskKind::Complete { tokens_max: 3, format };
    let task = Arc::new(Task { model: "m".into(), kind, system: None, template: template.clone(), input: template });
    engine.infer(&task, vec![Request { values: ["the answer".to_owned()].into() }]).await
}

#[tokio::test]
async fn the_engine_of_the_last_device_that_failed_has_ended_and_says_why() {
    let engine = Arc::new(engine(&[Some(5)], Some(10)));
    assert_eq!(ask(&engine, TextFormat::Free).await.unwrap().len(), 1);
    assert!(!engine.has_ended() && !is_lost(10));
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let engine = Arc::clone(&engine);
        calls.spawn(async move { (ask(&engine, TextFormat::Free).await, engine.has_ended()) });
    }
    while let Some(called) = calls.join_next().await {
        if let (Err(error), ended) = called.unwrap() {
            assert!(error.retryable() && ended, "{}", error.report());
        }
    }
    assert!(is_lost(10), "its process computes nothing more there");
    assert!(lost_device().unwrap().contains("CUDA_ERROR_ILLEGAL_ADDRESS"));
    let error = ask(&engine, TextFormat::Free).await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{}", error.report());
}

#[tokio::test]
async fn a_device_that_failed_gets_no_call_any_more_and_the_other_goes_on() {
    let engine = engine(&[Some(1), None], Some(20));
    let mut failed = 0;
    for _ in 0..40 {
        if let Err(error) = ask(&engine, TextFormat::Free).await {
            assert!(error.retryable() && error.report().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{}", error.report());
            failed += 1;
        }
    }
    assert!(failed <= 1, "{failed}");
    assert!(!engine.has_ended());
    assert!(!is_lost(21));
}

#[tokio::test]
async fn all_workers_of_a_device_that_failed_leave_its_calls_to_others() {
    // Two compute on device 50, as an encoder's do; the one that first gets a call sees it fail.
    let broken = engine_of(&[(Some(1), Some(50)), (Some(1), Some(50))]);
    let error = ask(&broken, TextFormat::Free).await.unwrap_err();
    assert!(error.retryable() && broken.has_ended() && is_lost(50), "{}", error.report());
    // A second model on it computes nothing there any more, before any call fails; device 51 answers all.
    let engine = engine_of(&[(Some(1), Some(50)), (None, Some(51)), (Some(1), Some(50))]);
    for _ in 0..40 {
        ask(&engine, TextFormat::Free).await.unwrap();
    }
    assert!(!engine.has_ended());
}

#[tokio::test]
async fn what_is_not_the_devices_fault_ends_no_engine() {
    let asked = engine(&[None], Some(30));
    let error = ask(&asked, TextFormat::Pattern { pattern: "a(?=b)".to_owned() }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(ask(&asked, TextFormat::Free).await.is_ok() && !asked.has_ended());
    // A processor outlives its errors.
    let processor = engine(&[Some(1)], None);
    for _ in 0..2 {
        assert_eq!(ask(&processor, TextFormat::Free).await.unwrap_err().to_string(), "a step failed");
    }
    assert!(!processor.has_ended());
}

#[test]
fn memory_that_ran_out_is_known_by_the_words_of_drivers_and_libraries() {
    let failed =
        |words: &'static str| Error::internal("a step failed").caused_by(device_error("a product failed", words));
    for words in ["DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", "CublasError(CUBLAS_STATUS_ALLOC_FAILED)"]
    {
        assert!(is_out_of_memory(&failed(words)) && !is_lasting(&failed(words)), "{words}");
    }
    for words in ["CublasError(CUBLAS_STATUS_EXECUTION_FAILED)", "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)"] {
        assert!(!is_out_of_memory(&failed(words)) && is_lasting(&failed(words)), "{words}");
    }
    assert!(!is_lasting(&Error::invalid("labels cannot be scored")));
    // A defect that a call meets beside the device: the model's tokenizer, the grammars' library, our own.
    let refused = std::io::Error::other("the grammar's library refused");
    assert!(!is_lasting(&Error::internal("constrained decoding could not be prepared").caused_by(refused)));
}

#[test]
fn a_model_is_loaded_where_it_can_be_and_refused_where_it_is_at_fault() {
    let load = |place: usize| match place {
        1 => Err(device_error("the GPU refused an operation", "CUDA_ERROR_ECC_UNCORRECTABLE")),
        2 => Err(device_error("the GPU refused an operation", "CUDA_ERROR_OUT_OF_MEMORY")),
        9 => Err(Error::invalid("a tensor is missing")),
        place => Ok(place),
    };
    let device = |place: usize| Some(place + 40);
    assert_eq!(at_each(&[0, 1, 2, 3], device, load).unwrap(), [0, 3]);
    assert!(is_lost(41) && !is_lost(42), "memory comes back");
    let error = at_each(&[2, 1], device, load).unwrap_err();
    assert!(error.retryable() && error.report().contains("OUT_OF_MEMORY"), "{}", error.report());
    assert_eq!(at_each(&[0, 9, 3], device, load).unwrap_err().kind(), Kind::Invalid);
}
