//! [`Fleet`]: a job whose model is elsewhere, computed by several processes over a Redis: schedulers and executors, which
//! write down all they do. All of them end when it is dropped. No test stands here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rowmill_jobs::queue::Depth;

use super::elsewhere::Elsewhere;
use crate::cluster::processes::Process;
use crate::cluster::queue::depth;
use crate::servers::{Redis, text, wait_until};

/// A job, and what its processes share.
pub struct Fleet {
    pub away: Elsewhere,
    pub redis: Redis,
    started: AtomicU32,
}

impl Fleet {
    /// Of a job with its configuration.
    pub fn new(away: Elsewhere) -> Self {
        let fleet = Self {
            away,
            // What it saves can be searched.
            redis: Redis::with("redis", |port| vec![format!("port {port}"), "rdbcompression no".to_owned()]),
            started: AtomicU32::new(0),
        };
        std::fs::create_dir(fleet.logs()).expect("a folder");
        fleet
    }

    /// Where all processes' words are.
    pub fn logs(&self) -> PathBuf {
        self.away.job.folder.path().join("logs")
    }

    /// A scheduler that waits for the end of the job's run.
    pub fn submit(&self) -> Process {
        self.submit_job(&self.away)
    }

    /// As [`Fleet::submit`], of another job.
    pub fn submit_job(&self, away: &Elsewhere) -> Process {
        let job = away.job.path();
        self.start(&["submit", text(&job), "--wait", "--json", "--redis", &self.redis.url()])
    }

    /// An executor, whose shards are others' 3 s after it fell silent.
    pub fn executor(&self) -> Process {
        self.start(&["work", "--redis", &self.redis.url(), "--lease", "3", "--json"])
    }

    /// Several of them.
    pub fn executors(&self, count: usize) -> Vec<Process> {
        (0..count).map(|_| self.executor()).collect()
    }

    fn start(&self, args: &[&str]) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let mut command = self.away.command(args);
        command.env("ROWMILL_LOG", "debug");
        Process::start(format!("{} {number}", args[0]), command, &self.logs())
    }

    /// Waits until executors have done with all that was queued.
    pub fn wait_for_the_queue(&self) {
        wait_until("nothing is queued", || depth(&self.redis) == Depth::default());
    }

    /// Ends executors as supervisors do: they finish what they have in hand.
    pub fn drain(&self, mut executors: Vec<Process>) {
        executors.iter_mut().for_each(Process::terminate);
        for executor in &mut executors {
            executor.wait().ok();
        }
    }
}
