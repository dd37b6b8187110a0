//! Those who compute: a worker for each place, and the queue that they take calls from. Calls that wait for the same task are
//! answered in one batch. A worker whose device failed computes nothing any more; the others go on. Makes no prompts.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rayon::ThreadPool;
use rowmill_jobs::infer::{Answered, Outcome, Task, TaskKind, Usage, find_labels};
use rowmill_jobs::{Error, Result};
use tokio::sync::oneshot;

use crate::answer::Answerer;
use crate::decoder::Embedder as DecoderEmbedder;
use crate::encoder::head::Classifier;
use crate::encoder::pool::Embedder;
use crate::encoder::rows::{DECODER_TOKENS, classify, embed};
use crate::engine::Skill;
use crate::lost::{in_words, is_lasting, lose, lost_because};
use crate::model::{EngineOptions, KV_BYTES_DEFAULT, Network};
use crate::prompt::{Prompt, Prompter};

/// Rows of one batch of calls; more calls are not joined to it.
const ROWS_TOGETHER: usize = 4096;

/// How often a worker without calls looks whether its device still computes.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A call whose prompts are made.
pub(crate) struct Ready {
    pub(crate) task: Arc<Task>,
    pub(crate) prompts: Vec<Prompt>,
    /// The prompt without a text, if scores are to be measured against it.
    pub(crate) neutral: Option<Prompt>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Outcome>>>,
}

/// What answers on the computing thread.
pub(crate) enum Worker {
    Writer(Box<Answerer>),
    Embedder(Arc<Embedder>),
    DecoderEmbedder(Box<DecoderEmbedder>),
    Classifier(Arc<Classifier>),
}

impl Worker {
    pub(crate) fn new(network: Network, prompter: &Arc<Prompter>, options: &EngineOptions) -> Self {
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

    /// One more that computes with the same model on the same device: while the device computes for one of them, the other makes the
    /// next batch ready and reads the last. `None` where the worker computes itself, and where a device goes on by itself.
    pub(crate) fn twin(&self) -> Option<Self> {
        match self {
            Self::Embedder(embedder) if embedder.encoder.on_device() => Some(Self::Embedder(Arc::clone(embedder))),
            Self::Classifier(classifier) if classifier.on_device() => Some(Self::Classifier(Arc::clone(classifier))),
            _ => None,
        }
    }

    /// What its prompts are like.
    pub(crate) fn skill(&self) -> Skill {
        match self {
            Self::Writer(_) => Skill::Writes,
            Self::Embedder(_) | Self::DecoderEmbedder(_) => Skill::Embeds,
            Self::Classifier(classifier) => Skill::Chooses(classifier.labels().to_vec()),
        }
    }
}

/// Calls for whoever is free to compute.
pub(crate) struct Queue {
    calls: Mutex<Receiver<Ready>>,
    /// How many calls beyond the first one a worker may take: with several workers none, so that each has some.
    together: usize,
    /// Calls of workers that cannot answer them.
    returned: Mutex<VecDeque<Ready>>,
}

impl Queue {
    pub(crate) fn new(calls: Receiver<Ready>, together: usize) -> Self {
        Self { calls: Mutex::new(calls), together, returned: Mutex::default() }
    }

    /// Adds calls to `waiting`: waits for one where there are none. `false` when no call will come any more, or nobody asks for
    /// one: `goes_on` is looked at again and again.
    pub(crate) fn take(&self, waiting: &mut VecDeque<Ready>, goes_on: impl Fn() -> bool) -> bool {
        while waiting.is_empty() {
            // Whoever waits holds the lock; the others wait for it.
            let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            if !goes_on() {
                return false;
            }
            // Nobody who gives calls back waits for this.
            let returned = self.returned().pop_front();
            match returned.map_or_else(|| calls.recv_timeout(LOOK_EVERY), Ok) {
                Ok(call) => waiting.push_back(call),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => match self.returned().pop_front() {
                    Some(call) => waiting.push_back(call),
                    None => return false,
                },
            }
        }
        if let Ok(calls) = self.calls.try_lock() {
            waiting.extend(calls.try_iter().take(self.together));
        }
        true
    }

