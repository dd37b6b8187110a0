//! Every provider's way of refusing, and what becomes of it. Bodies are made after the providers' documentation.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::errors::{from_response, in_success};
use crate::call::{CallError, Class};

fn now() -> DateTime<Utc> {
    "2026-11-01T12:00:00Z".parse().unwrap()
}

fn read_with(status: u16, headers: &[(&str, &str)], body: &str) -> CallError {
    let pair =
        |(name, value): &(&str, &str)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    let headers: HeaderMap = headers.iter().map(pair).collect();
    from_response(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), now())
}

/// Class and code of each body.
fn check(cases: &[(u16, &str, Class, Option<&str>)]) {
    for (status, body, class, code) in cases {
        let error = read_with(*status, &[], body);
        assert_eq!((error.class, error.code.as_deref()), (*class, *code), "{status} {body}");
        assert_eq!(error.status, Some(*status));
    }
}

#[test]
fn openai_and_azure() {
    check(&[
        (
            429,
            r#"{"error":{"message":"Rate limit reached for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000. Please try again in 6m0s.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
            Class::Throttled,
            Some("rate_limit_exceeded"),
        ),
        (
            429,
            r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
            Class::Billing,
            Some("insufficient_quota"),
        ),
        (
            429,
            r#"{"error":{"message":"Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000.","type":"tokens","code":"rate_limit_exceeded"}}"#,
            Class::TooLong,
            Some("rate_limit_exceeded"),
        ),
        (
            400,
            r#"{"error":{"message":"This model's maximum context length is 8192 tokens.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
            Class::TooLong,
            Some("context_length_exceeded"),
        ),
        (
            400,
            r#"{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            Class::Refused,
            Some("content_filter"),
        ),
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided: sk-abc","code":"invalid_api_key"}}"#,
            Class::Denied,
            Some("invalid_api_key"),
        ),
        (
            404,
            r#"{"error":{"message":"The model `x` does not exist","code":"model_not_found"}}"#,
            Class::Denied,
            Some("model_not_found"),
        ),
        (429, r#"{"error":{"code":429,"message":"Requests have exceeded call rate limit"}}"#, Class::Throttled, None),
        (404, r#"{"error":{"code":"DeploymentNotFound","message":"…"}}"#, Class::Denied, Some("DeploymentNotFound")),
        (
            400,
            r#"{"error":{"message":"Unknown parameter: 'x'.","type":"invalid_request_error","param":"x","code":null}}"#,
            Class::Refused,
            Some("invalid_request_error"),
        ),
        (
            500,
            r#"{"error":{"message":"The server had an error","type":"server_error"}}"#,
            Class::Transient,
            Some("server_error"),
        ),
    ]);
}

#[test]
fn anthropic() {
    check(&[
        (
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}"#,
            Class::Throttled,
            Some("overloaded_error"),
        ),
        (
            429,
            r#"{"type":"error","error":{"type":"rate_limit_error","message":"…"}}"#,
            Class::Throttled,
            Some("rate_limit_error"),
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 208310 tokens > 200000 maximum"}}"#,
            Class::TooLong,
            Some("invalid_request_error"),
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}"#,
            Class::Billing,
            Some("invalid_request_error"),
        ),
        (
            413,
            r#"{"type":"error","error":{"type":"request_too_large","message":"…"}}"#,
            Class::TooLong,
            Some("request_too_large"),
        ),
        (
            401,
            r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}"#,
            Class::Denied,
            Some("authentication_error"),
        ),
    ]);
}

#[test]
fn gemini_says_quota_when_it_means_wait() {
    let body = json!([{"error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"},
        ],
    }}]);
    let error = read_with(429, &[], &body.to_string());
    assert_eq!((error.class, error.retry_after), (Class::Throttled, Some(Duration::from_millis(34_070))));
    assert_eq!(error.code.as_deref(), Some("RESOURCE_EXHAUSTED"));
    check(&[
        (
            400,
            r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}]"#,
            Class::Denied,
            Some("API_KEY_INVALID"),
        ),
        (
            429,
            r#"[{"error":{"code":429,"message":"Your credit balance is too low to run this.","status":"RESOURCE_EXHAUSTED"}}]"#,
            Class::Billing,
            Some("RESOURCE_EXHAUSTED"),
        ),
        (
            400,
            r#"[{"error":{"code":400,"message":"The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}]"#,
            Class::TooLong,
            Some("INVALID_ARGUMENT"),
        ),
        (
            503,
            r#"[{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}]"#,
            Class::Throttled,
            Some("UNAVAILABLE"),
        ),
        (
            500,
            r#"[{"error":{"code":500,"message":"An internal error has occurred.","status":"INTERNAL"}}]"#,
            Class::Transient,
            Some("INTERNAL"),
        ),
    ]);
}

