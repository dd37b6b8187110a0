//! [`CandleEngine`]: threads of its own, some that make prompts and one that computes for each place where it is computed, with
//! bounded channels before each and threads of their own behind each. The async runtime only sends and waits. Where there are
//! several places, each takes the next call when it is free; when the last has failed, the engine has ended. A place where the
//! model cannot be loaded is done without, while there is another.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use rayon::ThreadPool;
use rowmill_jobs::infer::{Engine, Outcome, Request, Task};
use rowmill_jobs::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::lost::{in_words, is_lasting, is_lost, is_of_device, lose};
use crate::model::{EngineOptions, Model};
use crate::place::Place;
use crate::prompt::Prompter;
use crate::prompts::{Call, Maker};
use crate::worker::{Post, Queue, Worker};

/// Calls that may wait to be tokenised.
const CALLS_WAITING: usize = 64;
/// Tokenised calls that may wait to be computed.
const CALLS_READY: usize = 4;
/// Of so many threads that compute on a processor, one has another beside it that makes prompts. A model there takes much longer
/// for a token than a tokenizer does; were prompts made on the computing threads, each step of the model would wait for
/// those of them that are at a prompt.
const THREADS_PER_PROMPT_THREAD: usize = 4;

/// An open model on this machine.
#[derive(Debug)]
pub struct CandleEngine {
    name: Arc<str>,
    calls: mpsc::Sender<Call>,
    /// Those who compute hold it.
    queue: Weak<Queue>,
    /// Where its workers compute.
    devices: Vec<Option<usize>>,
    /// Why one of them does not any more.
    failed: Arc<OnceLock<String>>,
    stopping: Arc<AtomicBool>,
}

/// What the model's prompts are like.
pub(crate) enum Skill {
    Writes,
    Embeds,
    /// It chooses among these labels only.
    Chooses(Vec<String>),
}

impl fmt::Display for Skill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writes => "writes text",
            Self::Embeds => "makes vectors",
            Self::Chooses(_) => "chooses labels",
        })
    }
}

impl CandleEngine {
    /// Reads a model (a folder with safetensors, or a `.gguf` file) and starts its threads. Blocks while it reads.
    ///
    /// # Errors
    /// Those of [`crate::inspect`], and tensors whose shape or type is not what the configuration says.
    pub fn load(name: &str, source: &Path, options: &EngineOptions) -> Result<Self> {
        Self::load_at(name, source, options, &Place::all()?)
    }

    /// The same, computed at each of these places.
    pub(crate) fn load_at(name: &str, source: &Path, options: &EngineOptions, places: &[Place]) -> Result<Self> {
        let pool = threads("engine", options.threads.unwrap_or(0))?;
        let loaded = at_each(places, Place::device, |place| {
            let model = pool.install(|| Model::load_at(source, options, place)).map_err(|e| e.with("model", name))?;
            let prompter = Arc::new(model.prompter);
            Ok((Worker::new(model.network, &prompter, options), place.device(), prompter))
        })?;
        let Some((.., prompter)) = loaded.first() else { return Err(nowhere()) };
        let prompter = Arc::clone(prompter);
        let workers = loaded.into_iter().flat_map(|(worker, device, _)| {
            let twin = worker.twin();
            std::iter::once(worker).chain(twin).map(move |worker| (worker, device))
        });
        let workers: Vec<_> = workers.collect();
        let pools = shares(pool, workers.len())?;
        let posts = workers.into_iter().zip(pools).map(|((worker, device), pool)| Post { worker, pool, device });
        Self::start(name, prompter, posts.collect())
    }

