//! What is asked of a model and what comes back: [`Task`], [`Request`], [`Outcome`], and the [`Engine`] that turns one
//! into the other. Text is kept apart by who wrote it, so that an engine can never take row content for instructions.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A row's values. Most prompts have one hole, and a table has many rows: one value needs no allocation of its own.
pub type Values = smallvec::SmallVec<[String; 1]>;

/// One AI call of a job, the same for all rows: which model, what to do, and the prompt's fixed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Name of the model, as `CREATE MODEL` gave it.
    pub model: String,
    /// What the engine does with the prompt.
    pub kind: TaskKind,
    /// System message, for models whose chat template has one.
    pub system: Option<String>,
    /// The user message; [`Piece::Value`] marks where a row's values go. For [`TaskKind::Embed`]: the text itself.
    pub template: Vec<Piece>,
    /// The part of the template that a row fills, without Rowmill's instructions around it: what a fine-tuned classifier
    /// reads, which needs no instructions and was trained without any.
    pub input: Vec<Piece>,
}

/// A piece of a prompt template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text of the job's author or of Rowmill: trusted.
    Text(String),
    /// The row's value with this index in [`Request::values`]: data, never instructions.
    Value(usize),
}

/// What an engine is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskKind {
    /// Write text, greedily, until the model ends or `tokens_max` is reached.
    Complete {
        /// Most output tokens for a row. Output that is not whole by then is a row error, never short text.
        tokens_max: u32,
        /// Shape the output must have.
        format: TextFormat,
    },
    /// Choose one of these labels, with a probability for each.
    Choose {
        /// Two or more distinct, non-empty labels.
        labels: Vec<String>,
        /// Whether probabilities are measured against those that the labels have when all values are empty.
        calibrate: bool,
    },
    /// Turn the text into one vector of length 1.
    Embed,
}

/// Finds labels as a job names them among a classifier's own: exactly as written, else without regard to case. Returns, for
/// each of `asked`, its index in `own`.
///
/// # Errors
/// [`crate::Kind::Invalid`] where a label is none of the model's, could be two of them, or two are the same one.
pub fn find_labels(asked: &[String], own: &[String]) -> Result<Vec<usize>> {
    let refused = |message: String| {
        Error::invalid(message).hint(format!("the model was trained to choose among: {}", own.join(", ")))
    };
    let mut found: Vec<usize> = Vec::with_capacity(asked.len());
    for label in asked {
        let like: Vec<usize> = (0..own.len()).filter(|i| own[*i].to_lowercase() == label.to_lowercase()).collect();
        let index = match (own.iter().position(|known| known == label), &like[..]) {
            (Some(index), _) => index,
            (None, [index]) => *index,
            (None, []) => return Err(refused(format!("the model has no label `{label}`"))),
            (None, _) => {
                return Err(refused(format!("label `{label}` could be several of the model's, but for its case")));
            }
        };
        if let Some(earlier) = found.iter().position(|earlier| *earlier == index) {
            return Err(refused(format!("labels `{}` and `{label}` are one label of the model", asked[earlier])));
        }
        found.push(index);
    }
    Ok(found)
}

/// The shape of generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextFormat {
    /// Anything.
    Free,
    /// Compact JSON (no white space outside strings) that validates against this JSON Schema.
    Json {
        /// The schema.
        schema: serde_json::Value,
    },
    /// Text that as a whole matches a regular expression.
    Pattern {
        /// The expression, in the syntax of Rust's `regex` crate; anchors at its ends change nothing.
        pattern: String,
    },
}

/// One row's part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// The values that [`Piece::Value`] refers to.
    pub values: Values,
}

/// A request's end: an answer, or this row's own error.
pub type Outcome = std::result::Result<Answered, RowError>;

/// An answer with what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// What the model said.
    pub answer: Answer,
    /// Tokens it took.
    pub usage: Usage,
    /// The model that answered in place of [`Task::model`], by its name in SQL. Known to who routes, not to who answers.
    #[serde(skip)]
    pub spilled_to: Option<Arc<str>>,
}

impl Answered {
    /// An answer of the model that was asked.
    pub fn new(answer: Answer, usage: Usage) -> Self {
        Self { answer, usage, spilled_to: None }
    }
}

/// What a model said, by kind of task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// For [`TaskKind::Complete`]: the text, without end-of-turn tokens.
    Text(String),
    /// For [`TaskKind::Choose`].
    Choice {
        /// Index of the most probable label.
        index: usize,
        /// A probability for each label; they sum to 1. Empty where whoever chose gives none: most managed providers
        /// name a label and say nothing of the others. An invented number would pass for a measured one.
        scores: Vec<f32>,
    },
    /// For [`TaskKind::Embed`]: `[dimensions]`, Euclidean length 1.
    Vector(Vec<f32>),
}

