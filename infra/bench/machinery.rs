//! What the machinery around a model costs: the echo engine over a large table, next to a plain DataFusion copy of the
//! same table in the same process, interleaved. Run with `cargo bench --bench machinery`; it prints a Markdown table.
//! It refuses to judge: absolute times depend on the machine, ratios are what counts.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

// Copy and job alike run with the product's allocator.
#[path = "../../src/allocator.rs"]
mod allocator;
mod peak_memory;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use rowmill_executor::{
    Accounts, Egress, EngineLimits, Executor, ExecutorOptions, Models, Router, RunContext, Scratch, Sending,
};
use rowmill_jobs::plan::run_key;
use rowmill_jobs::progress::Counters;
use rowmill_jobs::queue::in_process::InProcessQueue;
use rowmill_jobs::queue::{RunRef, ShardQueue};
use rowmill_jobs::store;
use rowmill_scheduler::claim::Supersede;
use rowmill_scheduler::tracker::Limits;
use rowmill_scheduler::{Drive, Planned, RunId};
use rowmill_sql::read_job_file;

use self::peak_memory::peak_memory;

const ROWS: i64 = 1_000_000;
const ROUNDS: usize = 5;
/// Runs whose peak memory is looked at, for each size of the table.
const RUNS: usize = 3;

/// Writes `rows` rows (id, prompt of about 100 bytes, lang, score) in row groups of 250,000.
fn generate(path: &Path, rows: i64) {
    let batch = |first: i64, count: i64| {
        let ids: Vec<i64> = (first..first + count).collect();
        let prompt = |id: &i64| {
            let mixed = (*id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            format!(
                "row {id}: please sort this text of about one hundred bytes, whose middle {mixed:020} is never the same"
            )
        };
        let prompts: Vec<String> = ids.iter().map(prompt).collect();
        let languages: Vec<&str> = ids.iter().map(|id| ["en", "de", "fr", "es"][(id % 4) as usize]).collect();
        let scores: Vec<f64> = ids.iter().map(|id| *id as f64 / 7.0).collect();
        RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(ids)) as _),
            ("prompt", Arc::new(StringArray::from(prompts)) as _),
            ("lang", Arc::new(StringArray::from(languages)) as _),
            ("score", Arc::new(Float64Array::from(scores)) as _),
        ])
        .unwrap()
    };
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(250_000)).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch(0, 1).schema(), Some(properties)).unwrap();
    for first in (0..rows).step_by(50_000) {
        writer.write(&batch(first, 50_000.min(rows - first))).unwrap();
    }
    writer.close().unwrap();
}

/// A plain copy of the same columns with DataFusion's own reader and writer, compressed as ours. Rows per second.
async fn copy(table: &Path, out: &Path) -> f64 {
    let started = Instant::now();
    let context = SessionContext::new();
    context.register_parquet("t", table.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    let frame = context.sql("SELECT id, prompt, lang, score FROM t").await.unwrap();
    let mut options = TableParquetOptions::default();
    options.global.compression = Some("zstd(1)".into());
    frame.write_parquet(out.to_str().unwrap(), DataFrameWriteOptions::new(), Some(options)).await.unwrap();
    ROWS as f64 / started.elapsed().as_secs_f64()
}

/// Writes a job that echoes every prompt of a table into `out-<name>`.
fn job(folder: &Path, table: &Path, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.sql"));
    let sql = format!(
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}';
         CREATE MODEL echo WITH (engine = 'echo');
         CREATE JOB echo WITH (output = 'out-{name}', logical_date = 'd', model = 'echo') AS
         SELECT id, ai_complete(prompt) AS answer, lang, score FROM t;",
        table.display()
    );
    std::fs::write(&path, sql).unwrap();
    path
}

/// The whole way of a run in this process: plan, shards through the queue, parts, publishing. Rows per second.
async fn echo(job: &Path, scratch: &Path) -> f64 {
    let started = Instant::now();
    let job = read_job_file(job, &BTreeMap::new()).unwrap();
    let store = store::open(&job.output).unwrap();
    let model = rowmill_executor::resolve(&job.models[0], &|_| ()).await.unwrap();
    let pins = vec![model.pin.clone()];
    let draft = rowmill_scheduler::draft(&job, &pins, |_, _| ()).await.unwrap();
    let run_key = run_key(&job, None);
    let id = RunId { job: &job, run_key: &run_key, supersede: Supersede::Never, policy_hash: None };
    let Planned { plan, compiled } = rowmill_scheduler::pin(store.as_ref(), id, draft, &pins, scratch).await.unwrap();
    let (news, receiver) = tokio::sync::mpsc::channel(64);
    let options = ExecutorOptions {
        name: "bench".into(),
        patience: Duration::ZERO,
        isolation: None,
        ends_when_stuck: false,
        engine_limits: EngineLimits::default(),
        egress: Arc::new(Egress::new(Accounts::none().unwrap(), "bench".into(), scratch.into())),
    };
    let executor = Executor::new(options, Scratch::new(scratch).unwrap(), Arc::new(Counters::default()), Some(news));
    let found = Models { planned: vec![model].into(), pins: &pins, engines: executor.runs().engines() };
    let run = Sending { job: &job, calls: compiled.calls(), run_key: &run_key, store: Some(&store), plan: None };
    let engine = Router::open(found, executor.runs().egress(), run).await.unwrap();
    let context = RunContext { plan: plan.clone(), compiled, store: Arc::clone(&store), engine };
    executor.runs().insert(RunRef::of(store.url(), &plan), context).await;
    let queue = Arc::new(InProcessQueue::default());
    let serving = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.serve(2, Arc::new(executor)).await }
    });
    let drive = Drive {
        store: store.as_ref(),
        plan: &plan,
        queue: queue.as_ref(),
        limits: Limits::one_process(),
        first: 0,
        patience: Duration::ZERO,
    };
    let finished = rowmill_scheduler::finish(drive, 0.0, Some(receiver), |_, _| ()).await.unwrap();
    queue.close();
    serving.await.unwrap().unwrap();
    assert_eq!(finished.manifest.rows, ROWS as u64);
    ROWS as f64 / started.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let table = folder.join("t.parquet");
    generate(&table, ROWS);
    let mut ratios = Vec::new();
    println!("| round | copy, rows/s | echo, rows/s | ratio |\n|---|---|---|---|");
    for round in 0..ROUNDS {
        let copied = copy(&table, &folder.join(format!("copy-{round}.parquet"))).await;
        let echoed = echo(&job(folder, &table, &format!("round-{round}")), folder).await;
        ratios.push(echoed / copied);
        println!("| {round} | {copied:.0} | {echoed:.0} | {:.2} |", echoed / copied);
    }
    ratios.sort_by(f64::total_cmp);
    println!("\nratio: median {:.2}, from {:.2} to {:.2}", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
    for millions in [1, 5, 20] {
        let table = folder.join(format!("{millions}m.parquet"));
        generate(&table, millions * 1_000_000);
        let peaks = (0..RUNS).map(|run| {
            let job = job(folder, &table, &format!("{millions}m-{run}"));
            peak_memory(&["run", job.to_str().unwrap()], &[]).to_string()
        });
        println!("peak memory at {millions},000,000 rows: {} MiB", peaks.collect::<Vec<_>>().join(", "));
    }
}
