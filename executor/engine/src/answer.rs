//! Answers prompts with a decoder: computes the shared prefix once, then runs steps of packed tokens until every row has
//! scored its labels or written its text. Decisions are [`Scheduler`]'s; this file does what they say.

use std::sync::Arc;

use rayon::prelude::*;
use rowmill_jobs::infer::{Answer, Answered, Outcome, RowError, RowErrorCode, TaskKind, TextFormat, Usage};
use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::attention::BLOCK;
use crate::decoder::Decoder;
use crate::descriptor::DecoderShape;
use crate::guide::{Guide, Guides};
use crate::kv::{KvCache, PageId};
use crate::labels::LabelTrie;
use crate::linear::Linear;
use crate::pack::{Pack, common_prefix};
use crate::prompt::Prompter;
use crate::schedule::{Limits, Need, Scheduler, Slice, pages_needed};

/// Memory for keys and values.
const KV_BYTES_MAX: usize = 2 << 30;
/// Tokens in one step's batch: enough to keep the matrix products busy, few enough to stay in the processor's caches.
const STEP: Limits = Limits { tokens: 1024, rows: 128 };
/// A common beginning shorter than this is not worth a pass of its own.
const PREFIX_TOKENS_MIN: usize = 4;

/// Answers for one decoder.
#[derive(Debug)]
pub(crate) struct Answerer {
    decoder: Decoder,
    prompter: Arc<Prompter>,
    cache: KvCache,
    pages_max: usize,
    /// The beginning that the last prompts shared, with its pages.
    prefix: Vec<u32>,
    prefix_table: Vec<PageId>,
    guides: Option<Guides>,
    /// The last schema and its compiled guide.
    schema: Option<(Value, Guide)>,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guide")
    }
}

/// One row on its way to an outcome.
struct Row {
    /// Prompt, then what is written.
    ids: Vec<u32>,
    prompt: usize,
    table: Vec<PageId>,
    guide: Option<Guide>,
    end: Option<End>,
}

/// How a row ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// Ids of what was written, without the token that ended it.
    Written(Vec<u32>),
    /// The output limit was reached.
    Cut(Vec<u32>),
    /// A probability for each label.
    Scored(Vec<f32>),
    Failed(RowError),
}

/// What rows are asked for.
enum Ask {
    Labels {
        trie: LabelTrie,
        /// The output matrix's rows for the trie's tokens.
        head: Linear,
    },
    Text {
        tokens_max: usize,
    },
}

/// What came of a run.
pub(crate) struct Answers {
    /// One for each prompt.
    pub(crate) ends: Vec<End>,
    /// Tokens of the shared prefix.
    pub(crate) cached: usize,
}

impl Answerer {
    pub(crate) fn new(decoder: Decoder, shape: &DecoderShape, prompter: Arc<Prompter>) -> Self {
        let heads = Decoder::heads(shape);
        let pages_max = (KV_BYTES_MAX / KvCache::page_bytes(heads, shape.layers)).max(1);
        let cache = KvCache::new(heads, shape.layers, pages_max);
        Self {
            decoder,
            prompter,
            cache,
            pages_max,
            prefix: Vec::new(),
            prefix_table: Vec::new(),
            guides: None,
            schema: None,
        }
    }