    /// Leaves calls to the other workers.
    fn give_back(&self, calls: impl IntoIterator<Item = Ready>) {
        self.returned().extend(calls);
    }

    fn returned(&self) -> MutexGuard<'_, VecDeque<Ready>> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker, and what it works with.
pub(crate) struct Post {
    pub(crate) worker: Worker,
    /// Its own threads.
    pub(crate) pool: ThreadPool,
    /// The device that it computes on, if not on the processor. A device does not outlive a failure: whatever is asked of it
    /// afterwards fails at once.
    pub(crate) device: Option<usize>,
}

/// What a device leaves that failed: its calls, still without a reply.
pub(crate) struct Broken {
    calls: Vec<Ready>,
    error: Error,
}

impl Broken {
    /// What happened, with its causes.
    pub(crate) fn why(&self) -> String {
        in_words(&self.error)
    }

    /// Tells those who called.
    pub(crate) fn reply(self) {
        let error = Error::temporary("a device failed while it computed").caused_by(self.error);
        let hint = "the model goes on at other devices of this process, if it has any; the one that failed comes back with another \
                    process only: start it again, and see what the device's driver logs";
        refuse(self.calls, error.hint(hint));
    }
}

impl Post {
    /// Computes until no call comes any more, or its device fails.
    pub(crate) fn compute(&mut self, queue: &Queue, stopping: &AtomicBool) -> Option<Broken> {
        let mut waiting: VecDeque<Ready> = VecDeque::new();
        while queue.take(&mut waiting, || self.lost().is_none()) {
            if self.lost().is_some() {
                break;
            }
            let mut calls = together(&mut waiting);
            let stopped = || stopping.load(Ordering::Relaxed) || calls.iter().all(|call| call.reply.is_closed());
            let Some(task) = calls.first().map(|call| Arc::clone(&call.task)) else { continue };
            if stopped() {
                continue;
            }
            let prompts: Vec<&Prompt> = calls.iter().flat_map(|call| &call.prompts).collect();
            let neutral = calls.first().and_then(|call| call.neutral.as_ref());
            let worker = &mut self.worker;
            match self.pool.install(|| answer_distinct(worker, &task.kind, neutral, &prompts, &stopped)) {
                Ok(Some(outcomes)) => {
                    let mut outcomes = outcomes.into_iter();
                    for call in calls {
                        let own = outcomes.by_ref().take(call.prompts.len()).collect();
                        // Whoever asked may have gone; then nobody misses the answer.
                        drop(call.reply.send(Ok(own)));
                    }
                }
                Ok(None) => {}
                Err(error) if self.device.is_some() && is_lasting(&error) => {
                    self.device.iter().for_each(|device| lose(*device, &error));
                    calls.extend(waiting);
                    return Some(Broken { calls, error });
                }
                Err(error) => refuse(calls, error),
            }
        }
        // Another worker, of this model or of another one, has seen its device fail.
        let error = self.lost()?;
        queue.give_back(waiting);
        Some(Broken { calls: Vec::new(), error })
    }

    /// Why its device computes nothing more, if it does not.
    fn lost(&self) -> Option<Error> {
        self.device.and_then(lost_because).map(Error::temporary)
    }
}

/// One error for several calls: each gets its words.
fn refuse(calls: Vec<Ready>, error: Error) {
    let mut replies = calls.into_iter().map(|call| call.reply);
    let (message, kind) = (error.to_string(), error.kind());
    if let Some(first) = replies.next() {
        drop(first.send(Err(error)));
    }
    for reply in replies {
        drop(reply.send(Err(Error::new(kind, message.clone()))));
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
