//! One job, one model, two engines: candle in the product, and llama.cpp's own server over the same weights. One line of the
//! job file says which, in both directions.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, StructArray};

use super::elsewhere::{Elsewhere, allowed};
use crate::servers::{Server, text};
use crate::support::{Said, integers, read_table, repository, strings};

const ROWS: usize = 100;
const SELECT: &str = "SELECT id, ai_classify(body, ['billing', 'bug', 'how-to', 'other']) AS topic, \
                      ai_extract(body, 'product STRING, severity INT') AS facts FROM rows";

/// Product and severity.
type Facts = (Option<String>, Option<i32>);

/// English tickets of the example.
fn tickets() -> Vec<(&'static str, ArrayRef)> {
    let rows = read_table(&repository().join("examples/tickets/data/ds=2026-11-20"));
    let english = strings(&rows, "lang").into_iter().zip(strings(&rows, "body"));
    let bodies: Vec<Option<String>> =
        english.filter(|(lang, _)| lang.as_deref() == Some("en")).map(|(_, body)| body).take(ROWS).collect();
    assert_eq!(bodies.len(), ROWS);
    vec![("id", Arc::new(Int64Array::from_iter_values(0..ROWS as i64))), ("body", Arc::new(StringArray::from(bodies)))]
}

/// Computes the day with the job file as it stands.
fn run(job: &Elsewhere, rerun: &str) -> Vec<RecordBatch> {
    let path = job.job.path();
    let mut command = job.command(&["run", text(&path), "--rerun", rerun, "--json"]);
    let summary = Said::of(&mut command).ok().summary();
    assert_eq!((summary["rows"].as_u64(), summary["errors"].as_u64()), (Some(ROWS as u64), Some(0)), "{summary}");
    let rows = read_table(Path::new(summary["published"].as_str().expect("a folder")));
    assert_eq!(integers(&rows, "id"), (0..ROWS as i64).collect::<Vec<_>>());
    rows
}

fn facts(rows: &[RecordBatch]) -> Vec<Facts> {
    let mut found = Vec::new();
    for batch in rows {
        let facts = batch.column_by_name("facts").expect("facts");
        assert_eq!(facts.null_count(), 0, "JSON that is not of the schema");
        let facts = facts.as_any().downcast_ref::<StructArray>().expect("structs");
        let field = |name: &str| facts.column_by_name(name).unwrap_or_else(|| panic!("no {name}")).clone();
        let (products, severities) = (field("product"), field("severity"));
        let products = products.as_any().downcast_ref::<StringArray>().expect("texts");
        let severities = severities.as_any().downcast_ref::<Int32Array>().expect("numbers");
        found.extend(products.iter().zip(severities).map(|(product, severity)| (product.map(str::to_owned), severity)));
    }
    found
}

/// How many of two lists' entries are equal, as a share.
fn agreement<T: PartialEq>(one: &[T], other: &[T]) -> f64 {
    one.iter().zip(other).filter(|(one, other)| one == other).count() as f64 / one.len() as f64
}

#[test]
fn one_line_of_the_job_file_moves_a_job_to_llama_cpp_and_back() {
    let model = repository().join("examples/tickets/models/triage");
    let here = format!("engine = 'candle', source = '{}'", model.display());
    let there = "engine = 'llama-server', provider = 'away', name = 'triage'";
    let job = Elsewhere::over(tickets(), &here, ", shard_rows = 25", SELECT);
    let server = Server::llama(&model, &job.job.folder.path().join("triage.gguf"));
    job.config(&allowed("llama-server", &format!("http://{}/v1", server.address), "self_hosted = true"));

    let candle = run(&job, "candle");
    job.rewrite(&here, there);
    let llama = run(&job, "llama");
    job.rewrite(there, &here);
    let again = run(&job, "back");

    assert_eq!(candle[0].schema().fields(), llama[0].schema().fields());
    let (topics, products) =
        (agreement(&strings(&candle, "topic"), &strings(&llama, "topic")), agreement(&facts(&candle), &facts(&llama)));
    println!(
        "of {ROWS} rows, candle and llama.cpp agree on the topic of {topics:.3} and on both facts of {products:.3}"
    );
    assert!(products >= 0.95, "facts agree on {products:.3}");
    assert!(topics >= 0.95, "topics agree on {topics:.3}");
    assert_eq!((strings(&again, "topic"), facts(&again)), (strings(&candle, "topic"), facts(&candle)));
}
