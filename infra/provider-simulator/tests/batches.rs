//! Batches of every provider that has them here: they end as time passes, whole, in part, or not at all.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::multipart::{Form, Part};
use reqwest::{Client, RequestBuilder, Response};
use rowmill_provider_simulator::config::{Batches, Faults};
use rowmill_provider_simulator::{Config, Provider, Simulator};
use serde_json::{Value, json};

const ROWS: usize = 40;
const HOUR: Duration = Duration::from_secs(3600);

async fn start(batches: Batches) -> Simulator {
    Simulator::start(Config { batches, clock_speed: 0, seed: 3, ..Config::default() }).await.expect("a free port")
}

fn get(simulator: &Simulator, provider: Provider, path: &str) -> RequestBuilder {
    sign(Client::new().get(format!("{}{path}", simulator.base(provider))))
}

fn post(simulator: &Simulator, provider: Provider, path: &str) -> RequestBuilder {
    sign(Client::new().post(format!("{}{path}", simulator.base(provider))))
}

fn sign(request: RequestBuilder) -> RequestBuilder {
    request.bearer_auth("k").header("anthropic-version", "2023-06-01")
}

async fn json_of(request: RequestBuilder) -> Value {
    let answer: Response = request.send().await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.text().await.expect("text"));
    answer.json().await.expect("JSON")
}

async fn lines_of(request: RequestBuilder) -> Vec<Value> {
    let text = request.send().await.expect("an answer").text().await.expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
}

fn chat(i: usize) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": format!("row {i}")}]})
}

/// Uploads the rows and creates a batch; returns what the creation answered.
async fn create_openai(simulator: &Simulator, provider: Provider) -> Value {
    let url = "/v1/chat/completions";
    let line = |i| json!({"custom_id": format!("r{i}"), "method": "POST", "url": url, "body": chat(i)}).to_string();
    let lines: Vec<String> = (0..ROWS).map(line).collect();
    let (path, purpose) =
        if provider == Provider::Together { ("/files/upload", "batch-api") } else { ("/files", "batch") };
    let form = Form::new().text("purpose", purpose).part("file", Part::text(lines.join("\n")).file_name("rows.jsonl"));
    let file = json_of(post(simulator, provider, path).multipart(form)).await;
    let body = json!({"input_file_id": file["id"], "endpoint": url, "completion_window": "24h",
                      "metadata": {"job": "mine"}});
    json_of(post(simulator, provider, "/batches").json(&body)).await
}

async fn results_openai(simulator: &Simulator, provider: Provider, batch: &Value) -> [Vec<Value>; 2] {
    let mut files = [Vec::new(), Vec::new()];
    for (file, name) in ["output_file_id", "error_file_id"].iter().enumerate() {
        if let Some(id) = batch[name].as_str() {
            files[file] = lines_of(get(simulator, provider, &format!("/files/{id}/content"))).await;
        }
    }
    files
}

fn ids(lines: &[Value]) -> BTreeSet<&str> {
    lines.iter().filter_map(|line| line["custom_id"].as_str()).collect()
}

#[tokio::test]
async fn openais_batch_and_its_copies_end_with_every_row_in_a_shuffled_file() {
    let simulator = start(Batches::default()).await;
    for provider in [Provider::Openai, Provider::Azure, Provider::Groq, Provider::Together] {
        let created = create_openai(&simulator, provider).await;
        let (batch, done) = match provider {
            Provider::Together => (&created["job"], "COMPLETED"),
            _ => (&created, "completed"),
        };
        let path = format!("/batches/{}", batch["id"].as_str().expect("an id"));
        assert!(batch["status"].as_str().expect("a status").eq_ignore_ascii_case("validating"));
        simulator.time().advance(HOUR);
        let batch = json_of(get(&simulator, provider, &path)).await;
        assert_eq!(batch["status"], done);
        let [output, errors] = results_openai(&simulator, provider, &batch).await;
        assert_eq!((output.len(), errors.len()), (ROWS, 0));
        let in_order: Vec<String> = (0..ROWS).map(|i| format!("r{i}")).collect();
        assert_ne!(output.iter().map(|line| line["custom_id"].as_str().expect("an id")).collect::<Vec<_>>(), in_order);
        assert_eq!(ids(&output), in_order.iter().map(String::as_str).collect());
        let list = json_of(get(&simulator, provider, "/batches")).await;
        let listed = if provider == Provider::Together { &list[0] } else { &list["data"][0] };
        assert_eq!(listed["id"], batch["id"]);
    }
}

