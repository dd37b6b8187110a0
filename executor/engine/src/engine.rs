//! [`CandleEngine`]: threads of its own, one that makes prompts and one that computes for each place where it is computed, with
//! bounded channels before each and threads of their own behind each. The async runtime only sends and waits. Calls that wait
//! for the same task are answered in one batch; where there are several places, each takes the next call when it is free.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rayon::ThreadPool;
use rowmill_jobs::infer::{Answered, Engine, Outcome, Request, Task, TaskKind, Usage, find_labels};
use rowmill_jobs::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::answer::Answerer;
use crate::decoder::Embedder as DecoderEmbedder;
use crate::encoder::head::Classifier;
use crate::encoder::pool::Embedder;
use crate::encoder::rows::{DECODER_TOKENS, classify, embed};
use crate::model::{EngineOptions, KV_BYTES_DEFAULT, Model, Network};
use crate::place::Place;
use crate::prompt::{Prompt, Prompter};

/// Calls that may wait to be tokenised.
const CALLS_WAITING: usize = 64;
/// Tokenised calls that may wait to be computed.
const CALLS_READY: usize = 4;
/// Rows of one batch of calls; more calls are not joined to it.
const ROWS_TOGETHER: usize = 4096;
/// Of so many threads that compute, one has another beside it that makes prompts. A model on a processor takes much longer
/// for a token than a tokenizer does; were prompts made on the computing threads, each step of the model would wait for
/// those of them that are at a prompt.
const THREADS_PER_PROMPT_THREAD: usize = 4;

/// An open model on this machine.
#[derive(Debug)]
pub struct CandleEngine {
    name: Arc<str>,
    calls: mpsc::Sender<Call>,
    stopping: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Call {
    task: Arc<Task>,
    requests: Vec<Request>,
    reply: oneshot::Sender<Result<Vec<Outcome>>>,
}

/// A call whose prompts are made.
pub(crate) struct Ready {
    pub(crate) task: Arc<Task>,
    pub(crate) prompts: Vec<Prompt>,
    /// The prompt without a text, if scores are to be measured against it.
    pub(crate) neutral: Option<Prompt>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Outcome>>>,
}

/// What answers on the computing thread.
enum Worker {
    Writer(Box<Answerer>),
    Embedder(Box<Embedder>),
    DecoderEmbedder(Box<DecoderEmbedder>),
    Classifier(Box<Classifier>),
}

impl Worker {
    fn new(network: Network, prompter: &Arc<Prompter>, options: &EngineOptions) -> Self {
        let kv_bytes_max = options.kv_bytes_max.unwrap_or(KV_BYTES_DEFAULT);
        match network {
            Network::Writer(writer) => {
                Self::Writer(Box::new(Answerer::new(writer, Arc::clone(prompter), kv_bytes_max)))
            }
            Network::Embedder(embedder) => Self::Embedder(embedder),
            Network::DecoderEmbedder(embedder) => Self::DecoderEmbedder(embedder),
            Network::Classifier(classifier) => Self::Classifier(classifier),
        }
    }

