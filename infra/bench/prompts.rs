//! How fast a model's prompts are made of texts, by thread: tokenising alone, which is what a GPU waits for when a small model
//! embeds. Computes nothing of the prompts and judges nothing.
//!
//! ```sh
//! cargo bench -p rowmill-engine --bench prompts -- --model DIR_OR_GGUF --texts FILE.jsonl
//! ```
//! Texts are JSON strings, one a line. The first pass meets each text for the first time, the second knows its words. Where the
//! system tells (Linux), a core's share is of the processor's time, so that a machine that does other things, too, shows the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../../src/allocator.rs"]
mod allocator;

use std::path::PathBuf;

use rowmill_engine::bench::Prompting;

const USAGE: &str = "\
usage: prompts --model DIR_OR_GGUF --texts FILE.jsonl [--task embed|generate] [--threads N] [--tokens-max N] [--rows N]";

fn main() {
    let (mut model, mut texts, mut embeds) = (None, None, true);
    let (mut threads, mut tokens_max, mut rows) = (1, 1 << 20, usize::MAX);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--model" => model = Some(PathBuf::from(value())),
            "--texts" => texts = Some(value()),
            "--task" => embeds = value() == "embed",
            "--threads" => threads = value().parse().expect("a number of threads"),
            "--tokens-max" => tokens_max = value().parse().expect("a number of tokens"),
            "--rows" => rows = value().parse().expect("a number of rows"),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other} means nothing here\n{USAGE}"),
        }
    }
    let (Some(model), Some(texts)) = (model, texts) else {
        println!("{USAGE}");
        return;
    };
    let lines = std::fs::read_to_string(&texts).unwrap_or_else(|error| panic!("{texts}: {error}"));
    let texts = lines.lines().take(rows).map(|line| serde_json::from_str(line).expect("a JSON string"));
    let texts: Vec<String> = texts.collect();
    let prompting = Prompting::open(&model, tokens_max, threads).unwrap_or_else(|error| panic!("{}", error.report()));
    println!("| pass | rows | bytes a row | tokens a row | rows/s | rows/s a core | MB/s a core |");
    println!("|---|---|---|---|---|---|---|");
    for pass in ["first", "second"] {
        let before = processor_seconds();
        let one = prompting.measure(&texts, embeds).unwrap_or_else(|error| panic!("{}", error.report()));
        let taken = before.and_then(|before| Some(processor_seconds()? - before));
        let (rows, cores_seconds) = (one.rows as f64, taken.unwrap_or(one.seconds * threads as f64));
        println!(
            "| {pass} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} |",
            one.rows,
            one.bytes as f64 / rows,
            one.tokens as f64 / rows,
            rows / one.seconds,
            rows / cores_seconds,
            one.bytes as f64 / cores_seconds / 1e6,
        );
    }
}

/// Processor time of all threads of this process, in seconds.
fn processor_seconds() -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let spent = |path: PathBuf| -> Option<f64> {
        let line = std::fs::read_to_string(path.join("schedstat")).ok()?;
        line.split(' ').next()?.parse().ok()
    };
    Some(tasks.flatten().filter_map(|task| spent(task.path())).sum::<f64>() / 1e9)
}
