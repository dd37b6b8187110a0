//! How fast a model computes on this machine, each kind of work alone: prompts (prefill), writing (decode), choices among labels
//! after prompts that share their beginning (choice), vectors (embedding). Takes ids at random and measures the network, not tokenising, prompts or tables; judges nothing.

mod prompting;
mod running;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rowmill_jobs::{Error, Result};

pub use self::prompting::{Prompted, Prompting};
use self::running::Running;
use crate::encoder::rows::DECODER_TOKENS;
use crate::engine::threads;
use crate::model::{EngineOptions, KV_BYTES_DEFAULT, Model, Network};
use crate::pack::batches;

/// What is to be measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Time for all measurements together; each does one step at least.
    pub time: Duration,
    /// Tokens of each prompt, or embedded text.
    pub prompt_tokens: usize,
    /// Tokens that are written after each prompt.
    pub output_tokens: usize,
    /// First tokens that all prompts share where choices are measured; 0: they are not.
    pub shared_tokens: usize,
    /// Rows that are computed together; one measurement of each kind for each.
    pub rows: Vec<usize>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(15),
            prompt_tokens: 128,
            output_tokens: 32,
            shared_tokens: 0,
            rows: vec![1, 8, 64],
        }
    }
}

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Prompts, up to the logits of what follows them.
    Prefill,
    /// Writing: one token a row and step, each with the logits over the whole vocabulary.
    Decode,
    /// Choices: the logits of a few labels after prompts that share a beginning, which is computed once.
    Choice,
    /// Vectors of texts, or a classifier's labels.
    Embedding,
}

impl Work {
    /// The work in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Choice => "choice",
            Self::Embedding => "embedding",
        }
    }
}

/// One kind of work with one number of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// What was done.
    pub work: Work,
    /// Rows together.
    pub rows: usize,
    /// Tokens that were computed.
    pub tokens: usize,
    /// How long that took.
    pub seconds: f64,
}

impl Measurement {
    /// Tokens of all rows together, by the second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// Measures the model in `source` (a folder with safetensors, or a `.gguf` file). `begun` is told what is measured next,
/// and how many measurements are done of how many.
///
/// # Errors
/// The model cannot be loaded, or cannot hold the load.
pub fn bench(
    source: &Path,
    options: &EngineOptions,
    load: &Load,
    begun: &(dyn Fn(Work, usize, (usize, usize)) + Send + Sync),
) -> Result<Vec<Measurement>> {
    if load.rows.is_empty() || load.rows.contains(&0) || load.prompt_tokens == 0 || load.output_tokens == 0 {
        return Err(Error::invalid("a measurement needs rows, prompt tokens and output tokens: 1 at least"));
    }
    if load.shared_tokens >= load.prompt_tokens {
        return Err(Error::invalid("prompts that share all of their tokens leave nothing to measure")
            .hint("ask for fewer shared tokens"));
    }
    threads("engine", options.threads.unwrap_or(0))?.install(|| {
        let mut model = Model::load(source, options)?;
        let decodes = matches!(model.network, Network::Writer(_));
        let works: &[Work] = match (decodes, load.shared_tokens) {
            (false, _) => &[Work::Embedding],
            (true, 0) => &[Work::Prefill, Work::Decode],
            (true, _) => &[Work::Prefill, Work::Decode, Work::Choice],
        };
        let tokens = load.prompt_tokens + if decodes { load.output_tokens } else { 0 };
        if tokens > model.prompter.context {
            return Err(Error::invalid(format!("{tokens} tokens a row; the model takes {}", model.prompter.context))
                .hint("ask for fewer prompt or output tokens"));
        }
        let all = works.len() * load.rows.len();
        let clock = Clock { time: load.time / u32::try_from(all).unwrap_or(u32::MAX) };
        let ids = Ids { vocab: model.prompter.vocab };
        let mut measured = Vec::with_capacity(all);
        for work in works {
            for rows in &load.rows {
                begun(*work, *rows, (measured.len(), all));
                let texts: Vec<Vec<u32>> = (0..*rows).map(|row| ids.row(row, load.prompt_tokens)).collect();
                let (tokens, seconds) = match &mut model.network {
                    Network::Embedder(embedder) => {
                        let tokens_max = embedder.encoder.tokens_max();
                        let by = askers(embedder.encoder.on_device());
                        clock.measure(|turn| texts_once(turn, by, (&texts, tokens_max), |rows| embedder.embed(rows)))?
                    }
                    Network::DecoderEmbedder(embedder) => clock
                        .measure(|turn| texts_once(turn, 1, (&texts, DECODER_TOKENS), |rows| embedder.embed(rows)))?,
                    Network::Classifier(classifier) => {
                        let (by, tokens_max) = (askers(classifier.on_device()), classifier.tokens_max());
                        clock.measure(|turn| {
                            texts_once(turn, by, (&texts, tokens_max), |rows| classifier.logits(rows))
                        })?
                    }
                    Network::Writer(writer) => {
                        let room = options.kv_bytes_max.unwrap_or(KV_BYTES_DEFAULT);
                        let mut running = Running::new(writer, *rows, (load, room), ids)?;
                        match work {
                            Work::Prefill => clock.measure(|turn| running.turn(turn, Running::prefill_step))?,
                            Work::Choice => {
                                let (shared, head) = running.share(load.shared_tokens)?;
                                clock
                                    .measure(|turn| running.turn(turn, |running| running.choice_step(&shared, &head)))?
                            }
                            _ => clock.measure(|turn| running.turn(turn, Running::decode_step))?,
                        }
                    }
                };
                measured.push(Measurement { work: *work, rows: *rows, tokens, seconds });
            }
        }
        Ok(measured)
    })
}

/// What is to be done next of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Step,
    /// Whatever a device has been asked for is to be done.
    Wait,
}

