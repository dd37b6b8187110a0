//! Prompts: a task's template and a request's values become token ids. A row's values are data: whatever they contain,
//! they add no special token to the prompt. Decoder prompts are never cut; texts for encoders are, as their models expect.

use std::borrow::Cow;

use rowmill_jobs::infer::{Piece, Request, RowError, RowErrorCode, Task, TaskKind};
use rowmill_jobs::{Error, Result};

use crate::chat::ChatTemplate;
use crate::tokens::{BYTES_PER_TOKEN, Tokens};

/// A row's token ids, or why it has none.
pub(crate) type Prompt = std::result::Result<Vec<u32>, RowError>;

/// Makes prompts for one model.
#[derive(Debug)]
pub(crate) struct Prompter {
    /// The model's tokenizer.
    pub(crate) tokens: Tokens,
    /// Its chat template, if it has one.
    pub(crate) chat: Option<ChatTemplate>,
    /// Tokens of the vocabulary that end an answer, ascending.
    pub(crate) ends: Vec<u32>,
    /// The token that ends a turn: what follows an answer in the chat template.
    pub(crate) end_of_turn: Option<u32>,
    /// Rows of the embedding matrix: ids from here on mean nothing to the model.
    pub(crate) vocab: usize,
    /// Longest prompt (decoder: with at least one token of output).
    pub(crate) context: usize,
    /// Embedded texts are lower-cased first.
    pub(crate) lower_case: bool,
}

/// Stands in for value `index` where a template is rendered without its values. Private-use characters: a model's
/// template has no reason to touch them, and no reader to show them to.
fn placeholder(index: usize) -> String {
    format!("\u{F8F0}{index}\u{F8F1}")
}

/// How the prompts of a task's rows are made.
#[derive(Debug)]
pub(crate) enum Recipe {
    /// For a decoder: rendered as a chat.
    Chat(Fixed),
    /// For an encoder: the task's template alone.
    Template,
    /// For an encoder: the part of the template that a row fills.
    Input,
}

/// What is the same for all rows of a task.
#[derive(Debug)]
pub(crate) struct Fixed {
    /// Special tokens of a prompt that come from the template, in their order.
    trusted: Vec<u32>,
    /// Tokens that an answer needs room for: every label must fit, since all are scored.
    answer_tokens_min: usize,
}

impl Prompter {
    /// How a decoder's prompts are made.
    pub(crate) fn decoder_recipe(&self, task: &Task) -> Result<Recipe> {
        self.fixed(task).map(Recipe::Chat)
    }

    /// Prompts of rows, one for each request. `Err` only for what is wrong with the task or the model.
    pub(crate) fn prompts(&self, task: &Task, recipe: &Recipe, requests: &[Request]) -> Result<Vec<Prompt>> {
        let prompt = |request| match recipe {
            Recipe::Chat(fixed) => Ok(self.fitting(self.decoder_ids(task, request, fixed)?, fixed)),
            Recipe::Template => self.encoder_prompt(&task.template, request),
            Recipe::Input => self.encoder_prompt(&task.input, request),
        };
        requests.iter().map(prompt).collect()
    }

    /// The prompt of a row whose values are all empty. `Err` if it has no tokens: then there is nothing to measure against.
    pub(crate) fn neutral_prompt(&self, task: &Task) -> Result<Prompt> {
        let values = task.template.iter().map(|piece| match piece {
            Piece::Value(index) => index + 1,
            Piece::Text(_) => 0,
        });
        let empty = Request { values: std::iter::repeat_n(String::new(), values.max().unwrap_or(0)).collect() };
        let fixed = self.fixed(task)?;
        let ids = self.decoder_ids(task, &empty, &fixed)?;
        if ids.is_empty() {
            return Err(Error::invalid("scores cannot be calibrated: without a text, the prompt has no tokens")
                .hint("add an instruction to the prompt, or leave `calibrate` out"));
        }
        Ok(self.fitting(ids, &fixed))
    }

    /// What is the same for all rows of a task.
    fn fixed(&self, task: &Task) -> Result<Fixed> {
        let answer_tokens_min = match &task.kind {
            TaskKind::Choose { labels, .. } => self.labels(labels)?.iter().map(Vec::len).max().unwrap_or(1),
            TaskKind::Complete { .. } | TaskKind::Embed => 1,
        };
        Ok(Fixed { trusted: self.encode_trusted(task)?, answer_tokens_min })
    }

    /// Special tokens of a prompt that come from the template, in their order.
    fn encode_trusted(&self, task: &Task) -> Result<Vec<u32>> {
        let text = join(&task.template, |index| Ok(placeholder(index)))?;
        Ok(self.markers_of(&self.tokens.encode(&self.render(task, &text)?)?))
    }

    fn markers_of(&self, ids: &[u32]) -> Vec<u32> {
        ids.iter().copied().filter(|id| self.tokens.is_marker_id(*id)).collect()
    }

    fn render(&self, task: &Task, user: &str) -> Result<String> {
        match (&self.chat, &task.system) {
            (Some(chat), system) => chat.prompt(system.as_deref(), user),
            (None, Some(system)) => Ok(format!("{system}\n\n{user}")),
            (None, None) => Ok(user.to_owned()),
        }
    }

    fn decoder_ids(&self, task: &Task, request: &Request, fixed: &Fixed) -> Result<Vec<u32>> {
        let user = join(&task.template, |index| value(request, index))?;
        let mut ids = self.tokens.encode(&self.render(task, &user)?)?;
        if self.markers_of(&ids) != fixed.trusted {
            ids = self.encode_apart(task, request)?;
        }
        if self.chat.is_none() {
            ids.splice(0..0, self.tokens.prefix.iter().copied());
        }
        Ok(ids)
    }

