//! Says what a response is: an answer, or an error with its class, wherever the provider put it. Pure but for the layer at
//! the end, which authenticates, sends and asks.

use async_openai::middleware::HttpRequestFactory;
use bytes::Bytes;
use chrono::Utc;
use http::Method;
use rowmill_jobs::allowance::Charge;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::authentication::Authenticated;
use super::errors;
use super::headers::{Windows, rate_limits, request_id};
use super::stack::{Answer, Answers, Facts, Failed, Layered, error};
use super::wire::Response;
use crate::call::{Class, Left};

/// What any provider's answer may have at its top.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    error: Option<Value>,
    /// Bedrock, Mistral and TEI say here what is wrong; no answer has a text here.
    #[serde(default)]
    message: Option<Value>,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(default, rename = "usageMetadata")]
    usage_metadata: Option<Value>,
}

/// What a response is. `expected` says whether its body has to be JSON.
fn judge(response: Response, expected: Expected, windows: Windows) -> Result<Answer, Box<Failed>> {
    let now = Utc::now();
    let Response { status, headers, body, first_byte } = response;
    let seen = rate_limits(&headers, windows, now);
    if !status.is_success() {
        let error = errors::from_response(status, &headers, &body, now);
        return Err(Box::new(Failed { error, seen, left: Left::Something }));
    }
    match look_into(&body, expected) {
        Inside::Answer(used) => Ok(Answer { body, request_id: request_id(&headers), first_byte, seen, used }),
        Inside::Error(inside) => {
            let error = errors::in_success(&inside, &headers, now);
            Err(Box::new(Failed { error, seen, left: Left::Something }))
        }
        Inside::Broken => {
            let mut error = error(Class::Transient, "the provider's answer is no JSON");
            error.status = Some(status.as_u16());
            error.request_id = request_id(&headers);
            Err(Box::new(Failed { error, seen, left: Left::Something }))
        }
    }
}

/// What a body should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Json,
    /// A file: lines of JSON, or anything.
    Anything,
    /// Something that is taken as it is.
    AsItIs,
}

enum Inside {
    Answer(Option<Charge>),
    Error(Value),
    Broken,
}

fn look_into(body: &Bytes, expected: Expected) -> Inside {
    if expected == Expected::AsItIs {
        return Inside::Answer(None);
    }
    let object = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if !object {
        let json = expected == Expected::Anything || serde_json::from_slice::<IgnoredAny>(body).is_ok();
        return if json { Inside::Answer(None) } else { Inside::Broken };
    }
    match serde_json::from_slice::<Envelope>(body) {
        Ok(Envelope { error: Some(error), .. }) if errors::says_something(&error) => Inside::Error(error),
        Ok(Envelope { message: Some(said @ Value::String(_)), .. }) if expected == Expected::Json => {
            // Its kind stands beside it.
            Inside::Error(serde_json::from_slice(body).unwrap_or(said))
        }
        Ok(envelope) => Inside::Answer(envelope.usage.or(envelope.usage_metadata).as_ref().and_then(used)),
        Err(_) if expected == Expected::Anything => Inside::Answer(None),
        Err(_) => Inside::Broken,
    }
}

/// Tokens that limits are charged with, in any provider's words. Anthropic counts what it writes to its cache beside the
/// input, and what it reads from there not at all.
fn used(usage: &Value) -> Option<Charge> {
    let one = |names: &[&str]| names.iter().find_map(|name| usage.get(name)?.as_u64());
    let input = one(&["prompt_tokens", "input_tokens", "inputTokens", "promptTokenCount"])?;
    let output = one(&["completion_tokens", "output_tokens", "outputTokens", "candidatesTokenCount"]);
    let beside = one(&["cache_creation_input_tokens"]).unwrap_or(0);
    let thoughts = one(&["thoughtsTokenCount"]).unwrap_or(0);
    Some(Charge {
        requests: 1,
        input_tokens: input.saturating_add(beside),
        output_tokens: output.unwrap_or(0).saturating_add(thoughts),
    })
}

/// The layer.
#[derive(Debug, Clone)]
pub(super) struct Classify {
    pub(super) inner: Authenticated,
    pub(super) windows: Windows,
}

