//! Triggers that fire ten times, executors that are asked to go, Redis and S3 that go away: one run, every row once, and
//! exit codes that a scheduler of jobs can act on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::check;
use super::processes::{Cluster, OUTPUT, Process, run_key};
use super::proxy::{Fault, Weather};
use super::queue::depth;
use crate::servers::wait_until;

/// Four shards of 2 s.
const FOUR_LONG: (&str, &str, i64) = (", delay_ms = 100", ", shard_rows = 20", 80);
/// Forty shards of 0.2 s, ten a row group.
const FORTY_SHORT: (&str, &str, i64) = (", delay_ms = 8", ", shard_rows = 25", 1000);
/// How long it takes to replace a Redis.
const REPLACING: Duration = Duration::from_secs(3);
/// How long S3 hangs: longer than a scheduler goes without asking it.
const HANG: Duration = Duration::from_secs(15);
/// A run whose rest takes seconds is over by then, with all pauses between tries.
const RECOVERY_MAX: Duration = Duration::from_secs(40);
/// Triggers at once.
const TRIGGERS: usize = 10;

fn cluster((engine, job, rows): (&str, &str, i64)) -> Cluster {
    Cluster::new(engine, job, 0).with_rows(rows)
}

fn parts(cluster: &Cluster) -> usize {
    cluster.keys_with("/part-").len()
}

/// Waits until this many parts exist; a process that ends before is the failure.
fn wait_for_parts(cluster: &Cluster, count: usize, processes: &mut [&mut Process]) {
    wait_until(&format!("{count} parts"), || {
        for process in &mut *processes {
            assert!(process.ended().is_none(), "it ended too early: {:?}", process.said());
        }
        parts(cluster) >= count
    });
}

#[test]
fn ten_triggers_at_once_are_one_run_and_all_exit_0() {
    let cluster = cluster(FORTY_SHORT);
    let executors = [(); 2].map(|()| cluster.executor(&[]));
    let mut schedulers = [(); TRIGGERS].map(|()| cluster.submit());
    let summaries: Vec<_> = schedulers.iter_mut().map(|scheduler| scheduler.wait().ok().summary()).collect();
    let keys: BTreeSet<String> = summaries.iter().map(run_key).collect();
    let facts = check::echoed(&cluster, 1000);
    assert_eq!(keys, BTreeSet::from([facts.run_key]));
    for summary in &summaries {
        let told = (summary["status"].as_str(), summary["rows"].as_u64(), summary["errors"].as_u64());
        assert_eq!(told, (Some("published"), Some(1000), Some(0)), "{summary}");
    }
    // The trigger that comes a day late finds everything done.
    drop(executors);
    assert_eq!(run_key(&cluster.submit().wait().ok().summary()), run_key(&summaries[0]));
    check::echoed(&cluster, 1000);
}

#[test]
fn a_submitted_run_is_finished_by_the_service() {
    let cluster = cluster(FORTY_SHORT);
    let job = cluster.path();
    let submitted = cluster.start(&["submit", &job, "--json"]).wait().ok().summary();
    assert_eq!(submitted["status"], "submitted");
    let mut executor = cluster.executor(&[]);
    let mut service = cluster.start(&["serve"]);
    wait_until("the publication", || {
        assert!(service.ended().is_none(), "the service ended: {:?}", service.said());
        !cluster.bucket().list(&format!("{OUTPUT}_published/")).is_empty()
    });
    for process in [&mut service, &mut executor] {
        process.terminate();
        process.wait().ok();
    }
    assert_eq!(check::echoed(&cluster, 1000).run_key, run_key(&submitted));
}

#[test]
fn a_service_finds_the_open_runs_of_an_output_that_redis_forgot() {
    let cluster = cluster(FORTY_SHORT);
    let job = cluster.path();
    cluster.start(&["submit", &job, "--json"]).wait().ok();
    cluster.redis.restart();
    let _executor = cluster.executor(&[]);
    let mut service = cluster.start(&["serve", &format!("s3://lake/{OUTPUT}")]);
    wait_until("the publication", || {
        assert!(service.ended().is_none(), "the service ended: {:?}", service.said());
        !cluster.bucket().list(&format!("{OUTPUT}_published/")).is_empty()
    });
    service.terminate();
    service.wait().ok();
    check::echoed(&cluster, 1000);
}

#[test]
fn redis_lost_for_good_and_replaced_by_an_empty_one_stops_nobody() {
    let cluster = cluster(FORTY_SHORT);
    let mut executors = [(); 2].map(|()| cluster.executor(&[]));
    let mut scheduler = cluster.submit();
    let [first, second] = &mut executors;
    wait_for_parts(&cluster, 8, &mut [&mut scheduler, first, second]);
    cluster.redis.stop();
    // Away for as long as it takes to replace it; meanwhile shards in work are finished.
    std::thread::sleep(REPLACING);
    cluster.redis.start();
    assert!(parts(&cluster) < 40, "the run was over before Redis was lost");
    scheduler.wait().ok();
    check::echoed(&cluster, 1000);
    // The same processes: nobody had to start them again.
    for mut executor in executors {
        assert!(executor.ended().is_none(), "{:?}", executor.said());
        executor.terminate();
        executor.wait().ok();
    }
}