/// How long a measurement may take.
struct Clock {
    time: Duration,
}

impl Clock {
    /// Does steps until the time is over: tokens and seconds. The first step finds caches and pages cold and is left out,
    /// unless it took so long that it is the measurement.
    fn measure(&self, mut turn: impl FnMut(Turn) -> Result<usize>) -> Result<(usize, f64)> {
        let begun = Instant::now();
        let first = turn(Turn::Step)?;
        turn(Turn::Wait)?;
        if begun.elapsed() > self.time / 2 {
            return Ok((first, begun.elapsed().as_secs_f64()));
        }
        let (warm, mut tokens) = (Instant::now(), 0);
        while tokens == 0 || begun.elapsed() < self.time {
            tokens += turn(Turn::Step)?;
        }
        turn(Turn::Wait)?;
        Ok((tokens, warm.elapsed().as_secs_f64()))
    }
}

/// Token ids without meaning, the same in every run.
#[derive(Debug, Clone, Copy)]
struct Ids {
    vocab: usize,
}

impl Ids {
    fn row(self, row: usize, tokens: usize) -> Vec<u32> {
        (0..tokens).map(|at| self.one(row * tokens + at)).collect()
    }

    fn one(self, at: usize) -> u32 {
        // Knuth's multiplicative hash spreads neighbours over the whole table.
        let spread = (at as u32 + 1).wrapping_mul(2_654_435_761);
        spread % u32::try_from(self.vocab).unwrap_or(u32::MAX).max(1)
    }
}

/// Who asks for vectors at a time, as the engine does it: a device is asked by two.
fn askers(on_device: bool) -> usize {
    if on_device { 2 } else { 1 }
}

/// Runs all texts once, in batches as large as a job's, asked for by so many. Returns their tokens.
fn texts_once<T: Send>(
    turn: Turn,
    by: usize,
    (texts, tokens_max): (&[Vec<u32>], usize),
    run: impl Fn(&[&[u32]]) -> Result<T> + Sync,
) -> Result<usize> {
    if turn == Turn::Wait {
        return Ok(0);
    }
    let share = texts.len().div_ceil(by);
    let tokens = texts.par_chunks(share).with_max_len(1).map(|texts| {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        for batch in batches(&lengths, tokens_max) {
            run(&batch.iter().map(|row| texts[*row].as_slice()).collect::<Vec<_>>())?;
        }
        Ok(lengths.iter().sum::<usize>())
    });
    tokens.sum()
}
