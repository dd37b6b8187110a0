//! Requests of OpenAI's chat API as [`Asked`], with what each provider refuses of them (managed endpoints differ more in
//! what they refuse than in what they answer).

use serde_json::Value;

use crate::answer::{Asked, Shape, any_object, text_of};
use crate::provider::Provider;
use crate::schema;
use crate::trouble::Trouble;

fn invalid(what: &str) -> Trouble {
    Trouble::Invalid(what.to_owned())
}

/// Reads a chat request.
pub(crate) fn chat(provider: Provider, body: &Value) -> Result<Asked, Trouble> {
    super::required(body, "model").or_else(|trouble| match provider {
        // The deployment in the path is the model; servers with one model need no name.
        Provider::Azure | Provider::LlamaServer | Provider::Tgi => Ok(""),
        _ => Err(trouble),
    })?;
    let messages = body["messages"].as_array().filter(|messages| !messages.is_empty());
    let prompt = text_of(&Value::Array(messages.ok_or_else(|| invalid("you must provide `messages`"))?.clone()));
    if body["temperature"].as_f64().is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
        return Err(invalid("`temperature` must be between 0 and 2"));
    }
    let model = body["model"].as_str().unwrap_or("");
    if provider == Provider::Openai && is_reasoning(model) && body.get("max_tokens").is_some_and(|max| !max.is_null()) {
        return Err(invalid("unsupported parameter: 'max_tokens'; use 'max_completion_tokens' instead"));
    }
    let shape = shape(provider, body, &prompt)?;
    let tokens_max = ["max_completion_tokens", "max_tokens"].iter().find_map(|name| body[*name].as_u64());
    Ok(Asked { prompt, shape, tokens_max })
}

fn is_reasoning(model: &str) -> bool {
    let is_o = model.starts_with('o') && model[1..].starts_with(|c: char| c.is_ascii_digit());
    is_o || model.starts_with("gpt-5")
}

fn shape(provider: Provider, body: &Value, prompt: &str) -> Result<Shape, Trouble> {
    let format = &body["response_format"];
    let tool = forced_tool(body);
    if tool.is_some() && !format.is_null() && matches!(provider, Provider::Groq | Provider::Fireworks) {
        return Err(invalid("json mode cannot be combined with tool calling"));
    }
    if let Some(shape) = tool.or_else(|| guided(provider, body)) {
        return Ok(shape);
    }
    let has_schemas = !matches!(provider, Provider::Deepseek);
    match format["type"].as_str() {
        None | Some("text") => Ok(Shape::Text),
        Some("json_schema") if has_schemas => {
            let named = &format["json_schema"];
            // Together and TGI also take the schema bare.
            let schema = named.get("schema").or_else(|| format.get("schema")).unwrap_or(named);
            if !schema.is_object() {
                return Err(invalid("missing required parameter: 'response_format.json_schema'"));
            }
            if matches!(provider, Provider::Openai | Provider::Azure) && named["strict"] == Value::Bool(true) {
                check_strict(schema)?;
            }
            Ok(Shape::Json(schema.clone()))
        }
        Some("json_object") => {
            let asks_for_json = prompt.to_lowercase().contains("json");
            if matches!(provider, Provider::Openai | Provider::Azure | Provider::Deepseek) && !asks_for_json {
                return Err(invalid(
                    "'messages' must contain the word 'json' to use 'response_format' of type 'json_object'",
                ));
            }
            let own = format.get("schema").or_else(|| format.get("value")).filter(|schema| schema.is_object());
            // A model reads what it is told to write.
            let told = || schema::within(prompt).unwrap_or_else(any_object);
            Ok(Shape::Json(own.cloned().unwrap_or_else(told)))
        }
        Some("json") if provider == Provider::Tgi => Ok(Shape::Json(format["value"].clone())),
        Some(_) => Err(invalid("this response_format type is unavailable now")),
    }
}

/// The tool that must be called.
fn forced_tool(body: &Value) -> Option<Shape> {
    let choice = &body["tool_choice"];
    let must = choice.is_object() || matches!(choice.as_str(), Some("required" | "any"));
    let tools = body["tools"].as_array().filter(|_| must)?;
    let wanted = choice["function"]["name"].as_str();
    let function = tools
        .iter()
        .map(|tool| &tool["function"])
        .find(|function| wanted.is_none() || function["name"].as_str() == wanted)?;
    Some(Shape::Tool { name: function["name"].as_str()?.to_owned(), schema: function["parameters"].clone() })
}

/// vLLM's own ways of constraining output, llama-server's and Ollama's.
fn guided(provider: Provider, body: &Value) -> Option<Shape> {
    let choices = |value: &Value| {
        let choices = value.as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Some(Shape::Choice(choices))
    };
    let object = |value: &Value| value.is_object().then(|| Shape::Json(value.clone()));
    match provider {
        Provider::Vllm => choices(&body["guided_choice"])
            .or_else(|| choices(&body["structured_outputs"]["choice"]))
            .or_else(|| object(&body["guided_json"]))
            .or_else(|| object(&body["structured_outputs"]["json"])),
        Provider::LlamaServer => {
            body["grammar"].as_str().and_then(alternatives).or_else(|| object(&body["json_schema"]))
        }
        Provider::Ollama => object(&body["format"]),
        _ => None,
    }
}

/// A grammar of llama.cpp's that is nothing but texts to choose from.
fn alternatives(grammar: &str) -> Option<Shape> {
    let mut rest = grammar.strip_prefix("root ::= ")?;
    let mut choices = Vec::new();
    loop {
        let mut texts = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        choices.push(texts.next()?.ok()?);
        rest = rest[texts.byte_offset()..].trim_start();
        match rest.strip_prefix('|') {
            Some(after) => rest = after,
            None => return rest.is_empty().then_some(Shape::Choice(choices)),
        }
    }
}

/// OpenAI's rules of strict schemas: closed objects whose fields are all required.
fn check_strict(schema: &Value) -> Result<(), Trouble> {
    if let Some(fields) = schema["properties"].as_object() {
        let required = schema["required"].as_array();
        let is_required = |name: &String| required.is_some_and(|all| all.iter().any(|other| other == name));
        if schema["additionalProperties"] != Value::Bool(false) {
            return Err(invalid("invalid schema for response_format: 'additionalProperties' is required to be false"));
        }
        if !fields.keys().all(is_required) {
            return Err(invalid("invalid schema for response_format: 'required' must include every key in properties"));
        }
        fields.values().try_for_each(check_strict)?;
    }
    if schema["items"].is_object() {
        check_strict(&schema["items"])?;
    }
    schema["anyOf"].as_array().into_iter().flatten().try_for_each(check_strict)
}
