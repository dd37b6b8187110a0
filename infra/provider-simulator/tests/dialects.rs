//! The simulator over HTTP: every provider answers in its own shape, enforces its limits, and goes wrong as it is told.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use reqwest::{Client, Response};
use rowmill_provider_simulator::config::{Faults, Keep, Limits};
use rowmill_provider_simulator::{Config, Provider, Simulator};
use serde_json::{Value, json};

async fn start(config: Config) -> Simulator {
    Simulator::start(config).await.expect("a free port")
}

async fn post(simulator: &Simulator, provider: Provider, path: &str, body: &Value) -> Response {
    let request = Client::new().post(format!("{}{path}", simulator.base(provider))).json(body);
    let request = match provider {
        Provider::Anthropic => request.header("x-api-key", "k").header("anthropic-version", "2023-06-01"),
        Provider::Azure => request.header("api-key", "k"),
        Provider::Gemini => request.header("x-goog-api-key", "k"),
        Provider::Bedrock => {
            let scope = "k/20261122/eu-west-1/bedrock/aws4_request";
            let signature = "0".repeat(64);
            request.header("x-amz-date", "20261122T120000Z").header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature={signature}"),
            )
        }
        _ => request.bearer_auth("k"),
    };
    request.send().await.expect("an answer")
}

fn question(provider: Provider) -> (&'static str, Value) {
    let turns = json!([{"role": "user", "content": "Which label?"}]);
    match provider {
        Provider::Anthropic => ("/messages", json!({"model": "claude", "max_tokens": 100, "messages": turns})),
        Provider::Bedrock => (
            "/model/anthropic.claude/invoke",
            json!({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 100, "messages": turns}),
        ),
        Provider::Vertex => (
            "/projects/p/locations/l/publishers/anthropic/models/claude:rawPredict",
            json!({"anthropic_version": "vertex-2023-10-16", "max_tokens": 100, "messages": turns}),
        ),
        Provider::Gemini => {
            ("/models/gemini:generateContent", json!({"contents": [{"parts": [{"text": "Which label?"}]}]}))
        }
        Provider::Tei => ("/embeddings", json!({"model": "m", "input": "Which label?"})),
        _ => ("/chat/completions", json!({"model": "m", "messages": turns})),
    }
}

/// The text of an answer, whatever its dialect.
fn text(answer: &Value) -> Option<&str> {
    let places = ["/choices/0/message/content", "/content/0/text", "/candidates/0/content/parts/0/text"];
    places.iter().find_map(|place| answer.pointer(place)?.as_str())
}

#[tokio::test]
async fn every_provider_answers_the_same_question_the_same_way_twice() {
    let simulator = start(Config::default()).await;
    for provider in Provider::all() {
        let (path, body) = question(provider);
        let first: Value = post(&simulator, provider, path, &body).await.json().await.expect("JSON");
        let second: Value = post(&simulator, provider, path, &body).await.json().await.expect("JSON");
        assert_eq!(first, second, "{provider:?}");
        if provider == Provider::Tei {
            assert_eq!(first["data"][0]["embedding"].as_array().map(Vec::len), Some(16));
        } else {
            assert!(text(&first).is_some_and(|text| !text.is_empty()), "{provider:?}: {first}");
        }
        assert_eq!(simulator.journal().paid_answers(provider), (2, 1));
    }
}

#[tokio::test]
async fn a_request_without_a_key_is_refused_in_the_providers_shape_and_leaves_no_key_name() {
    let keys = [("team".to_owned(), "sk-1".to_owned())].into();
    let simulator = start(Config { keys, ..Config::default() }).await;
    for provider in Provider::all() {
        let (path, body) = question(provider);
        let answer = post(&simulator, provider, path, &body).await;
        let expected = match provider {
            Provider::Gemini => 400,
            Provider::Bedrock => 403,
            _ => 401,
        };
        assert_eq!(answer.status().as_u16(), expected, "{provider:?}");
    }
    assert!(simulator.journal().entries().iter().all(|entry| entry.key_name.is_none()));
    let answer = Client::new().get(format!("{}/models", simulator.base(Provider::Openai))).bearer_auth("sk-1").send();
    assert_eq!(answer.await.expect("an answer").status(), 200);
    assert_eq!(simulator.journal().entries().last().and_then(|entry| entry.key_name.clone()).as_deref(), Some("team"));
    assert!(!format!("{:?}", simulator.journal().entries()).contains("sk-1"));
}