/// Tokens that one request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt tokens, shared ones included.
    pub input_tokens: u64,
    /// Prompt tokens whose computation was shared with other rows.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub output_tokens: u64,
    /// What a provider asks for them, in nano-dollars; 0 for models of this machine.
    #[serde(default)]
    pub nano_usd: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.output_tokens += other.output_tokens;
        self.nano_usd += other.nano_usd;
    }
}

/// Why one row has no value. It says nothing of the row's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowError {
    /// The kind of trouble, for machines.
    pub code: RowErrorCode,
    /// The trouble in words, for people: sizes and limits, never content.
    pub message: String,
}

impl RowError {
    /// A new row error.
    pub fn new(code: RowErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The kinds of trouble a row can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowErrorCode {
    /// The prompt has more tokens than the model's context takes.
    TooLong,
    /// A value has more bytes than a row may send to a model.
    TooLarge,
    /// The output was cut at the token limit.
    Truncated,
    /// The output does not have the shape that was asked for.
    InvalidOutput,
    /// The model computed NaN or infinity.
    Numeric,
    /// The engine ran out of memory with this row alone.
    OutOfMemory,
    /// Computing this row ended the process, each time it was tried.
    Crash,
    /// The engine was told to fail (the `echo` engine's `fail_ratio`).
    Injected,
    /// The model itself declined to answer.
    Refused,
    /// A managed provider's content filter held back the prompt or the answer.
    Filtered,
    /// A managed provider does not take this request, or gives no usable response to it however often it is asked.
    Provider,
}

impl RowErrorCode {
    /// The code as it stands in `_errors`.
    pub fn as_str(self) -> &'static str {
        match self {
            RowErrorCode::TooLong => "too_long",
            RowErrorCode::TooLarge => "too_large",
            RowErrorCode::Truncated => "truncated",
            RowErrorCode::InvalidOutput => "invalid_output",
            RowErrorCode::Numeric => "numeric",
            RowErrorCode::OutOfMemory => "out_of_memory",
            RowErrorCode::Crash => "crash",
            RowErrorCode::Injected => "injected",
            RowErrorCode::Refused => "refused",
            RowErrorCode::Filtered => "filtered",
            RowErrorCode::Provider => "provider",
        }
    }
}

impl fmt::Display for RowErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What came of requests that not all were answered.
#[derive(Debug)]
pub struct Partial {
    /// One for each request, in their order; `None` where there is no answer.
    pub outcomes: Vec<Option<Outcome>>,
    /// Why some have none.
    pub stopped: Option<Error>,
}

impl Partial {
    /// Nothing yet, of so many requests.
    pub fn nothing(requests: usize) -> Self {
        Self { outcomes: vec![None; requests], stopped: None }
    }

    /// The requests without an outcome.
    pub fn open(&self) -> Vec<usize> {
        (0..self.outcomes.len()).filter(|request| self.outcomes[*request].is_none()).collect()
    }

    /// Takes what came of some of the requests, which are named in its order.
    pub fn fill(&mut self, requests: &[usize], came: Partial) {
        for (request, outcome) in requests.iter().zip(came.outcomes) {
            if outcome.is_some() {
                self.outcomes[*request] = outcome;
            }
        }
        self.stopped = came.stopped;
    }

    /// All outcomes.
    ///
    /// # Errors
    /// Why there are not all.
    pub fn whole(self) -> Result<Vec<Outcome>> {
        let missing = self.stopped.unwrap_or_else(|| Error::internal("a request has no outcome"));
        self.outcomes.into_iter().collect::<Option<_>>().ok_or(missing)
    }
}

/// Answers requests. Implementations: the candle engine, `echo`, managed providers, and the executor's router over them.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// Answers every request, in their order: `outcomes.len() == requests.len()`. One row's trouble is that row's
    /// outcome; an `Err` means that the engine itself cannot go on, and fails the shard.
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>>;

    /// Whether it answers nothing any more, so that another is to be made in its place.
    fn has_ended(&self) -> bool {
        false
    }

    /// How many of a task's requests it wants at once.
    fn portion(&self, _task: &Task) -> Portion {
        Portion::Usual
    }
}

/// How many requests an engine wants at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Portion {
    /// Some: it answers them while the next are gathered.
    Usual,
    /// Several times as many: it computes hundreds of rows at a time, and at the end of a call, when most of them have ended, it
    /// would compute a few as slowly as all.
    Many,
    /// As many as memory allows: it sends them away together, and however many they are, they take hours.
    Large,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn labels_are_found_whatever_their_case_and_each_once() {
        let own = labels(&["Billing", "BUG", "bug", "How-To"]);
        assert_eq!(find_labels(&labels(&["how-to", "bug", "billing"]), &own).unwrap(), [3, 2, 0]);
        for (asked, word) in
            [(&["bug", "other"][..], "`other`"), (&["Bug"], "several"), (&["how-to", "HOW-TO"], "one label")]
        {
            let error = find_labels(&labels(asked), &own).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.hint_text().unwrap().contains("Billing, BUG, bug, How-To"));
        }
    }
}