#[tokio::test]
async fn an_expired_batch_has_both_files_and_a_cancelled_one_what_was_done() {
    let simulator = start(Batches { stalled: 1.0, row_ms: 60_000, ..Batches::default() }).await;
    let created = create_openai(&simulator, Provider::Openai).await;
    let path = format!("/batches/{}", created["id"].as_str().expect("an id"));
    simulator.time().advance(HOUR * 25);
    let batch = json_of(get(&simulator, Provider::Openai, &path)).await;
    assert_eq!(batch["status"], "expired");
    let [output, errors] = results_openai(&simulator, Provider::Openai, &batch).await;
    assert_eq!((output.len(), errors.len()), (ROWS / 2, ROWS / 2));
    assert!(errors.iter().all(|line| line["error"]["code"] == "batch_expired" && line["response"].is_null()));

    let created = create_openai(&simulator, Provider::Openai).await;
    let path = format!("/batches/{}", created["id"].as_str().expect("an id"));
    simulator.time().advance(Duration::from_secs(5 * 60 + 10));
    let batch = json_of(post(&simulator, Provider::Openai, &format!("{path}/cancel"))).await;
    assert_eq!(batch["status"], "cancelling");
    simulator.time().advance(HOUR);
    let batch = json_of(get(&simulator, Provider::Openai, &path)).await;
    assert_eq!(batch["status"], "cancelled");
    assert_eq!(results_openai(&simulator, Provider::Openai, &batch).await.map(|lines| lines.len()), [5, 0]);
}

