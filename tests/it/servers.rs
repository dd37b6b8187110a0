//! The servers that tests talk to: S3 (moto), a model hub in small, llama.cpp's server, Redis. Each test starts its own, on a free port of
//! this machine; it ends when it is dropped. It refuses to do without one: a server that is not installed fails the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::support::repository;

/// What the hub's gated models are given for.
pub const TOKEN: &str = "hf_a-token-that-nobody-may-see";
/// Longer than any server or run here takes; only a hang meets it.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a condition.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest wait for one answer of a server on this machine.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The keys of every S3 server here.
pub const ACCESS_KEY: &str = "test";
pub const SECRET_KEY: &str = "test";
/// Where every S3 server here is.
pub const REGION: &str = "us-east-1";
/// A signature for moto, which asks for one and looks at none.
pub const SIGNED: &str =
    "AWS4-HMAC-SHA256 Credential=test/20261120/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
/// Ports that are tried before Redis is said not to start.
const PORTS_TRIED: usize = 5;

/// An S3 server with the empty bucket `lake`. It ends when it is dropped.
pub trait S3Server: std::fmt::Debug {
    /// `host:port`.
    fn address(&self) -> &str;
    /// How it takes writes of one name.
    fn writes(&self) -> Writes;
}

/// How an S3 server takes writes of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// As S3 does: of conditional writes that race, one wins.
    Atomic,
    /// It looks and writes in two steps, so two may win.
    TwoSteps,
}

/// A server in Python, stopped when this is dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// `host:port`.
    pub address: String,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

