//! [`Question`]: what one task asks of one target, with everything that is the same for all rows made ready: paths, the
//! request's form, the schema as it is sent, the checks of answers. It says early what cannot be asked.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rowmill_jobs::infer::{Piece, Request, Task, TaskKind};
use rowmill_jobs::{Error, Result};

use crate::call::Spent;
use crate::dialect::{self, Asked, Form};
use crate::structured::Format;
use crate::target::{StructuredMode, Target};
use crate::tokens::{Estimates, InputEstimate, OutputEstimate};

/// Tokens of JSON around a label.
const LABEL_OVERHEAD: usize = 24;
/// Output tokens to reckon with before any answer was seen.
const OUTPUT_GUESS: u32 = 256;

/// A task at a target.
#[derive(Debug)]
pub struct Question {
    pub(crate) target: Arc<Target>,
    pub(crate) task: Arc<Task>,
    /// Path of its calls.
    pub(crate) path: String,
    pub(crate) format: Format,
    /// The request, but for the row; `None` for embeddings.
    pub(crate) form: Option<Form>,
    /// Most output tokens of an answer, thinking apart.
    pub(crate) tokens_max: u32,
    /// Length of the first vector that came: all others must have it.
    pub(crate) dimensions: OnceLock<usize>,
}

impl Question {
    /// Makes a task ready for a target.
    ///
    /// # Errors
    /// [`rowmill_jobs::Kind::Invalid`] for what the target cannot do: embeddings, completions, calibrated labels; for a
    /// schema or a pattern that cannot be checked.
    pub fn new(target: &Arc<Target>, task: &Arc<Task>) -> Result<Arc<Self>> {
        let refused = |what: &str| {
            Error::invalid(format!("provider `{}` has no {what} of model `{}`", target.provider, target.model))
        };
        let embeds = task.kind == TaskKind::Embed;
        if embeds && target.embed_rows_max == 0 {
            return Err(refused("embeddings").hint("ai_embed needs a model that makes vectors"));
        }
        if !embeds && target.chat_path.is_empty() {
            return Err(refused("completions").hint("it makes vectors only, for ai_embed"));
        }
        if let TaskKind::Choose { calibrate: true, .. } = task.kind {
            return Err(refused("probabilities of labels to calibrate")
                .hint("leave calibrate => true out, or let a candle model choose"));
        }
        let format = Format::new(&task.kind, target)?;
        let tokens_max = match &task.kind {
            TaskKind::Complete { tokens_max, .. } => *tokens_max,
            // No tokenizer makes more tokens of a label than it has bytes.
            TaskKind::Choose { labels, .. } => {
                let longest = labels.iter().map(String::len).max().unwrap_or(0);
                u32::try_from(longest + LABEL_OVERHEAD).unwrap_or(u32::MAX)
            }
            TaskKind::Embed => 0,
        };
        let (path, form) = if embeds {
            (target.embedding_path()?, None)
        } else {
            let system = [task.system.clone(), format.instructions()].into_iter().flatten().collect::<Vec<_>>();
            let system = (!system.is_empty()).then(|| system.join("\n\n"));
            let asked = Asked { system: system.as_deref(), format: &format };
            (target.completion_path()?, Some(Form::new(target, &asked)?))
        };
        let (target, task) = (Arc::clone(target), Arc::clone(task));
        Ok(Arc::new(Self { target, task, path, format, form, tokens_max, dimensions: OnceLock::new() }))
    }

    /// How structured output is asked for, for plans; `None` where none is.
    pub fn structured(&self) -> Option<StructuredMode> {
        match &self.format {
            Format::Label { json: None, .. } => Some(StructuredMode::None),
            format => format.json().map(|json| json.mode),
        }
    }

    /// Estimates that have seen nothing yet.
    pub fn estimates(&self) -> Estimates {
        Estimates {
            input: InputEstimate::new(self.target.tokenizer),
            output: OutputEstimate::new(OUTPUT_GUESS, self.limit()),
        }
    }

    /// Most output tokens of a call, thinking included; none for embeddings.
    pub(crate) fn limit(&self) -> u32 {
        if self.form.is_some() { self.tokens_max.saturating_add(self.target.thinking_tokens) } else { 0 }
    }

    /// Splits rows into those of one conversation each: single ones, or for embeddings as many as one call takes.
    pub fn packs(&self, requests: &[Request]) -> Vec<Range<usize>> {
        if self.form.is_some() {
            return (0..requests.len()).map(|row| row..row + 1).collect();
        }
        let lengths = requests.iter().map(|request| request.values.iter().map(String::len).sum());
        self.packs_of(lengths)
    }

    /// Packs of texts of these bytes.
    pub(crate) fn packs_of(&self, lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
        let rows_max = self.target.embed_rows_max.max(1) as usize;
        // Half of what the limit allows: an estimate that is too low must not make the call fail.
        let bytes_max = f64::from(self.target.embed_tokens_max) * self.target.tokenizer.bytes_per_token() / 2.0;
        let mut packs: Vec<Range<usize>> = Vec::new();
        let mut bytes = 0.0;
        for (row, length) in lengths.enumerate() {
            let length = length as f64;
            match packs.last_mut() {
                Some(pack) if pack.len() < rows_max && bytes + length <= bytes_max => {
                    pack.end = row + 1;
                    bytes += length;
                }
                _ => {
                    packs.push(row..row + 1);
                    bytes = length;
                }
            }
        }
        packs
    }

    /// What an answer took, if it says; `rows` is how many texts were embedded.
    pub(crate) fn spent(&self, body: &[u8], rows: usize) -> Option<Spent> {
        match &self.form {
            Some(_) => dialect::read_completion(&self.target, body).ok()?.spent,
            None => dialect::read_embeddings(&self.target, body, rows).ok()?.spent,
        }
    }

    /// A row's text: the template with its values put in.
    pub(crate) fn text(&self, request: &Request) -> Result<String> {
        let mut text = String::new();
        for piece in &self.task.template {
            text.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Value(index) => request.values.get(*index).ok_or_else(|| {
                    let values = request.values.len();
                    Error::internal(format!("a prompt asks for value {index}, a request has {values}"))
                })?,
            });
        }
        Ok(text)
    }
}
