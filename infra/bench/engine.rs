//! The engine alone, through its public face: loads a model once and runs a workload again and again, as whoever compares
//! it with others says. Or measures random weights in the shape of a known model. It judges nothing.
//!
//! ```text
//! cargo bench -p rowmill-engine --bench engine -- --model DIR_OR_GGUF --workload FILE.json [--dtype auto|bf16|f32|f16] [--threads N]
//! cargo bench -p rowmill-engine --bench engine -- --random minilm|smollm|llama-1b
//! ```
//!
//! With a workload it prints `{"ready": true, …}`, runs rows for each line `go FIRST COUNT` on standard input (the workload's
//! values are a ring; `go` alone runs each once), prints one object for each, and ends with its input: the protocol of
//! `infra/bench/engine/run`. The workload:
//!
//! ```json
//! {"task": "classify|extract|generate|embed", "system": null, "template": "with a {0} hole", "values": ["…"],
//!  "labels": ["…"], "schema": {}, "tokens_max": 64}
//! ```
//!
//! Rows go to the engine as a shard's rows do: in windows, two of them under way. A row whose answer does not have its task's
//! shape is an error. Free text that is cut at `tokens_max` is what a measurement asks for: it is no error and counts with
//! that many output tokens, but the engine does not say how many input tokens it had.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../../src/allocator.rs"]
mod allocator;
#[path = "engine/random.rs"]
mod random;

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rowmill_engine::{CandleEngine, EngineOptions};
use rowmill_jobs::infer::{
    Answer, Answered, Engine, Outcome, Piece, Request, RowErrorCode, Task, TaskKind, TextFormat, Usage,
};
use rowmill_jobs::spec::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Rows of a window.
const WINDOW: usize = 1024;
/// Windows under way.
const WINDOWS: usize = 2;
/// The first vectors of a run are shown, so that whoever compares contestants can compare them.
const SHOWN_VECTORS: usize = 16;
const USAGE: &str = "\
usage: engine --model DIR_OR_GGUF --workload FILE.json [--dtype auto|bf16|f32|f16] [--threads N]
       engine --random minilm|smollm|llama-1b [--workload FILE.json] [--dtype …] [--threads N]";

