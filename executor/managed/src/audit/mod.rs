//! The record of what left, written before it leaves: [`Audit::intend`] returns when its line is on disk, and only then may a
//! byte go. Calls that arrive together share one `fsync`. Where the disk fails, nothing is sent any more.
//!
//! One file for a run and executor, in JSON lines that are chained by hashes; [`Audit::copy`] puts what is new into the
//! run's store. Whoever can write the folder could write a new chain: keep the copies where nobody can change them (S3 Object
//! Lock), and compare.

mod record;
mod verify;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::{hmac, rand};
use bytes::Bytes;
use rowmill_jobs::store::{self, Payload, Store};
use rowmill_jobs::{Error, Result, layout};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{mpsc, oneshot};

use crate::hex;

pub use record::{Ending, Intent, Opening, Record, Said};
pub use verify::{Broken, FileReport, Report, verify, verify_copies, verify_lines};

/// Lines that wait for the disk, at most; who adds one more waits.
const WAITING_MAX: usize = 4_096;
/// Lines that share one write.
const GROUP_MAX: usize = 1_024;
/// Bytes of a copied piece, at most.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;

/// An executor's audit of a run.
#[derive(Debug)]
pub struct Audit {
    run: String,
    executor: String,
    path: PathBuf,
    lines: mpsc::Sender<Waiting>,
    key: hmac::Key,
    /// Bytes of the file that are on disk: always whole lines.
    durable: Arc<AtomicU64>,
    copied: tokio::sync::Mutex<Copied>,
}

/// What was copied to the store.
#[derive(Debug, Default)]
struct Copied {
    bytes: u64,
    segments: u64,
}

/// A line that waits for the disk, and who waits for it.
#[derive(Debug)]
struct Waiting {
    /// Without one, it is waited for what came before.
    said: Option<Said>,
    written: Option<oneshot::Sender<Result<u64>>>,
}

/// That an intent is on disk: what it permits may be sent. To be ended with [`Audit::end`].
#[derive(Debug)]
#[must_use = "an intent is written so that something is sent"]
pub struct Intended {
    seq: u64,
}

