//! How fast a model computes on this machine, each kind of work alone: prompts (prefill), writing (decode), choices among labels
//! after prompts that share their beginning (choice), vectors (embedding). Takes ids at random and measures the network, not tokenising, prompts or tables; judges nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use rowmill_jobs::{Error, Result};

use crate::attention::BLOCK;
use crate::encoder::rows::DECODER_TOKENS;
use crate::engine::threads;
use crate::kv::{KvCache, PageId};
use crate::model::{EngineOptions, KV_BYTES_DEFAULT, Model, Network};
use crate::pack::{Pack, batches};
use crate::writer::{Head, Writer};

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
                        clock.measure(|| texts_once(&texts, tokens_max, |rows| embedder.embed(rows)))?
                    }
                    Network::DecoderEmbedder(embedder) => {
                        clock.measure(|| texts_once(&texts, DECODER_TOKENS, |rows| embedder.embed(rows)))?
                    }
                    Network::Classifier(classifier) => {
                        clock.measure(|| texts_once(&texts, classifier.tokens_max(), |rows| classifier.logits(rows)))?
                    }
                    Network::Writer(writer) => {
                        let room = options.kv_bytes_max.unwrap_or(KV_BYTES_DEFAULT);
                        let mut running = Running::new(writer, *rows, (load, room), ids)?;
                        match work {
                            Work::Prefill => clock.measure(|| running.prefill_step())?,
                            Work::Choice => {
                                let (shared, head) = running.share(load.shared_tokens)?;
                                clock.measure(|| running.choice_step(&shared, &head))?
                            }
                            _ => clock.measure(|| running.decode_step())?,
                        }
                    }
                };
                measured.push(Measurement { work: *work, rows: *rows, tokens, seconds });
            }
        }
        Ok(measured)
    })
}

/// How long a measurement may take.
struct Clock {
    time: Duration,
}

impl Clock {
    /// Does steps until the time is over: tokens and seconds. The first step finds caches and pages cold and is left out,
    /// unless it took so long that it is the measurement.
    fn measure(&self, mut step: impl FnMut() -> Result<usize>) -> Result<(usize, f64)> {
        let begun = Instant::now();
        let first = step()?;
        if begun.elapsed() > self.time / 2 {
            return Ok((first, begun.elapsed().as_secs_f64()));
        }
        let (warm, mut tokens) = (Instant::now(), 0);
        while tokens == 0 || begun.elapsed() < self.time {
            tokens += step()?;
        }
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

/// Runs all texts once, in batches as large as a job's. Returns their tokens.
fn texts_once<T>(texts: &[Vec<u32>], tokens_max: usize, run: impl Fn(&[&[u32]]) -> Result<T>) -> Result<usize> {
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    for batch in batches(&lengths, tokens_max) {
        run(&batch.iter().map(|row| texts[*row].as_slice()).collect::<Vec<_>>())?;
    }
    Ok(lengths.iter().sum())
}

/// Rows of a model that writes, with their pages.
struct Running<'a> {
    writer: &'a mut Writer,
    cache: KvCache,
    prompts: Vec<Vec<u32>>,
    tables: Vec<Vec<PageId>>,
    /// The next row to prefill, and its first token.
    next: (usize, usize),
    output_tokens: usize,
    shared_tokens: usize,
    /// The first of the rows that are written at this time.
    writing: usize,
    written: usize,
}

impl<'a> Running<'a> {
    fn new(writer: &'a mut Writer, rows: usize, (load, room): (&Load, usize), ids: Ids) -> Result<Self> {
        let pages =
            rows * (load.prompt_tokens + load.output_tokens).div_ceil(BLOCK) + load.shared_tokens.div_ceil(BLOCK);
        let room = writer.pages_max(room);
        if pages > room {
            return Err(Error::invalid(format!(
                "{rows} rows need {pages} pages of KV cache; there is room for {room}"
            ))
            .hint("ask for fewer rows or tokens"));
        }
        let mut running = Self {
            cache: writer.cache(pages),
            writer,
            prompts: (0..rows).map(|row| ids.row(row, load.prompt_tokens)).collect(),
            tables: vec![Vec::new(); rows],
            next: (0, 0),
            output_tokens: load.output_tokens,
            shared_tokens: load.shared_tokens,
            writing: 0,
            written: 0,
        };
        // Pages that come up again are written over; fresh ones would all be the system's one page of zeros until then.
        for table in &mut running.tables {
            running.cache.grow(table, load.prompt_tokens + load.output_tokens).ok_or_else(full)?;
        }
        running.give_back();
        Ok(running)
    }

