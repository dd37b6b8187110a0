//! One row of a decoder's batch: its tokens, its pages, and how it ends. The choice of the next token is here; when a row
//! runs is not.

use rowmill_jobs::infer::{Answer, RowError, RowErrorCode};

use crate::attention::BLOCK;
use crate::guide::Guide;
use crate::kv::PageId;
use crate::labels::LabelTrie;
use crate::writer::Head;

/// Output tokens that a row's pages are first reserved for. Most answers are shorter; a longer one gets twice as many, and
/// again, up to its limit. So a generous limit keeps no other row waiting.
const OUTPUT_TOKENS_FIRST: usize = 256;

/// What rows are asked for.
pub(crate) enum Ask {
    Labels {
        trie: LabelTrie,
        /// The logits of the trie's tokens.
        head: Head,
    },
    Text {
        tokens_max: usize,
    },
}

impl Ask {
    /// Pages that a row takes for a moment, beside those of its own tokens.
    pub(crate) fn extra_pages(&self) -> usize {
        match self {
            Ask::Labels { trie, .. } => {
                let first = trie.branches[0].path.len();
                trie.branches[1..].iter().map(|branch| 1 + (branch.path.len() - first).div_ceil(BLOCK)).sum()
            }
            Ask::Text { .. } => 0,
        }
    }
}

/// One row on its way to an outcome.
pub(crate) struct Row {
    /// Prompt, then what is written.
    pub(crate) ids: Vec<u32>,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Tokens of the prompt that were computed for another row.
    pub(crate) cached: usize,
    /// Its pages, while it runs.
    pub(crate) table: Vec<PageId>,
    /// Tokens that its pages are reserved for.
    pub(crate) reserved: usize,
    /// The beginning that it continues: the longest while it waits for the first time, then the first.
    pub(crate) after: usize,
    /// How often it was begun anew, because it was put back.
    pub(crate) begun: usize,
    /// Its place among the rows that the last step with it completed.
    pub(crate) place: usize,
    /// Its place in the grammar, if its output has one.
    pub(crate) guide: Option<Guide>,
    /// How it ended, once it has.
    pub(crate) end: Option<End>,
}

impl Row {
    /// The most tokens it may have, prompt included.
    pub(crate) fn limit(&self, ask: &Ask, context: usize) -> usize {
        match ask {
            Ask::Labels { .. } => self.ids.len(),
            Ask::Text { tokens_max } => context.min(self.prompt + tokens_max).max(self.prompt),
        }
    }

    /// It begins anew, alone with the first beginning: what is under way of it counts no more.
    pub(crate) fn put_back(&mut self) {
        self.after = 0;
        self.begun += 1;
    }

    /// Tokens that its pages are to be reserved for, at first or once more: `room` is what the cache can hold of one row.
    pub(crate) fn reservation(&self, ask: &Ask, context: usize, room: usize) -> usize {
        let output = (2 * self.reserved.saturating_sub(self.prompt)).max(OUTPUT_TOKENS_FIRST);
        (self.prompt + output).min(self.limit(ask, context)).min(room).max(self.ids.len())
    }
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

/// What follows a row's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Token(u32),
    /// No token can write what the output must be.
    NoneAllowed,
    /// The model computed a number that is not finite.
    NotFinite,
}

impl Choice {
    /// The best of these logits (`[vocab]`) that the row's grammar allows.
    pub(crate) fn of(logits: &[f32], guide: Option<&mut Guide>) -> Self {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Self::NotFinite;
        }
        let token = match guide {
            None => argmax(logits),
            Some(guide) => guide.choose(logits),
        };
        token.map_or(Self::NoneAllowed, Self::Token)
    }
}

/// Gives a row its next tokens, or its end. `limit` is the most tokens it may have, prompt included.
pub(crate) fn advance(row: &mut Row, choice: Choice, limit: usize, ends: &[u32]) {
    let token = match choice {
        Choice::Token(token) => token,
        Choice::NotFinite => {
            row.end = Some(numeric());
            return;
        }
        Choice::NoneAllowed => {
            row.end = Some(unwritable(row));
            return;
        }
    };
    let mut complete = ends.contains(&token);
    if !complete {
        row.ids.push(token);
        if let Some(guide) = &mut row.guide {
            guide.take(token);
            if !guide.is_complete() {
                row.ids.extend(guide.forced());
            }
            if guide.has_failed() {
                row.end = Some(unwritable(row));
                return;
            }
            complete = guide.is_complete();
        }
    }
    if complete && row.ids.len() <= limit {
        row.end = Some(End::Written(row.ids[row.prompt..].to_vec()));
    } else if row.ids.len() >= limit {
        row.ids.truncate(limit);
        row.end = Some(End::Cut(row.ids[row.prompt..].to_vec()));
    }
}

/// The end of a row whose output cannot go on.
fn unwritable(row: &Row) -> End {
    let why = if row.guide.as_ref().is_some_and(Guide::has_failed) {
        "the grammar of the output is too complex to follow here"
    } else {
        "the model's vocabulary cannot write what the output must be"
    };
    End::Failed(RowError::new(RowErrorCode::InvalidOutput, why))
}

/// The highest logit's token; the first of equals.
fn argmax(logits: &[f32]) -> Option<u32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == top).map(|at| at as u32)
}

/// The end of a row whose numbers are not finite.
pub(crate) fn numeric() -> End {
    End::Failed(RowError::new(RowErrorCode::Numeric, "the model computed a number that is not finite"))
}

/// The end of a row whose answer begins with so many tokens that nobody chose, more than the model takes with its prompt.
pub(crate) fn too_long(prompt: usize, begun: usize, context: usize) -> End {
    End::Failed(RowError::new(
        RowErrorCode::TooLong,
        format!(
            "the prompt has {prompt} tokens, and the answer begins with {begun} that are given; the model takes {context} \
             with its answer"
        ),
    ))
}

/// The end of a row that does not fit into memory.
pub(crate) fn out_of_memory(message: impl Into<String>) -> End {
    End::Failed(RowError::new(RowErrorCode::OutOfMemory, message))
}

/// The answer of a row with these label probabilities.
pub(crate) fn choice(scores: Vec<f32>) -> Answer {
    let best = scores.iter().enumerate().fold(0, |best, (i, score)| if *score > scores[best] { i } else { best });
    Answer::Choice { index: best, scores }
}
