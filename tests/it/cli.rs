//! The command line's manners: help, exit codes, where words and data go.

use crate::support::{Job, say};

const SELECT_ANSWERS: &str = "SELECT id, ai_complete(text) AS answer FROM rows";

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let said = say(&["--help"]).ok();
    for word in
        ["run", "plan", "preview", "resolve", "status", "models", "doctor", "completions", "Exit codes", "--json"]
    {
        assert!(said.stdout.contains(word), "{word} is missing in\n{}", said.stdout);
    }
    for command in ["run", "plan", "preview", "resolve", "status", "doctor", "models"] {
        assert!(say(&[command, "--help"]).ok().stdout.contains("Usage: rowmill"), "{command}");
    }
}

#[test]
fn usage_errors_exit_2() {
    for args in [vec!["fly"], vec!["run"], vec!["run", "x.sql", "--slots", "0"], vec!["preview", "x.sql", "-n", "0"]] {
        assert_eq!(say(&args).code, Some(2), "{args:?}");
    }
    let said = say(&["run", "x.sql", "--param", "ds"]);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("NAME=VALUE"), "{}", said.stderr);
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(say(&["completions", shell]).ok().stdout.contains("rowmill"), "{shell}");
    }
}

#[test]
fn a_failure_is_words_on_stderr_and_one_object_on_stdout() {
    let job = Job::echo("", "SELECT id, ai_complete(txt) AS answer FROM rows");
    job.with_rows("a", 0, 10);
    let said = job.say("run", &[]);
    assert_eq!(said.code, Some(1));
    let summary = said.summary();
    assert_eq!(summary["status"], "failed");
    assert_eq!(said.stdout.lines().count(), 1);
    let location = summary["location"].as_str().expect("a place in the file");
    assert!(location.ends_with("job.sql:4:24"), "{location}");
    assert!(
        said.stderr.contains("txt") && said.stderr.contains("hint") && said.stderr.contains("text"),
        "{}",
        said.stderr
    );
}

#[test]
fn plan_and_preview_write_nothing() {
    let job = Job::echo("", "SELECT id, ai_complete(text) AS answer FROM rows WHERE id % 2 = 0");
    job.with_rows("a", 0, 600);
    let planned = job.say("plan", &[]).ok().summary();
    assert_eq!((planned["rows"].as_u64(), planned["status"].as_str()), (Some(600), Some("planned")));
    assert_eq!(planned["calls"][0]["function"], "ai_complete");
    let shown = job.say("preview", &["-n", "5"]).ok().summary();
    let rows = shown["rows"].as_array().expect("rows");
    let ids: Vec<_> = rows.iter().map(|row| row["id"].as_i64()).collect();
    assert_eq!(ids, [Some(0), Some(2), Some(4), Some(6), Some(8)]);
    assert_eq!(rows[1]["answer"], "text of row 2");
    assert!(!job.output().exists());
}

#[test]
fn plan_names_the_run_that_a_rerun_would_be() {
    let job = Job::echo("", SELECT_ANSWERS);
    job.with_rows("a", 0, 10);
    let key =
        |command: &str, more: &[&str]| job.say(command, more).ok().summary()["run_key"].as_str().map(str::to_owned);
    let (first, again) = (key("plan", &[]), key("plan", &["--rerun", "fix"]));
    assert_ne!(first, again);
    assert_eq!((key("run", &[]), key("run", &["--rerun", "fix"])), (first, again));
}

#[test]
fn models_lists_what_a_job_uses() {
    let job = Job::echo(", dimensions = 12", "SELECT id FROM rows");
    job.with_rows("a", 0, 1);
    let models = job_models(&job);
    assert_eq!(models["models"][0]["architecture"], "echo");
    assert_eq!(models["models"][0]["dimensions"], 12);
}

fn job_models(job: &Job) -> serde_json::Value {
    say(&["models", "list", job.path().to_str().expect("UTF-8"), "--json"]).ok().summary()
}

#[test]
fn doctor_races_the_output() {
    let job = Job::echo("", "SELECT id FROM rows");
    let said = say(&["doctor", job.path().to_str().expect("UTF-8")]).ok();
    assert!(said.stdout.contains("20 races of 64 writers"), "{}", said.stdout);
}