impl Server {
    /// moto with the empty bucket `lake`. What races must go through the cluster's proxy.
    pub fn s3() -> Self {
        let server = Self::start(&["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]);
        server.put("/lake", b"");
        server
    }

    /// A hub that has the model of [`model`].
    pub fn hub() -> Self {
        let script = repository().join("tests/it/fake_hub.py");
        Self::start(&[text(&script), text(&model()), TOKEN])
    }

    /// llama.cpp's server over the weights of a model folder, which it writes to `file` before.
    pub fn llama(model: &Path, file: &Path) -> Self {
        let script = repository().join("tests/it/llama_server.py");
        Self::start(&[text(&script), text(model), text(file)])
    }

    fn start(args: &[&str]) -> Self {
        let python = std::env::var("ROWMILL_TEST_PYTHON").expect("infra/test names a Python with the services");
        let mut command = Command::new(python);
        command.args(args).env("PYTHONUNBUFFERED", "1").stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = command.stderr(Stdio::piped()).spawn().expect("Python starts");
        let lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let log: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let shared = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                shared.0.lock().expect("the log").push(line);
                shared.1.notify_all();
            }
        });
        let mut server = Self { process, address: String::new(), log };
        let running = server.line_with("Running on http://");
        let (_, rest) = running.split_once("http://").expect("an address");
        server.address = rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
        server
    }

    /// Waits for a line of the log.
    fn line_with(&self, part: &str) -> String {
        let find = |lines: &Vec<String>| lines.iter().find(|line| line.contains(part)).cloned();
        let lines = self.log.0.lock().expect("the log");
        let (lines, _) =
            self.log.1.wait_timeout_while(lines, PATIENCE, |lines| find(lines).is_none()).expect("the log");
        find(&lines).unwrap_or_else(|| panic!("no {part:?} in\n{}", lines.join("\n")))
    }

    /// How many requests for `what` (`GET /lake/models`) were made until now.
    pub fn requests(&self, what: &str) -> usize {
        static MARKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        // The log is in order: once it has this request, it has all that were answered before.
        let mark = format!("/mark-{}", MARKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.send("GET", &mark, b"");
        self.line_with(&mark);
        self.log.0.lock().expect("the log").iter().filter(|line| line.contains(what)).count()
    }

    /// Stores an object: `/bucket/key`, percent-encoded.
    pub fn put(&self, path: &str, content: &[u8]) {
        let answer = self.send("PUT", path, content);
        assert!(answer.starts_with("HTTP/1.1 200"), "PUT {path}: {answer}");
    }

    pub fn send(&self, method: &str, path: &str, content: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\nAuthorization: {SIGNED}\r\n\r\n",
            self.address,
            content.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(content)).expect("the request is sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the server answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl S3Server for Server {
    fn address(&self) -> &str {
        &self.address
    }

    fn writes(&self) -> Writes {
        Writes::TwoSteps
    }
}

/// A Redis that keeps nothing: whenever it starts, it is empty. Tests talk to it past its port, over a socket of its own.
/// Stopped when this is dropped.
#[derive(Debug)]
pub struct Redis {
    process: Mutex<Option<Child>>,
    scheme: &'static str,
    pub port: u16,
    /// The lines of its configuration.
    settings: Vec<String>,
    folder: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Redis {
    /// A Redis on a port of its own.
    pub fn new() -> Self {
        Self::with("redis", |port| vec![format!("port {port}")])
    }

    /// A Redis that is reached by `scheme`. `settings` are further lines of its configuration; they say which port it has.
    pub fn with(scheme: &'static str, settings: impl Fn(u16) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut redis = Self { process: Mutex::default(), scheme, port: 0, settings: Vec::new(), folder };
        for _ in 0..PORTS_TRIED {
            // Free now; should another take it in between, Redis ends at once and the next is tried.
            redis.port = free_port();
            redis.settings = settings(redis.port);
            if redis.try_start() {
                return redis;
            }
        }
        panic!("redis-server does not start:\n{}", redis.log());
    }

    /// What clients are given.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Ends it at once; what it held is lost.
    pub fn stop(&self) {
        if let Some(mut process) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            end(&mut process);
        }
    }

    /// Starts it, empty, on the same port. One that runs ends before.
    pub fn start(&self) {
        self.stop();
        assert!(self.try_start(), "redis-server does not start again:\n{}", self.log());
    }

    /// Loses everything and every connection.
    pub fn restart(&self) {
        self.start();
    }

    /// Loses everything, but no connection.
    pub fn flushall(&self) {
        assert_eq!(self.command(&["FLUSHALL"]), "OK");
    }

    /// All that it holds, as it would be saved: without `rdbcompression no` in its settings, longer texts are packed.
    pub fn dump(&self) -> Vec<u8> {
        assert_eq!(self.command(&["SAVE"]), "OK");
        std::fs::read(self.folder.path().join("dump.rdb")).expect("what was saved")
    }

    /// Bytes that its data takes.
    pub fn used_memory(&self) -> u64 {
        self.info("used_memory").expect("used_memory").parse().expect("a number")
    }

    /// Sends one command and returns its answer: a line or a text; of a list, how long it is.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|error| panic!("{words:?}: {error}\n{}", self.log()))
    }

    /// What `INFO` says of a fact; `None` also if the connection ends, as all do while a replica is promoted.
    pub fn info(&self, fact: &str) -> Option<String> {
        let info = self.try_command(&["INFO", "everything"]).ok()?;
        info.lines().find_map(|line| line.strip_prefix(fact)?.strip_prefix(':')).map(|value| value.trim().to_owned())
    }

    fn try_start(&self) -> bool {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        let file = self.folder.path().join("redis.conf");
        let lines = [
            format!("dir \"{}\"", text(self.folder.path())),
            format!("unixsocket \"{}\"", text(&self.socket_path())),
            "bind 127.0.0.1\nsave \"\"\nappendonly no".to_owned(),
            self.settings.join("\n"),
        ];
        std::fs::write(&file, lines.join("\n")).expect("its configuration is written");
        let mut command = Command::new("redis-server");
        command.arg(file).stdin(Stdio::null()).stdout(log.try_clone().expect("the log file")).stderr(log);
        if self.settings.iter().any(|line| line.starts_with("sentinel ")) {
            command.arg("--sentinel");
        }
        let mut process = command.spawn().unwrap_or_else(|error| {
            panic!("redis-server does not start ({error}): run infra/test, which installs it, or install it yourself")
        });
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if process.try_wait().expect("its state").is_some() {
                return false;
            }
            if self.try_command(&["PING"]).is_ok_and(|answer| answer == "PONG") {
                *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
                return true;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        end(&mut process);
        false
    }

    fn try_command(&self, words: &[&str]) -> std::io::Result<String> {
        let stream = UnixStream::connect(self.socket_path())?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        (&stream).write_all(request.as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if let Some(error) = line.strip_prefix('-') {
            return Err(std::io::Error::other(error.to_owned()));
        }
        match line.strip_prefix('$').map(str::parse::<usize>) {
            Some(Ok(length)) => {
                let mut text = vec![0; length];
                reader.read_exact(&mut text)?;
                String::from_utf8(text).map_err(std::io::Error::other)
            }
            // A missing value is `$-1`.
            Some(Err(_)) => Ok(String::new()),
            None => Ok(line.get(1..).unwrap_or_default().to_owned()),
        }
    }

    fn socket_path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("redis.log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

/// A port of this machine that nobody has just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Kills a process and waits until it is gone. Whether it had ended by itself does not matter.
pub fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The folder of a small model.
pub fn model() -> PathBuf {
    repository().join("executor/engine/tests/fixtures/llama-tiny")
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[test]
fn redis_forgets_when_it_restarts_and_keeps_its_port() {
    let redis = Redis::new();
    let url = redis.url();
    assert_eq!(redis.command(&["SET", "shard", "17"]), "OK");
    assert_eq!(redis.command(&["GET", "shard"]), "17");
    redis.restart();
    assert_eq!((redis.command(&["GET", "shard"]).as_str(), redis.url()), ("", url));
    let empty = redis.used_memory();
    redis.command(&["SET", "shard", &"x".repeat(1 << 20)]);
    assert!(redis.used_memory() > empty + (1 << 20));
    redis.flushall();
    assert_eq!(redis.command(&["DBSIZE"]), "0");
}