    /// As many prompt tokens as a job's step has, from where the last step ended. Returns how many.
    fn prefill_step(&mut self) -> Result<usize> {
        let mut pack = Pack::new();
        let limits = self.writer.limits();
        while pack.tokens() < limits.tokens && pack.tables.len() < limits.rows && self.next.0 < self.prompts.len() {
            let (row, from) = self.next;
            let prompt = &self.prompts[row];
            let to = prompt.len().min(from + limits.tokens - pack.tokens());
            self.cache.grow(&mut self.tables[row], to).ok_or_else(full)?;
            pack.push(&prompt[from..to], from, &self.tables[row], to == prompt.len());
            self.next = if to == prompt.len() { (row + 1, 0) } else { (row, to) };
        }
        self.forward(&mut pack)?;
        if self.next.0 == self.prompts.len() {
            self.next = (0, 0);
            self.give_back();
        }
        Ok(pack.tokens())
    }

    /// One more token for each row. The prompts' keys and values are zeros: what they are costs nothing. Of a model that holds
    /// one row at a time, one more token for one of them, whose prompt it reads with the first.
    fn decode_step(&mut self) -> Result<usize> {
        let mut pack = Pack::new();
        let to = self.prompts.len().min(self.writing + self.writer.limits().rows);
        for row in self.writing..to {
            let (prompt, table) = (&self.prompts[row], &mut self.tables[row]);
            let before = prompt.len() + self.written;
            self.cache.grow(table, before + 1).ok_or_else(full)?;
            pack.push(&prompt[self.written % prompt.len()..][..1], before, table, true);
        }
        self.forward(&mut pack)?;
        // At its end, an answer is written again over itself.
        self.written = (self.written + 1) % self.output_tokens;
        if self.written == 0 {
            self.writing = if to == self.prompts.len() { 0 } else { to };
        }
        Ok(pack.tokens())
    }

    /// The pages of the first `tokens` tokens of the first prompt, which are computed here, and what gives the logits of four
    /// labels.
    fn share(&mut self, tokens: usize) -> Result<(Vec<PageId>, Head)> {
        let mut shared = Vec::new();
        let step = self.writer.limits().tokens;
        for from in (0..tokens).step_by(step) {
            let (mut pack, to) = (Pack::new(), tokens.min(from + step));
            self.cache.grow(&mut shared, to).ok_or_else(full)?;
            pack.push(&self.prompts[0][from..to], from, &shared, false);
            self.forward(&mut pack)?;
        }
        let head = self.writer.head(&[0, 1, 2, 3])?;
        Ok((shared, head))
    }

    /// As many rows as a job's step has, each with what follows the tokens that all share. Returns the tokens of whole
    /// prompts: those that are shared are each row's, too.
    fn choice_step(&mut self, shared: &[PageId], head: &Head) -> Result<usize> {
        let (limits, tokens) = (self.writer.limits(), self.prompts[0].len());
        // What the last page of the shared tokens has room for is each row's own.
        let from = self.shared_tokens;
        let mut pack = Pack::new();
        let (first, mut rows) = (self.next.0, 0);
        while first + rows < self.prompts.len() && rows < limits.rows {
            if rows > 0 && pack.tokens() + tokens - from > limits.tokens {
                break;
            }
            let row = first + rows;
            self.tables[row] = self.cache.fork(shared, from).ok_or_else(full)?;
            self.cache.grow(&mut self.tables[row], tokens).ok_or_else(full)?;
            pack.push(&self.prompts[row][from..], from, &self.tables[row], true);
            rows += 1;
        }
        pack.finish();
        self.writer.logits(&pack, &mut self.cache, head)?;
        self.next.0 = if first + rows == self.prompts.len() { 0 } else { first + rows };
        self.give_back();
        Ok(rows * tokens)
    }

    /// A step, up to what a row that writes is given: on a processor that begins with the logits, on a device they stay there.
    fn forward(&mut self, pack: &mut Pack) -> Result<()> {
        pack.finish();
        #[cfg(feature = "cuda")]
        if matches!(self.writer, Writer::Device(_)) {
            let mut guides: Vec<Option<&mut crate::guide::Guide>> = pack.wanted.iter().map(|_| None).collect();
            return self.writer.choose(pack, &mut self.cache, &mut guides).map(drop);
        }
        self.writer.logits(pack, &mut self.cache, &Head::Whole).map(drop)
    }

