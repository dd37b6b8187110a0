//! [`Cluster`]: a job whose table and output are on S3, with the servers it needs; and [`Process`]: one process of the
//! product, with what it said. Both end what they started when they are dropped, whatever the test came to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bucket::Bucket;
use super::proxy::Proxy;
use crate::servers::{ACCESS_KEY, LOOK_EVERY, PATIENCE, REGION, Redis, S3Server, SECRET_KEY, Server, end};
use crate::support::{Job, Said, rowmill};

/// The logical date of all jobs here.
pub const DATE: &str = "2026-11-20";
/// Where their outputs are in the bucket; ends in `/`.
pub const OUTPUT: &str = "out/";

/// A process of the product. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
    /// It stands still until then.
    frozen_until: Option<Instant>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ends a frozen process, too.
        end(&mut self.child);
    }
}

impl Process {
    /// Starts a command under a name, with what it says in files of that name in the folder `logs`.
    pub fn start(name: String, mut command: Command, logs: &Path) -> Self {
        let log = |stream| logs.join(format!("{name}.{stream}"));
        let (stdout, stderr) = (log("stdout"), log("stderr"));
        command.stdin(Stdio::null());
        command.stdout(File::create(&stdout).expect("a log")).stderr(File::create(&stderr).expect("a log"));
        let child = command.spawn().expect("the product starts");
        Self { name, child, stdout, stderr, started: Instant::now(), frozen_until: None }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its state")
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// Asks it to end, as supervisors do.
    pub fn terminate(&mut self) {
        self.signal("TERM");
    }

    /// Stops it where it stands.
    pub fn freeze(&mut self, time: Duration) {
        self.signal("STOP");
        self.frozen_until = Some(Instant::now() + time);
    }

    pub fn frozen(&self) -> bool {
        self.frozen_until.is_some()
    }

    /// Lets it go on once its time is over.
    pub fn thaw_if_due(&mut self) {
        if self.frozen_until.is_some_and(|until| Instant::now() >= until) {
            self.thaw();
        }
    }

    /// Lets it go on if it stands still.
    pub fn thaw(&mut self) {
        if self.frozen_until.take().is_some() {
            self.signal("CONT");
        }
    }

    /// A signal; one that comes too late does not matter.
    fn signal(&mut self, signal: &str) {
        if self.ended().is_none() {
            // The shell's own `kill`, which every machine has.
            let command = format!("kill -{signal} {}", self.child.id());
            let sent = Command::new("sh").args(["-c", &command]).status().expect("a shell starts");
            assert!(sent.success() || self.ended().is_some(), "{command}");
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Said {
        let started = Instant::now();
        loop {
            if self.ended().is_some() {
                return self.said();
            }
            if started.elapsed() > PATIENCE {
                let said = self.said();
                panic!("{} still runs after {PATIENCE:?}: {said:?}", self.name);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What it said until now.
    pub fn said(&mut self) -> Said {
        let text = |path| std::fs::read_to_string(path).expect("a readable log");
        let code = self.ended().and_then(|status| status.code());
        Said { code, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }
}

/// A job on S3 with its servers. All processes reach S3 through the proxy.
#[derive(Debug)]
pub struct Cluster {
    pub job: Job,
    pub redis: Redis,
    /// What processes are given for Redis.
    pub redis_url: String,
    pub proxy: Proxy,
    /// What else is in the processes' environment; it wins.
    pub environment: Vec<(&'static str, String)>,
    s3: Box<dyn S3Server>,
    started: AtomicU32,
}

impl Cluster {
    /// A job that echoes the texts of table `rows`: `engine` and `job` are further options. Seeds the faults of S3.
    pub fn new(engine: &str, job: &str, seed: u64) -> Self {
        Self::on(Box::new(Server::s3()), engine, job, seed)
    }

    /// As [`Cluster::new`], on this S3 server.
    pub fn on(s3: Box<dyn S3Server>, engine: &str, job: &str, seed: u64) -> Self {
        let proxy = Proxy::start(s3.address(), seed, s3.writes());
        let redis = Redis::new();
        let job = Job::new(&format!(
            "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 's3://lake/rows/';\n\
             CREATE MODEL echo WITH (engine = 'echo'{engine});\n\
             CREATE JOB copy WITH (output = 's3://lake/{OUTPUT}', logical_date = '{DATE}', key = 'id', model = 'echo'{job}) AS\n\
             SELECT id, ai_complete(text) AS answer FROM rows;\n"
        ));
        for folder in ["tmp", "logs"] {
            std::fs::create_dir(job.folder.path().join(folder)).expect("a folder");
        }
        let (redis_url, environment) = (redis.url(), Vec::new());
        Self { job, redis, redis_url, proxy, environment, s3, started: AtomicU32::new(0) }
    }

    /// With ids `0..count` in the table, and the texts of [`Job::with_rows`].
    pub fn with_rows(self, count: i64) -> Self {
        self.job.with_rows("a", 0, count);
        self.with_table()
    }

    /// With the local file `rows/a.parquet` as the table.
    pub fn with_table(self) -> Self {
        let file = self.job.folder.path().join("rows/a.parquet");
        self.bucket().put("rows/a.parquet", &std::fs::read(file).expect("a table file"));
        self
    }

    /// The bucket with the table and the output, past the proxy.
    pub fn bucket(&self) -> Bucket {
        Bucket::new(self.s3.address(), "lake")
    }

    /// `rowmill resolve`, past the proxy.
    pub fn resolve(&self) -> Command {
        self.command(&["resolve", &self.path(), "--json"], self.s3.address())
    }

    /// `rowmill <args>`, with nothing of this machine's own settings and `endpoint` (`host:port`) for S3.
    fn command(&self, args: &[&str], endpoint: &str) -> Command {
        let mut command = rowmill(args);
        let ours = |name: &str| ["AWS_", "HF_", "ROWMILL_"].iter().any(|prefix| name.starts_with(prefix));
        for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        let home = self.job.folder.path();
        command.env("HOME", home).env("TMPDIR", home.join("tmp")).env("NO_PROXY", "127.0.0.1");
        command.env("AWS_ENDPOINT_URL", format!("http://{endpoint}")).env("AWS_REGION", REGION);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env("ROWMILL_REDIS_URL", &self.redis_url).env("ROWMILL_LOG", "warn");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `rowmill <args>`.
    pub fn start(&self, args: &[&str]) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{} {number}", args.first().unwrap_or(&"rowmill"));
        Process::start(name, self.command(args, &self.proxy.address), &self.job.folder.path().join("logs"))
    }

    /// Starts a scheduler for the job's run, which ends when the run does.
    pub fn submit(&self) -> Process {
        self.start(&["submit", &self.path(), "--wait", "--json"])
    }

    /// Starts an executor whose shards are others' 3 s after it fell silent.
    pub fn executor(&self, more: &[&str]) -> Process {
        self.start(&[&["work", "--redis", &self.redis_url, "--lease", "3"], more].concat())
    }

    /// `rowmill <command> job.sql --json`, to its end, as somebody does whose S3 never fails.
    pub fn say(&self, command: &str) -> Said {
        let mut command = self.command(&[command, &self.path(), "--json"], self.s3.address());
        Said::of(&mut command)
    }

    /// As [`Cluster::say`], in weather.
    pub fn say_through_proxy(&self, command: &str) -> Said {
        let mut command = self.command(&[command, &self.path(), "--json"], &self.proxy.address);
        Said::of(&mut command)
    }

    /// The job file.
    pub fn path(&self) -> String {
        self.job.path().to_str().expect("a UTF-8 path").to_owned()
    }

    /// Keys of the run's objects of one sort (`/part-`, `/_plan.json`, …).
    pub fn keys_with(&self, part: &str) -> Vec<String> {
        let keys = self.bucket().keys(&format!("{OUTPUT}run="));
        keys.into_iter().filter(|key| key.contains(part)).collect()
    }

    /// The last lines of all processes' standard errors, for a failure's report.
    pub fn last_words(&self) -> String {
        let logs = std::fs::read_dir(self.job.folder.path().join("logs")).expect("the logs").flatten();
        let mut words = String::new();
        for log in logs.filter(|log| log.path().extension().is_some_and(|extension| extension == "stderr")) {
            let text = std::fs::read_to_string(log.path()).expect("a readable log");
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(8)..];
            if !last.is_empty() {
                words.push_str(&format!("--- {}\n{}\n", log.file_name().to_string_lossy(), last.join("\n")));
            }
        }
        words
    }
}

/// The run that a summary is of.
pub fn run_key(summary: &Value) -> String {
    summary["run_key"].as_str().unwrap_or_else(|| panic!("no run_key in {summary}")).to_owned()
}
