//! Responses of the OpenAI dialect, from the many servers that speak it. Only fields that are needed are looked at, each
//! may be null or absent, and a value of an unexpected type is no trouble unless the answer itself depends on it.

use serde::Deserialize;
use serde_json::Value;

use super::read::{count, parse, refuse_error, text, word};
use super::{Embedded, End, Said, TokenChoice, Unreadable};
use crate::call::Spent;

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Completion {
    error: Option<Value>,
    choices: Option<Vec<Choice>>,
    usage: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Choice {
    message: Option<Message>,
    finish_reason: Value,
    logprobs: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message {
    content: Value,
    refusal: Value,
    tool_calls: Value,
}

/// Reads a chat completion.
pub(super) fn completion(body: &[u8]) -> Result<Said, Unreadable> {
    let completion: Completion = parse(body)?;
    refuse_error(completion.error.as_ref())?;
    let choice = completion.choices.unwrap_or_default().into_iter().next();
    let choice = choice.ok_or_else(|| Unreadable("the response holds no answer".to_owned()))?;
    let message = choice.message.unwrap_or_default();
    let call = message.tool_calls.get(0).map(|call| &call["function"]["arguments"]);
    let said = match call {
        // Arguments are JSON in a string, or with some servers JSON itself.
        Some(Value::String(arguments)) => arguments.clone(),
        Some(arguments) if !arguments.is_null() => arguments.to_string(),
        _ => text(&message.content),
    };
    let refused = message.refusal.as_str().is_some_and(|refusal| !refusal.is_empty());
    let end = match choice.finish_reason.as_str().unwrap_or_default() {
        _ if refused => End::Refused,
        reason => end(reason),
    };
    Ok(Said { text: said, end, spent: spent(&completion.usage), tokens: tokens(&choice.logprobs["content"]) })
}

fn end(reason: &str) -> End {
    match reason {
        "" | "stop" | "stop_sequence" | "eos" | "eos_token" | "end_turn" | "tool_calls" | "function_call"
        | "tool_use" | "complete" | "completed" => End::Whole,
        "length" | "max_tokens" | "model_length" => End::Length,
        "content_filter" | "safety" => End::Filtered,
        "refusal" => End::Refused,
        other => End::Broken(format!("the answer ended for the reason `{}`", word(other))),
    }
}

fn spent(usage: &Value) -> Option<Spent> {
    let input_tokens = count(&usage["prompt_tokens"])?;
    let cached = [&usage["prompt_tokens_details"]["cached_tokens"], &usage["prompt_cache_hit_tokens"]];
    let written = count(&usage["completion_tokens"]).unwrap_or(0);
    // Some servers count thoughts in the total only.
    let beyond = count(&usage["total_tokens"]).unwrap_or(0).saturating_sub(input_tokens);
    Some(Spent {
        input_tokens,
        cached_tokens: cached.into_iter().find_map(count).unwrap_or(0),
        output_tokens: written.max(beyond),
        nano_usd: 0,
    })
}

fn tokens(content: &Value) -> Vec<TokenChoice> {
    let token = |entry: &Value| Some((bytes(entry)?, entry["logprob"].as_f64()?));
    let choice = |entry: &Value| {
        let (bytes, logprob) = token(entry)?;
        let others = entry["top_logprobs"].as_array().map(|others| others.iter().filter_map(token).collect());
        Some(TokenChoice { bytes, logprob, others: others.unwrap_or_default() })
    };
    // One token that cannot be read leaves none: probabilities of half an answer mean nothing.
    content.as_array().and_then(|entries| entries.iter().map(choice).collect()).unwrap_or_default()
}

fn bytes(entry: &Value) -> Option<Vec<u8>> {
    match &entry["bytes"] {
        Value::Array(bytes) => bytes.iter().map(|byte| byte.as_u64().and_then(|byte| byte.try_into().ok())).collect(),
        _ => entry["token"].as_str().map(|token| token.as_bytes().to_vec()),
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Embeddings {
    error: Option<Value>,
    data: Option<Vec<Embedding>>,
    usage: Value,
}

#[derive(Deserialize)]
struct Embedding {
    index: Option<usize>,
    embedding: Vec<f32>,
}

/// Reads vectors, in whatever order they come.
pub(super) fn embeddings(body: &[u8], rows: usize) -> Result<Embedded, Unreadable> {
    let response: Embeddings = parse(body)?;
    refuse_error(response.error.as_ref())?;
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); rows];
    let data = response.data.unwrap_or_default();
    if data.len() != rows {
        return Err(Unreadable(format!("the response has {} vectors for {rows} texts", data.len())));
    }
    for (position, embedding) in data.into_iter().enumerate() {
        let place = vectors.get_mut(embedding.index.unwrap_or(position)).filter(|place| place.is_empty());
        match place {
            Some(place) if !embedding.embedding.is_empty() => *place = embedding.embedding,
            _ => return Err(Unreadable("the response has not one vector for each text".to_owned())),
        }
    }
    Ok(Embedded { vectors, spent: spent(&response.usage).map(|spent| Spent { output_tokens: 0, ..spent }) })
}
