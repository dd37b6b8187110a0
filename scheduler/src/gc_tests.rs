//! Staged results: which of them go, and that none goes which a plan is about to name.

use std::path::Path;
use std::time::SystemTime;

use rowmill_jobs::Kind;
use rowmill_jobs::infer::Usage;
use rowmill_jobs::plan::{InputFile, PLAN_VERSION, Plan, TableInput};
use rowmill_jobs::publish::Manifest;
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::store::create_json;
use rowmill_jobs::store::erase::open_eraser;
use rowmill_jobs::store::local::LocalStore;
use tempfile::TempDir;

use super::*;
use crate::finalize::publish_if_complete;
use crate::finish::published_before;
use crate::planning::keep_staged;

const RUN: &str = "k";
const DAY: Duration = Duration::from_secs(24 * 3_600);
const KEEP: Retention = Retention { abandoned_after: Duration::from_secs(10 * 24 * 3_600), grace: DAY };

/// An output in a folder.
struct Output {
    folder: TempDir,
    store: LocalStore,
}

impl Output {
    /// One with these attempts at staging, of two files each.
    async fn staged(attempts: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = Self { store: LocalStore::new(folder.path().into()), folder };
        for attempt in attempts {
            output.put(&layout::staged(RUN, attempt, 0)).await;
            output.put(&layout::staged(RUN, attempt, 1)).await;
        }
        output
    }

    async fn put(&self, name: &str) {
        create(&self.store, name, &Payload::Bytes("x".into())).await.unwrap();
    }

    /// Makes all that is there so many days old.
    fn age(&self, days: u32) {
        fn walk(folder: &Path, modified: SystemTime) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, modified),
                    false => std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap(),
                }
            }
        }
        walk(self.folder.path(), SystemTime::now() - DAY * days);
    }

    async fn collect(&self) -> usize {
        let eraser = open_eraser(self.store.url()).unwrap();
        collect(&self.store, eraser.as_ref(), KEEP).await.unwrap().objects
    }

    /// Attempts that have files.
    async fn left(&self) -> Vec<String> {
        let names = self.store.list(&layout::staged_of_run(RUN)).await.unwrap();
        let files = names.iter().filter(|object| object.name.ends_with(".parquet"));
        let mut attempts: Vec<_> =
            files.map(|file| layout::attempt_of_staged(RUN, &file.name).unwrap().to_owned()).collect();
        attempts.dedup();
        attempts
    }

    /// Stores a plan that names this attempt.
    async fn plan(&self, attempt: &str) {
        let file = InputFile {
            url: format!("{}{}", self.store.url(), layout::staged(RUN, attempt, 0)),
            bytes: 1,
            etag: None,
            modified: String::new(),
            partition_values: Vec::new(),
            row_groups: Vec::new(),
        };
        let schema = serde_json::Value::Null;
        let plan = Plan {
            version: PLAN_VERSION,
            rowmill: String::new(),
            run_key: RUN.into(),
            job: job(),
            inputs: Vec::new(),
            staged: Some(TableInput { table: "staged".into(), schema: schema.clone(), files: vec![file] }),
            models: Vec::new(),
            output_schema: schema,
            shards: Vec::new(),
            deadline_ms: None,
            policy_hash: None,
        };
        create_json(&self.store, &layout::plan(RUN), &plan).await.unwrap();
    }
}

fn job() -> JobSpec {
    JobSpec {
        name: "j".into(),
        file: String::new(),
        tables: Vec::new(),
        models: Vec::new(),
        query: "SELECT".into(),
        query_start: (1, 1),
        output: String::new(),
        logical_date: "2026-11-20".into(),
        key: Vec::new(),
        model: None,
        shard_rows: None,
        max_error_ratio: 0.0,
        never_send: Vec::new(),
        data_class: None,
        spill: None,
        deadline: None,
        nano_usd_max: None,
        pool: "default".into(),
        params: BTreeMap::new(),
    }
}