impl Layered for Classify {
    async fn call(&self, request: HttpRequestFactory) -> Result<Answer, Box<Failed>> {
        let (method, response) = self.inner.send(&request).await?;
        let expected = match (Facts::of_this_call().answers, method) {
            (Answers::Batch, _) => Expected::AsItIs,
            (Answers::Model, Method::GET) => Expected::Anything,
            (Answers::Model, _) => Expected::Json,
        };
        judge(response, expected, self.windows)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, StatusCode};

    use super::*;

    fn read(body: &str, expected: Expected) -> Result<Answer, Box<Failed>> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let response = Response { status: StatusCode::OK, headers: HeaderMap::new(), body, first_byte: Duration::ZERO };
        judge(response, expected, Windows::default())
    }

    #[test]
    fn tokens_are_read_in_every_providers_words() {
        let charge = |input_tokens, output_tokens| Some(Charge { requests: 1, input_tokens, output_tokens });
        for (body, expected) in [
            (r#"{"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}"#, charge(9, 3)),
            (r#"{"usage":{"prompt_tokens":9,"completion_tokens":null}}"#, charge(9, 0)),
            (r#"{"usage":{"prompt_tokens":9,"total_tokens":9},"data":[]}"#, charge(9, 0)),
            (
                r#"{"usage":{"input_tokens":5,"cache_creation_input_tokens":7,"cache_read_input_tokens":100,"output_tokens":2}}"#,
                charge(12, 2),
            ),
            (
                r#"{"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":2,"thoughtsTokenCount":30}}"#,
                charge(4, 32),
            ),
            (r#"{"usage":{"inputTokens":4,"outputTokens":1}}"#, charge(4, 1)),
            ("\n\n \n{\"usage\":{\"prompt_tokens\":1}}", charge(1, 0)),
            (r#"{"usage":"none"}"#, None),
            (r#"{"error":null,"choices":[]}"#, None),
            ("[[0.5,-1e-3]]", None),
        ] {
            assert_eq!(read(body, Expected::Json).unwrap().used, expected, "{body}");
        }
    }

    #[test]
    fn errors_in_answers_are_errors() {
        let failed = read(r#"{"error":{"code":429,"message":"wait"}}"#, Expected::Json).unwrap_err();
        assert_eq!(failed.error.class, Class::Throttled);
        let failed = read(r#"{"id":"x","error":"gone wrong"}"#, Expected::Anything).unwrap_err();
        assert_eq!(failed.error.class, Class::Transient);
        for (body, class) in [
            (r#"{"message":"The model is overloaded"}"#, Class::Throttled),
            (r#"{"object":"error","message":"gone wrong","type":"server_error","code":"1000"}"#, Class::Transient),
            (r#"{"message":"wait","code":429,"type":"overloaded"}"#, Class::Throttled),
        ] {
            assert_eq!(read(body, Expected::Json).unwrap_err().error.class, class, "{body}");
        }
        assert!(read(r#"{"message":{"role":"assistant","content":"hello"}}"#, Expected::Json).is_ok());
        for body in ["", "<html></html>", "{\"choices\":[", "null null"] {
            let failed = read(body, Expected::Json).unwrap_err();
            assert_eq!((failed.error.class, failed.error.status), (Class::Transient, Some(200)), "{body}");
        }
    }

    #[test]
    fn what_a_batch_says_of_itself_and_its_rows_is_no_error_of_the_request_and_no_use_of_its_limits() {
        for body in [
            r#"{"name":"batches/1","done":true,"error":{"code":3,"message":"the batch failed"}}"#,
            r#"{"custom_id":"1","response":null,"error":{"code":"batch_expired"}}"#,
            r#"{"id":"batch_1","status":"completed","usage":{"input_tokens":900000,"output_tokens":9}}"#,
        ] {
            let answer = read(body, Expected::AsItIs).unwrap();
            assert_eq!((answer.body, answer.used), (Bytes::from(body), None));
        }
    }

    #[test]
    fn a_file_may_be_anything() {
        for body in ["", "{\"custom_id\":\"1\"}\n{\"custom_id\":\"2\"}\n", "a,b\n"] {
            assert_eq!(read(body, Expected::Anything).unwrap().body, body);
        }
    }
}
