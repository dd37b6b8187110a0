//! The words of the capability table: how a provider is spoken to, signed in to and limited. Only names; what they mean
//! for bytes is said where they are used.

pub use rowmill_jobs::capability::{SchemaSubset, StructuredMode};
use serde::{Deserialize, Serialize};

/// The language of requests and responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Chat completions and embeddings as OpenAI defined them, which most servers speak.
    Openai,
    /// Anthropic's Messages API, its own and as Bedrock and Vertex carry it.
    Anthropic,
    /// Google's `generateContent` and `batchEmbedContents`.
    Gemini,
}

/// How a request proves whose it is. The secret itself is never in a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Auth {
    /// `Authorization: Bearer KEY`.
    Bearer,
    /// `x-api-key: KEY`.
    XApiKey,
    /// `api-key: KEY`.
    ApiKey,
    /// `x-goog-api-key: KEY`.
    XGoogApiKey,
    /// AWS Signature Version 4 with the machine's AWS credentials.
    Sigv4,
    /// An OAuth access token of Google Cloud, which is renewed about every hour.
    GoogleOauth,
    /// Nothing.
    None,
}

/// How a regular expression for the whole answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatternMode {
    /// `structured_outputs.regex`: vLLM from 0.12 on.
    StructuredOutputs,
    /// `guided_regex`: vLLM before 0.12.
    GuidedRegex,
    /// `response_format` of type `regex`: text-generation-inference.
    ResponseFormat,
    /// The provider has nothing for it: the model is asked, and its answer is checked.
    None,
}

/// How the labels of a choice are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChoiceMode {
    /// In a schema, in whichever way the provider has JSON.
    Json,
    /// `grammar`, in llama.cpp's own language: the label alone is written, as the candle engine scores it.
    Grammar,
}

/// The kind of batch API a provider has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchApi {
    /// A JSONL file of requests, then an output and an error file: OpenAI, Azure, Groq, Together.
    Openai,
    /// Requests in the body of the call: Anthropic.
    Anthropic,
    /// Requests in the body or in a file of the File API: Gemini.
    Gemini,
    /// JSONL in Google Cloud Storage: Vertex.
    Vertex,
    /// JSONL in S3: Bedrock.
    Bedrock,
    /// A JSONL file without methods and paths: Mistral.
    Mistral,
    /// None, or none that Rowmill speaks.
    None,
}

/// Where a provider says how much of its limits is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateHeaders {
    /// `x-ratelimit-remaining-requests`, `x-ratelimit-reset-tokens` = `6m0s`, …
    Openai,
    /// `anthropic-ratelimit-…-remaining`, resets in RFC 3339.
    Anthropic,
    /// `x-ratelimit-remaining-tokens-minute`, `x-ratelimit-remaining-req-minute`.
    Mistral,
    /// `x-ratelimit-limit-tokens-prompt` and `-generated`, which move with use.
    Fireworks,
    /// `x-ratelimit-limit` per second.
    Together,
    /// `x-ratelimit-reset` in milliseconds since 1970.
    Openrouter,
    /// Not in headers: `RetryInfo` in the body of a 429.
    Body,
    /// Nowhere.
    None,
}

/// Families of tokenizers, as far as the number of tokens goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tokenizer {
    /// OpenAI's from GPT-4o on.
    O200k,
    /// OpenAI's of GPT-4, GPT-3.5 and the embedding models.
    Cl100k,
    /// Anthropic's, which is not public.
    Claude,
    /// Google's.
    Gemini,
    /// Llama 3, Qwen, DeepSeek and others with 100,000 entries and more.
    Large,
    /// Llama 2, Mistral and others with some 32,000 entries.
    Small,
    /// WordPiece, as BERT-like encoders have it.
    Wordpiece,
}

impl Tokenizer {
    /// Bytes of UTF-8 that a token stands for. Where an estimate starts, no more: low, so that it errs towards more tokens,
    /// and corrected by what the provider counts ([`crate::tokens::InputEstimate`]).
    pub fn bytes_per_token(self) -> f64 {
        match self {
            Tokenizer::O200k => 4.0,
            Tokenizer::Cl100k | Tokenizer::Gemini | Tokenizer::Large | Tokenizer::Wordpiece => 3.8,
            Tokenizer::Claude | Tokenizer::Small => 3.3,
        }
    }
}
