//! What the way through `InferExec` costs beside a plain copy of the same table. A measurement, so it is not part of the
//! ordinary run: `cargo test --release -p rowmill-sql --test it -- --ignored --nocapture speed`.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};
use async_trait::async_trait;
use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use rowmill_jobs::Result;
use rowmill_jobs::infer::{Answer, Answered, Engine, Outcome, Request, Task, Usage};
use rowmill_sql::write_part;

use crate::bed::{Bed, HEAD, slices};

const ROWS: i64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

/// Answers with the text itself, and keeps nothing.
#[derive(Debug)]
struct Echo;

#[async_trait]
impl Engine for Echo {
    async fn infer(&self, _task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let answer = |mut request: Request| Answer::Text(request.values.pop().unwrap_or_default());
        Ok(requests
            .into_iter()
            .map(|request| Ok(Answered { answer: answer(request), usage: Usage::default() }))
            .collect())
    }
}

fn table() -> Bed {
    let bed = Bed::new();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
    let words = ["the", "printer", "does", "not", "answer", "since", "monday", "and", "invoice", "is", "wrong"];
    let body = |i: i64| {
        (0..16).map(|w| words[((i * 31 + w * w * 7) % 11) as usize]).collect::<Vec<_>>().join(" ") + &format!(" {i}")
    };
    let bodies: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(body)));
    let langs: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..ROWS).map(|i| ["en", "de", "fr"][(i % 3) as usize])));
    let scores: ArrayRef = Arc::new(Float64Array::from_iter_values((0..ROWS).map(|i| (i as f64).sqrt())));
    bed.parquet("t/a.parquet", vec![("id", ids), ("body", bodies), ("lang", langs), ("score", scores)], 131_072);
    bed
}

async fn copy(bed: &Bed, name: &str, query: &str) -> f64 {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let path = bed.path("t/a.parquet");
    context.register_parquet("t", path.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    let mut options = TableParquetOptions::default();
    options.global.compression = Some("zstd(1)".into());
    options.global.max_row_group_size = 131_072;
    let started = Instant::now();
    let rows = context.sql(query).await.unwrap();
    let out = bed.path(name);
    rows.write_parquet(
        out.to_str().unwrap(),
        DataFrameWriteOptions::new().with_single_file_output(true),
        Some(options),
    )
    .await
    .unwrap();
    ROWS as f64 / started.elapsed().as_secs_f64()
}

async fn job(bed: &Bed, query: &str) -> f64 {
    let (job, inputs) = bed.compiled(&format!("{HEAD}{query}")).await.unwrap();
    let started = Instant::now();
    let rows = job.run(&slices(&inputs[0]), Arc::new(Echo), bed.counter.clone()).unwrap();
    let summary = write_part(rows, &bed.path("part.parquet"), |_| Vec::new()).await.unwrap();
    assert_eq!(summary.rows, ROWS as u64);
    ROWS as f64 / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn speed() {
    let bed = table();
    let (mut best_copy, mut best_twice, mut best_job, mut best_plain) = (0f64, 0f64, 0f64, 0f64);
    for _ in 0..3 {
        best_copy = best_copy.max(copy(&bed, "copy.parquet", "SELECT * FROM t").await);
        best_twice = best_twice.max(copy(&bed, "twice.parquet", "SELECT *, upper(body) AS c FROM t").await);
        best_plain = best_plain.max(job(&bed, "SELECT * FROM t").await);
        best_job = best_job.max(job(&bed, "SELECT *, ai_complete(body) AS c FROM t").await);
    }
    println!("rows/s: DataFusion copy {best_copy:.0}, copy with a second text column {best_twice:.0}, ");
    println!(
        "rows/s: job without AI {best_plain:.0}, job with ai_complete {best_job:.0}, ratio to copy {:.2}",
        best_job / best_copy
    );
    assert!(best_job >= 0.5 * best_copy);
}
