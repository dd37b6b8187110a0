//! Cancelling a run while it is being published: exactly one of them happens, and everybody is told the same. Tried at the
//! level of the library, where both can be brought together within microseconds, and of processes, where exit codes are.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rowmill_jobs::publish::RunOutcome;
use rowmill_jobs::queue::Depth;
use rowmill_jobs::store::Store;
use rowmill_jobs::{Kind, record, store};
use rowmill_scheduler::{cancel, publish_if_complete, resolve};

use super::processes::{Cluster, DATE, run_key};
use super::queue::depth;
use crate::servers::wait_until;
use crate::support::{Job, Said, rowmill};

/// Races between calls of the library.
const CALLS: u32 = 200;
/// Races between processes.
const PROCESSES: u32 = 25;
const SELECT: &str = "SELECT id, ai_complete(text) AS answer FROM rows";

/// How long the canceller waits so that it comes neither too early nor too late: longer after it won, shorter after it
/// lost, so that most races are close.
struct Handicap {
    wait: Duration,
    step: Duration,
    won: u32,
    lost: u32,
}

impl Handicap {
    fn new(step: Duration) -> Self {
        Self { wait: Duration::ZERO, step, won: 0, lost: 0 }
    }

    fn learn(&mut self, cancelled: bool) {
        if cancelled {
            self.won += 1;
            self.wait += self.step;
        } else {
            self.lost += 1;
            self.wait = self.wait.saturating_sub(self.step);
        }
    }

    /// Both must have won now and then, or nothing raced.
    fn check(&self) {
        println!("cancelled {}, published {}; the last handicap was {:?}", self.won, self.lost, self.wait);
        assert!(self.won * 10 >= self.won + self.lost && self.lost * 10 >= self.won + self.lost, "nothing raced");
    }
}

/// Runs an async call on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn open(output: &Path) -> Arc<dyn Store> {
    store::open(&store::folder_url(output)).expect("a store")
}