#[tokio::test]
async fn a_limit_lets_through_what_it_allows_and_says_what_is_left() {
    let limits = Limits { requests: Some(3), ..Limits::default() };
    let simulator = start(Config { limits, clock_speed: 0, ..Config::default() }).await;
    for provider in Provider::all() {
        let (path, body) = question(provider);
        for _ in 0..3 {
            assert_eq!(post(&simulator, provider, path, &body).await.status(), 200, "{provider:?}");
        }
        let refused = post(&simulator, provider, path, &body).await;
        assert_eq!(refused.status(), 429, "{provider:?}");
        let header = |name: &str| refused.headers().get(name).and_then(|value| value.to_str().ok());
        match provider {
            Provider::Openai | Provider::Azure | Provider::Groq | Provider::Openrouter => {
                assert_eq!(header("x-ratelimit-remaining-requests"), Some("0"));
                assert_eq!(header("x-ratelimit-reset-requests"), Some("1m0s"));
            }
            Provider::Anthropic => assert_eq!(header("anthropic-ratelimit-requests-remaining"), Some("0")),
            Provider::Mistral => assert_eq!(header("x-ratelimit-remaining-req-minute"), Some("0")),
            _ => {}
        }
        let says_when = header("retry-after") == Some("20");
        let error: Value = refused.json().await.expect("JSON");
        match provider {
            Provider::Gemini | Provider::Vertex => assert_eq!(error["error"]["details"][0]["retryDelay"], "20s"),
            Provider::Bedrock | Provider::Deepseek | Provider::Tei => assert!(!says_when),
            _ => assert!(says_when, "{provider:?}"),
        }
    }
    simulator.time().advance(Duration::from_secs(20));
    let (path, body) = question(Provider::Openai);
    assert_eq!(post(&simulator, Provider::Openai, path, &body).await.status(), 200);
}

#[tokio::test]
async fn schemas_tools_and_lists_of_labels_are_kept_to() {
    let simulator = start(Config::default()).await;
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["label"],
        "properties": {"label": {"enum": ["bug", "billing"]}},
    });
    let turns = json!([{"role": "user", "content": "Which label?"}]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let body = json!({"model": "m", "messages": turns, "response_format": format});
    for provider in [Provider::Openai, Provider::Azure, Provider::Groq, Provider::Together, Provider::Vllm] {
        let answer: Value = post(&simulator, provider, "/chat/completions", &body).await.json().await.expect("JSON");
        check(text(&answer), &format!("{provider:?}"));
    }
    assert_eq!(post(&simulator, Provider::Deepseek, "/chat/completions", &body).await.status(), 400);
    let body = json!({"model": "c", "max_tokens": 99, "messages": turns, "output_config": {"format": {
        "type": "json_schema", "schema": schema}}});
    let answer: Value = post(&simulator, Provider::Anthropic, "/messages", &body).await.json().await.expect("JSON");
    check(text(&answer), "anthropic");
    let body = json!({"contents": [{"parts": [{"text": "x"}]}], "generationConfig": {
        "responseMimeType": "application/json", "responseSchema": schema}});
    let answer = post(&simulator, Provider::Gemini, "/models/g:generateContent", &body).await;
    check(text(&answer.json().await.expect("JSON")), "gemini");
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    let body = json!({"model": "m", "messages": turns, "tools": tools, "tool_choice": "required"});
    let answer = post(&simulator, Provider::Fireworks, "/chat/completions", &body).await;
    let answer: Value = answer.json().await.expect("JSON");
    check(answer.pointer("/choices/0/message/tool_calls/0/function/arguments").and_then(Value::as_str), "tool");
    let body = json!({"model": "m", "messages": turns, "guided_choice": ["a", "b"]});
    let answer = post(&simulator, Provider::Vllm, "/chat/completions", &body).await;
    assert!(["a", "b"].contains(&text(&answer.json().await.expect("JSON")).expect("text")));
}

fn check(text: Option<&str>, who: &str) {
    let value: Value = serde_json::from_str(text.unwrap_or_default()).unwrap_or_default();
    assert!(["bug", "billing"].contains(&value["label"].as_str().unwrap_or_default()), "{who}: {text:?}");
}

