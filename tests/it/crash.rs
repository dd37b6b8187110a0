//! `kill -9` at random moments: the same command then goes on, publishes the same rows, and computes no part again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use crate::random::Random;
use crate::support::{Job, integers, read_table, rowmill};

/// Kills in all.
const KILLS: u32 = 20;

/// Names and contents' identity (inode, modification time) of the parts that exist.
fn parts(job: &Job) -> BTreeMap<PathBuf, (u64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: PathBuf| {
        let metadata = path.metadata().expect("a part's metadata");
        (path, (metadata.ino(), metadata.mtime_nsec()))
    };
    job.parts().into_iter().map(identity).collect()
}

#[test]
fn killed_at_twenty_random_moments_a_run_loses_and_repeats_nothing() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").subsec_nanos();
    let mut random = Random::new(seed.into());
    println!("seed {seed}");
    // 80 shards of 100 ms, two at a time; each process lives for up to 300 ms.
    let job = Job::echo(", delay_ms = 1", "SELECT id, ai_complete(text) AS answer FROM rows");
    job.with_rows("a", 0, 8000);
    let path = job.path();
    let mut seen: BTreeMap<PathBuf, (u64, i64)> = BTreeMap::new();
    for kill in 0..KILLS {
        let mut process = rowmill(&["run", path.to_str().expect("UTF-8"), "--json"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the product starts");
        std::thread::sleep(random.millis(0, 300));
        process.kill().expect("it can be killed");
        process.wait().expect("it ended");
        let now = parts(&job);
        for (part, identity) in &seen {
            assert_eq!(now.get(part), Some(identity), "seed {seed}, kill {kill}: {} changed", part.display());
        }
        assert!(!job.output().join("_published").exists(), "seed {seed}, kill {kill}: something was published");
        seen = now;
    }
    let started = Instant::now();
    let summary = job.say("run", &[]).ok().summary();
    let after = parts(&job);
    for (part, identity) in &seen {
        assert_eq!(after.get(part), Some(identity), "seed {seed}: {} was computed again", part.display());
    }
    let before = seen.len() as u64;
    assert!(before > 0, "seed {seed}: no process lived long enough to finish a shard");
    assert_eq!(summary["reused"].as_u64(), Some(before), "seed {seed}");
    assert_eq!(summary["computed"].as_u64(), summary["parts"].as_u64().map(|parts| parts - before), "seed {seed}");
    let rows = read_table(Path::new(summary["published"].as_str().expect("a folder")));
    assert_eq!(integers(&rows, "id"), (0..8000).collect::<Vec<i64>>(), "seed {seed}");
    println!("{before} parts survived the kills; the rest took {:?}", started.elapsed());
}
