//! Answers prompts with what writes text: what is asked of the rows, the beginning that outlives a call, and what their ends mean.
//! It computes nothing itself: [`Drive`] runs the rows.

use std::collections::VecDeque;
use std::sync::Arc;

use rowmill_jobs::infer::{Answer, Answered, Outcome, RowError, RowErrorCode, TaskKind, TextFormat, Usage};
use rowmill_jobs::{Error, Result};

#[cfg(test)]
use crate::drive::Observer;
use crate::drive::{Beginning, Drive};
use crate::guide::{Guide, Guides};
use crate::kv::{KvCache, PageId};
use crate::labels::{LabelTrie, calibrated};
use crate::pack::common_prefix;
use crate::prompt::Prompter;
use crate::row::{Ask, End, Row, choice, too_long};
use crate::writer::Writer;

/// Tasks whose guides and priors are kept: those of a job, whose calls take turns.
const TASKS_KEPT: usize = 8;
/// A common beginning shorter than this is not worth a pass of its own.
const PREFIX_TOKENS_MIN: usize = 4;

/// Answers for one model.
#[derive(Debug)]
pub(crate) struct Answerer {
    pub(crate) writer: Writer,
    prompter: Arc<Prompter>,
    pub(crate) cache: KvCache,
    /// The beginning that the last prompts shared, with its pages.
    prefix: Vec<u32>,
    prefix_table: Vec<PageId>,
    guides: Option<Guides>,
    /// The last output formats and their compiled guides.
    formats: VecDeque<(TextFormat, Guide)>,
    /// What the last labels score without a text.
    priors: VecDeque<Prior>,
    #[cfg(test)]
    pub(crate) observer: Observer,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guide")
    }
}

/// Scores that labels have without a text.
#[derive(Debug)]
struct Prior {
    /// The prompt without a text.
    prompt: Vec<u32>,
    labels: Vec<String>,
    scores: Vec<f32>,
}

/// Whose the lexer of a row's grammar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lexers {
    /// All rows': what it learns of one serves the others, and where it fails with one it fails with all.
    Shared,
    /// The row's.
    Own,
}

/// What came of a run.
pub(crate) struct Answers {
    /// One for each prompt.
    pub(crate) ends: Vec<End>,
    /// For each prompt, its tokens that were computed for another.
    pub(crate) cached: Vec<usize>,
    /// Prompts whose grammars failed.
    failed_guides: Vec<usize>,
}

impl Answerer {
    /// `kv_bytes_max` bounds a processor's memory for keys and values, which is taken when it is needed; a device's was taken
    /// when the model was loaded.
    pub(crate) fn new(writer: Writer, prompter: Arc<Prompter>, kv_bytes_max: usize) -> Self {
        let pages_max = writer.pages_max(kv_bytes_max);
        let cache = writer.cache(pages_max);
        Self {
            writer,
            prompter,
            cache,
            prefix: Vec::new(),
            prefix_table: Vec::new(),
            guides: None,
            formats: VecDeque::new(),
            priors: VecDeque::new(),
            #[cfg(test)]
            observer: Observer::default(),
        }
    }

