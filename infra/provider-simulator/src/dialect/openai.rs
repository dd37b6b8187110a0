//! Answers of OpenAI's chat and embeddings APIs, with the differences of those who copied them.

use base64::Engine as _;
use serde_json::{Value, json};

use super::{Answered, request};
use crate::answer::{self, Ended, Flaw, Shape, Written};
use crate::limit::Take;
use crate::provider::Provider;
use crate::random;
use crate::trouble::Trouble;

/// Characters of a token, for probabilities.
const TOKEN_CHARACTERS: usize = 4;

pub(crate) fn chat(provider: Provider, body: &Value, flaw: Option<Flaw>) -> Result<Answered, Trouble> {
    let asked = request::chat(provider, body)?;
    if provider == Provider::Azure && flaw == Some(Flaw::Refused) {
        return Err(Trouble::Filtered);
    }
    let written = answer::write(&asked, flaw);
    let take = Take { input_tokens: written.input_tokens, output_tokens: written.output_tokens };
    let is_plain = asked.shape == Shape::Text;
    let choice = json!({
        "index": 0,
        "message": message(&written, is_plain),
        "logprobs": logprobs(body, &written),
        "finish_reason": finish(provider, &written, is_plain),
    });
    let mut answer = json!({
        "id": format!("chatcmpl-{:016x}", random::of(&asked.prompt)),
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": body["model"],
        "choices": [choice],
        "usage": {
            "prompt_tokens": take.input_tokens,
            "completion_tokens": take.output_tokens,
            "total_tokens": take.input_tokens + take.output_tokens,
        },
    });
    match provider {
        Provider::Openai => answer["service_tier"] = json!("default"),
        Provider::Groq => {
            answer["service_tier"] = json!("on_demand");
            answer["x_groq"] = json!({"id": "req_simulated"});
        }
        Provider::Openrouter => {
            answer["provider"] = json!("Simulated");
            answer["usage"]["cost"] = json!(take.output_tokens as f64 * 1e-6);
        }
        Provider::Deepseek => {
            answer["usage"]["prompt_cache_hit_tokens"] = json!(take.input_tokens / 2);
            answer["usage"]["prompt_cache_miss_tokens"] = json!(take.input_tokens - take.input_tokens / 2);
        }
        Provider::LlamaServer => answer["timings"] = json!({"prompt_n": take.input_tokens, "prompt_ms": 1.5}),
        _ => {}
    }
    Ok(Answered { body: answer, take })
}

fn message(written: &Written, is_plain: bool) -> Value {
    if let Some(tool) = &written.tool {
        let call = json!({
            "id": format!("call_{:08x}", random::of(&written.text) as u32), "type": "function",
            "function": {"name": tool, "arguments": written.text},
        });
        return json!({"role": "assistant", "content": null, "tool_calls": [call]});
    }
    match written.ended {
        Ended::Refused if is_plain => json!({"role": "assistant", "content": ""}),
        Ended::Refused => json!({"role": "assistant", "content": null, "refusal": written.text}),
        _ => json!({"role": "assistant", "content": written.text}),
    }
}

fn finish(provider: Provider, written: &Written, is_plain: bool) -> &'static str {
    match written.ended {
        Ended::Length if provider == Provider::Mistral => "model_length",
        Ended::Length => "length",
        Ended::Refused if is_plain => "content_filter",
        Ended::Stop if written.tool.is_some() => "tool_calls",
        Ended::Stop | Ended::Refused => provider.traits().stop,
    }
}

/// Probabilities of the tokens that were written, with alternatives that nobody wrote.
fn logprobs(body: &Value, written: &Written) -> Value {
    if body["logprobs"] != Value::Bool(true) {
        return Value::Null;
    }
    let alternatives = body["top_logprobs"].as_u64().unwrap_or(0).min(20);
    let characters: Vec<char> = written.text.chars().collect();
    let tokens = characters.chunks(TOKEN_CHARACTERS).map(|token| {
        let token: String = token.iter().collect();
        let entry = |text: &str, logprob: f64| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
        let mut first = entry(&token, -0.25);
        let top = (0..alternatives)
            .map(|i| if i == 0 { entry(&token, -0.25) } else { entry(&format!("~{i}"), -2.0 - i as f64) });
        first["top_logprobs"] = top.collect();
        first
    });
    json!({"content": tokens.collect::<Vec<_>>(), "refusal": null})
}

pub(crate) fn embeddings(body: &Value) -> Result<Answered, Trouble> {
    let invalid = || Trouble::Invalid("`input` must be a text or a list of texts".into());
    let texts: Vec<String> = match &body["input"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) if items.iter().all(Value::is_u64) && !items.is_empty() => vec![body["input"].to_string()],
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(text.clone()),
                Value::Array(_) => Ok(item.to_string()),
                _ => Err(invalid()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(invalid()),
    };
    let as_base64 = body["encoding_format"] == json!("base64");
    let data = texts.iter().enumerate().map(|(index, text)| {
        let vector = answer::vector(text, body["dimensions"].as_u64());
        let embedding = if as_base64 { packed(&vector) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let data: Vec<Value> = data.collect();
    let input_tokens = texts.iter().map(|text| answer::tokens(text).max(1)).sum();
    let answer = json!({
        "object": "list", "data": data, "model": body["model"],
        "usage": {"prompt_tokens": input_tokens, "total_tokens": input_tokens},
    });
    Ok(Answered { body: answer, take: Take { input_tokens, output_tokens: 0 } })
}

/// Numbers as little-endian bytes in base64.
fn packed(vector: &[f32]) -> Value {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    json!(base64::engine::general_purpose::STANDARD.encode(bytes))
}
