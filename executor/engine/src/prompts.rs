//! Calls in, calls with prompts out, in the order in which they came. Rows of several calls are made side by side: while the last
//! rows of one are still made, threads that have nothing left of it begin the next. Computes nothing of prompts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rayon::ThreadPool;
use rowmill_jobs::infer::{Outcome, Request, Task, TaskKind, find_labels};
use rowmill_jobs::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Skill, spawn};
use crate::prompt::{Prompt, Prompter, Recipe};
use crate::worker::Ready;

/// Calls that are begun and wait until the one before them is done, beside the one that is begun next.
const CALLS_AT_ONCE: usize = 4;
/// Rows that a thread makes before it looks for others: enough to make looking cheap, few enough that none waits long for the last.
pub(crate) const ROWS_AT_ONCE: usize = 32;

/// Rows that were asked for.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) task: Arc<Task>,
    pub(crate) requests: Vec<Request>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Outcome>>>,
}

/// Who makes a model's prompts.
pub(crate) struct Maker {
    /// The model's name, for messages.
    pub(crate) name: Arc<str>,
    pub(crate) prompter: Arc<Prompter>,
    pub(crate) skill: Skill,
    pub(crate) pool: ThreadPool,
}

/// A call whose prompts are made at this time.
pub(crate) struct Making {
    task: Arc<Task>,
    neutral: Option<Prompt>,
    reply: oneshot::Sender<Result<Vec<Outcome>>>,
    /// Parts of its rows.
    pub(crate) parts: usize,
    /// Their prompts, with the parts' numbers, as they are done.
    made: Receiver<(usize, Result<Vec<Prompt>>)>,
}

/// What the parts of a call have in common.
struct Rows {
    prompter: Arc<Prompter>,
    task: Arc<Task>,
    recipe: Recipe,
    requests: Vec<Request>,
    /// Whether one of its parts cannot be made: then nobody wants the others.
    failed: AtomicBool,
}

impl Maker {
    /// Starts the threads: until `waiting` is closed, or nobody takes from `ready`.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(self, mut waiting: mpsc::Receiver<Call>, ready: SyncSender<Ready>) -> Result<()> {
        let (begun, making) = sync_channel(CALLS_AT_ONCE);
        let name = Arc::clone(&self.name);
        let begin = move || {
            while let Some(call) = waiting.blocking_recv() {
                // Begun already; more of them wait here.
                if self.begin(call).is_some_and(|making| begun.send(making).is_err()) {
                    return;
                }
            }
        };
        spawn("engine-prompts", begin)?;
        spawn("engine-ready", move || hand_on(&name, &making, &ready))
    }

    /// Begins a call, unless nobody waits for it or it cannot be done, which is then said.
    pub(crate) fn begin(&self, call: Call) -> Option<Making> {
        let Call { task, requests, reply } = call;
        if reply.is_closed() {
            return None;
        }
        let calibrate = matches!(task.kind, TaskKind::Choose { calibrate: true, .. });
        let recipe = self.recipe(&task).and_then(|recipe| {
            let neutral = calibrate.then(|| self.prompter.neutral_prompt(&task)).transpose()?;
            Ok((recipe, neutral))
        });
        match recipe {
            Ok((recipe, neutral)) => {
                let size = ROWS_AT_ONCE.min(requests.len().div_ceil(self.pool.current_num_threads())).max(1);
                let parts = requests.len().div_ceil(size);
                let (sender, made) = channel();
                let rows = Arc::new(Rows {
                    prompter: Arc::clone(&self.prompter),
                    task: Arc::clone(&task),
                    recipe,
                    requests,
                    failed: AtomicBool::new(false),
                });
                (0..parts).for_each(|part| self.spawn(&rows, (part, size), &sender));
                Some(Making { task, neutral, reply, parts, made })
            }
            Err(error) => {
                drop(reply.send(Err(error.with("model", &self.name))));
                None
            }
        }
    }

    /// One part of a call, for whichever thread comes first. None waits for another part, and older ones are taken first.
    fn spawn(&self, rows: &Arc<Rows>, (part, size): (usize, usize), made: &Sender<(usize, Result<Vec<Prompt>>)>) {
        let (rows, made) = (Arc::clone(rows), made.clone());
        self.pool.spawn_fifo(move || {
            if rows.failed.load(Ordering::Relaxed) {
                return;
            }
            let requests = rows.requests.chunks(size).nth(part).unwrap_or_default();
            let prompts = rows.prompter.prompts(&rows.task, &rows.recipe, requests);
            rows.failed.fetch_or(prompts.is_err(), Ordering::Relaxed);
            // Nobody may be waiting any more.
            drop(made.send((part, prompts)));
        });
    }

    /// How a task's prompts are made; an error if the model cannot do what is asked.
    fn recipe(&self, task: &Task) -> Result<Recipe> {
        let (name, skill) = (&self.name, &self.skill);
        match (&task.kind, skill) {
            (TaskKind::Embed, Skill::Embeds) => Ok(Recipe::Template),
            (TaskKind::Choose { calibrate: true, .. }, Skill::Chooses(_)) => Err(Error::invalid(format!(
                "model {name} is a trained classifier; its scores are not to be calibrated"
            ))
            .hint("leave `calibrate` out")),
            (TaskKind::Choose { labels, .. }, Skill::Chooses(own)) => {
                find_labels(labels, own)?;
                Ok(Recipe::Input)
            }
            (TaskKind::Embed, _) => Err(Error::invalid(format!("model {name} {skill}; it does not make vectors"))
                .hint("name an embedding model in ai_embed(…, model => …)")),
            (_, Skill::Writes) => self.prompter.decoder_recipe(task),
            _ => Err(Error::invalid(format!("model {name} {skill}; it does not write text"))
                .hint("name a language model in this call")),
        }
    }
}

impl Making {
    /// Its prompts, once all are made.
    pub(crate) fn prompts(&self) -> Result<Vec<Prompt>> {
        let mut parts: Vec<Vec<Prompt>> = vec![Vec::new(); self.parts];
        let mut missing = self.parts;
        for (part, prompts) in &self.made {
            parts[part] = prompts?;
            missing -= 1;
        }
        match missing {
            0 => Ok(parts.into_iter().flatten().collect()),
            _ => Err(Error::internal("a thread that made prompts has failed")),
        }
    }
}

/// Waits for the prompts of one call after the other and gives them to those who compute.
fn hand_on(name: &str, making: &Receiver<Making>, ready: &SyncSender<Ready>) {
    for making in making {
        match making.prompts() {
            Ok(prompts) => {
                let Making { task, neutral, reply, .. } = making;
                if ready.send(Ready { task, prompts, neutral, reply }).is_err() {
                    return;
                }
            }
            Err(error) => drop(making.reply.send(Err(error.with("model", name)))),
        }
    }
}