    /// Outcomes of prompts, in their order. `stopped` is asked at every step; `None` if it said yes.
    pub(crate) fn answer(
        &mut self,
        kind: &TaskKind,
        prompts: &[&[u32]],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Vec<Outcome>>> {
        let Some(answers) = self.run(kind, prompts, stopped)? else { return Ok(None) };
        let json = matches!(kind, TaskKind::Complete { format: TextFormat::Json { .. }, .. });
        let outcomes = prompts.iter().zip(answers.ends).map(|(prompt, end)| {
            let usage = |output: usize| Usage {
                input_tokens: prompt.len() as u64,
                cached_tokens: answers.cached as u64,
                output_tokens: output as u64,
            };
            match end {
                End::Failed(error) => Ok(Err(error)),
                End::Cut(ids) => Ok(Err(RowError::new(
                    RowErrorCode::Truncated,
                    format!("the answer was cut after {} tokens", ids.len()),
                ))),
                End::Scored(scores) => Ok(Ok(Answered { usage: usage(0), answer: choice(scores) })),
                End::Written(ids) => {
                    let text = if json { self.json_text(&ids) } else { Ok(self.prompter.tokens.decode(&ids)?) };
                    Ok(text.map(|text| Answered { usage: usage(ids.len()), answer: Answer::Text(text) }))
                }
            }
        });
        outcomes.collect::<Result<Vec<Outcome>>>().map(Some)
    }

    fn json_text(&self, ids: &[u32]) -> std::result::Result<String, RowError> {
        let bytes = self.guides.as_ref().map(|guides| guides.bytes(ids)).unwrap_or_default();
        let invalid =
            |what: &str| RowError::new(RowErrorCode::InvalidOutput, format!("the model's output is not {what}"));
        let text = String::from_utf8(bytes).map_err(|_| invalid("UTF-8"))?;
        serde_json::from_str::<serde::de::IgnoredAny>(&text).map_err(|_| invalid("JSON"))?;
        Ok(text)
    }

    /// Runs prompts to their ends.
    pub(crate) fn run(
        &mut self,
        kind: &TaskKind,
        prompts: &[&[u32]],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Answers>> {
        let (ask, guide) = self.ask(kind)?;
        let cached = self.share_prefix(prompts, stopped)?;
        let first = match &ask {
            Ask::Labels { trie, .. } => trie.branches[0].path.clone(),
            Ask::Text { .. } => Vec::new(),
        };
        let mut rows: Vec<Row> = prompts
            .iter()
            .map(|prompt| {
                let mut guide = guide.clone();
                let forced = guide.as_mut().map(Guide::forced).unwrap_or_default();
                let ids = [prompt, &first[..], &forced].concat();
                Row { ids, prompt: prompt.len(), table: Vec::new(), guide, end: None }
            })
            .collect();
        let done = self.drive(&ask, &mut rows, cached, stopped);
        for row in &mut rows {
            self.cache.release(&mut row.table);
        }
        if !done? {
            return Ok(None);
        }
        let lost = || End::Failed(RowError::new(RowErrorCode::InvalidOutput, "the row was lost by the scheduler"));
        Ok(Some(Answers { ends: rows.into_iter().map(|row| row.end.unwrap_or_else(lost)).collect(), cached }))
    }

    fn ask(&mut self, kind: &TaskKind) -> Result<(Ask, Option<Guide>)> {
        match kind {
            TaskKind::Choose { labels } => {
                let end = self.prompter.end_of_turn.ok_or_else(|| {
                    Error::invalid("the model names no token that ends an answer, so labels cannot be scored")
                        .hint("eos_token_id in generation_config.json or config.json names it")
                })?;
                let trie = LabelTrie::new(&self.prompter.labels(labels)?, end)?;
                if trie.branches.is_empty() {
                    return Err(Error::invalid("a choice needs two labels at least"));
                }
                let head = self.decoder.output.select(&trie.tokens())?;
                Ok((Ask::Labels { trie, head }, None))
            }
            TaskKind::Complete { tokens_max, format } => {
                let guide = match format {
                    TextFormat::Free => None,
                    TextFormat::Json { schema } => Some(self.guide(schema)?),
                };
                Ok((Ask::Text { tokens_max: *tokens_max as usize }, guide))
            }
            TaskKind::Embed => {
                Err(Error::invalid("a language model does not make vectors").hint("use an embedding model"))
            }
        }
    }

    fn guide(&mut self, schema: &Value) -> Result<Guide> {
        if let Some((known, guide)) = &self.schema {
            if known == schema {
                return Ok(guide.clone());
            }
        }
        let guides = match self.guides.take() {
            Some(guides) => guides,
            None => Guides::new(&self.prompter)?,
        };
        let guide = self.guides.insert(guides).json(schema)?;
        self.schema = Some((schema.clone(), guide.clone()));
        Ok(guide)
    }

    /// Makes the prompts' common beginning the cached prefix, unless it is already. Returns its length.
    fn share_prefix(&mut self, prompts: &[&[u32]], stopped: &(dyn Fn() -> bool + Sync)) -> Result<usize> {
        let known = common_prefix(&[prompts, &[&[&self.prefix[..], &[u32::MAX]].concat()[..]]].concat());
        let common = if prompts.len() > 1 { common_prefix(prompts) } else { 0 };
        if known == self.prefix.len() && common < known + PREFIX_TOKENS_MIN {
            return Ok(known);
        }
        if common < PREFIX_TOKENS_MIN {
            self.cache.release(&mut self.prefix_table);
            self.prefix.clear();
            return Ok(0);
        }
        let full = || Error::internal("the KV cache is full before any row has run");
        let prefix = prompts[0][..common].to_vec();
        let mut table = self.cache.fork(&self.prefix_table, known).ok_or_else(full)?;
        self.cache.release(&mut self.prefix_table);
        self.prefix.clear();
        let mut from = known;
        while from < common && !stopped() {
            let to = common.min(from + STEP.tokens);
            if self.cache.grow(&mut table, to).is_none() {
                // No room to share: rows that are too long for the cache say so themselves.
                self.cache.release(&mut table);
                return Ok(0);
            }
            let mut pack = Pack::new();
            pack.push(&prefix[from..to], from, &table, false);
            pack.finish();
            self.decoder.forward(&pack, &mut self.cache)?;
            from = to;
        }
        self.prefix = prefix[..from].to_vec();
        self.prefix_table = table;
        Ok(from)
    }

    /// Steps until all rows have ended. Returns whether they have (and it was not stopped before).
    fn drive(
        &mut self,
        ask: &Ask,
        rows: &mut [Row],
        shared: usize,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<bool> {
        let pages = self.cache.available();
        let mut needs = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter_mut().enumerate() {
            let need = need(ask, row, shared, self.prompter.context);
            if need.pages > pages {
                let (tokens, room) = (need.pages * BLOCK + shared, self.pages_max * BLOCK);
                row.end = Some(End::Failed(RowError::new(
                    RowErrorCode::OutOfMemory,
                    format!("the row may need {tokens} tokens of KV cache; there is room for {room}"),
                )));
            } else {
                needs.push((index, need));
            }
        }
        let mut scheduler = Scheduler::new(needs, shared, pages, STEP);
        loop {
            let slices = scheduler.step();
            if slices.is_empty() {
                return Ok(true);
            }
            if stopped() {
                return Ok(false);
            }
            let (pack, mut forks) = self.pack(ask, rows, &slices, shared)?;
            let hidden = self.decoder.forward(&pack, &mut self.cache);
            for fork in &mut forks {
                self.cache.release(fork);
            }
            self.read(ask, rows, &slices, hidden?)?;
            for slice in slices.iter().filter(|slice| slice.completes) {
                let row = &mut rows[slice.row];
                match row.end {
                    None => scheduler.append(slice.row, row.ids.len() - slice.to),
                    Some(_) => {
                        self.cache.release(&mut row.table);
                        scheduler.finish(slice.row);
                    }
                }
            }
        }
    }

    /// The batch of a step, with the page tables of label branches that are to be given back after it.
    fn pack(
        &mut self,
        ask: &Ask,
        rows: &mut [Row],
        slices: &[Slice],
        shared: usize,
    ) -> Result<(Pack, Vec<Vec<PageId>>)> {
        let full = || Error::internal("the KV cache is full although the scheduler counted its pages");
        let mut pack = Pack::new();
        let mut forks = Vec::new();
        for slice in slices {
            let row = &mut rows[slice.row];
            if slice.from == shared && row.table.is_empty() {
                row.table = self.cache.fork(&self.prefix_table, shared).ok_or_else(full)?;
            }
            self.cache.grow(&mut row.table, slice.to).ok_or_else(full)?;
            let first = pack.push(&row.ids[slice.from..slice.to], slice.from, &row.table, slice.completes);
            let Ask::Labels { trie, .. } = ask else { continue };
            for branch in trie.branches[1..].iter().filter(|_| slice.completes) {
                let suffix = &branch.path[trie.branches[0].path.len()..];
                let mut fork = self.cache.fork(&row.table, slice.to).ok_or_else(full)?;
                self.cache.grow(&mut fork, slice.to + suffix.len()).ok_or_else(full)?;
                pack.mirror(first, slice.to, fork[slice.to / BLOCK]);
                pack.push(suffix, slice.to, &fork, true);
                forks.push(fork);
            }
        }
        pack.finish();
        Ok((pack, forks))
    }

    /// Reads the step's hidden states (`[wanted, hidden]`): labels are scored, texts get their next tokens.
    fn read(&self, ask: &Ask, rows: &mut [Row], slices: &[Slice], hidden: Vec<f32>) -> Result<()> {
        let completing: Vec<usize> = slices.iter().filter(|slice| slice.completes).map(|slice| slice.row).collect();
        if completing.is_empty() {
            return Ok(());
        }
        match ask {
            Ask::Labels { trie, head } => {
                let logits = self.decoder.logits(hidden, head)?;
                for (row, logits) in completing.iter().zip(logits.chunks_exact(trie.branches.len() * head.outputs)) {
                    let branches: Vec<&[f32]> = logits.chunks_exact(head.outputs).collect();
                    rows[*row].end = Some(trie.scores(&branches).map_or_else(numeric, End::Scored));
                }
            }
            Ask::Text { tokens_max } => {
                let logits = self.decoder.logits(hidden, &self.decoder.output)?;
                let vocab = self.decoder.output.outputs;
                let mut place = vec![None; rows.len()];
                for (at, row) in completing.iter().enumerate() {
                    place[*row] = Some(at);
                }
                rows.par_iter_mut().zip(place).for_each(|(row, at)| {
                    if let Some(at) = at {
                        let limit = self.prompter.context.min(row.prompt + tokens_max);
                        advance(row, &logits[at * vocab..(at + 1) * vocab], limit, &self.prompter.ends);
                    }
                });
            }
        }
        Ok(())
    }
}

fn need(ask: &Ask, row: &Row, shared: usize, context: usize) -> Need {
    let tokens = row.ids.len();
    let (longest, forks) = match ask {
        Ask::Labels { trie, .. } => {
            let first = trie.branches[0].path.len();
            (tokens, trie.branches[1..].iter().map(|branch| 1 + (branch.path.len() - first).div_ceil(BLOCK)).sum())
        }
        Ask::Text { tokens_max } => (context.min(row.prompt + tokens_max).max(tokens), 0),
    };
    Need { tokens, pages: pages_needed(longest, shared) + forks }
}

/// Gives a row its next tokens, or its end. `limit` is the most tokens it may have, prompt included.
fn advance(row: &mut Row, logits: &[f32], limit: usize, ends: &[u32]) {
    if !logits.iter().all(|logit| logit.is_finite()) {
        row.end = Some(numeric());
        return;
    }
    let token = match &mut row.guide {
        None => argmax(logits),
        Some(guide) => guide.choose(logits),
    };
    let Some(token) = token else {
        row.end = Some(End::Failed(RowError::new(
            RowErrorCode::InvalidOutput,
            "the model's vocabulary cannot write this JSON",
        )));
        return;
    };
    let mut complete = ends.contains(&token);
    if !complete {
        row.ids.push(token);
        if let Some(guide) = &mut row.guide {
            complete = !guide.take(token) || guide.is_complete();
            if !complete {
                row.ids.extend(guide.forced());
                complete = guide.is_complete();
            }
        }
    }
    if complete && row.ids.len() <= limit {
        row.end = Some(End::Written(row.ids[row.prompt..].to_vec()));
    } else if row.ids.len() >= limit {
        row.ids.truncate(limit);
        row.end = Some(End::Cut(row.ids[row.prompt..].to_vec()));
    }
}

/// The highest logit's token; the first of equals.
fn argmax(logits: &[f32]) -> Option<u32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == top).map(|at| at as u32)
}

fn numeric() -> End {
    End::Failed(RowError::new(RowErrorCode::Numeric, "the model computed a number that is not finite"))
}

fn choice(scores: Vec<f32>) -> Answer {
    let best = scores.iter().enumerate().fold(0, |best, (i, score)| if *score > scores[best] { i } else { best });
    Answer::Choice { index: best, scores }
}
