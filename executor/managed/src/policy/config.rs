//! What an operator writes into `rowmill.toml`. Every field is declared here, with what it means; unknown ones are refused.
//! What a provider does with data cannot be looked up: the operator asserts it, with a name under it, and what is not
//! asserted counts as the worst.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::values::{BaseUrl, DataClass, DatasetPrefix, ModelGlob, Retention, Usd};
use crate::lane::Lane;
use crate::secrets::SecretRef;
use crate::target::Overrides;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Providers, by the name that `CREATE MODEL` and the rules call them.
    pub providers: BTreeMap<String, Provider>,
    /// Which data may leave.
    pub egress: Egress,
    /// Prices that are not the snapshot's, by `provider/model`, in USD per million tokens.
    pub prices: BTreeMap<String, Price>,
    /// This house's own machines.
    pub local: Local,
    /// The record of what left.
    pub audit: Audit,
    /// What is replaced before it leaves.
    pub redaction: Redaction,
}

/// Kinds of providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names of products")]
pub enum ProviderKind {
    Openai,
    Azure,
    Anthropic,
    Bedrock,
    Vertex,
    Gemini,
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
    /// Any other server that speaks OpenAI's protocol.
    OpenaiCompatible,
}

impl ProviderKind {
    /// The word for it in `rowmill.toml`, which is also the target's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Azure => "azure",
            Self::Anthropic => "anthropic",
            Self::Bedrock => "bedrock",
            Self::Vertex => "vertex",
            Self::Gemini => "gemini",
            Self::Groq => "groq",
            Self::Deepseek => "deepseek",
            Self::Mistral => "mistral",
            Self::Together => "together",
            Self::Fireworks => "fireworks",
            Self::Openrouter => "openrouter",
            Self::Vllm => "vllm",
            Self::LlamaServer => "llama-server",
            Self::Ollama => "ollama",
            Self::Tgi => "tgi",
            Self::Tei => "tei",
            Self::OpenaiCompatible => "openai-compatible",
        }
    }

    /// Whether it is a program that operators run themselves, and has no address of its own.
    pub fn is_program(self) -> bool {
        matches!(self, Self::Vllm | Self::LlamaServer | Self::Ollama | Self::Tgi | Self::Tei | Self::OpenaiCompatible)
    }

    /// Whether its batches go through a folder of the operator's.
    pub(super) fn has_batch_folder(self) -> bool {
        self == Self::Bedrock
    }

    /// The parts of its address that differ between customers.
    pub(super) fn address_parts(self) -> &'static [&'static str] {
        match self {
            Self::Azure => &["resource"],
            Self::Bedrock => &["region"],
            Self::Vertex => &["region", "project"],
            _ => &[],
        }
    }
}

/// A provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Whose protocol it speaks.
    pub kind: ProviderKind,
    /// Where it is, if not at the kind's own address. A program of one's own has no other.
    #[serde(default)]
    pub base_url: Option<BaseUrl>,
    /// Region in the address, for Bedrock, Vertex, and hosts of one region elsewhere: prices are looked up for it.
    #[serde(default)]
    pub region: Option<String>,
    /// Resource in the address, for Azure.
    #[serde(default)]
    pub resource: Option<String>,
    /// Project in the address, for Vertex.
    #[serde(default)]
    pub project: Option<String>,
    /// Where its key is kept. Bedrock can do without: it is opened with the process's AWS credentials.
    #[serde(default)]
    pub secret: Option<SecretRef>,
    /// Models that may be used; `*` stands for any characters.
    pub models: Vec<ModelGlob>,
    /// For models under names of one's own (Azure's deployments): the model whose price they have.
    #[serde(default)]
    pub priced_as: BTreeMap<String, String>,
    /// It runs on machines of this house: what is sent to it does not leave.
    #[serde(default)]
    pub self_hosted: bool,
    /// What the operator asserts of it.
    #[serde(default)]
    pub facts: Facts,
    /// What it can do and how it is spoken to, over what is known of its kind.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub target: Overrides,
    /// What the account may use.
    #[serde(default)]
    pub limits: Limits,
    /// How its batches are cut and waited for.
    #[serde(default, skip_serializing_if = "Batches::is_usual")]
    pub batches: Batches,
    /// How long it may take to answer.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// What the operator asserts of a provider: contracts say it, and Rowmill cannot check it. What is left out is unknown, and a
/// rule that requires it refuses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// Who asserts it, from what: `"J. Doe, data processing agreement of 2026-03-01"`. Needed beside any other fact.
    pub asserted_by: Option<String>,
    /// How long it keeps requests and answers: `"zero"` or days.
    pub retention: Option<Retention>,
    /// How long it keeps those of its batch interface. Batches are stored by their nature, so it is never zero.
    pub batch_retention: Option<Retention>,
    /// Whether it may train on them.
    pub trains_on_data: Option<bool>,
    /// Whether a business associate agreement (HIPAA) covers it.
    pub hipaa_baa: Option<bool>,
    /// Whether its batch interface may be used.
    pub batch_allowed: bool,
    /// Where requests may be computed: all places that they may come to.
    pub regions: Vec<String>,
}

/// What a provider's account may use. What is left out is learnt from the provider's answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Prompt tokens a minute.
    pub input_tokens_per_minute: Option<u64>,
    /// Output tokens a minute.
    pub output_tokens_per_minute: Option<u64>,
    /// Requests a day.
    pub requests_per_day: Option<u64>,
    /// Prompt tokens a day.
    pub input_tokens_per_day: Option<u64>,
    /// Output tokens a day.
    pub output_tokens_per_day: Option<u64>,
    /// Most requests in flight.
    pub concurrency: Option<u32>,
}

