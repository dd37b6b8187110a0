//! S3 as RadosGW understands it: a second server, so that what we do fits more than moto. It checks every signature, and
//! takes what races without the help of the proxy.

use super::processes::{Cluster, OUTPUT, run_key};
use super::rados_gateway::RadosGateway;
use super::{chaos, check};
use crate::servers::model;
use crate::support::Said;

fn on_rados(engine: &str, job: &str, seed: u64) -> Cluster {
    Cluster::on(Box::new(RadosGateway::new()), engine, job, seed)
}

/// A job of forty shards.
fn cluster(engine: &str) -> Cluster {
    on_rados(engine, ", shard_rows = 25", 0).with_rows(1000)
}

/// Checks that a process failed, with something to put right, and named all of `words`.
fn refused(said: &Said, words: &[&str]) {
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "{word:?} is missing in\n{}", said.stderr);
    }
}

#[test]
fn rados_keeps_the_contract_of_stores() {
    let said = cluster("").say("doctor").ok();
    assert!(said.stdout.contains("20 races of 64 writers: one winner each"), "{}", said.stdout);
}

#[test]
fn a_run_is_published_whole_and_once_with_racing_schedulers() {
    let cluster = cluster(", delay_ms = 2");
    let mut executors = [(); 2].map(|()| cluster.executor(&["--slots", "2"]));
    let mut schedulers = [(); 3].map(|()| cluster.submit());
    let mut summaries = schedulers.each_mut().map(|scheduler| scheduler.wait().ok().summary()).to_vec();
    let facts = check::echoed(&cluster, 1000);
    summaries.extend([cluster.submit().wait().ok().summary(), cluster.say("resolve").ok().summary()]);
    assert!(summaries.iter().all(|summary| run_key(summary) == facts.run_key), "{summaries:?}");
    for executor in &mut executors {
        executor.terminate();
        executor.wait().ok();
    }
}

#[test]
fn a_run_under_all_faults_is_published_whole_and_once_on_rados() {
    chaos::check_round(on_rados);
}

#[test]
fn a_model_is_fetched_from_rados() {
    let cluster = cluster("");
    for entry in std::fs::read_dir(model()).expect("a model").flatten() {
        let name = entry.file_name().into_string().expect("UTF-8");
        cluster.bucket().put(&format!("models/tiny/{name}"), &std::fs::read(entry.path()).expect("a file"));
    }
    let job = format!(
        "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 's3://lake/rows/';\n\
         CREATE MODEL tiny WITH (engine = 'candle', source = 's3://lake/models/tiny/');\n\
         CREATE JOB j WITH (output = 's3://lake/{OUTPUT}', logical_date = 'd', model = 'tiny') AS\n\
         SELECT id, ai_classify(text, ['a', 'b']) AS topic FROM rows WHERE id < 3;\n"
    );
    std::fs::write(cluster.job.path(), job).expect("the job is written");
    assert_eq!(cluster.say("run").ok().summary()["rows"], 3);
}

#[test]
fn a_table_that_changed_after_the_plan_is_named() {
    let cluster = cluster("");
    cluster.start(&["submit", &cluster.path()]).wait().ok();
    // Only the entity tag tells them apart.
    let mut table = cluster.bucket().get("rows/a.parquet").expect("the table");
    table[1000] ^= 1;
    cluster.bucket().put("rows/a.parquet", &table);
    let _executor = cluster.executor(&[]);
    refused(&cluster.submit().wait(), &["s3://lake/rows/a.parquet", "was changed", "hint"]);
    assert!(cluster.bucket().list(&format!("{OUTPUT}_published/")).is_empty());
}

#[test]
fn keys_that_rados_does_not_know_are_refused_with_a_hint() {
    let mut cluster = cluster("");
    cluster.start(&["submit", &cluster.path()]).wait().ok();
    for (name, value, code) in [
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
    ] {
        cluster.environment = vec![(name, value.to_owned())];
        for command in ["doctor", "plan", "run", "resolve", "status"] {
            refused(&cluster.say(command), &["s3://lake/", code, "hint", "AWS_"]);
        }
        refused(&cluster.submit().wait(), &["s3://lake/", code, "hint", "AWS_"]);
        cluster.environment.clear();
    }
    assert_eq!(cluster.bucket().keys(OUTPUT).iter().filter(|key| key.contains("/part-")).count(), 0);
}

#[test]
fn an_executor_with_wrong_keys_costs_a_run_time_and_nothing_else() {
    let mut cluster = cluster(", delay_ms = 2");
    cluster.environment = vec![("AWS_SECRET_ACCESS_KEY", "not-the-secret".into())];
    let mut stranger = cluster.executor(&["--slots", "1"]);
    cluster.environment.clear();
    let _executor = cluster.executor(&["--slots", "2"]);
    cluster.submit().wait().ok();
    check::echoed(&cluster, 1000);
    let said = stranger.said().stderr;
    assert!(said.contains("SignatureDoesNotMatch"), "it took no part, or does not say why it failed:\n{said}");
}
