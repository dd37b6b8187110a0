//! What a run promises: all rows once, published all or nothing, repeated without harm, superseded only when asked.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use crate::support::{Job, Said, integers, read_table, rowmill, say, strings};

fn published(said: &Said) -> String {
    said.summary()["published"].as_str().expect("a folder").to_owned()
}

#[test]
fn a_run_publishes_every_row_once_and_the_second_computes_nothing() {
    let job = Job::echo("", "SELECT id, ai_complete(text) AS answer FROM rows");
    job.with_rows("a", 0, 700).with_rows("b", 700, 301);
    let first = job.say("run", &[]).ok();
    let summary = first.summary();
    assert_eq!(summary["status"], "published");
    assert_eq!((summary["rows"].as_u64(), summary["errors"].as_u64()), (Some(1001), Some(0)));
    assert_eq!((summary["computed"].as_u64(), summary["reused"].as_u64()), (summary["parts"].as_u64(), Some(0)));
    let rows = read_table(Path::new(&published(&first)));
    assert_eq!(integers(&rows, "id"), (0..1001).collect::<Vec<i64>>());
    let answers = strings(&rows, "answer");
    assert_eq!(answers[1000].as_deref(), Some("text of row 1000"));

    let second = job.say("run", &[]).ok().summary();
    assert_eq!((second["computed"].as_u64(), second["reused"].as_u64()), (Some(0), summary["parts"].as_u64()));
    assert_eq!(second["run_key"], summary["run_key"]);
    let resolved = job.say("resolve", &[]).ok();
    assert_eq!(published(&resolved), published(&first));
    assert!(job.say("status", &[]).ok().summary()["status"] == "published");
}

#[test]
fn racing_triggers_join_one_run_and_both_exit_0() {
    let job = Job::echo(", delay_ms = 1", "SELECT id, ai_complete(text) AS answer FROM rows");
    job.with_rows("a", 0, 800);
    let path = job.path();
    let start = || {
        let mut command = rowmill(&["run", path.to_str().expect("UTF-8"), "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the product starts")
    };
    let racers: Vec<_> = (0..4).map(|_| start()).collect();
    let said: Vec<Said> = racers.into_iter().map(|racer| Said::at_end(racer).ok()).collect();
    let folders: BTreeSet<String> = said.iter().map(published).collect();
    assert_eq!(folders.len(), 1);
    let claims = std::fs::read_dir(job.output().join("_claims/2026-11-20")).expect("claims").count();
    assert_eq!(claims, 1);
    assert_eq!(integers(&read_table(Path::new(&published(&said[0]))), "id"), (0..800).collect::<Vec<i64>>());
}

#[test]
fn a_changed_job_needs_a_rerun_and_readers_then_see_the_rerun() {
    let job = Job::echo("", "SELECT id, ai_complete(text) AS answer FROM rows");
    job.with_rows("a", 0, 10);
    let first = published(&job.say("run", &[]).ok());
    let sql = std::fs::read_to_string(job.path()).expect("the job");
    std::fs::write(job.path(), sql.replace("ai_complete(text)", "ai_complete('again: ' || text)")).expect("the job");
    let refused = job.say("run", &[]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("--rerun"), "{}", refused.stderr);
    let second = published(&job.say("run", &["--rerun", "prompt-2"]).ok());
    assert_ne!(first, second);
    assert_eq!(published(&job.say("resolve", &[]).ok()), second);
    // The superseded run is still whole, and finishing it again changes nothing for readers.
    std::fs::write(job.path(), sql).expect("the job");
    assert_eq!(published(&job.say("run", &[]).ok()), first);
    assert_eq!(published(&job.say("resolve", &[]).ok()), second);
    let again = strings(&read_table(Path::new(&second)), "answer");
    assert_eq!(again[3].as_deref(), Some("again: text of row 3"));
}

#[test]
fn too_many_row_errors_hold_a_run_back_until_the_job_allows_them() {
    let job = Job::echo(", fail_ratio = 0.2", "SELECT id, ai_complete(text) AS answer FROM rows");
    job.with_rows("a", 0, 500);
    let gated = job.say("run", &[]);
    assert_eq!((gated.code, gated.summary()["status"].as_str()), (Some(4), Some("gated")));
    assert_eq!(job.say("resolve", &[]).code, Some(1));
    let sql = std::fs::read_to_string(job.path()).expect("the job");
    std::fs::write(job.path(), sql.replace("shard_rows = 100", "shard_rows = 100, max_error_ratio = 0.5"))
        .expect("the job");
    let allowed = job.say("run", &[]).ok();
    let summary = allowed.summary();
    assert_eq!(summary["computed"], 0, "raising the limit computes nothing again");
    let errors = summary["errors"].as_u64().expect("errors");
    let rows = read_table(Path::new(&published(&allowed)));
    let answers = strings(&rows, "answer");
    assert_eq!(answers.iter().filter(|answer| answer.is_none()).count() as u64, errors);
    let typed: usize =
        rows.iter().map(|batch| batch.num_rows() - batch.column_by_name("_errors").expect("errors").null_count()).sum();
    assert_eq!(typed as u64, errors);
}

#[test]
fn queries_that_cannot_be_cut_are_staged_once() {
    let select = "SELECT r.id, ai_complete(r.text) AS answer, counts.n FROM rows r \
                  JOIN (SELECT id % 3 AS bucket, count(*) AS n FROM rows GROUP BY 1) counts ON r.id % 3 = counts.bucket";
    let job = Job::echo("", select);
    job.with_rows("a", 0, 400);
    let said = job.say("run", &[]).ok();
    let rows = read_table(Path::new(&published(&said)));
    let mut ids = integers(&rows, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..400).collect::<Vec<i64>>());
    let buckets: BTreeSet<i64> = integers(&rows, "n").into_iter().collect();
    assert_eq!(buckets, BTreeSet::from([133, 134]));
}

