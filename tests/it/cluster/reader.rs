//! [`Reader`]: somebody who looks at the output all the time while the run is made, past the proxy. It finds the published
//! run as the protocol says (the highest publication, its outcome, the parts of its manifest) and, now and then, as a user
//! does (`rowmill resolve`). Nothing may be visible that is not whole, and what was visible once may never change.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::bucket::{Bucket, Object};
use super::check::{manifest, manifest_is_listing};
use super::processes::{Cluster, DATE, OUTPUT, run_key};
use crate::servers::wait_until;
use crate::support::Said;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);
/// Between two calls of the product, which take a processor of this machine for a while.
const RESOLVE_EVERY: Duration = Duration::from_secs(2);

/// What a reader sees of a published run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    publications: Vec<Object>,
    run_key: String,
    outcome: Vec<u8>,
    parts: Vec<Object>,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looks {
    pub before: u64,
    pub after: u64,
    pub resolved: u64,
}

/// Looks until it is told to stop, or something is wrong.
#[derive(Debug)]
pub struct Reader {
    stop: Arc<AtomicBool>,
    looking: Option<JoinHandle<Result<Looks, String>>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(looking) = self.looking.take() {
            let _ = looking.join();
        }
    }
}

impl Reader {
    /// A reader of `bucket`; `resolve` asks the product.
    pub fn start(bucket: Bucket, resolve: Command) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let looking = std::thread::spawn(move || look(&bucket, resolve, &stopped));
        Self { stop, looking: Some(looking) }
    }

    /// Whether it stopped by itself: something is wrong, and [`Reader::finish`] tells what.
    pub fn found_something(&self) -> bool {
        self.looking.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Stops it. What it saw that must not be is the error.
    pub fn finish(mut self) -> Result<Looks, String> {
        self.stop.store(true, Ordering::SeqCst);
        let looking = self.looking.take().ok_or("it looks no more")?;
        looking.join().map_err(|_| "the reader itself failed, see above".to_owned())?
    }
}

fn look(bucket: &Bucket, mut resolve: Command, stop: &AtomicBool) -> Result<Looks, String> {
    let (mut looks, mut first, mut resolved_at) = (Looks::default(), None::<Seen>, None::<Instant>);
    loop {
        // Read before the last look, so that there is one look after everything is over.
        let last = stop.load(Ordering::SeqCst);
        let seen = published(bucket)?;
        match (&first, &seen) {
            (None, None) => looks.before += 1,
            (None, Some(_)) => {
                looks.after += 1;
                first.clone_from(&seen);
            }
            (Some(_), None) => return Err("what was published is gone".to_owned()),
            (Some(old), Some(new)) if old != new => {
                return Err(format!("what was published changed:\n{old:?}\n{new:?}"));
            }
            (Some(_), Some(_)) => looks.after += 1,
        }
        if last || resolved_at.is_none_or(|at| at.elapsed() >= RESOLVE_EVERY) {
            check_resolve(&mut resolve, bucket, first.as_ref())?;
            looks.resolved += 1;
            resolved_at = Some(Instant::now());
        }
        if last {
            return Ok(looks);
        }
        std::thread::sleep(EVERY);
    }
}

/// The run that readers see. What they see must be whole.
fn published(bucket: &Bucket) -> Result<Option<Seen>, String> {
    let publications = bucket.list(&format!("{OUTPUT}_published/{DATE}/"));
    let Some(highest) = publications.last() else { return Ok(None) };
    let record = bucket.json(&highest.key).ok_or("a publication was listed and cannot be read")?;
    let run_key = record["run_key"].as_str().ok_or("a publication without run_key")?.to_owned();
    let outcome = bucket.get(&format!("{OUTPUT}run={run_key}/_outcome.json"));
    let outcome = outcome.ok_or("published, but the run has no outcome")?;
    let parts = bucket.list(&format!("{OUTPUT}run={run_key}/part-"));
    manifest_is_listing(&manifest(bucket, &run_key)?, &parts.iter().collect::<Vec<_>>())
        .map_err(|violation| format!("published, but not whole: {violation}"))?;
    Ok(Some(Seen { publications, run_key, outcome, parts }))
}

/// `rowmill resolve` must say what was seen before it began, and nothing that cannot be seen after it ended.
fn check_resolve(resolve: &mut Command, bucket: &Bucket, before: Option<&Seen>) -> Result<(), String> {
    let said = Said::of(resolve);
    match (said.code, before) {
        (Some(0), _) => {
            let summary = said.summary();
            let now = published(bucket)?.ok_or_else(|| format!("resolve found what nobody published: {summary}"))?;
            let told = (summary["run_key"].as_str(), summary["parts"].as_u64());
            if told == (Some(now.run_key.as_str()), Some(now.parts.len() as u64)) {
                Ok(())
            } else {
                Err(format!("resolve says {summary}, published is {}", now.run_key))
            }
        }
        (Some(1), None) if said.stderr.contains("is not published") => Ok(()),
        _ => Err(format!("resolve: {said:?}; published before: {}", before.is_some())),
    }
}

#[test]
fn the_reader_notices_what_must_not_be() {
    let cluster = Cluster::new("", ", shard_rows = 20", 0).with_rows(60);
    let _executor = cluster.executor(&[]);
    let summary = cluster.submit().wait().ok().summary();
    let bucket = cluster.bucket();
    let looks = Reader::start(bucket.clone(), cluster.resolve()).finish().expect("all is well");
    assert_eq!((looks.before, looks.resolved > 0), (0, true));
    let reader = Reader::start(bucket.clone(), cluster.resolve());
    bucket.put(&format!("{OUTPUT}run={}/part-00009.parquet", run_key(&summary)), b"of a zombie");
    wait_until("the reader's finding", || reader.found_something());
    assert!(reader.finish().expect_err("a part too many").contains("part-00009"));
}
