//! Tables and models that are not on this machine: read from `s3://` (moto) and `hf://` (a hub in small). Each test starts
//! its own server, and reads what the server was asked from the server's log.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::servers::{PATIENCE, Server, TOKEN, model};
use crate::support::{Job, Said, integers, read_table, rowmill, strings};

/// What the hub in small calls `main`.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// `rowmill <args> job.sql --json`, with nothing of this machine's own settings; `server` stands for both services.
fn command(job: &Job, args: &[&str], server: &str) -> Command {
    let mut command = rowmill(args);
    command.arg(job.path()).arg("--json");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("HF_")) {
        command.env_remove(name);
    }
    let home = job.folder.path();
    command.env("HOME", home).env("NO_PROXY", "127.0.0.1").env("ROWMILL_MODELS", home.join("models"));
    command.env("AWS_ENDPOINT_URL", format!("http://{server}")).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    command.env("HF_ENDPOINT", format!("http://{server}")).env("HF_HOME", home.join("huggingface"));
    command
}

fn said(command: &mut Command) -> Said {
    let said = Said::of(command);
    assert!(!format!("{said:?}").contains(TOKEN), "the token is shown");
    said
}

fn run(job: &Job, server: &Server) -> Said {
    said(&mut command(job, &["run"], &server.address))
}

/// This, if it failed with exit code 1 and all of `words`.
fn refused(said: Said, words: &[&str]) -> Said {
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "{word:?} is missing in\n{}", said.stderr);
    }
    said
}

/// The published rows of a run that succeeded.
fn rows(said: Said) -> Vec<arrow::array::RecordBatch> {
    read_table(Path::new(said.ok().summary()["published"].as_str().expect("a folder")))
}

/// A job of the echo engine over one table.
fn echo_job(table: &str, with: &str) -> Job {
    Job::new(&format!(
        "CREATE EXTERNAL TABLE rows {table};\n\
         CREATE MODEL echo WITH (engine = 'echo'{with});\n\
         CREATE JOB copy WITH (output = 'out', logical_date = 'd', model = 'echo', shard_rows = 100) AS\n\
         SELECT *, ai_complete(text) AS answer FROM rows;\n"
    ))
}

/// The bytes of a table's file with ids `first..first+count`.
fn table_file(first: i64, count: i64) -> Vec<u8> {
    let job = Job::new("");
    job.with_rows("t", first, count);
    std::fs::read(job.folder.path().join("rows/t.parquet")).expect("a table file")
}

/// A job of a model over a small local table.
fn model_job(source: &str) -> Job {
    let job = Job::new(&format!(
        "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';\n\
         CREATE MODEL tiny WITH (engine = 'candle', {source});\n\
         CREATE JOB j WITH (output = 'out', logical_date = 'd', model = 'tiny') AS\n\
         SELECT id, ai_classify(text, ['a', 'b']) AS topic FROM rows;\n"
    ));
    job.with_rows("a", 0, 3);
    job
}

/// The plan of a job's one run.
fn plan(job: &Job) -> String {
    let runs = std::fs::read_dir(job.output()).into_iter().flatten().flatten();
    let plans: Vec<String> =
        runs.filter_map(|run| std::fs::read_to_string(run.path().join("_plan.json")).ok()).collect();
    plans.concat()
}

#[test]
fn parquet_tables_are_read_from_s3() {
    let s3 = Server::s3();
    s3.put("/lake/raw%20tables/ds%3D2026-11-20/part%200.parquet", &table_file(0, 300));
    s3.put("/lake/raw%20tables/ds%3D2026-11-20/more/part%3D1.parquet", &table_file(300, 350));
    s3.put("/lake/raw%20tables/ds%3D2026-11-20/_SUCCESS", b"");
    s3.put("/lake/raw%20tables/ds%3D2026-11-20/_tmp/half.parquet", b"PAR1");
    s3.put("/lake/raw%20tables/ds%3D2026-11-21/part%200.parquet", &table_file(650, 10));
    let job = echo_job("STORED AS PARQUET PARTITIONED BY (ds) LOCATION 's3://lake/raw tables/ds=2026-11-20/'", "");
    let rows = rows(run(&job, &s3));
    let mut ids = integers(&rows, "id");
    ids.sort_unstable();
    assert_eq!(ids, (0..650).collect::<Vec<i64>>());
    assert_eq!(strings(&rows, "answer"), strings(&rows, "text"));
    assert!(strings(&rows, "ds").iter().all(|day| day.as_deref() == Some("2026-11-20")));
}

#[test]
fn csv_and_json_tables_are_read_from_s3() {
    let s3 = Server::s3();
    s3.put("/lake/t/a%20b.csv", b"id,text\n1,one\n2,\"two, quoted\"\n");
    s3.put("/lake/t.json", b"{\"id\":1,\"text\":\"one\"}\n{\"id\":2,\"text\":\"two, quoted\"}\n");
    for table in [
        "STORED AS CSV LOCATION 's3://lake/t/' OPTIONS ('format.has_header' 'true')",
        "STORED AS JSON LOCATION 's3://lake/t.json'",
    ] {
        let rows = rows(run(&echo_job(table, ""), &s3));
        assert_eq!(integers(&rows, "id"), [1, 2], "{table}");
        assert_eq!(strings(&rows, "answer")[1].as_deref(), Some("two, quoted"), "{table}");
    }
}

