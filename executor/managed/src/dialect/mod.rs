//! Dialects: what a request looks like in each provider's language and what its response says. Pure functions from JSON to
//! JSON. A completion is written once for a task, with marks where the row's text and the token limit go; filling it in
//! ([`Form::fill`]) is all that happens for a row, so a row's text can stand nowhere else.

mod anthropic;
mod gemini;
mod openai;
mod openai_reply;
mod read;

use bytes::Bytes;
use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};

use crate::call::Spent;
use crate::structured::Format;
use crate::target::{Dialect, PatternMode, StructuredMode, Target};

/// Where the row's text goes. Private-use characters: no author has a reason to write them.
const TEXT_MARK: &str = "\u{F8F0}text\u{F8F1}";
/// Where the limit of output tokens goes.
const TOKENS_MARK: &str = "\u{F8F0}tokens\u{F8F1}";
/// Name of the schema, and of the tool that carries it.
const ANSWER: &str = "answer";
/// What the tool is for.
const ANSWER_PURPOSE: &str = "Gives the answer.";

/// What a completion asks for, beside the row's text.
pub(crate) struct Asked<'a> {
    /// System message: the job's author's and ours.
    pub(crate) system: Option<&'a str>,
    /// What the answer must look like.
    pub(crate) format: &'a Format,
}

/// A request's body with holes for the row's text and the token limit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    /// Bytes before, between and after the holes.
    parts: [String; 3],
    /// Whether the token limit comes before the text.
    tokens_first: bool,
}

impl Form {
    /// The form of a completion.
    pub(crate) fn new(target: &Target, asked: &Asked<'_>) -> Result<Self> {
        let mut body = match target.dialect {
            Dialect::Openai => openai::completion(target, asked),
            Dialect::Anthropic => anthropic::completion(target, asked),
            Dialect::Gemini => gemini::completion(target, asked),
        };
        for (name, value) in &target.body {
            match (&mut body[name], value) {
                (Value::Object(ours), Value::Object(added)) => {
                    ours.extend(added.iter().map(|(name, value)| (name.clone(), value.clone())));
                }
                (ours, value) => *ours = value.clone(),
            }
        }
        let body = body.to_string();
        let (text, tokens) = (format!("\"{TEXT_MARK}\""), format!("\"{TOKENS_MARK}\""));
        let places = (single(&body, &text), single(&body, &tokens));
        let (Some(text_at), Some(tokens_at)) = places else {
            return Err(Error::invalid("a request has no single place for a row's text and the limit of its tokens")
                .hint("`body` of a target may add fields, and may replace neither messages nor limits"));
        };
        let mut holes = [(text_at, text.len()), (tokens_at, tokens.len())];
        holes.sort_unstable();
        let [(first, first_len), (second, second_len)] = holes;
        let parts = [&body[..first], &body[first + first_len..second], &body[second + second_len..]];
        Ok(Self { parts: parts.map(str::to_owned), tokens_first: tokens_at < text_at })
    }

    /// The body for a row.
    pub(crate) fn fill(&self, text: &str, tokens_max: u32) -> Bytes {
        let (text, tokens) = (Value::from(text).to_string(), tokens_max.to_string());
        let [first, second] = if self.tokens_first { [tokens, text] } else { [text, tokens] };
        let [before, between, after] = &self.parts;
        Bytes::from([before.as_str(), &first, between, &second, after].concat())
    }
}

/// The one place of a text in another.
fn single(text: &str, part: &str) -> Option<usize> {
    text.find(part).filter(|at| text.rfind(part) == Some(*at))
}

/// The body of an embedding call; vectors come back for each text.
pub(crate) fn embedding(target: &Target, texts: &[&str]) -> Bytes {
    let body = match target.dialect {
        Dialect::Openai | Dialect::Anthropic => openai::embedding(target, texts),
        Dialect::Gemini => gemini::embedding(target, texts),
    };
    Bytes::from(body.to_string())
}

