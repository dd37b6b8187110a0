//! Anthropic's messages, at Anthropic itself, on Bedrock and on Vertex.

use serde_json::{Value, json};

use super::{Answered, required};
use crate::answer::{self, Asked, Ended, Flaw, Shape, text_of};
use crate::limit::Take;
use crate::provider::Provider;
use crate::random;
use crate::trouble::Trouble;

pub(crate) fn messages(
    provider: Provider,
    model: Option<&str>,
    body: &Value,
    flaw: Option<Flaw>,
) -> Result<Answered, Trouble> {
    let model = match model {
        Some(model) => model,
        None => required(body, "model")?,
    };
    // Clouds take the version from the body; which one, newer clients do not agree on.
    let is_cloud = matches!(provider, Provider::Bedrock | Provider::Vertex);
    if is_cloud && body["anthropic_version"].as_str().is_none_or(str::is_empty) {
        return Err(Trouble::Invalid("anthropic_version: Field required".into()));
    }
    let tokens_max = body["max_tokens"].as_u64().filter(|max| *max > 0);
    let tokens_max = tokens_max.ok_or_else(|| Trouble::Invalid("max_tokens: Field required".into()))?;
    let turns = body["messages"].as_array().filter(|turns| !turns.is_empty());
    let turns = turns.ok_or_else(|| Trouble::Invalid("messages: at least one message is required".into()))?;
    if turns.iter().any(|turn| !matches!(turn["role"].as_str(), Some("user" | "assistant"))) {
        return Err(Trouble::Invalid("messages: Unexpected role; use the top-level `system` parameter".into()));
    }
    let prompt = format!("{}\n{}", text_of(&body["system"]), text_of(&body["messages"]));
    let asked = Asked { prompt, shape: shape(body), tokens_max: Some(tokens_max) };
    let written = answer::write(&asked, flaw);
    let take = Take { input_tokens: written.input_tokens, output_tokens: written.output_tokens };
    let reason = match written.ended {
        Ended::Length => "max_tokens",
        Ended::Refused => "refusal",
        Ended::Stop if written.tool.is_some() => "tool_use",
        Ended::Stop => "end_turn",
    };
    let content = match &written.tool {
        Some(tool) => json!([{
            "type": "tool_use", "id": format!("toolu_{:016x}", random::of(&asked.prompt)), "name": tool,
            // A call that was cut off has what could be read of its input: nothing.
            "input": serde_json::from_str::<Value>(&written.text).unwrap_or_else(|_| json!({})),
        }]),
        None => json!([{"type": "text", "text": written.text}]),
    };
    let answer = json!({
        "id": format!("msg_{:016x}", random::of(&asked.prompt)), "type": "message", "role": "assistant",
        "model": model, "content": content, "stop_reason": reason, "stop_sequence": null,
        "usage": {
            "input_tokens": take.input_tokens, "output_tokens": take.output_tokens,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "service_tier": "standard",
        },
    });
    Ok(Answered { body: answer, take })
}

fn shape(body: &Value) -> Shape {
    let wanted = body["tool_choice"]["name"].as_str();
    let must = matches!(body["tool_choice"]["type"].as_str(), Some("tool" | "any"));
    let tools = body["tools"].as_array().filter(|_| must).into_iter().flatten();
    let tool = tools.into_iter().find(|tool| wanted.is_none() || tool["name"].as_str() == wanted);
    if let Some(tool) = tool {
        let name = tool["name"].as_str().unwrap_or_default().to_owned();
        return Shape::Tool { name, schema: tool["input_schema"].clone() };
    }
    // The older name of the field was `output_format`.
    let format =
        if body["output_format"].is_object() { &body["output_format"] } else { &body["output_config"]["format"] };
    if format["schema"].is_object() { Shape::Json(format["schema"].clone()) } else { Shape::Text }
}
