//! The providers, and what tells them apart in a table: base path, how a key is shown, shapes of errors, names of headers.

use serde::Deserialize;

/// A provider, or a server that teams run themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "they are names")]
pub enum Provider {
    Openai,
    Azure,
    Anthropic,
    Gemini,
    Bedrock,
    Vertex,
    Groq,
    Deepseek,
    Mistral,
    Together,
    Fireworks,
    Openrouter,
    Vllm,
    LlamaServer,
    Ollama,
    Tgi,
    Tei,
}

/// How a request shows its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    /// `Authorization: Bearer`.
    Bearer,
    /// `Authorization: Bearer`, if it likes.
    Optional,
    /// A header of this name, or a bearer.
    HeaderOrBearer(&'static str),
    /// AWS Signature Version 4.
    Signature,
}

/// The shape of an error's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errors {
    /// `{"error": {message, type, param, code: "text"}}`
    Openai,
    /// The same with the status as a number in `code`.
    NumberCode,
    /// `{"error": {code: "429", message}}`
    Azure,
    /// `{"type": "error", "error": {type, message}}`
    Anthropic,
    /// `{"error": {code: 429, message, status, details}}`
    Google,
    /// `{"message"}` with the kind in a header.
    Aws,
    /// `{"object": "error", "message", "type", "code"}`; a 429 has a message only.
    Mistral,
    /// `{"error": "text", "error_type"}`
    Tgi,
    /// `{"message", "code": 429, "type"}`
    Tei,
    /// `{"error": "text"}`
    Ollama,
}

/// The family of names that rate limits are told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RateHeaders {
    /// `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; resets are durations as Go writes them.
    Openai,
    /// `anthropic-ratelimit-…`; resets are moments.
    Anthropic,
    /// `x-ratelimit-…-minute`.
    Mistral,
    /// `x-ratelimit-…-tokens-{prompt,generated}`.
    Fireworks,
    /// `x-ratelimit-{limit,remaining,reset}`, a second.
    Together,
    /// None.
    Absent,
}

/// What tells a provider from others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits {
    pub(crate) provider: Provider,
    /// First segment of its paths here.
    pub(crate) name: &'static str,
    /// What follows it in the base URL that clients are given.
    pub(crate) base: &'static str,
    pub(crate) auth: Auth,
    pub(crate) errors: Errors,
    pub(crate) rate_headers: RateHeaders,
    /// The word for an end that the model chose.
    pub(crate) stop: &'static str,
}

const fn row(
    provider: Provider,
    name_and_base: (&'static str, &'static str),
    auth: Auth,
    errors: Errors,
    rate_headers: RateHeaders,
    stop: &'static str,
) -> Traits {
    Traits { provider, name: name_and_base.0, base: name_and_base.1, auth, errors, rate_headers, stop }
}

/// All of them.
pub(crate) const PROVIDERS: [Traits; 17] = [
    row(Provider::Openai, ("openai", "/v1"), Auth::Bearer, Errors::Openai, RateHeaders::Openai, "stop"),
    row(
        Provider::Azure,
        ("azure", "/openai/v1"),
        Auth::HeaderOrBearer("api-key"),
        Errors::Azure,
        RateHeaders::Openai,
        "stop",
    ),
    row(
        Provider::Anthropic,
        ("anthropic", "/v1"),
        Auth::HeaderOrBearer("x-api-key"),
        Errors::Anthropic,
        RateHeaders::Anthropic,
        "end_turn",
    ),
    row(
        Provider::Gemini,
        ("gemini", "/v1beta"),
        Auth::HeaderOrBearer("x-goog-api-key"),
        Errors::Google,
        RateHeaders::Absent,
        "STOP",
    ),
    row(Provider::Bedrock, ("bedrock", ""), Auth::Signature, Errors::Aws, RateHeaders::Absent, "end_turn"),
    row(Provider::Vertex, ("vertex", "/v1"), Auth::Bearer, Errors::Google, RateHeaders::Absent, "end_turn"),
    row(Provider::Groq, ("groq", "/openai/v1"), Auth::Bearer, Errors::Openai, RateHeaders::Openai, "stop"),
    row(Provider::Deepseek, ("deepseek", "/v1"), Auth::Bearer, Errors::Openai, RateHeaders::Absent, "stop"),
    row(Provider::Mistral, ("mistral", "/v1"), Auth::Bearer, Errors::Mistral, RateHeaders::Mistral, "stop"),
    row(Provider::Together, ("together", "/v1"), Auth::Bearer, Errors::Openai, RateHeaders::Together, "eos"),
    row(
        Provider::Fireworks,
        ("fireworks", "/inference/v1"),
        Auth::Bearer,
        Errors::Openai,
        RateHeaders::Fireworks,
        "stop",
    ),
    row(Provider::Openrouter, ("openrouter", "/api/v1"), Auth::Bearer, Errors::NumberCode, RateHeaders::Openai, "stop"),
    row(Provider::Vllm, ("vllm", "/v1"), Auth::Optional, Errors::NumberCode, RateHeaders::Absent, "stop"),
    row(
        Provider::LlamaServer,
        ("llama-server", "/v1"),
        Auth::Optional,
        Errors::NumberCode,
        RateHeaders::Absent,
        "stop",
    ),
    row(Provider::Ollama, ("ollama", "/v1"), Auth::Optional, Errors::Ollama, RateHeaders::Absent, "stop"),
    row(Provider::Tgi, ("tgi", "/v1"), Auth::Optional, Errors::Tgi, RateHeaders::Absent, "eos_token"),
    row(Provider::Tei, ("tei", "/v1"), Auth::Optional, Errors::Tei, RateHeaders::Absent, "stop"),
];

impl Provider {
    /// All providers.
    pub fn all() -> impl Iterator<Item = Provider> {
        PROVIDERS.iter().map(|traits| traits.provider)
    }

    /// Its name in paths and configuration.
    pub fn name(self) -> &'static str {
        self.traits().name
    }

    pub(crate) fn traits(self) -> &'static Traits {
        // The table is in the order of the variants: a test holds it.
        &PROVIDERS[self as usize]
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        PROVIDERS.iter().find(|traits| traits.name == name).map(|traits| traits.provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_variants() {
        for provider in Provider::all() {
            assert_eq!(provider.traits().provider, provider);
            assert_eq!(Provider::of_name(provider.name()), Some(provider));
        }
    }
}