/// How a provider's batches are cut and waited for, where that is not as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batches {
    /// Most rows of one batch, if the account's quota is lower than what the provider documents.
    pub rows_max: Option<u32>,
    /// Shortest time between two looks at a batch.
    pub look_seconds_min: Option<u32>,
    /// Longest time between two looks at a batch.
    pub look_seconds_max: Option<u32>,
    /// Batches in all that a row is sent in before it ends without an answer.
    pub rounds_max: Option<u32>,
    /// Longest time that a cancelled batch's end is waited for, before its rows are asked online.
    pub cancel_seconds_max: Option<u32>,
    /// Fewest rows of one batch, if the account's quota is not what the provider documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_min: Option<u32>,
    /// Where their interface is, if not where the provider is: Bedrock has two hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<BaseUrl>,
    /// The folder that they go through, for Bedrock: `s3://bucket/folder/`. This process creates objects there and reads them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_uri: Option<String>,
    /// As whom Bedrock reads and writes there: the ARN of a service role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role_arn: Option<String>,
}

impl Batches {
    /// Whether nothing is set: then it is no part of the policy's hash.
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// How long a provider may take to answer, in seconds. What is left out is as for any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Between two pieces of an answer, and until the first: 120. A model that thinks for long needs more.
    pub idle_seconds: Option<u32>,
    /// One attempt, from connecting to the answer's last byte: 600.
    pub attempt_seconds: Option<u32>,
}

/// Which data may leave: none, but for what a rule allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// What holds where no rule allows: `"deny"` is the only word there is, for those who like to see it.
    pub default: Deny,
    /// What the data of a job is taken for that does not say.
    pub unclassified: DataClass,
    /// Where what leaves in a day is counted, over all runs: a folder or `s3://…/` that all executors can write to. Needed where a
    /// rule has `per_day`.
    pub ledger: Option<String>,
    /// The rules. One that allows is enough.
    pub allow: Vec<Rule>,
}

impl Default for Egress {
    fn default() -> Self {
        Self { default: Deny::Deny, unclassified: DataClass::Restricted, ledger: None, allow: Vec::new() }
    }
}

/// That nothing is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deny {
    /// Nothing is allowed.
    Deny,
}

/// Data that may leave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names it in refusals and records.
    pub name: String,
    /// To these providers.
    pub providers: Vec<String>,
    /// From these places; `"*"` is any.
    pub datasets: Vec<DatasetPrefix>,
    /// These columns; `"*"` is any.
    pub columns: Vec<String>,
    /// Of this class or a lower one; without it, of any.
    #[serde(default)]
    pub data_class_max: Option<DataClass>,
    /// In these lanes.
    #[serde(default = "all_lanes")]
    pub lanes: Vec<Lane>,
    /// On these terms.
    #[serde(default)]
    pub require: Terms,
    /// Only with what the detectors find replaced.
    #[serde(default)]
    pub redact: bool,
    /// At most so much in a run.
    #[serde(default)]
    pub per_run: Amounts,
    /// At most so much in a day (UTC), all runs together.
    #[serde(default)]
    pub per_day: Amounts,
}

fn all_lanes() -> Vec<Lane> {
    Lane::ALL.to_vec()
}

/// Terms that a provider must be known to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Terms {
    /// It keeps data for no longer than this: `"zero"` or days.
    pub retention: Option<Retention>,
    /// It computes in these regions only. `eu` stands for `eu-west-1`, too.
    pub regions: Vec<String>,
    /// It does not train on data.
    pub no_training: bool,
    /// A business associate agreement (HIPAA) covers it.
    pub hipaa_baa: bool,
}

/// How much, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Amounts {
    /// Rows.
    pub rows: Option<u64>,
    /// Tokens, prompt and output together.
    pub tokens: Option<u64>,
    /// Money.
    pub usd: Option<Usd>,
}

/// A model's prices, in USD per million tokens. They hold for prompts of any length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Prompt tokens.
    pub input: Usd,
    /// Cached prompt tokens; without it, as `input`.
    #[serde(default)]
    pub cached_input: Option<Usd>,
    /// Output tokens.
    pub output: Usd,
    /// In the flex lane, if it is another price.
    #[serde(default)]
    pub flex: Option<LanePrices>,
    /// In the batch lane, likewise.
    #[serde(default)]
    pub batch: Option<LanePrices>,
}

/// A lane's prices, in USD per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanePrices {
    /// Prompt tokens.
    pub input: Usd,
    /// Cached prompt tokens; without it, as `input`.
    #[serde(default)]
    pub cached_input: Option<Usd>,
    /// Output tokens.
    pub output: Usd,
}

/// This house's own machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Local {
    /// What an executor's machine costs an hour, so that local and managed models can be compared.
    pub usd_per_machine_hour: Option<Usd>,
}

/// The record of what left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// An absolute folder of each executor; without it, `rowmill/audit` in the folder of the user's state (`XDG_STATE_HOME`).
    pub folder: Option<std::path::PathBuf>,
    /// Where the key is kept that payloads are signed with, so that somebody who has it can prove what was sent. Without it, each
    /// executor draws one and forgets it.
    pub key: Option<SecretRef>,
}

/// What is replaced before it leaves, where a rule says `redact = true` or a job asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redaction {
    /// Where the key is kept that pseudonyms are made with: the same in all executors, so that a value has one pseudonym in a run.
    pub key: Option<SecretRef>,
    /// Built-in detectors; without it, all of them.
    pub detectors: Option<Vec<String>>,
    /// Detectors of one's own: a name in capitals, and a regular expression.
    pub patterns: BTreeMap<String, String>,
}
