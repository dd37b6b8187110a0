//! Google's `generateContent` and `batchEmbedContents`: requests and responses.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::read::{count, parse, refuse_error, word};
use super::{
    ANSWER, ANSWER_PURPOSE, Asked, Embedded, End, Said, TEXT_MARK, TOKENS_MARK, TokenChoice, Unreadable, wants_logprobs,
};
use crate::call::Spent;
use crate::target::{StructuredMode, Target};

/// The body of a completion, with marks for the row.
pub(super) fn completion(target: &Target, asked: &Asked<'_>) -> Value {
    let mut body = Map::new();
    if let Some(system) = asked.system {
        body.insert("systemInstruction".to_owned(), json!({"parts": [{"text": system}]}));
    }
    body.insert("contents".to_owned(), json!([{"role": "user", "parts": [{"text": TEXT_MARK}]}]));
    let mut config = Map::new();
    config.insert(target.tokens_field.clone(), json!(TOKENS_MARK));
    if target.temperature {
        config.insert("temperature".to_owned(), json!(0));
    }
    if !target.seed_field.is_empty() {
        config.insert(target.seed_field.clone(), json!(0));
    }
    if wants_logprobs(target, asked.format) {
        config.insert("responseLogprobs".to_owned(), json!(true));
        config.insert("logprobs".to_owned(), json!(target.logprobs));
    }
    if let Some(json) = asked.format.json() {
        match json.mode {
            StructuredMode::JsonSchema => {
                config.insert("responseMimeType".to_owned(), json!("application/json"));
                config.insert("responseSchema".to_owned(), json.sent.clone());
            }
            StructuredMode::JsonObject | StructuredMode::JsonValue => {
                config.insert("responseMimeType".to_owned(), json!("application/json"));
            }
            StructuredMode::Tools => {
                let function = json!({"name": ANSWER, "description": ANSWER_PURPOSE, "parameters": json.sent});
                body.insert("tools".to_owned(), json!([{"functionDeclarations": [function]}]));
                let calling = json!({"mode": "ANY", "allowedFunctionNames": [ANSWER]});
                body.insert("toolConfig".to_owned(), json!({"functionCallingConfig": calling}));
            }
            StructuredMode::None => {}
        }
    }
    body.insert("generationConfig".to_owned(), Value::Object(config));
    Value::Object(body)
}

/// The body of an embedding call.
pub(super) fn embedding(target: &Target, texts: &[&str]) -> Value {
    let model = format!("models/{}", target.model);
    let requests = texts.iter().map(|text| {
        let mut request = json!({"model": model, "content": {"parts": [{"text": text}]}});
        if target.dimensions > 0 && !target.dimensions_field.is_empty() {
            request[&target.dimensions_field] = json!(target.dimensions);
        }
        request
    });
    json!({"requests": requests.collect::<Vec<Value>>()})
}

/// The only request of an embedding call; `None` for all other calls.
pub(super) fn batch_row(call: &[u8]) -> Option<Bytes> {
    let mut call: Value = serde_json::from_slice(call).ok()?;
    match call["requests"].as_array_mut().map(Vec::as_mut_slice) {
        Some([request]) => Some(Bytes::from(request.take().to_string())),
        _ => None,
    }
}

/// The answer to an embedding call of one text, from the one to a row; `None` for all other answers.
pub(super) fn batch_answer(answer: &str) -> Option<Bytes> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct One<'a> {
        #[serde(borrow)]
        embedding: &'a RawValue,
        #[serde(default)]
        usage_metadata: Value,
    }
    let one: One<'_> = serde_json::from_str(answer).ok()?;
    let (embedding, usage) = (one.embedding.get(), one.usage_metadata);
    Some(Bytes::from(format!(r#"{{"embeddings":[{embedding}],"usageMetadata":{usage}}}"#)))
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Response {
    error: Option<Value>,
    candidates: Option<Vec<Candidate>>,
    prompt_feedback: Value,
    usage_metadata: Value,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Candidate {
    content: Value,
    finish_reason: Value,
    logprobs_result: Value,
}

/// Reads a response.
pub(super) fn read(body: &[u8]) -> Result<Said, Unreadable> {
    let response: Response = parse(body)?;
    refuse_error(response.error.as_ref())?;
    let spent = spent(&response.usage_metadata);
    if response.prompt_feedback["blockReason"].is_string() {
        return Ok(Said { end: End::Filtered, spent, ..Said::default() });
    }
    let candidate = response.candidates.unwrap_or_default().into_iter().next();
    let candidate = candidate.ok_or_else(|| Unreadable("the response holds no answer".to_owned()))?;
    let parts = candidate.content["parts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let call = parts.iter().map(|part| &part["functionCall"]["args"]).find(|arguments| !arguments.is_null());
    let text = match call {
        Some(arguments) => arguments.to_string(),
        None => parts.iter().filter(|part| part["thought"] != true).filter_map(|part| part["text"].as_str()).collect(),
    };
    let end = match candidate.finish_reason.as_str().unwrap_or_default() {
        "" | "STOP" | "FINISH_REASON_UNSPECIFIED" => End::Whole,
        "MAX_TOKENS" => End::Length,
        "SAFETY" | "RECITATION" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" | "MODEL_ARMOR" => End::Filtered,
        other => End::Broken(format!("the answer ended for the reason `{}`", word(other))),
    };
    Ok(Said { text, end, spent, tokens: tokens(&candidate.logprobs_result) })
}

/// Thoughts are counted apart, and are output.
fn spent(usage: &Value) -> Option<Spent> {
    let input_tokens = count(&usage["promptTokenCount"])?;
    let answer = count(&usage["candidatesTokenCount"]).unwrap_or(0);
    let thoughts = count(&usage["thoughtsTokenCount"]).unwrap_or(0);
    let cached_tokens = count(&usage["cachedContentTokenCount"]).unwrap_or(0);
    Some(Spent { input_tokens, cached_tokens, output_tokens: answer + thoughts, nano_usd: 0 })
}

fn tokens(result: &Value) -> Vec<TokenChoice> {
    let token = |entry: &Value| Some((entry["token"].as_str()?.as_bytes().to_vec(), entry["logProbability"].as_f64()?));
    let chosen = result["chosenCandidates"].as_array().map(Vec::as_slice).unwrap_or_default();
    let choice = |(index, entry): (usize, &Value)| {
        let (bytes, logprob) = token(entry)?;
        let others = result["topCandidates"][index]["candidates"].as_array();
        let others = others.map(|others| others.iter().filter_map(token).collect()).unwrap_or_default();
        Some(TokenChoice { bytes, logprob, others })
    };
    chosen.iter().enumerate().map(choice).collect::<Option<_>>().unwrap_or_default()
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Embeddings {
    error: Option<Value>,
    embeddings: Option<Vec<Values>>,
    usage_metadata: Value,
}

#[derive(Deserialize)]
struct Values {
    values: Vec<f32>,
}

/// Reads vectors; they come in the order of the texts.
pub(super) fn read_embeddings(body: &[u8], rows: usize) -> Result<Embedded, Unreadable> {
    let response: Embeddings = parse(body)?;
    refuse_error(response.error.as_ref())?;
    let vectors: Vec<Vec<f32>> =
        response.embeddings.unwrap_or_default().into_iter().map(|embedding| embedding.values).collect();
    if vectors.len() != rows {
        return Err(Unreadable(format!("the response has {} vectors for {rows} texts", vectors.len())));
    }
    Ok(Embedded { vectors, spent: spent(&response.usage_metadata) })
}
