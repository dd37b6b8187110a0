//! Reads a provider's refusal, in whatever shape it comes, and decides what sort of trouble it is. Pure. Nothing of a body
//! gets out but codes that are plain words and times: messages echo prompts and keys.

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::headers;
use super::phrases::{self, Meaning};
use crate::call::{CallError, Class};

/// Longest code that is kept.
const CODE_MAX: usize = 64;
/// Characters of a message that are looked at.
const TEXT_MAX: usize = 300;
/// Errors within errors that are looked into.
const DEPTH_MAX: usize = 6;

/// What sort of trouble a response with a status other than 2xx is.
pub fn from_response(status: StatusCode, headers: &HeaderMap, body: &[u8], now: DateTime<Utc>) -> CallError {
    let mut facts = Facts::of_body(body);
    // Bedrock names the error in a header: `ThrottlingException:http://…`.
    if let Some(name) = headers.get("x-amzn-errortype").and_then(|name| name.to_str().ok()) {
        facts.add_code(name.split(':').next().unwrap_or_default());
    }
    facts.error(status, headers, now)
}

/// The error in a response with a status of 2xx, if there is one: `{"error": {…}}`, which routers in front of providers
/// send when they have answered already.
pub fn in_success(error: &Value, headers: &HeaderMap, now: DateTime<Utc>) -> CallError {
    let mut facts = Facts::default();
    facts.add(error, 0);
    // Without a status inside nothing is known: it may be better next time.
    let status = facts.status.and_then(|status| StatusCode::from_u16(status).ok());
    facts.error(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), headers, now)
}

/// Whether a code means that a content filter held a request back.
pub fn is_filter(code: &str) -> bool {
    phrases::of_code(code) == Some(phrases::FILTERED)
}

