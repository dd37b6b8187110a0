//! A row that kills the process that touches it: the run is published without that row's answer, and with everybody
//! else's. Processes are started again as a supervisor would; nobody takes the row out by hand.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};

use super::check::exact;
use super::processes::{Cluster, Process};
use crate::servers::{LOOK_EVERY, PATIENCE};
use crate::support::{Job, integers, read_table, strings};

const ROWS: i64 = 300;
/// The row that kills.
const POISONED: i64 = 142;
const ENGINE: &str = ", abort_on = 'poison'";
const JOB: &str = ", shard_rows = 100, max_error_ratio = 0.01";
/// More deaths than this are no way to find one row.
const DEATHS_MAX: u32 = 30;
/// Starts of `rowmill run` until it succeeds.
const STARTS_MAX: u32 = 6;

fn with_poison(job: &Job) {
    let text = |id: i64| if id == POISONED { "this is poison".to_owned() } else { format!("text of row {id}") };
    let texts: Vec<String> = (0..ROWS).map(text).collect();
    let ids = Int64Array::from((0..ROWS).collect::<Vec<_>>());
    job.with_file("a", vec![("id", Arc::new(ids)), ("text", Arc::new(StringArray::from(texts)))]);
}

/// What a row should have.
fn answer(id: i64) -> Option<String> {
    (id != POISONED).then(|| format!("text of row {id}"))
}

/// Checks that one row has an error, that it is the poisoned one, and that it says what happened and not what was in it.
fn one_row_crashed(batches: &[RecordBatch]) {
    let mut with_errors = Vec::new();
    for batch in batches {
        let errors = batch.column_by_name("_errors").expect("errors");
        let ids = integers(std::slice::from_ref(batch), "id");
        with_errors.extend((0..batch.num_rows()).filter(|row| errors.is_valid(*row)).map(|row| {
            let error = format!("{:?}", errors.slice(row, 1));
            assert!(error.contains("\"crash\""), "row {}: {error}", ids[row]);
            assert!(!error.contains("poison"), "row {}: {error}", ids[row]);
            ids[row]
        }));
    }
    assert_eq!(with_errors, [POISONED]);
}

/// Starts a process again if it died of the row.
fn revive(executor: &mut Process, cluster: &Cluster, deaths: &mut u32) {
    let Some(status) = executor.ended() else { return };
    assert_eq!(status.code(), None, "an executor ended otherwise than by the row: {:?}", executor.said());
    *deaths += 1;
    assert!(*deaths <= DEATHS_MAX, "{deaths} deaths, and no end\n{}", cluster.last_words());
    *executor = cluster.executor(&["--slots", "2"]);
}

#[test]
fn a_row_that_kills_executors_costs_only_itself() {
    let cluster = Cluster::new(ENGINE, JOB, 0);
    with_poison(&cluster.job);
    let cluster = cluster.with_table();
    let mut executors = [(); 2].map(|()| cluster.executor(&["--slots", "2"]));
    let mut scheduler = cluster.submit();
    let (mut deaths, started) = (0, Instant::now());
    while scheduler.ended().is_none() {
        assert!(started.elapsed() < PATIENCE, "after {deaths} deaths, not over\n{}", cluster.last_words());
        executors.iter_mut().for_each(|executor| revive(executor, &cluster, &mut deaths));
        std::thread::sleep(LOOK_EVERY);
    }
    let summary = scheduler.wait().ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_i64()), (Some(ROWS), Some(1)), "{summary}");
    let facts = exact(&cluster.bucket(), ROWS, answer).unwrap_or_else(|violation| panic!("{violation}"));
    one_row_crashed(&facts.batches);
    println!("{deaths} deaths, {} attempts at {} shards", facts.attempts, facts.parts);
}

#[test]
fn a_row_that_kills_run_is_found_when_it_is_started_again() {
    let job = Job::new(&format!(
        "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';\n\
         CREATE MODEL echo WITH (engine = 'echo'{ENGINE});\n\
         CREATE JOB copy WITH (output = 'out', logical_date = 'd', key = 'id', model = 'echo'{JOB}) AS\n\
         SELECT id, ai_complete(text) AS answer FROM rows;\n"
    ));
    with_poison(&job);
    let mut starts = 1;
    let summary = loop {
        let said = job.say("run", &[]);
        if said.code == Some(0) {
            break said.summary();
        }
        assert_eq!(said.code, None, "it ended otherwise than by the row: {said:?}");
        starts += 1;
        assert!(starts <= STARTS_MAX, "started {STARTS_MAX} times in vain: {said:?}");
    };
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_i64()), (Some(ROWS), Some(1)), "{summary}");
    let batches = read_table(std::path::Path::new(summary["published"].as_str().expect("a folder")));
    one_row_crashed(&batches);
    assert_eq!(strings(&batches, "answer"), (0..ROWS).map(answer).collect::<Vec<_>>());
    println!("published at start {starts}");
}