    /// Outcomes of prompts, in their order. `neutral` is the prompt without a text, for scores that are to be calibrated.
    /// `stopped` is asked at every step; `None` if it said yes.
    pub(crate) fn answer(
        &mut self,
        kind: &TaskKind,
        neutral: Option<&[u32]>,
        prompts: &[&[u32]],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Vec<Outcome>>> {
        let unknown = neutral.filter(|neutral| self.prior(kind, neutral).is_none());
        let together: Vec<&[u32]> = prompts.iter().copied().chain(unknown).collect();
        let Some(mut answers) = self.run(kind, &together, stopped)? else { return Ok(None) };
        if let (Some(neutral), TaskKind::Choose { labels, .. }) = (unknown, kind) {
            match answers.ends.pop() {
                Some(End::Scored(scores)) => {
                    self.priors.truncate(TASKS_KEPT - 1);
                    self.priors.push_front(Prior { prompt: neutral.to_vec(), labels: labels.clone(), scores });
                }
                Some(End::Failed(error)) => return Ok(Some(prompts.iter().map(|_| Err(error.clone())).collect())),
                _ => return Err(Error::internal("labels without a text were not scored")),
            }
        }
        let prior = neutral.and_then(|neutral| self.prior(kind, neutral));
        let outcomes = prompts.iter().zip(answers.ends).zip(answers.cached).map(|((prompt, end), cached)| {
            let usage = |output: usize| Usage {
                input_tokens: prompt.len() as u64,
                cached_tokens: cached as u64,
                output_tokens: output as u64,
                nano_usd: 0,
            };
            match end {
                End::Failed(error) => Ok(Err(error)),
                End::Cut(ids) => Ok(Err(RowError::new(
                    RowErrorCode::Truncated,
                    format!("the answer was not whole after {} tokens", ids.len()),
                ))),
                End::Scored(scores) => {
                    let scores = prior.map_or_else(|| scores.clone(), |prior| calibrated(&scores, prior));
                    Ok(Ok(Answered::new(choice(scores), usage(0))))
                }
                End::Written(ids) => {
                    let text = self.text(kind, &ids)?;
                    Ok(text.map(|text| Answered::new(Answer::Text(text), usage(ids.len()))))
                }
            }
        });
        outcomes.collect::<Result<Vec<Outcome>>>().map(Some)
    }

    /// What the labels score without a text, if it was measured.
    fn prior(&self, kind: &TaskKind, neutral: &[u32]) -> Option<&[f32]> {
        let TaskKind::Choose { labels, .. } = kind else { return None };
        let known = self.priors.iter().find(|prior| prior.prompt == neutral && prior.labels == *labels);
        known.map(|prior| prior.scores.as_slice())
    }

    /// The text that ids spell, exactly as the grammar saw it if there was one.
    fn text(&self, kind: &TaskKind, ids: &[u32]) -> Result<std::result::Result<String, RowError>> {
        let TaskKind::Complete { format: TextFormat::Json { .. } | TextFormat::Pattern { .. }, .. } = kind else {
            return self.prompter.tokens.decode(ids).map(Ok);
        };
        let invalid =
            |what: &str| RowError::new(RowErrorCode::InvalidOutput, format!("the model's output is not {what}"));
        let bytes = self.guides.as_ref().map(|guides| guides.bytes(ids)).unwrap_or_default();
        let Ok(text) = String::from_utf8(bytes) else { return Ok(Err(invalid("UTF-8"))) };
        let json = matches!(kind, TaskKind::Complete { format: TextFormat::Json { .. }, .. });
        if json && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_err() {
            return Ok(Err(invalid("JSON")));
        }
        Ok(Ok(text))
    }

    /// Runs prompts to their ends. Rows whose grammar failed are run once more with one that is compiled anew, each with a lexer
    /// of its own: the failure may be that of a row beside them, or of many rows before.
    pub(crate) fn run(
        &mut self,
        kind: &TaskKind,
        prompts: &[&[u32]],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Answers>> {
        let Some(mut answers) = self.run_once(kind, prompts, Lexers::Shared, stopped)? else { return Ok(None) };
        if answers.failed_guides.is_empty() {
            return Ok(Some(answers));
        }
        let rows = std::mem::take(&mut answers.failed_guides);
        let again: Vec<&[u32]> = rows.iter().map(|row| prompts[*row]).collect();
        let Some(second) = self.run_once(kind, &again, Lexers::Own, stopped)? else { return Ok(None) };
        for (row, (end, cached)) in rows.into_iter().zip(second.ends.into_iter().zip(second.cached)) {
            (answers.ends[row], answers.cached[row]) = (end, cached);
        }
        Ok(Some(answers))
    }

    fn run_once(
        &mut self,
        kind: &TaskKind,
        prompts: &[&[u32]],
        lexers: Lexers,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Answers>> {
        let (ask, guide) = self.ask(kind)?;
        let first = match &ask {
            Ask::Labels { trie, .. } => trie.branches[0].path.clone(),
            Ask::Text { .. } => Vec::new(),
        };
        let rows: Vec<Row> = prompts
            .iter()
            .map(|prompt| {
                let mut guide = match lexers {
                    Lexers::Shared => guide.clone(),
                    Lexers::Own => guide.as_ref().map(Guide::apart),
                };
                let forced = guide.as_mut().map(Guide::forced).unwrap_or_default();
                let ids = [prompt, &first[..], &forced].concat();
                let (prompt, context) = (prompt.len(), self.prompter.context);
                let end = (ids.len() > context).then(|| too_long(prompt, ids.len() - prompt, context));
                Row { ids, prompt, cached: 0, table: Vec::new(), reserved: 0, after: 0, begun: 0, place: 0, guide, end }
            })
            .collect();
        let computed = self.share_prefix(prompts);
        let first = Beginning {
            tokens: self.prefix.len(),
            parent: None,
            row: 0,
            table: std::mem::take(&mut self.prefix_table),
        };
        #[cfg(not(test))]
        let ahead = self.writer.runs_ahead();
        #[cfg(test)]
        let ahead = self.writer.runs_ahead() || self.observer.ahead;
        let mut drive = Drive {
            ahead,
            writer: &mut self.writer,
            prompter: &self.prompter,
            pages: self.cache.available(),
            cache: &mut self.cache,
            ask: &ask,
            rows,
            beginnings: vec![first],
            forks: Vec::new(),
            #[cfg(test)]
            observer: &mut self.observer,
        };
        let (done, whole) = drive.run(computed, stopped);
        let Drive { rows, mut beginnings, .. } = drive;
        self.prefix_table = std::mem::take(&mut beginnings[0].table);
        if !whole {
            self.forget_prefix();
        }
        let failed = |row: &Row| row.guide.as_ref().is_some_and(Guide::has_failed);
        let failed_guides: Vec<usize> = (0..rows.len()).filter(|row| failed(&rows[*row])).collect();
        let is_lost = lexers == Lexers::Shared && !failed_guides.is_empty();
        if let (true, TaskKind::Complete { format, .. }) = (is_lost, kind) {
            self.formats.retain(|(known, _)| known != format);
        }
        if !done? {
            return Ok(None);
        }
        let lost = || End::Failed(RowError::new(RowErrorCode::InvalidOutput, "the row was lost by the scheduler"));
        let cached = rows.iter().map(|row| row.cached).collect();
        Ok(Some(Answers {
            ends: rows.into_iter().map(|row| row.end.unwrap_or_else(lost)).collect(),
            cached,
            failed_guides,
        }))
    }

    fn ask(&mut self, kind: &TaskKind) -> Result<(Ask, Option<Guide>)> {
        match kind {
            TaskKind::Choose { labels, .. } => {
                let end = self.prompter.end_of_turn.ok_or_else(|| {
                    Error::invalid("the model names no token that ends an answer, so labels cannot be scored")
                        .hint("eos_token_id in generation_config.json or config.json names it")
                })?;
                let trie = LabelTrie::new(&self.prompter.labels(labels)?, end)?;
                if trie.branches.is_empty() {
                    return Err(Error::invalid("a choice needs two labels at least"));
                }
                let head = self.writer.head(&trie.tokens())?;
                Ok((Ask::Labels { trie, head }, None))
            }
            TaskKind::Complete { tokens_max, format } => {
                let guide = match format {
                    TextFormat::Free => None,
                    TextFormat::Json { .. } | TextFormat::Pattern { .. } => Some(self.guide(format)?),
                };
                Ok((Ask::Text { tokens_max: *tokens_max as usize }, guide))
            }
            TaskKind::Embed => {
                Err(Error::invalid("a language model does not make vectors").hint("use an embedding model"))
            }
        }
    }

    fn guide(&mut self, format: &TextFormat) -> Result<Guide> {
        if let Some((_, guide)) = self.formats.iter().find(|(known, _)| known == format) {
            return Ok(guide.clone());
        }
        let guides = match self.guides.take() {
            Some(guides) => guides,
            None => Guides::new(&self.prompter)?,
        };
        let guides = self.guides.insert(guides);
        let guide = match format {
            TextFormat::Json { schema } => guides.json(schema)?,
            TextFormat::Pattern { pattern } => guides.pattern(pattern)?,
            TextFormat::Free => return Err(Error::internal("free text has no grammar")),
        };
        self.formats.truncate(TASKS_KEPT - 1);
        self.formats.push_front((format.clone(), guide.clone()));
        Ok(guide)
    }

    /// Takes the prompts' common beginning for the first one, unless it is already. Returns how much of it is computed.
    fn share_prefix(&mut self, prompts: &[&[u32]]) -> usize {
        let known = common_prefix(&[prompts, &[&[&self.prefix[..], &[u32::MAX]].concat()[..]]].concat());
        let common = if prompts.len() > 1 { common_prefix(prompts) } else { 0 };
        if known == self.prefix.len() && common < known + PREFIX_TOKENS_MIN {
            return known;
        }
        let fork = (common >= PREFIX_TOKENS_MIN).then(|| self.cache.fork(&self.prefix_table, known)).flatten();
        self.forget_prefix();
        let Some(mut table) = fork else { return 0 };
        if self.cache.grow(&mut table, common).is_none() {
            // No room to share: rows that are too long for the cache say so themselves.
            self.cache.release(&mut table);
            return 0;
        }
        self.prefix = prompts[0][..common].to_vec();
        self.prefix_table = table;
        known
    }

    fn forget_prefix(&mut self) {
        self.cache.release(&mut self.prefix_table);
        self.prefix.clear();
    }
}

#[cfg(test)]
impl Answerer {
    /// Pages in use beside those of the beginning that is kept, and how many tasks are remembered.
    pub(crate) fn held(&self, pages_max: usize) -> (usize, usize) {
        let used = pages_max - self.cache.available() - self.prefix_table.len();
        (used, self.formats.len().max(self.priors.len()))
    }

    /// The grammar of a format, as rows get it.
    pub(crate) fn guide_of(&mut self, format: &TextFormat) -> Result<Guide> {
        self.guide(format)
    }
}
