//! What the machinery around a model costs: the echo engine over a large table, next to a plain DataFusion copy of the
//! same table in the same process, interleaved. Run with `cargo bench --bench machinery`; it prints a Markdown table.
//! It refuses to judge: absolute times depend on the machine, ratios are what counts.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

const ROWS: i64 = 1_000_000;
const ROUNDS: usize = 5;

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

/// A plain copy with DataFusion's own reader and writer, zstd as ours. Rows per second.
async fn copy(table: &Path, out: &Path) -> f64 {
    let started = Instant::now();
    let context = SessionContext::new();
    context.register_parquet("t", table.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    let frame = context.sql("SELECT id, prompt, lang, score FROM t").await.unwrap();
    frame.write_parquet(out.to_str().unwrap(), DataFrameWriteOptions::new(), None).await.unwrap();
    ROWS as f64 / started.elapsed().as_secs_f64()
}

/// `rowmill run` of the echo engine in a process of its own. Returns rows per second of the whole process, start and
/// publishing included, and its peak memory in MiB.
fn echo(folder: &Path, table: &Path, rows: i64, round: usize) -> (f64, u64) {
    let job = folder.join("job.sql");
    let sql = format!(
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}';
         CREATE MODEL echo WITH (engine = 'echo');
         CREATE JOB echo WITH (output = 'out-{rows}-{round}', logical_date = 'd', model = 'echo') AS
         SELECT id, ai_complete(prompt) AS answer, lang, score FROM t;",
        table.display()
    );
    std::fs::write(&job, sql).unwrap();
    let time = folder.join("time.txt");
    let started = Instant::now();
    let status = Command::new("/usr/bin/env")
        .args([
            "python3",
            "-c",
            MEASURE,
            time.to_str().unwrap(),
            env!("CARGO_BIN_EXE_rowmill"),
            "run",
            job.to_str().unwrap(),
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(status.success());
    let peak: u64 = std::fs::read_to_string(time).unwrap().trim().parse().unwrap();
    (rows as f64 / seconds, peak / 1024)
}

/// Runs a command and writes its peak resident memory in KiB to a file.
const MEASURE: &str = "import resource,subprocess,sys
code=subprocess.call(sys.argv[2:])
open(sys.argv[1],'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)";

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("t.parquet");
    generate(&table, ROWS);
    let mut ratios = Vec::new();
    println!("| round | copy, rows/s | echo, rows/s | ratio | peak MiB |\n|---|---|---|---|---|");
    for round in 0..ROUNDS {
        let copied = copy(&table, &folder.path().join(format!("copy-{round}.parquet"))).await;
        let (echoed, peak) = echo(folder.path(), &table, ROWS, round);
        ratios.push(echoed / copied);
        println!("| {round} | {copied:.0} | {echoed:.0} | {:.2} | {peak} |", echoed / copied);
    }
    ratios.sort_by(f64::total_cmp);
    println!("\nratio: median {:.2}, from {:.2} to {:.2}", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
    let large = folder.path().join("large.parquet");
    generate(&large, 5 * ROWS);
    let (_, small_peak) = echo(folder.path(), &table, ROWS, ROUNDS);
    let (_, large_peak) = echo(folder.path(), &large, 5 * ROWS, ROUNDS);
    println!("peak memory: {small_peak} MiB at {ROWS} rows, {large_peak} MiB at {} rows", 5 * ROWS);
}
