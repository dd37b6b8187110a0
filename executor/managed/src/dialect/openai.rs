//! Requests of the OpenAI dialect: chat completions and embeddings. What providers add or leave out is in their targets.

use serde_json::{Map, Value, json};

use super::{ANSWER, ANSWER_PURPOSE, Asked, TEXT_MARK, TOKENS_MARK, pattern_field, wants_logprobs};
use crate::structured::{Format, JsonFormat};
use crate::target::{StructuredMode, Target};

/// The body of a completion, with marks for the row.
pub(super) fn completion(target: &Target, asked: &Asked<'_>) -> Value {
    let mut body = Map::new();
    if target.model_in_body {
        body.insert("model".to_owned(), json!(target.model));
    }
    let system = asked.system.map(|text| json!({"role": target.system_role, "content": text}));
    let messages: Vec<Value> = system.into_iter().chain([json!({"role": "user", "content": TEXT_MARK})]).collect();
    body.insert("messages".to_owned(), Value::Array(messages));
    body.insert(target.tokens_field.clone(), json!(TOKENS_MARK));
    if target.temperature {
        body.insert("temperature".to_owned(), json!(0));
    }
    if !target.seed_field.is_empty() {
        body.insert(target.seed_field.clone(), json!(0));
    }
    if wants_logprobs(target, asked.format) {
        body.insert("logprobs".to_owned(), json!(true));
        body.insert("top_logprobs".to_owned(), json!(target.logprobs));
    }
    match (asked.format, asked.format.json()) {
        (Format::Pattern { mode, pattern, .. }, _) => {
            body.extend(pattern_field(*mode, pattern).map(|(name, value)| (name.to_owned(), value)));
        }
        (Format::Label { grammar: Some(grammar), .. }, _) => {
            body.insert("grammar".to_owned(), json!(grammar));
        }
        (_, Some(json)) => body.extend(structured(target, json)),
        (_, None) => {}
    }
    Value::Object(body)
}

fn structured(target: &Target, json: &JsonFormat) -> Map<String, Value> {
    let mut fields = Map::new();
    let format = match json.mode {
        StructuredMode::None => return fields,
        StructuredMode::JsonObject => json!({"type": "json_object"}),
        StructuredMode::JsonValue => json!({"type": "json_object", "value": json.sent}),
        StructuredMode::JsonSchema => {
            json!({"type": "json_schema", "json_schema": {"name": ANSWER, "strict": true, "schema": json.sent}})
        }
        StructuredMode::Tools => {
            let mut function = json!({"name": ANSWER, "description": ANSWER_PURPOSE, "parameters": json.sent});
            if target.tools_strict {
                function["strict"] = json!(true);
            }
            fields.insert("tools".to_owned(), json!([{"type": "function", "function": function}]));
            fields.insert("tool_choice".to_owned(), json!({"type": "function", "function": {"name": ANSWER}}));
            return fields;
        }
    };
    fields.insert("response_format".to_owned(), format);
    fields
}

/// The body of an embedding call.
pub(super) fn embedding(target: &Target, texts: &[&str]) -> Value {
    let mut body = Map::new();
    if target.model_in_body {
        body.insert("model".to_owned(), json!(target.model));
    }
    body.insert("input".to_owned(), json!(texts));
    if target.dimensions > 0 && !target.dimensions_field.is_empty() {
        body.insert(target.dimensions_field.clone(), json!(target.dimensions));
    }
    Value::Object(body)
}