#[tokio::test]
async fn faults_look_as_they_do_in_life() {
    let with = async |faults: Faults| start(Config { faults, ..Config::default() }).await;
    let (path, body) = question(Provider::Openai);

    let simulator = with(Faults { cut_body: 1.0, ..Faults::default() }).await;
    let answer = post(&simulator, Provider::Openai, path, &body).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.is_err(), "a cut body reads whole");

    let simulator = with(Faults { error_in_ok: 1.0, ..Faults::default() }).await;
    let answer = post(&simulator, Provider::Openrouter, path, &body).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.expect("JSON")["error"]["code"], 503);

    let simulator = with(Faults { overloaded_html: 1.0, ..Faults::default() }).await;
    let answer = post(&simulator, Provider::Openai, path, &body).await;
    assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].as_bytes()), (529, b"text/html".as_slice()));

    let simulator = with(Faults { silent: 1.0, ..Faults::default() }).await;
    let client = Client::builder().timeout(Duration::from_millis(200)).build().expect("a client");
    let url = format!("{}{path}", simulator.base(Provider::Openai));
    let error = client.post(url).bearer_auth("k").json(&body).send().await.expect_err("silence");
    assert!(error.is_timeout());
    assert_eq!(simulator.journal().entries()[0].status, None);

    let simulator = with(Faults { truncated: 1.0, ..Faults::default() }).await;
    let answer: Value = post(&simulator, Provider::Openai, path, &body).await.json().await.expect("JSON");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    let simulator = with(Faults { refused: 1.0, ..Faults::default() }).await;
    assert_eq!(post(&simulator, Provider::Azure, path, &body).await.status(), 400);
    let answer: Value = post(&simulator, Provider::Openai, path, &body).await.json().await.expect("JSON");
    assert_eq!(answer["choices"][0]["finish_reason"], "content_filter");
}

#[tokio::test]
async fn deepseek_sends_blank_lines_before_its_answer() {
    let simulator = start(Config::default()).await;
    let (path, body) = question(Provider::Deepseek);
    let text = post(&simulator, Provider::Deepseek, path, &body).await.text().await.expect("text");
    assert!(text.starts_with("\n\n\n{"), "{text}");
}

#[tokio::test]
async fn the_journal_finds_what_was_sent_if_it_keeps_bodies() {
    let simulator = start(Config { keep_bodies: Keep::Everything, ..Config::default() }).await;
    let (path, body) = question(Provider::Groq);
    post(&simulator, Provider::Groq, path, &body).await;
    let journal = simulator.journal();
    assert!(journal.contains("Which label?") && !journal.contains("canary"));
    assert_eq!(journal.count(Provider::Groq, "/chat/").requests, 1);
    assert_eq!(journal.count(Provider::Openai, "").requests, 0);
    assert_eq!(journal.requests(), 1);
}

#[tokio::test]
async fn a_model_without_schemas_follows_the_one_that_its_prompt_has() {
    let simulator = start(Config::default()).await;
    let schema = json!({"type": "object", "properties": {"label": {"type": "string", "enum": ["a", "b"]}}, "required": ["label"]});
    let turns = json!([{"role": "system", "content": format!("Write JSON of this schema: {schema}")}, {"role": "user", "content": "Which?"}]);
    let body = json!({"model": "m", "messages": turns, "response_format": {"type": "json_object"}});
    let answer: Value =
        post(&simulator, Provider::Deepseek, "/chat/completions", &body).await.json().await.expect("JSON");
    let written: Value = serde_json::from_str(text(&answer).expect("a text")).expect("JSON");
    assert!(["a", "b"].contains(&written["label"].as_str().expect("a label")), "{written}");
}

#[tokio::test]
async fn the_bill_counts_the_tokens_of_answers_that_nobody_got() {
    let simulator = start(Config { faults: Faults { cut_body: 1.0, ..Faults::default() }, ..Config::default() }).await;
    let (path, body) = question(Provider::Openai);
    let cut = post(&simulator, Provider::Openai, path, &body).await.bytes().await;
    assert!(cut.is_err());
    let bill = simulator.journal().bill(Provider::Openai);
    assert_eq!((bill.answers, bill.input_tokens), (1, 3));
    assert!(bill.output_tokens > 0);
}
