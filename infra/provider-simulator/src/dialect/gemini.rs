//! Gemini's own API: `generateContent`, `embedContent`, `batchEmbedContents`.

use serde_json::{Value, json};

use super::Answered;
use crate::answer::{self, Asked, Ended, Flaw, Shape, any_object, text_of};
use crate::limit::Take;
use crate::trouble::Trouble;

pub(crate) fn generate(model: &str, body: &Value, flaw: Option<Flaw>) -> Result<Answered, Trouble> {
    let contents = body["contents"].as_array().filter(|contents| !contents.is_empty());
    if contents.is_none() {
        return Err(Trouble::Invalid("* GenerateContentRequest.contents: contents is not specified".into()));
    }
    let config = &body["generationConfig"];
    let prompt = format!("{}\n{}", text_of(&body["systemInstruction"]), text_of(&body["contents"]));
    let tokens_max = config["maxOutputTokens"].as_u64();
    let written = answer::write(&Asked { prompt, shape: shape(config)?, tokens_max }, flaw);
    let take = Take { input_tokens: written.input_tokens, output_tokens: written.output_tokens };
    let candidate = match written.ended {
        Ended::Refused => json!({"finishReason": "SAFETY", "index": 0}),
        ended => json!({
            "content": {"parts": [{"text": written.text}], "role": "model"},
            "finishReason": if ended == Ended::Length { "MAX_TOKENS" } else { "STOP" },
            "index": 0,
        }),
    };
    let answer = json!({
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": take.input_tokens,
            "candidatesTokenCount": take.output_tokens,
            "totalTokenCount": take.input_tokens + take.output_tokens,
        },
        "modelVersion": model,
        "responseId": format!("{:016x}", crate::random::of(body.to_string())),
    });
    Ok(Answered { body: answer, take })
}

fn shape(config: &Value) -> Result<Shape, Trouble> {
    let schema = ["responseJsonSchema", "responseSchema"].iter().map(|name| &config[*name]).find(|s| s.is_object());
    match (config["responseMimeType"].as_str(), schema) {
        (Some("text/x.enum"), Some(schema)) => {
            let choices = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
            Ok(Shape::Choice(choices.map(str::to_owned).collect()))
        }
        (Some("application/json"), schema) => Ok(Shape::Json(schema.cloned().unwrap_or_else(any_object))),
        (_, Some(_)) => Err(Trouble::Invalid("a response schema needs responseMimeType application/json".into())),
        _ => Ok(Shape::Text),
    }
}

pub(crate) fn embed(body: &Value) -> Result<Answered, Trouble> {
    let (embedding, input_tokens) = one(body)?;
    Ok(Answered { body: json!({ "embedding": embedding }), take: Take { input_tokens, output_tokens: 0 } })
}

pub(crate) fn embed_many(body: &Value) -> Result<Answered, Trouble> {
    let requests = body["requests"].as_array().filter(|requests| !requests.is_empty());
    let requests = requests.ok_or_else(|| Trouble::Invalid("* BatchEmbedContentsRequest.requests: empty".into()))?;
    let (embeddings, tokens): (Vec<Value>, Vec<u64>) =
        requests.iter().map(one).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let take = Take { input_tokens: tokens.iter().sum(), output_tokens: 0 };
    Ok(Answered { body: json!({ "embeddings": embeddings }), take })
}

fn one(request: &Value) -> Result<(Value, u64), Trouble> {
    if !request["content"].is_object() {
        return Err(Trouble::Invalid("* EmbedContentRequest.content: contents is not specified".into()));
    }
    let text = text_of(&request["content"]);
    // The newest clients nest the options.
    let dimensions = request["outputDimensionality"].as_u64();
    let dimensions = dimensions.or_else(|| request["embedContentConfig"]["outputDimensionality"].as_u64());
    Ok((json!({"values": answer::vector(&text, dimensions)}), answer::tokens(&text).max(1)))
}