#[tokio::test]
async fn what_no_plan_came_to_name_goes_and_its_planner_is_told() {
    let output = Output::staged(&["a", "b"]).await;
    output.age(9);
    assert_eq!((output.collect().await, output.left().await.len()), (0, 2));
    output.age(11);
    output.put(&layout::staged(RUN, "b", 2)).await;
    assert_eq!((output.collect().await, output.left().await), (2, vec!["b".to_owned()]));
    let late = keep_staged(&output.store, RUN, "a").await.unwrap_err();
    assert!(late.retryable(), "{}", late.report());
    // It finds out however late it comes, and what it added meanwhile goes too.
    output.put(&layout::staged(RUN, "a", 2)).await;
    output.age(11);
    output.collect().await;
    assert!(output.left().await.is_empty());
    assert!(keep_staged(&output.store, RUN, "a").await.is_err());
    assert_eq!(output.collect().await, 0);
}

#[tokio::test]
async fn what_a_plan_is_about_to_name_stays() {
    let output = Output::staged(&["a"]).await;
    output.age(11);
    keep_staged(&output.store, RUN, "a").await.unwrap();
    assert_eq!((output.collect().await, output.left().await.len()), (0, 1));
    output.plan("a").await;
    output.collect().await;
    assert_eq!(output.left().await, ["a"]);
}

#[tokio::test]
async fn what_was_kept_for_a_plan_that_never_came_goes_with_its_run() {
    let output = Output::staged(&["a"]).await;
    keep_staged(&output.store, RUN, "a").await.unwrap();
    output.age(9);
    assert_eq!((output.collect().await, output.left().await.len()), (0, 1));
    assert!(published_before(&output.store, RUN, 0.0).await.unwrap().is_none());
    output.age(11);
    assert_eq!((output.collect().await, output.left().await.len()), (0, 1), "its grace begins");
    let again = published_before(&output.store, RUN, 0.0).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Cancelled, "{}", again.report());
    // Its planner wakes up: what it stores now is never published, whether the files are still there or not.
    keep_staged(&output.store, RUN, "a").await.unwrap();
    output.plan("a").await;
    output.age(2);
    output.collect().await;
    assert!(output.left().await.is_empty());
    let plan = record::plan(&output.store, RUN).await.unwrap().unwrap();
    let late = publish_if_complete(&output.store, &plan, 0.0).await.unwrap_err();
    assert_eq!(late.kind(), Kind::Cancelled, "{}", late.report());
}

#[tokio::test]
async fn collections_leave_nothing_of_their_own() {
    let output = Output::staged(&[]).await;
    // One died in between, another is at work.
    output.put("_gc/left").await;
    output.age(1);
    output.put("_gc/under-way").await;
    assert_eq!(output.collect().await, 0);
    let left: Vec<String> = output.store.list("_gc/").await.unwrap().into_iter().map(|object| object.name).collect();
    assert_eq!(left, ["_gc/under-way"]);
}

#[tokio::test]
async fn of_two_that_decide_at_once_one_is_heard() {
    for round in 0..50 {
        let output = Output::staged(&[]).await;
        let attempt = format!("a{round}");
        let decide = |fate| record::decide_staging(&output.store, RUN, &attempt, fate);
        let (kept, gone) = tokio::join!(decide(StagingFate::Kept), decide(StagingFate::Gone));
        assert_eq!(kept.unwrap(), gone.unwrap());
    }
}

#[tokio::test]
async fn beside_a_plan_only_what_it_names_stays_and_after_the_run_nothing() {
    let output = Output::staged(&["a", "b", "c"]).await;
    keep_staged(&output.store, RUN, "b").await.unwrap();
    output.plan("b").await;
    output.age(2);
    output.put(&layout::staged(RUN, "c", 2)).await;
    assert_eq!((output.collect().await, output.left().await), (2, vec!["b".to_owned(), "c".to_owned()]));
    output.age(2);
    output.collect().await;
    assert_eq!(output.left().await, ["b"]);
    let manifest = Manifest {
        run_key: RUN.into(),
        job: "j".into(),
        logical_date: "2026-11-20".into(),
        rows: 0,
        errors: 0,
        usage: Usage::default(),
        parts: Vec::new(),
    };
    create_json(&output.store, &layout::outcome(RUN), &RunOutcome::Success { manifest }).await.unwrap();
    output.put(&layout::part(RUN, 0)).await;
    assert_eq!(output.collect().await, 0, "its grace is not over");
    output.age(2);
    output.collect().await;
    assert!(output.left().await.is_empty());
    assert!(output.store.head(&layout::part(RUN, 0)).await.unwrap().is_some());
}
