//! Reading responses with an open mind: null for what is absent, whole numbers written as floats, text in parts. What has
//! one meaning is taken, whatever the provider's own documentation says of its type.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Unreadable;
use crate::transport::errors;

/// A response's JSON. Blank lines before it (DeepSeek keeps connections alive with them) are white space to JSON.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Unreadable("the response does not have the shape of an answer".to_owned()),
        _ => Unreadable(format!("the response is not JSON: {} bytes", body.len())),
    })
}

/// An error that a response carries although its status is 200.
pub(super) fn refuse_error(error: Option<&Value>) -> Result<(), Unreadable> {
    match error.filter(|error| errors::says_something(error)) {
        None => Ok(()),
        Some(_) => Err(Unreadable("the response is an error with a status of success".to_owned())),
    }
}

/// Tokens that no request has: a number above is none, and sums of numbers below cannot overflow.
const COUNT_MAX: f64 = 1e12;

/// A count of tokens.
pub(super) fn count(value: &Value) -> Option<u64> {
    value.as_f64().filter(|number| (0.0..COUNT_MAX).contains(number)).map(|number| number as u64)
}

/// Text that is a string, a list of parts with `text`, or absent.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter(|part| is_text(part)).map(text).collect(),
        Value::Object(part) => part.get("text").map(text).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Parts of other types (`thinking`, `reference`) are not the answer.
fn is_text(part: &Value) -> bool {
    part.get("type").and_then(Value::as_str).is_none_or(|kind| kind == "text" || kind == "output_text")
}

/// A word of the provider, if it is one: letters, digits and `_`, not long. Anything else may hold a row's content.
pub(super) fn word(text: &str) -> &str {
    let plain = text.len() <= 40 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain { text } else { "of no known kind" }
}