impl Intended {
    /// The line's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

impl Audit {
    /// Begins the audit of a run in a folder, which is created. No two executors may have one name. Without a key one is drawn
    /// and forgotten: then payloads can be told apart, but not proved.
    ///
    /// # Errors
    /// The folder or file cannot be created, or the file is there.
    pub async fn open(folder: &Path, run_key: &str, executor: &str, key: Option<&SecretString>) -> Result<Self> {
        let path = folder.join(run_key).join(format!("{executor}.jsonl"));
        let file = create(&path).map_err(|error| {
            Error::invalid(format!("cannot write the audit to {}", path.display()))
                .caused_by(error)
                .hint("nothing is sent without it: set [audit] folder in rowmill.toml to a folder that can be written")
        })?;
        let key = match key {
            Some(key) => hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret().as_bytes()),
            None => hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new())
                .map_err(|_| Error::internal("the system gives no random numbers"))?,
        };
        let (lines, waiting) = mpsc::channel(WAITING_MAX);
        let durable = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            file,
            path: path.clone(),
            seq: 0,
            hash: [0; 32],
            bytes: 0,
            failed: None,
            durable: durable.clone(),
        };
        let spawned = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(waiting));
        spawned.map_err(|error| Error::internal("cannot start the audit's thread").caused_by(error))?;
        let (run, executor) = (run_key.to_owned(), executor.to_owned());
        let audit = Self { run, executor, path, lines, key, durable, copied: tokio::sync::Mutex::default() };
        let rowmill = env!("CARGO_PKG_VERSION").to_owned();
        audit.say(Said::Opening(Opening { run: audit.run.clone(), executor: audit.executor.clone(), rowmill })).await?;
        Ok(audit)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// HMAC-SHA256 of a body, in hex, for [`Intent::payload_hmac`].
    pub fn sign(&self, body: &[u8]) -> String {
        hex::encode(hmac::sign(&self.key, body))
    }

    /// Writes that something is about to be sent. It is on disk when this returns.
    ///
    /// # Errors
    /// It cannot be written, now or since an earlier line. Nothing may be sent then.
    pub async fn intend(&self, intent: Intent) -> Result<Intended> {
        Ok(Intended { seq: self.say(Said::Intent(intent)).await? })
    }

    /// Writes what became of it; `ending.intent` is filled in. It is on disk soon after: an intent without an ending is told by
    /// [`verify`], and counts as sent.
    ///
    /// # Errors
    /// The audit's thread has ended.
    pub async fn end(&self, intended: Intended, ending: Ending) -> Result<()> {
        let said = Said::Ending(Ending { intent: intended.seq, ..ending });
        self.lines.send(Waiting { said: Some(said), written: None }).await.map_err(|_| ended())
    }

    /// Copies what was said and is not yet in the run's store into it. To be called when a shard ends, and at the end.
    ///
    /// # Errors
    /// The file cannot be read, or the store does not answer.
    pub async fn copy(&self, store: &dyn Store) -> Result<()> {
        self.wait(None).await?;
        let mut copied = self.copied.lock().await;
        loop {
            let durable = self.durable.load(Ordering::Acquire);
            let piece = self.piece(copied.bytes, durable).await?;
            if piece.is_empty() {
                return Ok(());
            }
            let (name, bytes) =
                (layout::audit_segment(&self.run, &self.executor, copied.segments + 1), piece.len() as u64);
            // Only this process writes this name: what is there after an unanswered write is ours. It may be an earlier, shorter
            // piece; then its length tells where to go on.
            let there = match store::create(store, &name, &Payload::Bytes(piece)).await? {
                store::Put::Created => bytes,
                store::Put::Exists => store.head(&name).await?.map_or(bytes, |object| object.bytes),
            };
            copied.bytes += there;
            copied.segments += 1;
        }
    }

    /// Writes the last line, and copies what is new. Whatever else was said is on disk then, and nothing can be said any more.
    ///
    /// # Errors
    /// The file cannot be written, or the store does not answer.
    pub async fn close(&self, store: Option<&dyn Store>) -> Result<()> {
        self.say(Said::Closing {}).await?;
        match store {
            Some(store) => self.copy(store).await,
            None => Ok(()),
        }
    }

    async fn say(&self, said: Said) -> Result<u64> {
        self.wait(Some(said)).await
    }

    /// Returns once everything that was said is on disk, with the number of the next line or of this one.
    async fn wait(&self, said: Option<Said>) -> Result<u64> {
        let (written, answer) = oneshot::channel();
        self.lines.send(Waiting { said, written: Some(written) }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Whole lines of the file between two places, a segment's size at most.
    async fn piece(&self, from: u64, to: u64) -> Result<Bytes> {
        let path = self.path.clone();
        let read = move || -> std::io::Result<Bytes> {
            use std::os::unix::fs::FileExt;
            let length = to.saturating_sub(from).min(SEGMENT_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            File::open(path)?.read_exact_at(&mut bytes, from)?;
            let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
            bytes.truncate(end);
            Ok(bytes.into())
        };
        let unreadable = |error| Error::temporary(format!("cannot read {}", self.path.display())).caused_by(error);
        match tokio::task::spawn_blocking(read).await {
            Ok(bytes) => bytes.map_err(unreadable),
            Err(error) => Err(Error::internal("reading the audit did not finish").caused_by(error)),
        }
    }
}

fn ended() -> Error {
    Error::internal("the audit has ended, and nothing is sent without it")
}

/// A new file that only this user reads; its name is on disk when this returns.
fn create(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = File::options().create_new(true).append(true).mode(0o600).open(path)?;
    for folder in folder.ancestors().take(2) {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// Writes lines, on a thread of its own: it waits for the disk most of the time.
struct Writer {
    file: File,
    path: PathBuf,
    seq: u64,
    hash: record::Hash,
    bytes: u64,
    /// Why nothing can be written any more. What is on disk after a failed write is not known, so there is no second try.
    failed: Option<String>,
    durable: Arc<AtomicU64>,
}

impl Writer {
    /// Until nobody can say anything any more. Returns how many writes it took.
    fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) -> u64 {
        let mut writes = 0;
        let mut group = Vec::with_capacity(GROUP_MAX);
        while waiting.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            let mut seq = self.seq;
            let written = self.write(&group);
            writes += 1;
            for line in group.drain(..) {
                let own = seq;
                seq += u64::from(line.said.is_some());
                let Some(answer) = line.written else { continue };
                let said = written.as_ref().map(|()| own).map_err(|why| {
                    Error::invalid(format!("cannot write the audit: {why}"))
                        .with("file", self.path.display())
                        .hint("nothing is sent without it: give its folder room and start the same command again")
                });
                // Who does not wait any more was cancelled.
                let _ = answer.send(said);
            }
        }
        writes
    }

    /// Writes a group and waits until it is on disk.
    fn write(&mut self, group: &[Waiting]) -> std::result::Result<(), String> {
        if let Some(why) = self.failed.as_ref().filter(|_| group.iter().any(|waiting| waiting.said.is_some())) {
            return Err(why.clone());
        }
        self.try_write(group).map_err(|error| {
            let why = error.to_string();
            self.failed = Some(why.clone());
            why
        })
    }

    fn try_write(&mut self, group: &[Waiting]) -> std::io::Result<()> {
        let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let mut text = String::new();
        for said in group.iter().filter_map(|waiting| waiting.said.as_ref()) {
            if matches!(said, Said::Closing {}) {
                // What comes in a later group is refused.
                self.failed = Some("it was closed".to_owned());
            }
            let record = Record { seq: self.seq, at: at.clone(), said: said.clone() };
            let (line, hash) = record::write(&record, &self.hash)?;
            text.push_str(&line);
            self.hash = hash;
            self.seq += 1;
        }
        if text.is_empty() {
            return Ok(());
        }
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        self.bytes += text.len() as u64;
        self.durable.store(self.bytes, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
