//! Anthropic's Messages API: requests and responses. Bedrock and Vertex carry the same bodies, with a version inside.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::read::{count, parse, refuse_error, word};
use super::{ANSWER, ANSWER_PURPOSE, Asked, End, Said, TEXT_MARK, TOKENS_MARK, Unreadable};
use crate::call::Spent;
use crate::target::{StructuredMode, Target};

/// The body of a completion, with marks for the row.
pub(super) fn completion(target: &Target, asked: &Asked<'_>) -> Value {
    let mut body = Map::new();
    if target.model_in_body {
        body.insert("model".to_owned(), json!(target.model));
    }
    body.insert(target.tokens_field.clone(), json!(TOKENS_MARK));
    if let Some(system) = asked.system {
        body.insert("system".to_owned(), json!(system));
    }
    body.insert("messages".to_owned(), json!([{"role": "user", "content": TEXT_MARK}]));
    if target.temperature {
        body.insert("temperature".to_owned(), json!(0));
    }
    let Some(json) = asked.format.json() else { return Value::Object(body) };
    match json.mode {
        StructuredMode::JsonSchema => {
            let format = json!({"type": "json_schema", "schema": json.sent});
            body.insert("output_config".to_owned(), json!({ "format": format }));
        }
        StructuredMode::Tools => {
            let tool = json!({"name": ANSWER, "description": ANSWER_PURPOSE, "input_schema": json.sent});
            body.insert("tools".to_owned(), json!([tool]));
            let choice = json!({"type": "tool", "name": ANSWER, "disable_parallel_tool_use": true});
            body.insert("tool_choice".to_owned(), choice);
        }
        // The instructions say it; there is no JSON mode.
        StructuredMode::JsonObject | StructuredMode::JsonValue | StructuredMode::None => {}
    }
    Value::Object(body)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message {
    #[serde(rename = "type")]
    kind: Option<String>,
    error: Option<Value>,
    content: Option<Vec<Value>>,
    stop_reason: Value,
    usage: Value,
}

/// Reads a message.
pub(super) fn read(body: &[u8]) -> Result<Said, Unreadable> {
    let message: Message = parse(body)?;
    refuse_error(message.error.as_ref())?;
    if message.kind.as_deref().is_some_and(|kind| kind != "message") {
        return Err(Unreadable("the response is no message".to_owned()));
    }
    let content = message.content.ok_or_else(|| Unreadable("the response holds no answer".to_owned()))?;
    let of_kind = |kind: &'static str| content.iter().filter(move |block| block["type"] == kind);
    let text = match of_kind("tool_use").next() {
        Some(call) => call["input"].to_string(),
        None => of_kind("text").filter_map(|block| block["text"].as_str()).collect(),
    };
    let end = match message.stop_reason.as_str().unwrap_or_default() {
        "" | "end_turn" | "stop_sequence" | "tool_use" => End::Whole,
        "max_tokens" | "model_context_window_exceeded" => End::Length,
        "refusal" => End::Refused,
        other => End::Broken(format!("the answer ended for the reason `{}`", word(other))),
    };
    Ok(Said { text, end, spent: spent(&message.usage), tokens: Vec::new() })
}

/// Prompt tokens that were cached, or are from now on, are not in `input_tokens`.
fn spent(usage: &Value) -> Option<Spent> {
    let uncached = count(&usage["input_tokens"])?;
    let cached_tokens = count(&usage["cache_read_input_tokens"]).unwrap_or(0);
    let kept = count(&usage["cache_creation_input_tokens"]).unwrap_or(0);
    let output_tokens = count(&usage["output_tokens"]).unwrap_or(0);
    Some(Spent { input_tokens: uncached + cached_tokens + kept, cached_tokens, output_tokens, nano_usd: 0 })
}
