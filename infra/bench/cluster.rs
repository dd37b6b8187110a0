//! What many processes cost: shards as jobs on Redis, one executor against four (the engine sleeps, so cores do not count),
//! CPU time per shard beyond the engine, and Redis' memory over many shards. Run with `cargo bench --bench cluster`; needs
//! `redis-server`; prints Markdown. Outputs are local folders, so that no S3 server shares the cores.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;

/// Clock ticks of `/proc/<pid>/stat` in a second, on every Linux of today.
const TICKS: f64 = 100.0;

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// CPU seconds until now, of the process and of those it waited for.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11..15].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS
    }
}

/// A Redis on a free port, which keeps nothing.
struct Redis {
    _process: Running,
    port: u16,
}

impl Redis {
    fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
        let process = Running(command.stdout(Stdio::null()).spawn().unwrap());
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { _process: process, port }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// Bytes that a Redis uses.
fn used_memory(port: u16) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"INFO memory\r\nQUIT\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}

fn rowmill(args: &[&str], redis: &Redis) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowmill"));
    command.args(args).env("ROWMILL_REDIS_URL", redis.url()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Writes a table of `rows` rows and a job that makes a shard of every `shard_rows` of them.
fn job(folder: &Path, name: &str, rows: i64, shard_rows: i64, delay_ms: u64) -> PathBuf {
    let table = folder.join(format!("{name}.parquet"));
    let texts: Vec<String> = (0..rows).map(|id| format!("text of row {id}")).collect();
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter_values(0..rows)) as _),
        ("text", Arc::new(StringArray::from(texts)) as _),
    ])
    .unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&table).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let path = folder.join(format!("{name}.sql"));
    let sql = format!(
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}';
         CREATE MODEL echo WITH (engine = 'echo', delay_ms = {delay_ms});
         CREATE JOB echo WITH (output = 'out-{name}', logical_date = 'd', model = 'echo', shard_rows = {shard_rows}) AS
         SELECT id, ai_complete(text) AS answer FROM t;",
        table.display()
    );
    std::fs::write(&path, sql).unwrap();
    path
}

/// What a run took.
struct Took {
    seconds: f64,
    cpu_executors: f64,
    cpu_scheduler: f64,
}

/// Computes a job with this many executors of one slot each. Executors are up before the run is submitted.
fn compute(job: &Path, executors: usize, redis: &Redis) -> Took {
    let executors: Vec<Running> =
        (0..executors).map(|_| Running(rowmill(&["work", "--slots", "1"], redis).spawn().unwrap())).collect();
    std::thread::sleep(Duration::from_secs(2));
    let before: f64 = executors.iter().map(Running::cpu).sum();
    let started = Instant::now();
    let mut scheduler = Running(rowmill(&["submit", "--wait", job.to_str().unwrap()], redis).spawn().unwrap());
    let mut cpu_scheduler = 0.0;
    let status = loop {
        // The process is gone from /proc as soon as it is waited for.
        cpu_scheduler = f64::max(cpu_scheduler, scheduler.cpu());
        if let Some(status) = scheduler.0.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    let seconds = started.elapsed().as_secs_f64();
    Took { seconds, cpu_executors: executors.iter().map(Running::cpu).sum::<f64>() - before, cpu_scheduler }
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let redis = Redis::start(folder);

    const SHARDS: i64 = 1_000;
    println!(
        "| executors | seconds for {SHARDS} shards of 0.1 s | CPU ms a shard, executors | CPU ms a shard, scheduler |"
    );
    println!("|---|---|---|---|");
    let mut seconds = Vec::new();
    for executors in [1, 4] {
        let job = job(folder, &format!("sleep-{executors}"), SHARDS * 20, 20, 5);
        let took = compute(&job, executors, &redis);
        let per_shard = |cpu: f64| cpu * 1_000.0 / SHARDS as f64;
        println!(
            "| {executors} | {:.1} | {:.1} | {:.1} |",
            took.seconds,
            per_shard(took.cpu_executors),
            per_shard(took.cpu_scheduler)
        );
        seconds.push(took.seconds);
    }
    println!("\nspeed-up with 4 executors: {:.2}", seconds[0] / seconds[1]);

    const MANY: i64 = 20_000;
    let job = job(folder, "many", MANY, 1, 0);
    let over = Arc::new(AtomicBool::new(false));
    let watching = std::thread::spawn({
        let (over, port) = (Arc::clone(&over), redis.port);
        move || {
            let mut samples = Vec::new();
            while !over.load(Ordering::Relaxed) {
                samples.push(used_memory(port) as f64 / f64::from(1 << 20));
                std::thread::sleep(Duration::from_millis(500));
            }
            samples
        }
    });
    let took = compute(&job, 2, &redis);
    over.store(true, Ordering::Relaxed);
    let samples = watching.join().unwrap();
    println!("\nRedis memory over {MANY} shards ({:.0} s), in MiB: peak of each fifth of the run", took.seconds);
    let fifth = samples.len().div_ceil(5);
    let peaks: Vec<String> =
        samples.chunks(fifth).map(|samples| format!("{:.2}", samples.iter().copied().fold(0.0, f64::max))).collect();
    println!("{}; at the end {:.2}", peaks.join(", "), used_memory(redis.port) as f64 / f64::from(1 << 20));
}
