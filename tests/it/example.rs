//! The example, as a newcomer runs it, held against the labels that its generator hid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use arrow::array::{
    Array, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array, RecordBatch, StringArray,
    StructArray,
};
use serde_json::Value;

use crate::support::{read_table, repository, say, strings};

/// The day whose tickets are published.
const DAY: &str = "ds=2026-11-20";

/// The example's one run, shared by all tests here: its summary and its rows.
fn published() -> &'static (Value, Vec<RecordBatch>) {
    static RUN: OnceLock<(tempfile::TempDir, (Value, Vec<RecordBatch>))> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let said = run(folder.path());
        let rows = read_table(Path::new(said["published"].as_str().expect("a folder")));
        let again = run(folder.path());
        assert_eq!((again["computed"].as_u64(), &again["run_key"]), (Some(0), &said["run_key"]));
        (folder, (said, rows))
    });
    run
}

fn run(output: &Path) -> Value {
    let job = repository().join("examples/tickets/tickets.sql");
    let output = format!("output={}", output.display());
    say(&["run", job.to_str().expect("UTF-8"), "--param", DAY, "--param", &output, "--json"]).ok().summary()
}

/// What the generator hid of a ticket.
#[derive(Debug)]
struct Truth {
    is_request: bool,
    topic: Option<String>,
    product: Option<String>,
    severity: Option<i32>,
}

fn truths() -> BTreeMap<String, Truth> {
    let batches = read_table(&repository().join("examples/tickets/truth").join(DAY));
    let mut truths = BTreeMap::new();
    for batch in &batches {
        let text = |name| column::<StringArray>(batch, name);
        let (ids, topics, products) = (text("ticket_id"), text("topic"), text("product"));
        let requests = column::<BooleanArray>(batch, "is_request");
        let severities = column::<Int32Array>(batch, "severity");
        for row in 0..batch.num_rows() {
            let some = |array: &StringArray| array.is_valid(row).then(|| array.value(row).to_owned());
            let truth = Truth {
                is_request: requests.value(row),
                topic: some(topics),
                product: some(products),
                severity: severities.is_valid(row).then(|| severities.value(row)),
            };
            truths.insert(ids.value(row).to_owned(), truth);
        }
    }
    truths
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> &'a A {
    let column = batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    column.as_any().downcast_ref().unwrap_or_else(|| panic!("{name} is {:?}", column.data_type()))
}

fn field<'a, A: Array + 'static>(column: &'a StructArray, name: &str) -> &'a A {
    let field = column.column_by_name(name).unwrap_or_else(|| panic!("no field {name}"));
    field.as_any().downcast_ref().unwrap_or_else(|| panic!("{name} is {:?}", field.data_type()))
}

fn ratio(right: usize, of: usize) -> f64 {
    right as f64 / of as f64
}

#[test]
fn every_english_request_is_there_once() {
    let (summary, rows) = published();
    let found: Vec<String> = strings(rows, "ticket_id").into_iter().map(|id| id.expect("a key")).collect();
    let distinct: BTreeSet<&String> = found.iter().collect();
    assert_eq!(distinct.len(), found.len(), "a key is there twice");
    assert_eq!(summary["rows"].as_u64(), Some(found.len() as u64));
    assert_eq!(summary["errors"].as_u64(), Some(0));

    let tickets = read_table(&repository().join("examples/tickets/data").join(DAY));
    let languages = strings(&tickets, "lang");
    let english: BTreeSet<String> = strings(&tickets, "ticket_id")
        .into_iter()
        .zip(languages)
        .filter(|(_, language)| language.as_deref() == Some("en"))
        .map(|(id, _)| id.expect("a key"))
        .collect();
    assert!(found.iter().all(|id| english.contains(id)), "a row that WHERE excludes was published");
    let truths = truths();
    let judged_right = english.iter().filter(|id| truths[*id].is_request == distinct.contains(id)).count();
    let accuracy = ratio(judged_right, english.len());
    println!("ai_filter: {accuracy:.4} of {} english tickets", english.len());
    assert!(accuracy >= 0.95, "ai_filter is right on {accuracy:.4} of the english tickets");
}

#[test]
fn topics_and_facts_agree_with_the_hidden_labels() {
    let (_, rows) = published();
    let truths = truths();
    let (mut judged, mut topics, mut facts, mut score) = (0, 0, 0, 0.0);
    for batch in rows {
        let ids = column::<StringArray>(batch, "ticket_id");
        let topic = column::<StructArray>(batch, "topic");
        let (labels, scores) = (field::<StringArray>(topic, "label"), field::<Float64Array>(topic, "score"));
        let extracted = column::<StructArray>(batch, "facts");
        assert_eq!(extracted.null_count(), 0, "every extraction is valid");
        let (products, severities) =
            (field::<StringArray>(extracted, "product"), field::<Int32Array>(extracted, "severity"));
        for row in 0..batch.num_rows() {
            let truth = &truths[ids.value(row)];
            if !truth.is_request {
                continue;
            }
            judged += 1;
            topics += usize::from(truth.topic.as_deref() == Some(labels.value(row)));
            score += scores.value(row);
            let product = products.is_valid(row).then(|| products.value(row).to_owned());
            let severity = severities.is_valid(row).then(|| severities.value(row));
            facts += usize::from(product == truth.product && severity == truth.severity);
        }
    }
    let (topics, facts, score) = (ratio(topics, judged), ratio(facts, judged), score / judged as f64);
    println!("{judged} requests: topic {topics:.4} (mean score {score:.4}), facts {facts:.4}");
    assert!(judged > 2000, "only {judged} requests were judged");
    assert!(topics >= 0.90, "topic is right on {topics:.4}");
    assert!(facts >= 0.90, "both facts are right on {facts:.4}");
    assert!((score - topics).abs() < 0.1, "scores say {score:.4} where {topics:.4} are right");
}

#[test]
fn near_vectors_are_near_topics() {
    let (_, rows) = published();
    let truths = truths();
    let mut points: Vec<(Vec<f32>, String)> = Vec::new();
    for batch in rows {
        let ids = column::<StringArray>(batch, "ticket_id");
        let vectors = column::<FixedSizeListArray>(batch, "body_vector");
        for row in 0..batch.num_rows() {
            let vector = vectors.value(row);
            let vector = vector.as_any().downcast_ref::<Float32Array>().expect("floats").values().to_vec();
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 1e-3, "a vector of length {length}");
            if let Some(topic) = &truths[ids.value(row)].topic {
                points.push((vector, topic.clone()));
            }
        }
    }
    points.truncate(1000);
    let nearest = |index: usize| {
        let dot = |other: usize| points[index].0.iter().zip(&points[other].0).map(|(a, b)| a * b).sum::<f32>();
        // A duplicated ticket is its own twin: it must not count as a neighbour.
        (0..points.len()).filter(|&other| dot(other) < 0.99999).max_by(|&a, &b| dot(a).total_cmp(&dot(b)))
    };
    let same =
        (0..points.len()).filter(|&index| nearest(index).is_some_and(|near| points[near].1 == points[index].1)).count();
    let agreement = ratio(same, points.len());
    println!("nearest neighbour has the same topic: {agreement:.4}");
    assert!(agreement >= 0.8, "{agreement:.4}");
}