/// A call as a row of a batch: the same body, but for Gemini's embeddings, of which a batch's row asks for one.
pub(crate) fn batch_row(target: &Target, call: Bytes) -> Bytes {
    match target.dialect {
        Dialect::Gemini => gemini::batch_row(&call).unwrap_or(call),
        Dialect::Openai | Dialect::Anthropic => call,
    }
}

/// The answer to a row of a batch as the answer to the call.
pub(crate) fn batch_answer(target: &Target, answer: &str) -> Bytes {
    match target.dialect {
        Dialect::Gemini => gemini::batch_answer(answer),
        Dialect::Openai | Dialect::Anthropic => None,
    }
    .unwrap_or_else(|| Bytes::copy_from_slice(answer.as_bytes()))
}

/// What a model said.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Said {
    /// The answer's text; a tool's arguments as JSON.
    pub(crate) text: String,
    /// How the answer ended.
    pub(crate) end: End,
    /// Tokens, if the provider says.
    pub(crate) spent: Option<Spent>,
    /// The tokens of the text with their probabilities, if they were asked for and came.
    pub(crate) tokens: Vec<TokenChoice>,
}

/// How an answer ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum End {
    /// By itself.
    #[default]
    Whole,
    /// At the limit of tokens.
    Length,
    /// A content filter stopped it.
    Filtered,
    /// The model declined.
    Refused,
    /// Something went wrong at the provider; in our words.
    Broken(String),
}

/// One token that the model chose, and what else it considered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenChoice {
    /// The token's bytes.
    pub(crate) bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f64,
    /// The likeliest tokens at its place, which may include it.
    pub(crate) others: Vec<(Vec<u8>, f64)>,
}

/// Vectors by index of their texts, and the tokens they took.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Embedded {
    /// A vector for each text, not yet normalised.
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Tokens, if the provider says.
    pub(crate) spent: Option<Spent>,
}

/// Why a response cannot be read, in our words.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unreadable(pub(crate) String);

/// Reads the response to a completion.
pub(crate) fn read_completion(target: &Target, body: &[u8]) -> Result<Said, Unreadable> {
    let mut said = match target.dialect {
        Dialect::Openai => openai_reply::completion(body)?,
        Dialect::Anthropic => anthropic::read(body)?,
        Dialect::Gemini => gemini::read(body)?,
    };
    if target.think_tags
        && let Some((_, answer)) = said.text.trim_start().strip_prefix("<think>").and_then(|t| t.split_once("</think>"))
    {
        said.text = answer.trim_start().to_owned();
    }
    Ok(said)
}

/// Reads the response to an embedding call of `rows` texts.
pub(crate) fn read_embeddings(target: &Target, body: &[u8], rows: usize) -> Result<Embedded, Unreadable> {
    match target.dialect {
        Dialect::Openai | Dialect::Anthropic => openai_reply::embeddings(body, rows),
        Dialect::Gemini => gemini::read_embeddings(body, rows),
    }
}

/// `response_format` and its like in the OpenAI dialect, `None` where the format needs none.
fn pattern_field(mode: PatternMode, pattern: &str) -> Option<(&'static str, Value)> {
    match mode {
        PatternMode::StructuredOutputs => Some(("structured_outputs", json!({ "regex": pattern }))),
        PatternMode::GuidedRegex => Some(("guided_regex", json!(pattern))),
        PatternMode::ResponseFormat => Some(("response_format", json!({ "type": "regex", "value": pattern }))),
        PatternMode::None => None,
    }
}

/// Whether probabilities of the answer's tokens are worth asking for: they come with text, not with a tool's arguments.
fn wants_logprobs(target: &Target, format: &Format) -> bool {
    let with_tools = format.json().is_some_and(|json| json.mode == StructuredMode::Tools);
    target.logprobs > 1 && matches!(format, Format::Label { .. }) && !with_tools
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