    fn give_back(&mut self) {
        for table in &mut self.tables {
            self.cache.release(table);
        }
    }
}

fn full() -> Error {
    Error::internal("the KV cache is full although its pages were counted")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::synthetic::{checkpoint, fixtures};
    use std::sync::Mutex;

    /// What `begun` was told.
    type Begun = Vec<(Work, usize, (usize, usize))>;

    fn measured(model: &str, load: &Load) -> (Result<Vec<Measurement>>, Begun) {
        measured_at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model), load)
    }

    fn measured_at(source: &Path, load: &Load) -> (Result<Vec<Measurement>>, Begun) {
        let begun: Mutex<Begun> = Mutex::default();
        let note = |work, rows, done| begun.lock().unwrap().push((work, rows, done));
        let result = bench(source, &EngineOptions { threads: Some(2), ..EngineOptions::default() }, load, &note);
        (result, begun.into_inner().unwrap())
    }

    fn short(prompt_tokens: usize, rows: &[usize]) -> Load {
        Load { time: Duration::from_millis(40), prompt_tokens, output_tokens: 3, shared_tokens: 0, rows: rows.to_vec() }
    }

    #[test]
    fn each_kind_of_work_is_measured_with_each_number_of_rows() {
        let (measurements, begun) = measured("llama-tiny", &short(100, &[1, 12]));
        let measurements = measurements.unwrap();
        let of: Vec<(Work, usize)> = measurements.iter().map(|one| (one.work, one.rows)).collect();
        let (prefill, decode) = (Work::Prefill, Work::Decode);
        assert_eq!(of, [(prefill, 1), (prefill, 12), (decode, 1), (decode, 12)]);
        assert_eq!(begun[3], (decode, 12, (3, 4)));
        for one in measurements {
            assert!(one.seconds > 0.0 && one.tokens_per_second() > 0.0, "{one:?}");
            // Steps of writing have a token of each row; those of 12 prompts of 100 tokens have 1024 and 176 tokens.
            let whole = match (one.work, one.rows) {
                (Work::Prefill, 1) => 100,
                (Work::Prefill, _) => 16,
                (_, rows) => rows,
            };
            assert!(one.tokens % whole == 0, "{one:?}");
        }
        let (measurements, _) = measured("bert-tiny", &short(30, &[5]));
        let one = measurements.unwrap()[0];
        assert!(one.work == Work::Embedding && one.tokens > 0 && one.tokens % 150 == 0, "{one:?}");
    }

    #[test]
    fn choices_are_measured_after_a_beginning_that_all_prompts_share() {
        let load = Load { shared_tokens: 75, ..short(100, &[1, 50]) };
        let (measurements, begun) = measured("llama-tiny", &load);
        let measurements = measurements.unwrap();
        assert_eq!(begun.last(), Some(&(Work::Choice, 50, (5, 6))));
        let one = measurements[5];
        assert!(one.work == Work::Choice && one.tokens > 0 && one.tokens.is_multiple_of(100), "{one:?}");
        let all = Load { shared_tokens: 100, ..short(100, &[1]) };
        assert!(measured("llama-tiny", &all).0.unwrap_err().report().contains("fewer shared tokens"));
    }

    #[test]
    fn a_model_that_holds_one_row_is_measured_row_after_row() {
        let (_, fixture) = fixtures("compatible").remove(0);
        let folder = checkpoint(&fixture);
        let measurements = measured_at(folder.path(), &short(100, &[1, 3])).0.unwrap();
        assert_eq!(measurements.len(), 4);
        for one in &measurements {
            assert!(one.tokens > 0 && one.seconds > 0.0, "{one:?}");
        }
        // A step of prompts has those of one row, a step of writing one token.
        assert!(measurements[1].tokens.is_multiple_of(100), "{:?}", measurements[1]);
    }

    #[test]
    fn loads_that_a_model_cannot_hold_are_refused() {
        let refused = |model, load: &Load, words: &str| {
            let report = measured(model, load).0.unwrap_err().report();
            assert!(report.contains(words), "`{words}` is not in:\n{report}");
        };
        refused("llama-tiny", &short(510, &[1]), "513 tokens a row; the model takes 512");
        refused("bert-tiny", &short(65, &[1]), "takes 64");
        refused("llama-tiny", &short(500, &[1 << 20]), "pages of KV cache");
        refused("llama-tiny", &short(8, &[]), "1 at least");
    }
}