#[test]
fn what_s3_does_not_have_or_give_is_named() {
    let s3 = Server::s3();
    let refuse = |place: &str, words: &[&str]| {
        let job = echo_job(&format!("STORED AS PARQUET LOCATION '{place}'"), "");
        refused(run(&job, &s3), &[&[place, "hint"], words].concat());
    };
    refuse("s3://nowhere/rows/", &["LOCATION"]);
    refuse("s3://lake/rows/", &["no files"]);
    refuse("s3://lake/rows.parquet", &["no such file"]);
    let model = model_job("source = 's3://lake/models/none/'");
    refused(run(&model, &s3), &["s3://lake/models/none/", "hint"]);
    let model = model_job("source = 's3://nowhere/models/none/'");
    refused(run(&model, &s3), &["s3://nowhere/models/none/", "hint"]);
    // From here on the server looks at keys, and knows none.
    s3.put("/lake/rows.parquet", &table_file(0, 3));
    s3.send("POST", "/moto-api/reset-auth", b"0");
    for place in ["s3://lake/rows.parquet", "s3://lake/"] {
        let job = echo_job(&format!("STORED AS PARQUET LOCATION '{place}'"), "");
        refused(run(&job, &s3), &[place, "denies access", "hint", "AWS_"]);
    }
    refused(run(&model, &s3), &["s3://nowhere/models/none/", "hint", "AWS_"]);
}

#[test]
fn an_object_that_changed_after_the_plan_fails_the_run_with_its_name() {
    let s3 = Server::s3();
    let first = table_file(0, 500);
    // Only the entity tag tells them apart.
    let mut second = first.clone();
    second[1000] ^= 1;
    s3.put("/lake/rows/a.parquet", &table_file(1000, 100));
    s3.put("/lake/rows/b.parquet", &first);
    let job = echo_job("STORED AS PARQUET LOCATION 's3://lake/rows/'", ", delay_ms = 5");
    let mut running = command(&job, &["run"], &s3.address);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the product starts");
    let started = Instant::now();
    while plan(&job).is_empty() {
        assert!(started.elapsed() < PATIENCE, "no plan");
        assert_eq!(running.try_wait().expect("its state"), None, "it ended before it planned");
        std::thread::yield_now();
    }
    running.kill().expect("it can be killed");
    running.wait().expect("it ended");
    s3.put("/lake/rows/b.parquet", &second);
    refused(run(&job, &s3), &["s3://lake/rows/b.parquet", "was changed", "hint"]);
    assert_ne!(s3.requests("\" 412 -"), 0, "the store was not asked for the planned file");
    assert!(!job.output().join("_published").exists());
    // The file as it was makes the run whole.
    s3.put("/lake/rows/b.parquet", &first);
    assert_eq!(run(&job, &s3).ok().summary()["rows"], 600);
}

#[test]
fn a_model_is_fetched_from_s3_once() {
    let s3 = Server::s3();
    for entry in std::fs::read_dir(model()).expect("a model").flatten() {
        let name = entry.file_name().into_string().expect("UTF-8");
        s3.put(&format!("/lake/models/tiny/{name}"), &std::fs::read(entry.path()).expect("a file"));
    }
    s3.put("/lake/models/tiny/pytorch_model.bin", b"a pickle");
    s3.put("/lake/models/tiny.gguf", &std::fs::read(model().with_extension("gguf")).expect("a file"));
    for (source, file) in
        [("s3://lake/models/tiny/", "tiny/model.safetensors"), ("s3://lake/models/tiny.gguf", "tiny.gguf")]
    {
        let job = model_job(&format!("source = '{source}'"));
        let fetched = format!("GET /lake/models/{file}");
        assert_eq!(run(&job, &s3).ok().summary()["rows"], 3);
        assert_eq!(s3.requests(&fetched), 1, "{source}");
        std::fs::remove_dir_all(job.output()).expect("the output is removed");
        assert_eq!(run(&job, &s3).ok().summary()["rows"], 3);
        assert_eq!(s3.requests(&fetched), 1, "{source}: fetched twice");
        // Another model at the same place is another model.
        s3.put(&format!("/lake/models/{file}"), b"no weights any more");
        std::fs::remove_dir_all(job.output()).expect("the output is removed");
        assert_eq!(run(&job, &s3).code, Some(1), "{source}: an old copy was used");
    }
    assert_eq!(s3.requests("GET /lake/models/tiny/pytorch_model.bin"), 0);
}

