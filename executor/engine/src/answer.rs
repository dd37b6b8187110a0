//! Answers prompts with a decoder: computes the shared prefix once, then runs steps of packed tokens until every row has
//! scored its labels or written its text. Decisions are [`Scheduler`]'s; this file does what they say.

use std::sync::Arc;

use rayon::prelude::*;
use rowmill_jobs::infer::{Answer, Answered, Outcome, RowError, RowErrorCode, TaskKind, TextFormat, Usage};
use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::attention::BLOCK;
use crate::decoder::Decoder;
use crate::decoder::shape::DecoderShape;
use crate::guide::{Guide, Guides};
use crate::kv::{KvCache, PageId};
use crate::labels::LabelTrie;
use crate::linear::Linear;
use crate::pack::{Pack, common_prefix};
use crate::prompt::Prompter;
use crate::row::{End, Row, advance, choice, numeric};
use crate::schedule::{Limits, Need, Scheduler, Slice, pages_needed};

/// Memory for keys and values.
pub(crate) const KV_BYTES_MAX: usize = 2 << 30;
/// Tokens in one step's batch: enough to keep the matrix products busy, few enough to stay in the processor's caches.
pub(crate) const STEP: Limits = Limits { tokens: 1024, rows: 128 };
/// A common beginning shorter than this is not worth a pass of its own.
const PREFIX_TOKENS_MIN: usize = 4;

/// Answers for one decoder.
#[derive(Debug)]
pub(crate) struct Answerer {
    pub(crate) decoder: Decoder,
    prompter: Arc<Prompter>,
    pub(crate) cache: KvCache,
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
    /// For each prompt, its tokens that were computed for another.
    pub(crate) cached: Vec<usize>,
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
        let outcomes = prompts.iter().zip(answers.ends).zip(answers.cached).map(|((prompt, end), cached)| {
            let usage = |output: usize| Usage {
                input_tokens: prompt.len() as u64,
                cached_tokens: cached as u64,
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
        let shared = self.share_prefix(prompts, stopped)?;
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
                Row { ids, prompt: prompt.len(), cached: 0, table: Vec::new(), guide, end: None }
            })
            .collect();
        let done = self.drive(&ask, &mut rows, shared, stopped);
        for row in &mut rows {
            self.cache.release(&mut row.table);
        }
        if !done? {
            return Ok(None);
        }
        let lost = || End::Failed(RowError::new(RowErrorCode::InvalidOutput, "the row was lost by the scheduler"));
        let cached = rows.iter().map(|row| row.cached).collect();
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
        if let Some((known, guide)) = &self.schema
            && known == schema
        {
            return Ok(guide.clone());
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
            if let Err(error) = self.decoder.forward(&pack, &mut self.cache) {
                self.cache.release(&mut table);
                return Err(error);
            }
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
        let mut needs: Vec<(usize, Need)> = Vec::with_capacity(rows.len());
        // In the order of their tokens, rows with equal leading values stand together and share those, too.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|a, b| rows[*a].ids.cmp(&rows[*b].ids));
        for index in order {
            let mut need = need(ask, &rows[index], shared, self.prompter.context);
            need.like = needs.last().and_then(|(other, _)| {
                let common = common_prefix(&[&rows[index].ids[..rows[index].prompt], &rows[*other].ids]);
                (common >= shared + PREFIX_TOKENS_MIN).then_some((*other, common))
            });
            let row = &mut rows[index];
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
        let mut likes = vec![None; rows.len()];
        for (row, need) in &needs {
            likes[*row] = need.like;
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
            let (pack, mut forks) = self.pack(ask, rows, &slices, &likes)?;
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

    /// The batch of a step, with the page tables of label branches that are to be given back after it. `likes` are the
    /// rows that rows may begin like, as the scheduler was told.
    fn pack(
        &mut self,
        ask: &Ask,
        rows: &mut [Row],
        slices: &[Slice],
        likes: &[Option<(usize, usize)>],
    ) -> Result<(Pack, Vec<Vec<PageId>>)> {
        let full = || Error::internal("the KV cache is full although the scheduler counted its pages");
        let mut pack = Pack::new();
        let mut forks = Vec::new();
        for slice in slices {
            if rows[slice.row].table.is_empty() {
                let like = likes[slice.row].filter(|(_, common)| slice.from == *common && *common > self.prefix.len());
                let source = like.map_or(&self.prefix_table, |(other, _)| &rows[other].table);
                let table = self.cache.fork(source, slice.from).ok_or_else(full)?;
                if let (Some(from), Some(to)) = (source.get(slice.from / BLOCK), table.get(slice.from / BLOCK)) {
                    pack.mirror(*from, slice.from % BLOCK, *to);
                }
                rows[slice.row].table = table;
                rows[slice.row].cached = slice.from;
            }
            let row = &mut rows[slice.row];
            self.cache.grow(&mut row.table, slice.to).ok_or_else(full)?;
            pack.push(&row.ids[slice.from..slice.to], slice.from, &row.table, slice.completes);
            let Ask::Labels { trie, .. } = ask else { continue };
            for branch in trie.branches[1..].iter().filter(|_| slice.completes) {
                let suffix = &branch.path[trie.branches[0].path.len()..];
                let mut fork = self.cache.fork(&row.table, slice.to).ok_or_else(full)?;
                self.cache.grow(&mut fork, slice.to + suffix.len()).ok_or_else(full)?;
                if let Some(from) = row.table.get(slice.to / BLOCK) {
                    pack.mirror(*from, slice.to % BLOCK, fork[slice.to / BLOCK]);
                }
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
    Need { tokens, pages: pages_needed(longest, shared) + forks, like: None }
}
