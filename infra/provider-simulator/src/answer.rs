//! What the simulated models write: decided by a hash of the prompt and by the shape that was asked for, so that the same
//! request has the same answer in every run. Knows no provider's JSON.

use serde_json::{Value, json};

use crate::{random, schema};

/// Words that free text is made of.
const WORDS: [&str; 16] = [
    "invoice", "login", "delayed", "thank", "refund", "broken", "please", "order", "account", "update", "fast",
    "screen", "price", "error", "missing", "again",
];
/// Numbers in a vector, unless a request asks for another count.
const DIMENSIONS: u64 = 16;

/// A request, as far as the answer depends on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    /// All text of all messages.
    pub(crate) prompt: String,
    pub(crate) shape: Shape,
    /// Most output tokens.
    pub(crate) tokens_max: Option<u64>,
}

/// The shape of the answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Text,
    /// JSON of a schema.
    Json(Value),
    /// One of these texts.
    Choice(Vec<String>),
    /// The arguments of a tool.
    Tool {
        name: String,
        schema: Value,
    },
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    Refused,
    Truncated,
    Invalid,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    pub(crate) text: String,
    /// The tool that is called with `text` as its arguments.
    pub(crate) tool: Option<String>,
    pub(crate) ended: Ended,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
}

/// Why output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Stop,
    Length,
    Refused,
}

/// The number of tokens of a text: its bytes by 4, rounded up.
pub(crate) fn tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

/// The answer to a request.
pub(crate) fn write(asked: &Asked, flaw: Option<Flaw>) -> Written {
    let number = random::of(&asked.prompt);
    let mut text = match (&asked.shape, flaw) {
        (_, Some(Flaw::Refused)) => "I cannot help with that.".to_owned(),
        (Shape::Json(_) | Shape::Tool { .. }, Some(Flaw::Invalid)) => r#"{"unexpected": [1, "two"]"#.to_owned(),
        (Shape::Json(schema) | Shape::Tool { schema, .. }, _) => schema::value(schema, number).to_string(),
        (Shape::Choice(_), Some(Flaw::Invalid)) => "none of them".to_owned(),
        (Shape::Choice(choices), _) => choices.get(number as usize % choices.len().max(1)).cloned().unwrap_or_default(),
        (Shape::Text, _) => words(number),
    };
    let mut ended = if flaw == Some(Flaw::Refused) { Ended::Refused } else { Ended::Stop };
    let mut output_tokens = tokens(&text).max(1);
    let limit = if flaw == Some(Flaw::Truncated) { Some(output_tokens / 2) } else { asked.tokens_max };
    if let Some(limit) = limit.filter(|limit| *limit < output_tokens) {
        let mut end = (limit as usize * 4).min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        (ended, output_tokens) = (Ended::Length, limit);
    }
    let tool = match &asked.shape {
        Shape::Tool { name, .. } if ended != Ended::Refused => Some(name.clone()),
        _ => None,
    };
    Written { text, tool, ended, input_tokens: tokens(&asked.prompt).max(1), output_tokens }
}

fn words(number: u64) -> String {
    let count = 4 + number % 12;
    let word = |i| WORDS[random::draw(number, &[i]) as usize % WORDS.len()];
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// The vector of a text, of length 1; `[dimensions]`.
pub(crate) fn vector(text: &str, dimensions: Option<u64>) -> Vec<f32> {
    let number = random::of(text);
    let count = dimensions.unwrap_or(DIMENSIONS).clamp(1, 4096);
    let values: Vec<f64> = (0..count).map(|i| random::share(random::draw(number, &[i])) - 0.5).collect();
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    values.into_iter().map(|value| (value / length) as f32).collect()
}

/// All strings below these keys, joined: the prompt of a request whatever its nesting.
pub(crate) fn text_of(value: &Value) -> String {
    let mut found = String::new();
    collect(value, &mut found);
    found
}

fn collect(value: &Value, found: &mut String) {
    match value {
        Value::String(text) => {
            if !found.is_empty() {
                found.push('\n');
            }
            found.push_str(text);
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(fields) => {
            for name in ["content", "text", "parts"] {
                if let Some(field) = fields.get(name) {
                    collect(field, found);
                }
            }
        }
        _ => {}
    }
}

/// A schema for JSON of any shape.
pub(crate) fn any_object() -> Value {
    json!({"type": "object", "properties": {"answer": {"type": "string"}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_depend_on_the_prompt_alone_and_respect_the_token_limit() {
        let asked = Asked { prompt: "what?".into(), shape: Shape::Text, tokens_max: None };
        let whole = write(&asked, None);
        assert_eq!(whole, write(&asked, None));
        assert_eq!((whole.ended, whole.input_tokens), (Ended::Stop, 2));
        let cut = write(&Asked { tokens_max: Some(2), ..asked.clone() }, None);
        assert_eq!((cut.ended, cut.output_tokens, cut.text.len()), (Ended::Length, 2, 8));
        assert_eq!(write(&asked, Some(Flaw::Truncated)).ended, Ended::Length);
    }

    #[test]
    fn vectors_have_length_one() {
        let vector = vector("x", Some(300));
        assert_eq!(vector.len(), 300);
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);
    }
}
