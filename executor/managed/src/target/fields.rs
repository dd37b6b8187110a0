//! The fields of a target, written once: [`Overrides`] has each of them optional, [`Target`] has them all.

use std::collections::BTreeMap;

use rowmill_jobs::capability::Capabilities;
use rowmill_jobs::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kinds::{
    Auth, BatchApi, ChoiceMode, Dialect, PatternMode, RateHeaders, SchemaSubset, StructuredMode, Tokenizer,
};

macro_rules! target_fields {
    (values { $($(#[$value_doc:meta])* $value:ident: $value_type:ty,)* } maps { $($(#[$map_doc:meta])* $map:ident: $map_type:ty,)* }) => {
        /// Fields of a target that somebody sets: a layer of the table, the operator (`[providers.NAME.target]`), and a few of
        /// them a job's `CREATE MODEL`.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Overrides {
            $($(#[$value_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $value: Option<$value_type>,)*
            $($(#[$map_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $map: Option<$map_type>,)*
        }

        impl Overrides {
            /// Whether nobody sets anything.
            pub fn is_empty(&self) -> bool {
                *self == Self::default()
            }

            /// These fields, and those of `under` where they are not set. Maps are joined, entry by entry.
            #[must_use]
            pub fn over(self, under: Overrides) -> Overrides {
                Overrides {
                    $($value: self.$value.or(under.$value),)*
                    $($map: match (self.$map, under.$map) {
                        (Some(over), Some(mut joined)) => {
                            joined.extend(over);
                            Some(joined)
                        }
                        (over, under) => over.or(under),
                    },)*
                }
            }
        }

        /// A model at a provider, with all that must be known to speak to it. Holds no secret.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Target {
            /// The provider's name in the table.
            pub provider: String,
            /// The model's name at the provider (Azure: of the deployment).
            pub model: String,
            $($(#[$value_doc])* pub $value: $value_type,)*
            $($(#[$map_doc])* pub $map: $map_type,)*
        }

        impl Target {
            /// A target of fields that must all be set, except maps.
            pub(super) fn of(provider: &str, model: &str, fields: Overrides) -> Result<Self> {
                let missing = |name: &str| {
                    Error::invalid(format!("provider `{provider}` needs `{name}`"))
                        .hint(format!("give it with the model's options or in the operator's configuration: {name} = …"))
                };
                Ok(Self {
                    provider: provider.to_owned(),
                    model: model.to_owned(),
                    $($value: fields.$value.ok_or_else(|| missing(stringify!($value)))?,)*
                    $($map: fields.$map.unwrap_or_default(),)*
                })
            }
        }
    };
}

target_fields! {
    values {
        /// The language of requests and responses.
        dialect: Dialect,
        /// URL before every path, with named holes: `https://{resource}.openai.azure.com/openai/v1`. No slash at its end.
        base_url: String,
        /// Path of a completion after the base URL, with holes; `{model}` is the model's name.
        chat_path: String,
        /// Path of an embedding call.
        embed_path: String,
        /// Whether the body names the model; elsewhere the path does.
        model_in_body: bool,
        /// How a request proves whose it is.
        auth: Auth,
        /// Environment variable that usually holds the key; empty where there is none.
        key_env: String,
        /// Whether nothing works without a key.
        key_needed: bool,
        /// Ways to get JSON of a schema, best first.
        structured: Vec<StructuredMode>,
        /// Which part of JSON Schema it takes.
        schema_subset: SchemaSubset,
        /// Whether tools are declared `strict`.
        tools_strict: bool,
        /// How a regular expression is sent.
        pattern: PatternMode,
        /// How the labels of a choice are sent.
        choice: ChoiceMode,
        /// Role of the system message: `system` or `developer`.
        system_role: String,
        /// Name of the field that limits output tokens.
        tokens_field: String,
        /// Whether a temperature may be sent; Rowmill sends 0.
        temperature: bool,
        /// Name of the seed's field; empty: none is sent.
        seed_field: String,
        /// Most alternatives that it gives with their log-probabilities at each token; 0: none.
        logprobs: u32,
        /// Whether the answer's text may begin with `<think>…</think>`, which is no part of it.
        think_tags: bool,
        /// Output tokens for thinking, added to the limit of an answer where the provider's limit is of both.
        thinking_tokens: u32,
        /// Most texts of one embedding call; 0: it has no embeddings.
        embed_rows_max: u32,
        /// Most tokens of all texts of one embedding call.
        embed_tokens_max: u32,
        /// Length its vectors must have; 0: whatever the model gives, the same for all.
        dimensions: u32,
        /// Name of the field that asks for a length of vectors; empty: it cannot be asked for.
        dimensions_field: String,
        /// Kind of its batch API.
        batch: BatchApi,
        /// URL before the paths of its batch API, with named holes, where that has a host of its own; empty: `base_url`.
        batch_url: String,
        /// Fewest requests of one batch.
        batch_requests_min: u64,
        /// Most requests of one batch.
        batch_requests_max: u64,
        /// Most bytes of one batch.
        batch_bytes_max: u64,
        /// Hours within which a batch is done, or expires.
        batch_hours: u32,
        /// Where it says how much of its limits is left.
        rate_headers: RateHeaders,
        /// Value of `service_tier` for its cheap and slow online tier; empty: there is none. In the flex lane it stands in
        /// `body`.
        flex_tier: String,
        /// Whether it runs on the operator's own machines by its nature: its rows do not leave them.
        self_hosted: bool,
        /// Family of its tokenizer.
        tokenizer: Tokenizer,
    }
    maps {
        /// What fills the holes of `base_url` and of the paths: `region`, `project`, `resource`, `api_version`.
        holes: BTreeMap<String, String>,
        /// Headers of every request. Never a secret: they are shown in plans.
        headers: BTreeMap<String, String>,
        /// Fields of every completion's body. They replace ours of the same name; objects are joined.
        body: Map<String, Value>,
    }
}

/// What a job may say of its model. All fields are named, so that a further one is a decision.
impl From<&Capabilities> for Overrides {
    fn from(said: &Capabilities) -> Self {
        let Capabilities { structured, schema_subset, system_role, temperature, logprobs, think_tags, thinking_tokens } =
            said.clone();
        Self {
            structured,
            schema_subset,
            system_role,
            temperature,
            logprobs,
            think_tags,
            thinking_tokens,
            ..Self::default()
        }
    }
}