#[test]
fn an_executor_that_is_asked_to_go_finishes_its_shard() {
    let cluster = cluster(FOUR_LONG);
    let mut first = cluster.executor(&["--slots", "1"]);
    let mut scheduler = cluster.submit();
    wait_until("an attempt", || {
        assert!(scheduler.ended().is_none(), "{:?}", scheduler.said());
        !cluster.keys_with("/_attempts/").is_empty()
    });
    first.terminate();
    first.wait().ok();
    let (done, begun) = (parts(&cluster), cluster.keys_with("/_attempts/").len());
    assert!(done > 0 && done == begun, "{begun} attempts were begun, {done} parts exist");
    assert!(done < 4, "it did not go");
    let _second = cluster.executor(&["--slots", "1"]);
    scheduler.wait().ok();
    let facts = check::echoed(&cluster, 80);
    assert_eq!((facts.parts, facts.attempts), (4, 4), "a shard was computed twice");
}

#[test]
fn an_executor_gives_up_with_75_when_redis_stays_away() {
    let cluster = cluster(FOUR_LONG);
    let mut executor = cluster.executor(&["--patience", "3"]);
    wait_until("the executor's connection", || {
        assert!(executor.ended().is_none(), "{:?}", executor.said());
        // The other one is the question's own.
        cluster.redis.command(&["CLIENT", "LIST"]).lines().count() > 1
    });
    cluster.redis.stop();
    for mut executor in [executor, cluster.executor(&["--patience", "3"])] {
        let said = executor.wait();
        assert_eq!(said.code, Some(75), "{said:?}");
        assert!(said.stderr.contains("Redis") && said.stderr.contains("hint"), "{said:?}");
    }
}

#[test]
fn an_executor_gives_up_with_75_when_s3_stays_away_and_the_run_goes_on_later() {
    let cluster = cluster(FOUR_LONG);
    let mut executor = cluster.executor(&["--patience", "3"]);
    let mut scheduler = cluster.submit();
    wait_for_parts(&cluster, 1, &mut [&mut scheduler, &mut executor]);
    cluster.proxy.set(Weather::Down);
    let down = Instant::now();
    let said = executor.wait();
    println!("the executor gave up {:?} after S3 went", down.elapsed());
    assert_eq!(said.code, Some(75), "{said:?}");
    assert!(said.stderr.contains("s3://lake/") && said.stderr.contains("hint"), "{said:?}");
    assert!(scheduler.ended().is_none(), "a scheduler has more patience: {:?}", scheduler.said());
    cluster.proxy.set(Weather::Fair);
    let (_second, back) = (cluster.executor(&[]), Instant::now());
    scheduler.wait().ok();
    println!("the run was published {:?} after S3 came back", back.elapsed());
    check::echoed(&cluster, 80);
}

#[test]
fn an_executor_whose_keys_are_refused_ends_with_what_to_do() {
    let cluster = cluster(FORTY_SHORT);
    let mut scheduler = cluster.submit();
    wait_until("shards", || depth(&cluster.redis).waiting > 0);
    cluster.proxy.set(Weather::Foul { shares: &[("*", 1_000)], faults: &[Fault::Denied], silence: Duration::ZERO });
    assert_eq!(scheduler.wait().code, Some(1));
    let said = cluster.executor(&[]).wait();
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in ["the store refuses this executor", "hint: check the AWS_* variables", "start it again"] {
        assert!(said.stderr.contains(word), "{word}: {}", said.stderr);
    }
    cluster.proxy.set(Weather::Fair);
    let _executor = cluster.executor(&[]);
    cluster.submit().wait().ok();
    check::echoed(&cluster, 1000);
}

#[test]
fn s3_that_hangs_for_a_while_delays_a_run_for_about_that_while() {
    let cluster = cluster(FORTY_SHORT);
    let _executors = [(); 2].map(|()| cluster.executor(&[]));
    let mut scheduler = cluster.submit();
    wait_for_parts(&cluster, 8, &mut [&mut scheduler]);
    cluster.proxy.set(Weather::Foul {
        shares: &[("*", 1_000)],
        faults: &[Fault::SilenceBefore],
        silence: Duration::from_secs(5),
    });
    std::thread::sleep(HANG);
    assert!(parts(&cluster) < 40, "the run was over before S3 hung");
    cluster.proxy.set(Weather::Fair);
    let back = Instant::now();
    let said = scheduler.wait().ok();
    assert!(back.elapsed() < RECOVERY_MAX, "published only {:?} after S3 came back\n{}", back.elapsed(), said.stderr);
    check::echoed(&cluster, 1000);
}