#[test]
fn mistral_and_others_in_the_clouds() {
    check(&[
        (
            429,
            r#"{"object":"error","message":"Requests rate limit exceeded","type":"rate_limited","param":null,"code":"1300"}"#,
            Class::Throttled,
            Some("rate_limited"),
        ),
        (429, r#"{"message":"Requests rate limit exceeded"}"#, Class::Throttled, None),
        (
            422,
            r#"{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required"}]}"#,
            Class::Refused,
            Some("missing"),
        ),
        (
            400,
            r#"{"object":"error","message":"Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length","type":"invalid_request_prompt","code":"3051"}"#,
            Class::TooLong,
            Some("invalid_request_prompt"),
        ),
        (
            402,
            r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":"invalid_request_error"}}"#,
            Class::Billing,
            Some("unknown_error"),
        ),
        (
            413,
            r#"{"error":{"message":"Request too large for model `x` in organization `y` on tokens per minute (TPM)","type":"tokens","code":"rate_limit_exceeded"}}"#,
            Class::TooLong,
            Some("rate_limit_exceeded"),
        ),
        (
            498,
            r#"{"error":{"message":"capacity","type":"capacity_exceeded"}}"#,
            Class::Throttled,
            Some("capacity_exceeded"),
        ),
        (
            403,
            r#"{"error":{"code":403,"message":"Input was flagged","metadata":{"reasons":["x"],"flagged_input":"rate limit text of a row","provider_name":"p"}}}"#,
            Class::Refused,
            Some("flagged_input"),
        ),
        (
            502,
            r#"{"error":{"code":502,"message":"Provider returned error","metadata":{"raw":"{\"error\":{\"type\":\"overloaded_error\"}}"}}}"#,
            Class::Throttled,
            Some("overloaded_error"),
        ),
    ]);
}

#[test]
fn bedrock_names_errors_in_a_header() {
    let named = |status, name: &str, body| read_with(status, &[("x-amzn-errortype", name)], body);
    let throttled =
        named(429, "ThrottlingException:http://internal.amazon.com/coral/", r#"{"message":"Too many requests"}"#);
    assert_eq!((throttled.class, throttled.code.as_deref()), (Class::Throttled, Some("ThrottlingException")));
    let too_long = named(400, "ValidationException", r#"{"message":"Input is too long for requested model."}"#);
    assert_eq!(too_long.class, Class::TooLong);
    assert_eq!(named(403, "AccessDeniedException", r#"{"Message":"no"}"#).class, Class::Denied);
    assert_eq!(named(424, "ModelErrorException", r#"{"message":"…"}"#).class, Class::Transient);
    check(&[(
        400,
        r#"{"__type":"com.amazon.coral.service#ThrottlingException","message":"…"}"#,
        Class::Throttled,
        Some("ThrottlingException"),
    )]);
}

#[test]
fn servers_of_ones_own() {
    check(&[
        // vLLM and llama.cpp's server: the code is a number.
        (
            400,
            r#"{"error":{"message":"This model's maximum context length is 2048 tokens. However, you requested 3000.","type":"BadRequestError","param":null,"code":400}}"#,
            Class::TooLong,
            Some("BadRequestError"),
        ),
        (
            400,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_ctx":4096}}"#,
            Class::TooLong,
            Some("exceed_context_size_error"),
        ),
        (
            503,
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            Class::Throttled,
            Some("unavailable_error"),
        ),
        (
            404,
            r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","code":404}"#,
            Class::Denied,
            Some("NotFoundError"),
        ),
        // TGI, TEI, Ollama.
        (
            422,
            r#"{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096","error_type":"validation"}"#,
            Class::Refused,
            Some("validation"),
        ),
        (429, r#"{"error":"Model is overloaded","error_type":"overloaded"}"#, Class::Throttled, Some("overloaded")),
        (
            429,
            r#"{"message":"Model is overloaded","code":429,"type":"Overloaded"}"#,
            Class::Throttled,
            Some("Overloaded"),
        ),
        (
            413,
            r#"{"message":"Input validation error: `inputs` must have less than 512 tokens. Given: 600","code":413,"type":"Validation"}"#,
            Class::TooLong,
            Some("Validation"),
        ),
        (424, r#"{"message":"backend","code":424,"type":"Backend"}"#, Class::Transient, Some("Backend")),
        (404, r#"{"error":"model \"x\" not found, try pulling it first"}"#, Class::Denied, None),
        (500, r#"{"error":"llama runner process has terminated"}"#, Class::Transient, None),
    ]);
}

#[test]
fn what_is_no_json() {
    check(&[
        (529, "<!DOCTYPE html><html><body>Overloaded</body></html>", Class::Throttled, None),
        (502, "<html><h1>502 Bad Gateway</h1></html>", Class::Transient, None),
        (504, "", Class::Transient, None),
        (302, "", Class::Denied, None),
        (400, "\u{feff}{\"error\"", Class::Refused, None),
        (500, "null", Class::Transient, None),
        (429, "[[[[[[[[[[{\"error\":{}}]]]]]]]]]]", Class::Throttled, None),
    ]);
}

#[test]
fn errors_with_a_status_of_200() {
    let read = |error| in_success(&error, &HeaderMap::new(), now());
    let throttled = read(json!({"code": 429, "message": "Rate limited", "metadata": {"provider_name": "p"}}));
    assert_eq!((throttled.class, throttled.status), (Class::Throttled, Some(429)));
    assert_eq!(read(json!({"code": 502, "message": "bad gateway"})).class, Class::Transient);
    assert_eq!(read(json!({"code": "context_length_exceeded"})).class, Class::TooLong);
    assert_eq!(read(json!("something")).class, Class::Transient, "nobody knows: try again");
}

#[test]
fn waiting_and_retrying_as_the_provider_says() {
    let message = r#"{"error":{"message":"Please try again in 1.2s. Visit …","code":"rate_limit_exceeded"}}"#;
    assert_eq!(read_with(429, &[], message).retry_after, Some(Duration::from_millis(1_200)));
    let both = read_with(429, &[("retry-after", "7"), ("x-request-id", "r1")], message);
    assert_eq!((both.retry_after, both.request_id.as_deref()), (Some(Duration::from_secs(7)), Some("r1")));
    assert_eq!(read_with(500, &[("x-should-retry", "false")], "").class, Class::Refused);
    assert_eq!(read_with(400, &[("x-should-retry", "true")], "").class, Class::Transient);
    assert_eq!(read_with(401, &[("x-should-retry", "true")], "").class, Class::Denied, "a key does not get better");
}

#[test]
fn a_row_that_is_quoted_decides_nothing() {
    let row = format!("{} your credit balance is too low, rate limit, maximum context length", "x ".repeat(200));
    let quoted = json!({"error": {"message": format!("Invalid value for 'messages[0].content': {row}")}});
    assert_eq!(read_with(400, &[], &quoted.to_string()).class, Class::Refused);
    let quoted =
        json!({"error": {"message": "Invalid value for 'messages[0].content': insufficient credits, rate limit"}});
    assert_eq!(read_with(400, &[], &quoted.to_string()).class, Class::Refused);
    let quoted = json!({"detail": [{"type": "value_error", "msg": "Value error", "input": "insufficient credits"}]});
    assert_eq!(read_with(422, &[], &quoted.to_string()).class, Class::Refused);
}

#[test]
fn nothing_of_a_body_gets_out() {
    let canary = "canary-4111";
    for body in [
        format!(
            r#"{{"error":{{"message":"bad prompt {canary}","code":"has spaces {canary}","type":"{canary} {canary}"}}}}"#
        ),
        format!("<html>{canary}</html>"),
        format!(r#"{{"error":"{canary}"}}"#),
        format!(r#"[{{"error":{{"status":"{}"}}}}]"#, canary.repeat(20)),
    ] {
        let error = read_with(400, &[], &body);
        assert!(!format!("{error:?} {error}").contains(canary), "{error:?}");
    }
}