    fn skill(&self) -> Skill {
        match self {
            Self::Writer(_) => Skill::Writes,
            Self::Embedder(_) | Self::DecoderEmbedder(_) => Skill::Embeds,
            Self::Classifier(classifier) => Skill::Chooses(classifier.labels().to_vec()),
        }
    }
}

/// Calls for whoever is free to compute.
pub(crate) struct Queue {
    pub(crate) calls: Mutex<Receiver<Ready>>,
    /// How many calls beyond the first one a worker may take: with several workers none, so that each has some.
    pub(crate) together: usize,
}

impl Queue {
    /// Adds calls to `waiting`: waits for one where there are none. `false` when no call will come any more.
    pub(crate) fn take(&self, waiting: &mut VecDeque<Ready>) -> bool {
        if waiting.is_empty() {
            // Whoever waits holds the lock; the others wait for it.
            match self.calls.lock().unwrap_or_else(PoisonError::into_inner).recv() {
                Ok(call) => waiting.push_back(call),
                Err(_) => return false,
            }
        }
        if let Ok(calls) = self.calls.try_lock() {
            waiting.extend(calls.try_iter().take(self.together));
        }
        true
    }
}

/// What the model's prompts are like.
enum Skill {
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
        let pool = Arc::new(threads("engine", options.threads.unwrap_or(0))?);
        let prompt_pool = threads("prompts", pool.current_num_threads().div_ceil(THREADS_PER_PROMPT_THREAD))?;
        let mut workers = Vec::with_capacity(places.len());
        let mut told = None;
        for place in places {
            let model = pool.install(|| Model::load_at(source, options, *place)).map_err(|e| e.with("model", name))?;
            let prompter = Arc::new(model.prompter);
            let worker = Worker::new(model.network, &prompter, options);
            told.get_or_insert((prompter, worker.skill()));
            workers.push(worker);
        }
        let Some((prompter, skill)) = told else { return Err(Error::internal("an engine without a place to compute")) };
        let stopping = Arc::new(AtomicBool::new(false));
        let (calls, waiting) = mpsc::channel(CALLS_WAITING);
        let (ready, to_compute) = sync_channel(CALLS_READY * workers.len());
        let name: Arc<str> = name.into();
        let name_too = Arc::clone(&name);
        let make = move || make_prompts(&name_too, (&prompter, &skill), &prompt_pool, waiting, &ready);
        spawn("engine-prompts", make)?;
        let queue =
            Queue { calls: Mutex::new(to_compute), together: if workers.len() == 1 { CALLS_WAITING } else { 0 } };
        let queue = Arc::new(queue);
        for worker in workers {
            let (pool, queue, stopping) = (Arc::clone(&pool), Arc::clone(&queue), Arc::clone(&stopping));
            spawn("engine-model", move || compute(worker, &pool, &queue, &stopping))?;
        }
        Ok(Self { name, calls, stopping })
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
        let gone = || Error::internal(format!("the engine of model {} has ended", self.name));
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { task: Arc::clone(task), requests, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A pool of so many threads; 0 is one for each of the machine's.
pub(crate) fn threads(name: &'static str, count: usize) -> Result<ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(move |i| format!("{name}-{i}"));
    builder.build().map_err(|e| Error::internal("cannot start the engine's threads").caused_by(e))
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(f);
    thread.map(drop).map_err(|e| Error::internal("cannot start an engine thread").caused_by(e))
}

fn make_prompts(
    name: &str,
    (prompter, skill): (&Prompter, &Skill),
    pool: &ThreadPool,
    mut waiting: mpsc::Receiver<Call>,
    ready: &SyncSender<Ready>,
) {
    while let Some(call) = waiting.blocking_recv() {
        if call.reply.is_closed() {
            continue;
        }
        let calibrate = matches!(call.task.kind, TaskKind::Choose { calibrate: true, .. });
        let made: Result<_> = pool.install(|| {
            let prompts = prompts(name, prompter, skill, &call)?;
            let neutral = calibrate.then(|| prompter.neutral_prompt(&call.task)).transpose()?;
            Ok((prompts, neutral))
        });
        match made {
            Ok((prompts, neutral)) => {
                if ready.send(Ready { task: call.task, prompts, neutral, reply: call.reply }).is_err() {
                    return;
                }
            }
            Err(error) => drop(call.reply.send(Err(error.with("model", name)))),
        }
    }
}

/// The prompts of a call; an error if the model cannot do what is asked.
fn prompts(name: &str, prompter: &Prompter, skill: &Skill, call: &Call) -> Result<Vec<Prompt>> {
    let (task, requests) = (&call.task, &call.requests);
    match (&task.kind, skill) {
        (TaskKind::Embed, Skill::Embeds) => prompter.encoder_prompts(&task.template, requests),
        (TaskKind::Choose { calibrate: true, .. }, Skill::Chooses(_)) => {
            Err(Error::invalid(format!("model {name} is a trained classifier; its scores are not to be calibrated"))
                .hint("leave `calibrate` out"))
        }
        (TaskKind::Choose { labels, .. }, Skill::Chooses(own)) => {
            find_labels(labels, own)?;
            prompter.encoder_prompts(&task.input, requests)
        }
        (TaskKind::Embed, _) => Err(Error::invalid(format!("model {name} {skill}; it does not make vectors"))
            .hint("name an embedding model in ai_embed(…, model => …)")),
        (_, Skill::Writes) => prompter.decoder_prompts(task, requests),
        _ => Err(Error::invalid(format!("model {name} {skill}; it does not write text"))
            .hint("name a language model in this call")),
    }
}

fn compute(mut worker: Worker, pool: &ThreadPool, queue: &Queue, stopping: &AtomicBool) {
    let mut waiting: VecDeque<Ready> = VecDeque::new();
    while queue.take(&mut waiting) {
        let calls = together(&mut waiting);
        let stopped = || stopping.load(Ordering::Relaxed) || calls.iter().all(|call| call.reply.is_closed());
        let Some(task) = calls.first().map(|call| Arc::clone(&call.task)) else { continue };
        if stopped() {
            continue;
        }
        let prompts: Vec<&Prompt> = calls.iter().flat_map(|call| &call.prompts).collect();
        let neutral = calls.first().and_then(|call| call.neutral.as_ref());
        match pool.install(|| answer_distinct(&mut worker, &task.kind, neutral, &prompts, &stopped)) {
            Ok(Some(outcomes)) => {
                let mut outcomes = outcomes.into_iter();
                for call in calls {
                    let own = outcomes.by_ref().take(call.prompts.len()).collect();
                    // Whoever asked may have gone; then nobody misses the answer.
                    drop(call.reply.send(Ok(own)));
                }
            }
            Ok(None) => {}
            Err(error) => {
                // One error for several calls: each gets its words.
                let mut replies = calls.into_iter().map(|call| call.reply);
                let (message, kind) = (error.to_string(), error.kind());
                if let Some(first) = replies.next() {
                    drop(first.send(Err(error)));
                }
                for reply in replies {
                    drop(reply.send(Err(Error::new(kind, message.clone()))));
                }
            }
        }
    }
}

/// Takes the first call and those after it that ask the same.
fn together(waiting: &mut VecDeque<Ready>) -> Vec<Ready> {
    let Some(first) = waiting.pop_front() else { return Vec::new() };
    let mut rows = first.prompts.len();
    let mut calls = vec![first];
    let mut index = 0;
    while index < waiting.len() {
        let call = &waiting[index];
        let same = Arc::ptr_eq(&call.task, &calls[0].task) || call.task == calls[0].task;
        if same && rows + call.prompts.len() <= ROWS_TOGETHER {
            rows += call.prompts.len();
            calls.extend(waiting.remove(index));
        } else {
            index += 1;
        }
    }
    calls
}

/// Answers each distinct prompt once and gives equal prompts equal outcomes. `None` if it was stopped.
fn answer_distinct(
    worker: &mut Worker,
    kind: &TaskKind,
    neutral: Option<&Prompt>,
    prompts: &[&Prompt],
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Vec<Outcome>>> {
    let mut places: HashMap<&[u32], usize> = HashMap::new();
    let mut distinct: Vec<&[u32]> = Vec::new();
    for ids in prompts.iter().filter_map(|prompt| prompt.as_ref().ok()) {
        places.entry(ids).or_insert_with(|| {
            distinct.push(ids);
            distinct.len() - 1
        });
    }
    let outcomes = match (worker, neutral) {
        _ if distinct.is_empty() => Some(Vec::new()),
        // What cannot be read without a text cannot be read with one, which is longer.
        (Worker::Writer(_), Some(Err(error))) => Some(distinct.iter().map(|_| Err(error.clone())).collect()),
        (Worker::Writer(answerer), neutral) => {
            let neutral = neutral.and_then(|prompt| prompt.as_deref().ok());
            answerer.answer(kind, neutral, &distinct, stopped)?
        }
        (Worker::Embedder(embedder), _) => {
            embed(&|rows| embedder.embed(rows), embedder.encoder.tokens_max(), &distinct, stopped)?
        }
        (Worker::DecoderEmbedder(embedder), _) => {
            embed(&|rows| embedder.embed(rows), DECODER_TOKENS, &distinct, stopped)?
        }
        (Worker::Classifier(classifier), _) => {
            let TaskKind::Choose { labels, .. } = kind else {
                return Err(Error::internal("a classifier only chooses"));
            };
            classify(classifier, &find_labels(labels, classifier.labels())?, &distinct, stopped)?
        }
    };
    let Some(outcomes) = outcomes else { return Ok(None) };
    let mut seen = vec![false; distinct.len()];
    let spread = prompts.iter().map(|prompt| match prompt {
        Err(error) => Err(error.clone()),
        Ok(ids) => {
            let place = places.get(ids.as_slice()).copied().unwrap_or(0);
            let repeated = std::mem::replace(&mut seen[place], true);
            outcomes[place].clone().map(|answered| if repeated { again(answered) } else { answered })
        }
    });
    Ok(Some(spread.collect()))
}

/// The same answer for one more row: it took no computation of its own.
fn again(answered: Answered) -> Answered {
    let input_tokens = answered.usage.input_tokens;
    Answered { usage: Usage { input_tokens, cached_tokens: input_tokens, ..Usage::default() }, ..answered }
}