#[test]
fn a_model_is_pulled_from_the_hub_and_runs_without_it() {
    let hub = Server::hub();
    let job = model_job("source = 'hf://open/tiny'");
    said(&mut command(&job, &["models", "pull"], &hub.address)).ok();
    assert_eq!((hub.requests("GET /cdn/open/model.safetensors"), hub.requests("pytorch_model.bin")), (1, 0));
    assert_eq!(run(&job, &hub).ok().summary()["rows"], 3);
    assert_eq!(hub.requests("GET /cdn/open/model.safetensors"), 1, "fetched twice");
    let pinned: Value = serde_json::from_str(&plan(&job)).expect("a plan");
    assert_eq!(pinned["models"][0]["revision"], COMMIT, "the plan pins what `main` was");
    let sql = std::fs::read_to_string(job.path()).expect("the job");
    std::fs::write(job.path(), sql.replace("open/tiny'", &format!("open/tiny', revision = '{COMMIT}'")))
        .expect("the job");
    let address = hub.address.clone();
    drop(hub);
    std::fs::remove_dir_all(job.output()).expect("the output is removed");
    assert_eq!(said(&mut command(&job, &["run"], &address)).ok().summary()["rows"], 3);
    let offline = said(command(&job, &["run", "--rerun", "2"], &address).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(offline.ok().summary()["rows"], 3);
}

#[test]
fn one_gguf_file_is_pulled_from_the_hub() {
    let hub = Server::hub();
    let job = model_job("source = 'hf://open/tiny/tiny.gguf'");
    assert_eq!(run(&job, &hub).ok().summary()["rows"], 3);
    assert_eq!(hub.requests("GET /cdn/"), 1, "one file");
    let pinned: Value = serde_json::from_str(&plan(&job)).expect("a plan");
    assert_eq!(pinned["models"][0]["revision"], COMMIT);
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let hub = Server::hub();
    let refuse = |source: &str, words: &[&str]| {
        let job = model_job(&format!("source = {source}"));
        refused(run(&job, &hub), &[&["hint"], words].concat())
    };
    refuse("'hf://missing/tiny'", &["hf://missing/tiny", "check the name", "HF_TOKEN"]);
    refuse("'hf://open/tiny', revision = 'v9'", &["hf://open/tiny at v9", "revision"]);
    let absent = COMMIT.replace('0', "9");
    refuse(&format!("'hf://open/tiny', revision = '{absent}'"), &[&absent, "revision"]);
    refuse("'hf://open/tiny/other.gguf'", &["other.gguf", "file's name"]);
    let job = model_job("source = 'hf://open/tiny'");
    let offline = said(command(&job, &["run"], &hub.address).env("HF_HUB_OFFLINE", "1"));
    refused(offline, &["hf://open/tiny", "HF_HUB_OFFLINE", "models pull"]);
}

#[test]
fn a_gated_model_needs_a_token_that_is_never_shown() {
    let hub = Server::hub();
    for source in
        ["source = 'hf://gated/tiny'".to_owned(), format!("source = 'hf://gated/tiny', revision = '{COMMIT}'")]
    {
        let job = model_job(&source);
        refused(run(&job, &hub), &["hf://gated/tiny", "hint", "HF_TOKEN", "licence"]);
        let with = |token| said(command(&job, &["run", "--log", "debug"], &hub.address).env("HF_TOKEN", token));
        refused(with("hf_another-token"), &["hf://gated/tiny", "hint", "HF_TOKEN", "licence"]);
        assert_eq!(with(TOKEN).ok().summary()["rows"], 3);
        assert!(!plan(&job).contains(TOKEN));
    }
}

#[test]
fn an_error_page_is_not_taken_for_weights() {
    let hub = Server::hub();
    let job = model_job(&format!("source = 'hf://broken/tiny', revision = '{COMMIT}'"));
    for _ in 0..2 {
        let failed = run(&job, &hub);
        assert_eq!(failed.code, Some(75), "{failed:?}");
        assert!(failed.stderr.contains("model.safetensors") && failed.stderr.contains("hint"), "{}", failed.stderr);
    }
    assert_eq!(hub.requests("GET /cdn/broken/model.safetensors"), 2, "the page was kept");
}

#[test]
fn a_copy_that_lacks_files_is_completed() {
    let hub = Server::hub();
    let job = model_job(&format!("source = 'hf://open/tiny', revision = '{COMMIT}'"));
    run(&job, &hub).ok();
    let digest = |job: &Job| serde_json::from_str::<Value>(&plan(job)).expect("a plan")["models"][0]["digest"].clone();
    let whole = digest(&job);
    let snapshot = job.folder.path().join("huggingface/hub/models--open--tiny/snapshots").join(COMMIT);
    std::fs::remove_file(snapshot.join("tokenizer_config.json")).expect("the file is removed");
    std::fs::remove_dir_all(job.output()).expect("the output is removed");
    run(&job, &hub).ok();
    assert_eq!(digest(&job), whole);
    assert!(snapshot.join("tokenizer_config.json").exists());
}