/// Whether the `error` of an answer is one: many servers write an empty one beside a whole answer.
pub fn says_something(error: &Value) -> bool {
    match error {
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// What a body says. Lives only as long as it takes to judge it.
#[derive(Default)]
struct Facts {
    codes: Vec<String>,
    text: String,
    retry_after: Option<Duration>,
    /// A status within the body.
    status: Option<u16>,
}

impl Facts {
    fn of_body(body: &[u8]) -> Self {
        let mut facts = Self::default();
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => facts.add(&value, 0),
            // Plain text or HTML of a proxy.
            Err(_) => facts.add_text(&String::from_utf8_lossy(body.get(..4096).unwrap_or(body)), 0),
        }
        facts
    }

    /// Takes in an error object, whatever its shape: `{"error": {…}}`, `[{"error": {…}}]`, `{"error": "…"}`, `{"message": …}`,
    /// `{"detail": …}`, with codes as words or numbers.
    fn add(&mut self, value: &Value, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        match value {
            Value::String(text) => self.add_text(text, depth),
            Value::Array(items) => items.iter().take(8).for_each(|item| self.add(item, depth + 1)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("code" | "type" | "status" | "error_type" | "__type" | "reason", Value::String(code)) => {
                            // AWS writes `com.amazon.coral#ThrottlingException`.
                            self.add_code(code.rsplit('#').next().unwrap_or(code));
                        }
                        ("code" | "status" | "status_code", Value::Number(number)) => {
                            let status = number.as_u64().and_then(|number| u16::try_from(number).ok());
                            self.status = status.filter(|status| (400..600).contains(status)).or(self.status);
                        }
                        ("retryDelay", Value::String(delay)) => self.retry_after = headers::duration(delay),
                        ("retry_after", Value::Number(number)) => {
                            let seconds = number.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                            self.retry_after = self.retry_after.or(seconds).map(|wait| wait.min(headers::TIME_MAX));
                        }
                        (
                            "error" | "errors" | "message" | "Message" | "msg" | "detail" | "details" | "innererror"
                            | "inner_error" | "metadata" | "raw",
                            value,
                        ) => self.add(value, depth + 1),
                        // OpenRouter shows a piece of the prompt here.
                        ("flagged_input", _) => self.add_code("flagged_input"),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn add_text(&mut self, text: &str, depth: usize) {
        // An upstream's error as text within the router's.
        if let Some(Ok(inner)) = text.starts_with('{').then(|| serde_json::from_str::<Value>(text)) {
            return self.add(&inner, depth + 1);
        }
        // What providers mean stands at the beginning; further on they may quote the row, which must not decide anything.
        self.text.extend(text.chars().take(TEXT_MAX).flat_map(char::to_lowercase));
        self.text.push('\n');
    }

    fn add_code(&mut self, code: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        // `error` and `object` types say nothing.
        if !code.is_empty() && code.len() <= CODE_MAX && code.chars().all(plain) && !matches!(code, "error" | "None") {
            self.codes.push(code.to_owned());
        }
    }

    fn error(self, status: StatusCode, headers: &HeaderMap, now: DateTime<Utc>) -> CallError {
        let retry_after =
            headers::retry_after(headers, now).or(self.retry_after).or_else(|| phrases::try_again_in(&self.text));
        // Some have one code for too many requests and for too little money.
        let of_codes = phrases::of_codes(&self.codes)
            .filter(|meaning| meaning.class != Class::Throttled || !phrases::is_of_money(&self.own_words(status)));
        let meaning = phrases::of_size(&self.text)
            .or(of_codes)
            .or_else(|| self.of_text(status, retry_after.is_some()))
            .unwrap_or_else(|| of_status(status));
        let class = match (meaning.class, headers::should_retry(headers)) {
            (Class::Transient | Class::Throttled, Some(false)) => Class::Refused,
            (Class::Refused, Some(true)) => Class::Transient,
            (class, _) => class,
        };
        CallError {
            class,
            status: Some(status.as_u16()),
            // The most telling one stands deepest for some and first for others; the one that decided is best.
            code: self.codes.iter().find(|code| phrases::of_code(code).is_some()).or(self.codes.first()).cloned(),
            message: meaning.message.to_owned(),
            retry_after,
            request_id: headers::request_id(headers),
        }
    }
}

impl Facts {
    /// What the message says. That a row is too long is this row's trouble, wherever it stands; what stops all rows must stand in
    /// the provider's own words.
    fn of_text(&self, status: StatusCode, comes_back: bool) -> Option<Meaning> {
        let said = phrases::of_text(&self.text, comes_back)?;
        match said.class {
            Class::TooLong | Class::Refused => Some(said),
            _ => phrases::of_text(&self.own_words(status), comes_back),
        }
    }

    /// The provider's own words. A refusal of the request (400, 413, 422) may quote the row, whose words must not decide that
    /// the account is empty: what stands behind the first mark of a quotation is left out.
    fn own_words(&self, status: StatusCode) -> Cow<'_, str> {
        if !matches!(status.as_u16(), 400 | 413 | 422) {
            return Cow::Borrowed(&self.text);
        }
        let unquoted =
            |line: &str| line.split([':', '"', '\'', '`', '“', '‘', '{', '[', '(']).next().map(str::to_owned);
        Cow::Owned(self.text.lines().filter_map(unquoted).collect::<Vec<_>>().join("\n"))
    }
}

/// What a status means by itself.
fn of_status(status: StatusCode) -> Meaning {
    let (class, message) = match status.as_u16() {
        429 | 498 | 529 => (Class::Throttled, "the provider asks for fewer requests"),
        503 => (Class::Throttled, "the provider is overloaded"),
        401 => (Class::Denied, "the provider does not accept the credentials"),
        402 => (Class::Billing, "the provider wants to be paid first"),
        403 => (Class::Denied, "the provider denies access"),
        404 | 405 | 410 => (Class::Denied, "the provider knows no such model or path"),
        413 => (Class::TooLong, "the request is larger than the provider takes"),
        408 | 409 | 424 | 425 => (Class::Transient, "the provider could not answer this time"),
        300..=399 => {
            (Class::Denied, "the provider's host sends elsewhere, which is not followed: correct the base URL")
        }
        501 | 505 => (Class::Refused, "the provider cannot do what was asked"),
        500..=599 => (Class::Transient, "the provider failed"),
        _ => (Class::Refused, "the provider refused the request"),
    };
    Meaning { class, message }
}