/// Copies what a run has before it is published.
fn unpublished(published: &Path, to: &Path) {
    for entry in std::fs::read_dir(published).expect("a folder").flatten() {
        let (name, target) = (entry.file_name(), to.join(entry.file_name()));
        let name = name.to_string_lossy();
        if entry.path().is_dir() && name != "_published" {
            std::fs::create_dir_all(&target).expect("a folder");
            unpublished(&entry.path(), &target);
        } else if name == "_plan.json" || name.starts_with("part-") || published.parent().is_some_and(is_claims) {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

fn is_claims(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name == "_claims")
}

#[test]
fn two_hundred_cancels_race_publishing_and_each_time_one_wins() {
    let job = Job::echo("", SELECT);
    job.with_rows("a", 0, 10);
    let key = run_key(&job.say("run", &[]).ok().summary());
    let mut handicap = Handicap::new(Duration::from_micros(20));
    for race in 0..CALLS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        unpublished(&job.output(), folder.path());
        let plan = block_on(record::plan(open(folder.path()).as_ref(), &key)).expect("a store").expect("a plan");
        let start = Barrier::new(2);
        let (published, cancelled) = std::thread::scope(|scope| {
            let publishing = scope.spawn(|| {
                let store = open(folder.path());
                start.wait();
                block_on(publish_if_complete(store.as_ref(), &plan, 0.0))
            });
            let store = open(folder.path());
            start.wait();
            let started = Instant::now();
            while started.elapsed() < handicap.wait {
                std::hint::spin_loop();
            }
            let cancelled = block_on(cancel(store.as_ref(), &key, "the test", "to see who wins")).expect("an outcome");
            (publishing.join().expect("no panic"), cancelled)
        });
        let stored = block_on(record::outcome(open(folder.path()).as_ref(), &key)).expect("a store");
        let stored = stored.expect("an outcome");
        assert_eq!(cancelled, stored, "race {race}: the canceller was told otherwise");
        let visible = block_on(resolve(open(folder.path()).as_ref(), Some(DATE))).expect("a store");
        match (&stored, &published) {
            (RunOutcome::Success { manifest }, Ok(told)) => {
                assert_eq!(told, manifest, "race {race}");
                assert_eq!(visible.map(|visible| visible.manifest).as_ref(), Some(manifest), "race {race}");
            }
            (RunOutcome::Cancelled { .. }, Err(error)) => {
                assert_eq!(error.kind(), Kind::Cancelled, "race {race}: {error}");
                assert_eq!(visible, None, "race {race}: a cancelled run is visible");
            }
            _ => panic!("race {race}: the store has {stored:?}, the publisher was told {published:?}"),
        }
        handicap.learn(published.is_err());
    }
    handicap.check();
}

#[test]
fn cancel_and_run_tell_the_same_story() {
    let mut handicap = Handicap::new(Duration::from_millis(25));
    for race in 0..PROCESSES {
        // One shard of 200 ms: about as long as a process takes to start.
        let job = Job::echo(", delay_ms = 20", SELECT);
        job.with_rows("a", 0, 10);
        let path = job.path();
        let mut running = rowmill(&["run", path.to_str().expect("UTF-8"), "--json"]);
        let running = running.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the product starts");
        wait_until("a plan", || {
            let runs = std::fs::read_dir(job.output()).into_iter().flatten().flatten();
            runs.into_iter().any(|run| run.path().join("_plan.json").exists())
        });
        std::thread::sleep(handicap.wait);
        let cancel = job.say("cancel", &[]);
        let run = Said::at_end(running);
        let visible = job.say("resolve", &[]).code;
        let told = (cancel.code, run.code, visible);
        let cancelled = match told {
            (Some(0), Some(1), Some(1)) => true,
            (Some(1), Some(0), Some(0)) => false,
            _ => panic!("race {race}: exit codes {told:?}\n{cancel:?}\n{run:?}"),
        };
        let status = job.say("status", &[]).ok().summary();
        let expected = if cancelled { "cancelled" } else { "published" };
        for summary in [status, run.summary()] {
            assert_eq!(summary["status"], expected, "race {race}: {summary}");
        }
        assert_eq!(cancel.summary()["status"] == "cancelled", cancelled, "race {race}: {cancel:?}");
        // Asked again, everybody says it again.
        assert_eq!((job.say("cancel", &[]).code, job.say("run", &[]).code), (cancel.code, run.code), "race {race}");
        handicap.learn(cancelled);
    }
    handicap.check();
}

#[test]
fn a_cancelled_run_stops_on_all_machines_and_is_never_visible() {
    let cluster = Cluster::new(", delay_ms = 50", ", shard_rows = 20", 0).with_rows(800);
    let mut executor = cluster.executor(&[]);
    let mut scheduler = cluster.submit();
    wait_until("a part", || {
        assert!(scheduler.ended().is_none(), "{:?}", scheduler.said());
        !cluster.keys_with("/part-").is_empty()
    });
    assert_eq!(cluster.say("cancel").ok().summary()["status"], "cancelled");
    let said = scheduler.wait();
    assert_eq!((said.code, said.summary()["status"].as_str()), (Some(1), Some("cancelled")), "{said:?}");
    // The executor empties the queue without computing what is left of 40 shards of a second each, and goes on waiting.
    wait_until("an empty queue", || depth(&cluster.redis) == Depth::default());
    assert!(executor.ended().is_none(), "{:?}", executor.said());
    let parts = cluster.keys_with("/part-").len();
    assert!(parts < 40, "the executor computed a cancelled run");
    // Whoever triggers it again is told so; nothing is computed, nothing is shown.
    assert_eq!(cluster.submit().wait().summary()["status"], "cancelled");
    assert_eq!(cluster.keys_with("/part-").len(), parts);
    assert!(cluster.bucket().list("out/_published/").is_empty());
    assert_eq!(cluster.say("resolve").code, Some(1));
}