#[derive(Debug, Default)]
struct Arguments {
    model: Option<PathBuf>,
    random: Option<String>,
    workload: Option<PathBuf>,
    options: EngineOptions,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Self {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--model" => arguments.model = Some(value().into()),
                "--random" => arguments.random = Some(value()),
                "--workload" => arguments.workload = Some(value().into()),
                "--threads" => arguments.options.threads = Some(value().parse().expect("a number of threads")),
                "--dtype" => {
                    arguments.options.dtype = match value().as_str() {
                        "auto" => Dtype::Auto,
                        "bf16" => Dtype::Bf16,
                        "f32" => Dtype::F32,
                        "f16" => Dtype::F16,
                        other => panic!("there is no number type {other}\n{USAGE}"),
                    }
                }
                // Cargo's own.
                "--bench" => {}
                other => panic!("{other} means nothing here\n{USAGE}"),
            }
        }
        arguments
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Workload {
    task: TaskName,
    system: Option<String>,
    template: String,
    values: Vec<String>,
    labels: Option<Vec<String>>,
    schema: Option<Value>,
    #[serde(default)]
    tokens_max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TaskName {
    Classify,
    Extract,
    Generate,
    Embed,
}

impl Workload {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn task(&self) -> Task {
        let tokens_max = self.tokens_max;
        let kind = match self.task {
            TaskName::Classify => {
                let labels = self.labels.clone().expect("`labels` to classify");
                TaskKind::Choose { labels, calibrate: false }
            }
            TaskName::Extract => {
                let schema = self.schema.clone().expect("a `schema` to extract");
                TaskKind::Complete { tokens_max, format: TextFormat::Json { schema } }
            }
            TaskName::Generate => TaskKind::Complete { tokens_max, format: TextFormat::Free },
            TaskName::Embed => TaskKind::Embed,
        };
        let (before, after) = self.template.split_once("{0}").expect("a hole `{0}` in the template");
        let mut template = vec![Piece::Text(before.into()), Piece::Value(0), Piece::Text(after.into())];
        template.retain(|piece| *piece != Piece::Text(String::new()));
        Task { model: "measured".into(), kind, system: self.system.clone(), template, input: vec![Piece::Value(0)] }
    }

    /// Whether an answer has the shape that was asked for.
    fn is_answered_by(&self, answer: &Answer) -> bool {
        match (self.task, answer) {
            (TaskName::Classify, Answer::Choice { index, scores }) => {
                let labels = self.labels.as_ref().map_or(0, Vec::len);
                *index < labels && scores.len() == labels && (scores.iter().sum::<f32>() - 1.0).abs() < 1e-3
            }
            (TaskName::Extract, Answer::Text(text)) => {
                let required = self.schema.as_ref().and_then(|schema| schema["required"].as_array().cloned());
                let found: Value = serde_json::from_str(text).unwrap_or_default();
                let has = |key: &Value| key.as_str().is_some_and(|key| found.get(key).is_some());
                found.is_object() && required.unwrap_or_default().iter().all(has)
            }
            (TaskName::Generate, Answer::Text(_)) => true,
            (TaskName::Embed, Answer::Vector(vector)) => (vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-3,
            _ => false,
        }
    }
}

/// What a run of a workload came to.
#[derive(Debug, Default)]
struct Count {
    usage: Usage,
    errors: usize,
    truncated: usize,
}

impl Count {
    fn add(&mut self, workload: &Workload, outcome: &Outcome) {
        match outcome {
            Ok(answered) if workload.is_answered_by(&answered.answer) => self.usage += answered.usage,
            Err(error) if error.code == RowErrorCode::Truncated && workload.task == TaskName::Generate => {
                self.truncated += 1;
                self.usage.output_tokens += u64::from(workload.tokens_max);
            }
            _ => self.errors += 1,
        }
    }
}

/// The first rows' vectors, if all of them are vectors.
fn shown(outcomes: &[Outcome]) -> Option<Vec<&[f32]>> {
    let first = outcomes.iter().take(SHOWN_VECTORS);
    first
        .map(|outcome| match outcome {
            Ok(Answered { answer: Answer::Vector(vector), .. }) => Some(vector.as_slice()),
            _ => None,
        })
        .collect()
}

/// Runs `count` of the workload's values from the `first` on, around its end.
async fn run(engine: &Arc<CandleEngine>, workload: &Workload, first: usize, count: usize) -> Value {
    let (task, free) = (Arc::new(workload.task()), Arc::new(Semaphore::new(WINDOWS)));
    let begun = Instant::now();
    let mut windows = Vec::new();
    for from in (first..first + count).step_by(WINDOW) {
        let value = |row: usize| workload.values[row % workload.values.len()].clone();
        let window = from..(first + count).min(from + WINDOW);
        let requests = window.map(|row| Request { values: [value(row)].into() }).collect();
        let permit = Arc::clone(&free).acquire_owned().await.unwrap();
        let (engine, task) = (Arc::clone(engine), Arc::clone(&task));
        windows.push(tokio::spawn(async move {
            let outcomes = engine.infer(&task, requests).await.unwrap_or_else(|error| panic!("{}", error.report()));
            drop(permit);
            outcomes
        }));
    }
    let mut outcomes = Vec::with_capacity(count);
    for window in windows {
        outcomes.extend(window.await.unwrap());
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(outcomes.len(), count);
    let mut count = Count::default();
    outcomes.iter().for_each(|outcome| count.add(workload, outcome));
    json!({
        "rows": outcomes.len(),
        "seconds": seconds,
        "input_tokens": count.usage.input_tokens,
        "cached_tokens": count.usage.cached_tokens,
        "output_tokens": count.usage.output_tokens,
        "failed": count.errors,
        "truncated": count.truncated,
        "answers": shown(&outcomes),
    })
}

fn main() {
    let arguments = Arguments::read(std::env::args().skip(1));
    // Kept until the end: the random model's files are in it.
    let made = arguments.random.as_deref().map(|name| (name, random::checkpoint(name)));
    let Some(model) = arguments.model.as_deref().or(made.as_ref().map(|(_, folder)| folder.path())) else {
        println!("{USAGE}");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    let load = || CandleEngine::load("measured", model, &arguments.options);
    let engine = Arc::new(load().unwrap_or_else(|error| panic!("{}", error.report())));
    let loaded = begun.elapsed().as_secs_f64();
    match (&arguments.workload, &made) {
        (Some(path), _) => {
            let workload = Workload::read(path);
            println!("{}", json!({ "ready": true, "seconds": loaded, "rows": workload.values.len() }));
            for line in std::io::stdin().lock().lines() {
                let line = line.unwrap();
                let numbers = line.strip_prefix("go").unwrap_or_else(|| panic!("`{line}` is not go"));
                let numbers: Vec<usize> = numbers.split_whitespace().map(|n| n.parse().expect("a number")).collect();
                let (first, count) = match numbers[..] {
                    [] => (0, workload.values.len()),
                    [first, count] => (first, count),
                    _ => panic!("`{line}` is not `go FIRST COUNT`"),
                };
                println!("{}", runtime.block_on(run(&engine, &workload, first, count)));
            }
        }
        (None, Some((name, _))) => {
            for workload in random::workloads(name) {
                let mut result = runtime.block_on(run(&engine, &workload, 0, workload.values.len()));
                result["task"] = json!(format!("{:?}", workload.task).to_lowercase());
                result["rows_per_second"] = json!(workload.values.len() as f64 / result["seconds"].as_f64().unwrap());
                println!("{result}");
            }
        }
        (None, None) => println!("{USAGE}"),
    }
}