    /// Ids that the model can answer, or why it cannot.
    fn fitting(&self, ids: Vec<u32>, fixed: &Fixed) -> Prompt {
        if ids.len() + fixed.answer_tokens_min > self.context {
            let (length, context) = (ids.len(), self.context);
            return Err(RowError::new(
                RowErrorCode::TooLong,
                format!("the prompt has {length} tokens; the model takes {context} with its answer"),
            ));
        }
        self.checked(ids)
    }

    /// The prompt of a row whose values look like special tokens. The template is rendered with placeholders, cut at its
    /// own special tokens, and what lies between is encoded as text.
    fn encode_apart(&self, task: &Task, request: &Request) -> Result<Vec<u32>> {
        let text = join(&task.template, |index| {
            // White space at the ends stays outside, where the template can trim it as it would have.
            let value = value(request, index)?;
            let core = value.trim();
            let at = value.find(core).unwrap_or(0);
            Ok(format!("{}{}{}", &value[..at], placeholder(index), &value[at + core.len()..]))
        })?;
        let rendered = self.render(task, &text)?;
        let fill = |text: &str| {
            let mut filled = String::new();
            let mut rest = text;
            while let Some((before, after)) = rest.split_once('\u{F8F0}') {
                filled.push_str(before);
                let named = after.split_once('\u{F8F1}').and_then(|(index, after)| Some((index.parse().ok()?, after)));
                match named.and_then(|(index, after)| Some((request.values.get::<usize>(index)?, after))) {
                    Some((value, after)) => {
                        filled.push_str(value.trim());
                        rest = after;
                    }
                    None => {
                        filled.push('\u{F8F0}');
                        rest = after;
                    }
                }
            }
            filled.push_str(rest);
            filled
        };
        self.tokens.encode_with_data(&rendered, fill)
    }

    /// A text for an encoder, with its special tokens around it, cut to its length: vectors and classifiers of longer texts are
    /// those of their beginnings.
    pub(crate) fn encoder_prompt(&self, text: &[Piece], request: &Request) -> Result<Prompt> {
        let mut text = join(text, |index| value(request, index))?;
        if self.lower_case {
            text = text.to_lowercase().into();
        }
        let (prefix, suffix) = (&self.tokens.prefix, &self.tokens.suffix);
        let special = prefix.len() + suffix.len();
        let body_max = self.context.saturating_sub(special);
        let mut ids = Vec::with_capacity(special + (text.len() / BYTES_PER_TOKEN).min(body_max));
        ids.extend_from_slice(prefix);
        self.tokens.encode_beginning(&text, body_max, &mut ids)?;
        ids.extend_from_slice(suffix);
        if ids.len() > self.context {
            let context = self.context;
            return Ok(Err(RowError::new(
                RowErrorCode::TooLong,
                format!("the model takes {context} tokens, and puts {} of its own around every text", ids.len()),
            )));
        }
        Ok(self.checked(ids))
    }

    /// Token ids of labels, each alone. `Err` if the model has not all of them.
    pub(crate) fn labels(&self, labels: &[String]) -> Result<Vec<Vec<u32>>> {
        let ids = |label: &String| {
            let ids = self.tokens.encode_data(label)?;
            match self.foreign(&ids) {
                None => Ok(ids),
                Some(why) => Err(Error::invalid(format!("labels cannot be scored: {why}"))
                    .hint("the tokenizer is not this model's; download the model again")),
            }
        };
        labels.iter().map(ids).collect()
    }

    /// Ids of which something can be computed, or why nothing can.
    fn checked(&self, ids: Vec<u32>) -> Prompt {
        let why = if ids.is_empty() {
            Some("an empty text has no tokens, so nothing can be computed of it".to_owned())
        } else {
            self.foreign(&ids)
        };
        why.map_or(Ok(ids), |why| Err(RowError::new(RowErrorCode::InvalidOutput, why)))
    }

    /// What is wrong with ids that the model does not have.
    fn foreign(&self, ids: &[u32]) -> Option<String> {
        let id = ids.iter().find(|id| **id as usize >= self.vocab)?;
        Some(format!("the tokenizer gave the token {id}, the model has {} of them", self.vocab))
    }
}

fn value(request: &Request, index: usize) -> Result<&str> {
    request.values.get(index).map(String::as_str).ok_or_else(|| {
        Error::internal(format!("a prompt asks for value {index}, a request has {}", request.values.len()))
    })
}

/// The template's pieces with the values put in.
fn join<'a, T: AsRef<str> + Into<Cow<'a, str>>>(
    template: &'a [Piece],
    value: impl Fn(usize) -> Result<T>,
) -> Result<Cow<'a, str>> {
    if let [Piece::Value(index)] = template {
        return Ok(value(*index)?.into());
    }
    let mut text = String::new();
    for piece in template {
        match piece {
            Piece::Text(piece) => text.push_str(piece),
            Piece::Value(index) => text.push_str(value(*index)?.as_ref()),
        }
    }
    Ok(text.into())
}

#[cfg(test)]
impl Prompter {
    pub(crate) fn decoder_prompts(&self, task: &Task, requests: &[Request]) -> Result<Vec<Prompt>> {
        self.prompts(task, &self.decoder_recipe(task)?, requests)
    }

    pub(crate) fn encoder_prompts(&self, text: &[Piece], requests: &[Request]) -> Result<Vec<Prompt>> {
        requests.iter().map(|request| self.encoder_prompt(text, request)).collect()
    }
}