#[tokio::test]
async fn rows_fail_get_lost_and_come_twice_as_configured() {
    let behaviour =
        Batches { row_error: 0.2, row_refused: 0.2, duplicate_line: 0.3, row_lost: 0.1, ..Batches::default() };
    let simulator = start(behaviour).await;
    let created = create_openai(&simulator, Provider::Openai).await;
    simulator.time().advance(HOUR);
    let path = format!("/batches/{}", created["id"].as_str().expect("an id"));
    let batch = json_of(get(&simulator, Provider::Openai, &path)).await;
    let [output, errors] = results_openai(&simulator, Provider::Openai, &batch).await;
    let statuses: BTreeSet<u64> = errors.iter().filter_map(|line| line["response"]["status_code"].as_u64()).collect();
    assert_eq!(statuses, [400, 500].into());
    assert!(ids(&output).is_disjoint(&ids(&errors)));
    assert!(ids(&output).len() + ids(&errors).len() < ROWS, "no row got lost");
    assert!(output.len() > ids(&output).len(), "no line came twice");
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_was_done() {
    let faults = Faults { create_answer_lost: 1.0, ..Faults::default() };
    let simulator = Simulator::start(Config { faults, ..Config::default() }).await.expect("a free port");
    let request = json!({"requests": [{"custom_id": "r0", "params": {
        "model": "c", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}}]});
    let answer = post(&simulator, Provider::Anthropic, "/messages/batches").json(&request).send().await;
    let lost = match answer {
        Ok(answer) => !answer.status().is_success() || answer.bytes().await.is_err(),
        Err(_) => true,
    };
    assert!(lost);
    let list = json_of(get(&simulator, Provider::Anthropic, "/messages/batches")).await;
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn anthropics_batch_tells_each_rows_end_in_one_file() {
    let simulator = start(Batches { stalled: 1.0, row_error: 0.3, ..Batches::default() }).await;
    let row = |i: usize| {
        json!({"custom_id": format!("r{i}"), "params": {"model": "c", "max_tokens": 99,
               "messages": [{"role": "user", "content": format!("row {i}")}]}})
    };
    let rows: Vec<Value> = (0..ROWS).map(row).collect();
    let request = post(&simulator, Provider::Anthropic, "/messages/batches").json(&json!({ "requests": rows }));
    let created = json_of(request).await;
    assert_eq!(created["processing_status"], "in_progress");
    let path = format!("/messages/batches/{}", created["id"].as_str().expect("an id"));
    assert_eq!(get(&simulator, Provider::Anthropic, &format!("{path}/results")).send().await.expect("x").status(), 400);
    simulator.time().advance(HOUR * 25);
    let batch = json_of(get(&simulator, Provider::Anthropic, &path)).await;
    assert_eq!((&batch["processing_status"], &batch["request_counts"]["expired"]), (&json!("ended"), &json!(ROWS / 2)));
    let lines = lines_of(get(&simulator, Provider::Anthropic, &format!("{path}/results"))).await;
    let kinds: BTreeSet<&str> = lines.iter().filter_map(|line| line["result"]["type"].as_str()).collect();
    assert_eq!((lines.len(), kinds), (ROWS, ["succeeded", "errored", "expired"].into()));
}

#[tokio::test]
async fn geminis_batch_answers_inline_and_mistrals_forgets_after_its_retention() {
    let simulator = start(Batches { retention_ms: 24 * 3_600_000, ..Batches::default() }).await;
    let request = |i: usize| {
        json!({"request": {"contents": [{"parts": [{"text": format!("row {i}")}]}]},
                                        "metadata": {"key": format!("r{i}")}})
    };
    let requests: Vec<Value> = (0..ROWS).map(request).collect();
    let body = json!({"batch": {"displayName": "mine", "inputConfig": {"requests": {"requests": requests}}}});
    let created = json_of(post(&simulator, Provider::Gemini, "/models/g:batchGenerateContent").json(&body)).await;
    simulator.time().advance(HOUR);
    let path = format!("/{}", created["name"].as_str().expect("a name"));
    let operation = json_of(get(&simulator, Provider::Gemini, &path)).await;
    assert_eq!((&operation["done"], &operation["metadata"]["displayName"]), (&json!(true), &json!("mine")));
    let answers = operation.pointer("/response/inlinedResponses/inlinedResponses").and_then(Value::as_array);
    assert_eq!(answers.map(Vec::len), Some(ROWS));

    let lines: Vec<String> =
        (0..ROWS).map(|i| json!({"custom_id": format!("r{i}"), "body": chat(i)}).to_string()).collect();
    let form = Form::new().text("purpose", "batch").part("file", Part::text(lines.join("\n")).file_name("r.jsonl"));
    let file = json_of(post(&simulator, Provider::Mistral, "/files").multipart(form)).await;
    let body = json!({"input_files": [file["id"]], "model": "m", "endpoint": "/v1/chat/completions"});
    let created = json_of(post(&simulator, Provider::Mistral, "/batch/jobs").json(&body)).await;
    assert_eq!(created["status"], "QUEUED");
    simulator.time().advance(HOUR);
    let path = format!("/batch/jobs/{}", created["id"].as_str().expect("an id"));
    let job = json_of(get(&simulator, Provider::Mistral, &path)).await;
    assert_eq!(job["status"], "SUCCESS");
    let content = format!("/files/{}/content", job["output_file"].as_str().expect("a file"));
    assert_eq!(lines_of(get(&simulator, Provider::Mistral, &content)).await.len(), ROWS);
    simulator.time().advance(HOUR * 25);
    assert_eq!(get(&simulator, Provider::Mistral, &content).send().await.expect("an answer").status(), 404);
}

#[tokio::test]
async fn bedrocks_jobs_read_and_write_a_folder_and_a_repeated_creation_makes_no_second_one() {
    let simulator = start(Batches { row_ms: 60_000, finalizing_ms: 0, ..Batches::default() }).await;
    let folder = tempfile::tempdir().expect("a folder");
    let line = |i: usize| {
        let body = json!({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 50,
                          "messages": [{"role": "user", "content": format!("row {i}")}]});
        json!({"recordId": format!("r{i}"), "modelInput": body}).to_string()
    };
    let lines: Vec<String> = (0..ROWS).map(line).collect();
    std::fs::write(folder.path().join("rows.jsonl"), lines.join("\n")).expect("written");
    let uri = format!("file://{}", folder.path().display());
    let body = json!({
        "jobName": "mine", "modelId": "anthropic.claude-haiku", "roleArn": "arn:aws:iam::123456789012:role/r",
        "clientRequestToken": "once", "timeoutDurationInHours": 24,
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": format!("{uri}/rows.jsonl"), "s3InputFormat": "JSONL"}},
        "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": format!("{uri}/")}},
    });
    let create = || json_of(post(&simulator, Provider::Bedrock, "/model-invocation-job").json(&body));
    let arn = create().await["jobArn"].as_str().expect("an ARN").to_owned();
    assert_eq!(create().await["jobArn"], arn);
    let list = json_of(get(&simulator, Provider::Bedrock, "/model-invocation-jobs?nameContains=mine")).await;
    assert_eq!(list["invocationJobSummaries"].as_array().map(Vec::len), Some(1), "{list}");

    let path = format!("/model-invocation-job/{}", arn.replace(':', "%3A").replace('/', "%2F"));
    let (_, id) = arn.rsplit_once('/').expect("an id");
    let bare = get(&simulator, Provider::Bedrock, &format!("/model-invocation-job/{id}")).send().await.expect("one");
    assert_eq!(bare.status(), 400, "the whole ARN names a job");
    assert_eq!(json_of(get(&simulator, Provider::Bedrock, &path)).await["status"], "Validating");
    simulator.time().advance(Duration::from_secs(5 * 60 + 10));
    json_of(post(&simulator, Provider::Bedrock, &format!("{path}/stop"))).await;
    assert_eq!(json_of(get(&simulator, Provider::Bedrock, &path)).await["status"], "Stopped");
    let results = std::fs::read_to_string(folder.path().join(id).join("rows.jsonl.out")).expect("results");
    let results: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let is_whole =
        |line: &Value| line["modelOutput"]["content"].is_array() && line["modelInput"]["messages"].is_array();
    assert!(results.len() == 5 && results.iter().all(is_whole), "{results:?}");
}
