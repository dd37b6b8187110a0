//! [`Capabilities`]: what a job says that its managed model can do, where the table of providers knows it wrongly or not yet.
//! It changes how a question is put and how an answer is read. Where bytes go, what opens the provider and what bounds a
//! request are the operator's: no field here says any of it.

use serde::{Deserialize, Serialize};

/// A way to make a model write JSON of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StructuredMode {
    /// The provider holds the model to the schema while it writes.
    JsonSchema,
    /// The same as a grammar of text-generation-inference: the schema stands in `response_format.value`.
    JsonValue,
    /// The model must call a tool whose parameters have the schema.
    Tools,
    /// The provider ensures JSON, the instructions name the schema.
    JsonObject,
    /// Instructions only.
    None,
}

/// Which part of JSON Schema a provider takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchemaSubset {
    /// OpenAI's strict schemas: closed objects, every property required.
    Strict,
    /// Strict schemas without bounds of numbers, lengths and items, and with few unions: Anthropic.
    Anthropic,
    /// OpenAPI 3.0 schema objects: Gemini.
    Gemini,
    /// JSON Schema as it is: servers that turn it into a grammar.
    Plain,
}

/// What a model can do, where the job says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// Ways to get JSON of a schema, best first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured: Option<Vec<StructuredMode>>,
    /// Which part of JSON Schema it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_subset: Option<SchemaSubset>,
    /// Role of the system message: `system` or `developer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_role: Option<String>,
    /// Whether a temperature may be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<bool>,
    /// Most alternatives that it gives with their log-probabilities at each token; 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Whether the answer's text may begin with `<think>…</think>`, which is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub think_tags: Option<bool>,
    /// Output tokens for thinking, beside those of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking_tokens: Option<u32>,
}

impl Capabilities {
    /// Whether the job says nothing: then records leave them out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
