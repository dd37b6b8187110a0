//! A model's answers in each provider's own JSON. The same functions answer a request that waits and a row of a batch.

mod anthropic;
mod gemini;
mod openai;
mod request;

use serde_json::Value;

use crate::answer::Flaw;
use crate::limit::Take;
use crate::provider::Provider;
use crate::trouble::Trouble;

/// What a request asks of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `chat/completions`
    Chat,
    /// `embeddings`
    Embeddings,
    /// Anthropic's `messages`; the model, where the path names it.
    Messages(Option<String>),
    /// Gemini's `models/M:generateContent`
    Generate(String),
    /// Gemini's `models/M:embedContent`
    Embed(String),
    /// Gemini's `models/M:batchEmbedContents`
    EmbedMany(String),
}

/// A model's answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answered {
    pub(crate) body: Value,
    pub(crate) take: Take,
}

/// Asks the model.
pub(crate) fn infer(
    provider: Provider,
    operation: &Operation,
    body: &Value,
    flaw: Option<Flaw>,
) -> Result<Answered, Trouble> {
    match operation {
        Operation::Chat => openai::chat(provider, body, flaw),
        Operation::Embeddings => openai::embeddings(body),
        Operation::Messages(model) => anthropic::messages(provider, model.as_deref(), body, flaw),
        Operation::Generate(model) => gemini::generate(model, body, flaw),
        Operation::Embed(_) => gemini::embed(body),
        Operation::EmbedMany(_) => gemini::embed_many(body),
    }
}

/// What a path asks for, after the provider's name; `None` for what is no question to a model.
pub(crate) fn operation(provider: Provider, path: &str) -> Option<Operation> {
    let between = |start: &str, end: &str| {
        let (_, rest) = path.rsplit_once(start)?;
        rest.strip_suffix(end).map(str::to_owned)
    };
    match provider {
        Provider::Anthropic if path.ends_with("/v1/messages") => Some(Operation::Messages(None)),
        Provider::Bedrock => between("/model/", "/invoke").map(|model| Operation::Messages(Some(model))),
        Provider::Vertex => between("/models/", ":rawPredict").map(|model| Operation::Messages(Some(model))),
        Provider::Gemini if path.ends_with(":generateContent") => {
            between("/models/", ":generateContent").map(Operation::Generate)
        }
        Provider::Gemini if path.ends_with(":embedContent") => {
            between("/models/", ":embedContent").map(Operation::Embed)
        }
        Provider::Gemini if path.ends_with(":batchEmbedContents") => {
            between("/models/", ":batchEmbedContents").map(Operation::EmbedMany)
        }
        Provider::Anthropic => None,
        Provider::Tei if path.ends_with("/chat/completions") => None,
        Provider::Tgi | Provider::Groq | Provider::Deepseek if path.ends_with("/embeddings") => None,
        _ if path.ends_with("/chat/completions") => Some(Operation::Chat),
        _ if path.ends_with("/embeddings") => Some(Operation::Embeddings),
        _ => None,
    }
}

/// A text field that must be there.
fn required<'a>(body: &'a Value, name: &str) -> Result<&'a str, Trouble> {
    body[name].as_str().ok_or_else(|| Trouble::Invalid(format!("you must provide `{name}`")))
}
