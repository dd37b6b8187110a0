//! What planning over very many small files costs: `rowmill plan` as a process of its own, over 10,000 Parquet files of
//! 1,000 row groups in all (nine of ten files are empty), and over 10,000 files of one row group each. Run with
//! `cargo bench --bench planning`; it prints a Markdown table. With `ROWMILL_BENCH_S3=http://host:port`, an S3 server that
//! has a bucket `bench`, it measures the same tables there too; `AWS_ACCESS_KEY_ID` and so on are as the server wants them.
//! It refuses to judge: absolute times depend on the machine and the server.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod peak_memory;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use datafusion::object_store::aws::{AmazonS3, AmazonS3Builder};
use datafusion::object_store::{ObjectStoreExt, path::Path as Key};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::ArrowWriter;

use self::peak_memory::peak_memory;

const FILES: usize = 10_000;
/// Row groups of the two tables; one a file as far as they go.
const ROW_GROUPS: [usize; 2] = [1_000, 10_000];
const ROUNDS: usize = 3;
const UPLOADS_AT_ONCE: usize = 16;

/// A Parquet file of `rows` rows in one row group; without rows it has none.
fn file(rows: i64) -> Vec<u8> {
    let ids: Vec<i64> = (0..rows).collect();
    let texts: Vec<String> = ids.iter().map(|id| format!("text of row {id}")).collect();
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from(ids)) as _),
        ("text", Arc::new(StringArray::from(texts)) as _),
    ])
    .unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// The files' names, each with whether it has a row group.
fn names(row_groups: usize) -> impl Iterator<Item = (String, bool)> {
    let each = FILES / row_groups;
    (0..FILES).map(move |index| (format!("{row_groups}/{index:05}.parquet"), index % each == 0))
}

/// A job that asks for every row of the table at `location`.
fn job(folder: &Path, name: &str, location: &str) -> PathBuf {
    let path = folder.join(format!("{name}.sql"));
    let sql = format!(
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{location}';
         CREATE MODEL echo WITH (engine = 'echo');
         CREATE JOB j WITH (output = 'out', logical_date = 'd', model = 'echo') AS
         SELECT id, ai_complete(text) AS answer FROM t;"
    );
    std::fs::write(&path, sql).unwrap();
    path
}

/// Plans a job in a process of its own: seconds and peak MiB, each the median of some rounds.
fn plan(job: &Path, environment: &[(String, String)]) -> (f64, u64) {
    let (mut seconds, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        peaks.push(peak_memory(&["plan", job.to_str().unwrap()], environment));
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    peaks.sort_unstable();
    (seconds[ROUNDS / 2], peaks[ROUNDS / 2])
}

fn row(place: &str, row_groups: usize, (seconds, peak): (f64, u64)) {
    println!("| {place} | {FILES} | {row_groups} | {seconds:.1} | {peak} |");
}

/// The variables of the server, those that are set and stand-ins for a server that checks none.
fn environment(endpoint: &str) -> Vec<(String, String)> {
    let defaults = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "bench"),
        ("AWS_SECRET_ACCESS_KEY", "bench"),
        ("AWS_REGION", "us-east-1"),
    ];
    let value = |(name, default): (&str, &str)| {
        let set = std::env::var(name).ok().filter(|_| name != "AWS_ENDPOINT_URL");
        (name.to_owned(), set.unwrap_or_else(|| default.to_owned()))
    };
    defaults.map(value).into()
}

async fn upload(bucket: &AmazonS3, row_groups: usize, empty: &[u8], full: &[u8]) {
    let puts = names(row_groups).map(|(name, has_rows)| {
        let bytes = if has_rows { full.to_vec() } else { empty.to_vec() };
        async move { bucket.put(&Key::from(format!("planning/{name}")), bytes.into()).await }
    });
    stream::iter(puts).buffer_unordered(UPLOADS_AT_ONCE).try_for_each(async |_| Ok(())).await.unwrap();
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (empty, full) = (file(0), file(100));
    println!("| inputs | files | row groups | seconds | peak MiB |\n|---|---|---|---|---|");
    for row_groups in ROW_GROUPS {
        std::fs::create_dir(folder.join(row_groups.to_string())).unwrap();
        for (name, has_rows) in names(row_groups) {
            std::fs::write(folder.join(name), if has_rows { &full } else { &empty }).unwrap();
        }
        let job = job(folder, &format!("local-{row_groups}"), &format!("{row_groups}/"));
        row("folder", row_groups, plan(&job, &[]));
    }
    let Ok(endpoint) = std::env::var("ROWMILL_BENCH_S3") else { return };
    let environment = environment(&endpoint);
    let value = |name: &str| environment.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let bucket = AmazonS3Builder::new()
        .with_endpoint(&endpoint)
        .with_allow_http(true)
        .with_bucket_name("bench")
        .with_access_key_id(value("AWS_ACCESS_KEY_ID"))
        .with_secret_access_key(value("AWS_SECRET_ACCESS_KEY"))
        .with_region(value("AWS_REGION"))
        .build()
        .unwrap();
    for row_groups in ROW_GROUPS {
        upload(&bucket, row_groups, &empty, &full).await;
        let job = job(folder, &format!("s3-{row_groups}"), &format!("s3://bench/planning/{row_groups}/"));
        row("S3", row_groups, plan(&job, &environment));
    }
}