    /// Starts the threads of a model that is loaded at one place at least.
    pub(crate) fn start(name: &str, prompter: Arc<Prompter>, posts: Vec<Post>) -> Result<Self> {
        let Some(first) = posts.first() else { return Err(nowhere()) };
        let skill = first.worker.skill();
        let pool = threads("prompts", prompt_threads(&posts))?;
        let (stopping, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let (calls, waiting) = mpsc::channel(CALLS_WAITING);
        let (ready, to_compute) = sync_channel(CALLS_READY * posts.len());
        let name: Arc<str> = name.into();
        Maker { name: Arc::clone(&name), prompter, skill, pool }.start(waiting, ready)?;
        let together = if posts.len() == 1 { CALLS_WAITING } else { 0 };
        let queue = Arc::new(Queue::new(to_compute, together));
        let held = Arc::downgrade(&queue);
        let devices = posts.iter().map(|post| post.device).collect();
        for mut post in posts {
            let (queue, stopping, failed) = (Arc::clone(&queue), Arc::clone(&stopping), Arc::clone(&failed));
            let work = move || {
                let Some(broken) = post.compute(&queue, &stopping) else { return };
                failed.get_or_init(|| broken.why());
                // Whoever hears of it finds that this worker, its memory and its place at the queue are gone. What a device that
                // failed does not take back is lost with the process; a library's panic over it must not keep anybody waiting.
                if catch_unwind(AssertUnwindSafe(|| drop(post))).is_err() {
                    tracing::warn!("a device that failed did not take back what it had lent");
                }
                drop(queue);
                broken.reply();
            };
            spawn("engine-model", work)?;
        }
        Ok(Self { name, calls, queue: held, devices, failed, stopping })
    }

    /// What is said where nobody computes any more: a defect, or devices that failed.
    fn gone(&self) -> Error {
        match self.failed.get() {
            None => Error::internal(format!("the engine of model {} has ended", self.name)),
            Some(why) => Error::temporary(format!("the engine of model {} has ended: {why}", self.name)),
        }
    }
}

impl Drop for CandleEngine {
    fn drop(&mut self) {
        // The threads end when their channels close; this ends a step that is under way.
        self.stopping.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Engine for CandleEngine {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { task: Arc::clone(task), requests, reply }).await.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    fn has_ended(&self) -> bool {
        // A worker whose device another one has seen fail takes a while to leave.
        self.queue.strong_count() == 0 || self.devices.iter().all(|device| device.is_some_and(is_lost))
    }
}

/// Threads that make prompts. A small model on a device takes less time for a token than a tokenizer may, so all cores are theirs;
/// those who feed the device have as many threads and wait most of the time. The system lets in who has waited, and prompts that
/// are made ahead bridge the rest; threads that were kept for one of the two would idle while the other needs them.
pub(crate) fn prompt_threads(posts: &[Post]) -> usize {
    let computing: usize = posts.iter().map(|post| post.pool.current_num_threads()).sum();
    if posts.iter().any(|post| post.device.is_some()) {
        computing
    } else {
        computing.div_ceil(THREADS_PER_PROMPT_THREAD)
    }
}

fn nowhere() -> Error {
    Error::internal("an engine without a place to compute")
}

/// What `load` gives for each place. A device's failure costs that place only, while there is another; what is wrong with the
/// model is wrong everywhere.
///
/// # Errors
/// The model's, or those of the devices if none could load it: then it may be loaded later, or elsewhere.
pub(crate) fn at_each<P: Copy + fmt::Debug, T>(
    places: &[P],
    device: impl Fn(P) -> Option<usize>,
    mut load: impl FnMut(P) -> Result<T>,
) -> Result<Vec<T>> {
    let mut loaded = Vec::with_capacity(places.len());
    let mut refused = None;
    for place in places {
        match load(*place) {
            Ok(one) => loaded.push(one),
            Err(error) if is_of_device(&error) => {
                tracing::warn!(?place, why = in_words(&error), "a model cannot be loaded on a device");
                device(*place).filter(|_| is_lasting(&error)).iter().for_each(|device| lose(*device, &error));
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match refused {
        Some(error) if loaded.is_empty() => {
            let hint =
                "see that nothing else takes the devices' memory (`nvidia-smi`), and what their driver logs (`dmesg`)";
            let hint = error.hint_text().unwrap_or(hint).to_owned();
            Err(Error::temporary("no device of this process could load the model").caused_by(error).hint(hint))
        }
        _ => Ok(loaded),
    }
}

/// A pool of so many threads; 0 is one for each of the machine's.
pub(crate) fn threads(name: &'static str, count: usize) -> Result<ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(move |i| format!("{name}-{i}"))
        // Of what nobody waits for; it would end the process. Whoever misses the result says so.
        .panic_handler(|_| tracing::error!("a thread of an engine has failed"));
    builder.build().map_err(|e| Error::internal("cannot start the engine's threads").caused_by(e))
}

/// The threads of each of so many workers, taken from those that loaded. Each has a pool of its own: in a common one, a thread
/// that waits within its worker's step could take up the whole step of another.
pub(crate) fn shares(pool: ThreadPool, workers: usize) -> Result<Vec<ThreadPool>> {
    if workers < 2 {
        return Ok(vec![pool]);
    }
    let each = pool.current_num_threads().div_ceil(workers);
    (0..workers).map(|_| threads("engine", each)).collect()
}

pub(crate) fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(f);
    thread.map(drop).map_err(|e| Error::internal("cannot start an engine thread").caused_by(e))
}