#[test]
fn an_empty_table_publishes_an_empty_table() {
    let job = Job::echo("", "SELECT id, ai_complete(text) AS answer FROM rows");
    job.with_rows("a", 0, 0);
    let said = job.say("run", &[]).ok();
    assert_eq!(said.summary()["rows"], 0);
    let files = std::fs::read_dir(published(&said))
        .expect("a folder")
        .filter(|entry| entry.as_ref().expect("an entry").file_name().to_string_lossy().ends_with(".parquet"));
    assert_eq!(files.count(), 1, "a file with the schema");
}

#[test]
fn csv_and_json_tables_run_too() {
    for (format, name, text) in [
        ("CSV", "t.csv", "id,text\n1,one\n2,\"two, quoted\"\n"),
        ("JSON", "t.json", "{\"id\":1,\"text\":\"one\"}\n{\"id\":2,\"text\":\"two, quoted\"}\n"),
    ] {
        let job = Job::new(&format!(
            "CREATE EXTERNAL TABLE t STORED AS {format} LOCATION '{name}'{};
             CREATE MODEL echo WITH (engine = 'echo');
             CREATE JOB j WITH (output = 'out', logical_date = 'd', model = 'echo') AS
             SELECT id, ai_complete(text) AS answer FROM t;",
            if format == "CSV" { " OPTIONS ('format.has_header' 'true')" } else { "" }
        ));
        std::fs::write(job.folder.path().join(name), text).expect("the table");
        let rows = read_table(Path::new(&published(&job.say("run", &[]).ok())));
        assert_eq!(strings(&rows, "answer")[1].as_deref(), Some("two, quoted"), "{format}");
    }
}

#[test]
fn resolve_finds_the_latest_date_of_a_folder() {
    let job = Job::new(
        "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';
         CREATE MODEL echo WITH (engine = 'echo');
         CREATE JOB j WITH (output = 'out', logical_date = '{{ ds }}', model = 'echo') AS SELECT id FROM rows;",
    );
    job.with_rows("a", 0, 3);
    let first = published(&job.say("run", &["--param", "ds=2026-11-19"]).ok());
    let second = published(&job.say("run", &["--param", "ds=2026-11-20"]).ok());
    let out = job.output();
    let out = out.to_str().expect("UTF-8");
    assert_eq!(published(&say(&["resolve", out, "--json"]).ok()), second);
    assert_eq!(published(&say(&["resolve", out, "--json", "--date", "2026-11-19"]).ok()), first);
    assert_eq!(say(&["resolve", out, "--json", "--date", "2026-11-18"]).code, Some(1));
}
