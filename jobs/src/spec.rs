//! [`JobSpec`]: a job file after parameters are filled in and everything in it is checked. It is what the plan pins and
//! what executors compile again, so it serialises without loss and holds no secret.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::capability::Capabilities;
use crate::infer::{Task, TaskKind};
use crate::lane::LaneChoice;

/// Everything a `CREATE JOB` and the statements before it define.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Name of the job.
    pub name: String,
    /// The job file's path as the user gave it; for messages only, not part of the run key.
    pub file: String,
    /// Tables, in the order of the file.
    pub tables: Vec<TableSpec>,
    /// Models, in the order of the file.
    pub models: Vec<ModelSpec>,
    /// The SELECT, parameters filled in.
    pub query: String,
    /// Where the SELECT starts in the file (line and column from 1), so that errors point into the file.
    pub query_start: (u64, u64),
    /// Where results go: an absolute URL (`file:///…/`, `s3://…/`) that ends in `/`.
    pub output: String,
    /// The day (or other period) this run is for.
    pub logical_date: String,
    /// Output columns that identify a row; may be empty.
    pub key: Vec<String>,
    /// Model of calls that name none.
    pub model: Option<String>,
    /// Rows a shard holds, if the job fixes it.
    pub shard_rows: Option<u64>,
    /// The run is published only while (rows with an error) / rows is at most this.
    pub max_error_ratio: f64,
    /// The executors that compute it; what it computes does not depend on it.
    pub pool: String,
    /// Columns whose values no model elsewhere may get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub never_send: Vec<String>,
    /// How secret its data is, in the policy's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_class: Option<String>,
    /// When work of models of this machine goes to models elsewhere, and to which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill: Option<SpillSpec>,
    /// When it has to be finished, for [`SpillWhen::Late`] and [`LaneChoice::Auto`]: `06:00`, the next such moment in the planner's time zone, or RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// Most that managed models may cost in a run, in nano-dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nano_usd_max: Option<u64>,
    /// Parameters the file was rendered with.
    pub params: BTreeMap<String, String>,
}

impl JobSpec {
    /// Whether models of [`SpillSpec::to`] may answer a task: one of a model on this machine that asks for no vector.
    pub fn spills(&self, task: &Task) -> bool {
        let own = self.models.iter().find(|model| model.name == task.model);
        let is_here = own.is_some_and(|model| !matches!(model.engine, EngineSpec::Managed { .. }));
        self.spill.is_some() && is_here && task.kind != TaskKind::Embed
    }

    /// Whether the job goes on where this model of its own cannot be had: all that its tasks ask of it is then asked elsewhere.
    pub fn does_without<'a>(&self, model: &str, tasks: impl IntoIterator<Item = &'a Task>) -> bool {
        let mut cases = self.spill.iter().flat_map(|spill| &spill.when);
        let goes_on = cases.any(|case| matches!(case, SpillWhen::Always | SpillWhen::Unavailable));
        goes_on && tasks.into_iter().filter(|task| task.model == model).all(|task| self.spills(task))
    }
}

/// When work of models of this machine goes to models elsewhere, and to which. Vectors never do: those of two models do not
/// compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpillSpec {
    /// Managed models by their names in SQL: the first that is there answers.
    pub to: Vec<String>,
    /// The cases; none for never.
    pub when: Vec<SpillWhen>,
    /// A label with a lower probability is a case of [`SpillWhen::LowConfidence`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_confidence: Option<f64>,
}

/// A case for spilling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpillWhen {
    /// All work.
    Always,
    /// The model cannot be loaded, or fails.
    Unavailable,
    /// The forecast misses the deadline: as many rows as it takes.
    Late,
    /// A row is too long for the model, or needs more memory than there is.
    Overflow,
    /// A label's probability is below [`SpillSpec::min_confidence`].
    LowConfidence,
}

/// An external table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// Name in SQL.
    pub name: String,
    /// Format of its files.
    pub format: TableFormat,
    /// Absolute URL of a file or of a folder (ends in `/`).
    pub location: String,
    /// Columns declared in the statement, as `(name, SQL type)`; empty: read from the files.
    pub columns: Vec<(String, String)>,
    /// Columns whose values stand in folder names (`ds=2026-11-20`), as `(name, SQL type)`.
    pub partition_columns: Vec<(String, String)>,
    /// `OPTIONS (…)`, for example `format.delimiter`.
    pub options: BTreeMap<String, String>,
}

/// Formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableFormat {
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values.
    Csv,
    /// Newline-delimited JSON.
    Json,
}

/// Kinds of providers: the words for `engine` in `CREATE MODEL` beside `candle` and `echo`.
pub const PROVIDER_KINDS: [&str; 18] = [
    "openai",
    "azure",
    "anthropic",
    "bedrock",
    "vertex",
    "gemini",
    "groq",
    "deepseek",
    "mistral",
    "together",
    "fireworks",
    "openrouter",
    "vllm",
    "llama-server",
    "ollama",
    "tgi",
    "tei",
    "openai-compatible",
];

/// A model, from `CREATE MODEL`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name in SQL.
    pub name: String,
    /// What answers its prompts.
    pub engine: EngineSpec,
}

impl ModelSpec {
    /// Whether its requests take the cheapest lane that makes the deadline.
    pub fn chooses_lane(&self) -> bool {
        matches!(self.engine, EngineSpec::Managed { lane: LaneChoice::Auto, .. })
    }
}

/// What answers a model's prompts, with that engine's own options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "lowercase", deny_unknown_fields)]
pub enum EngineSpec {
    /// An open model on this machine.
    Candle {
        /// Absolute path or `file://` URL of a folder or GGUF file, `hf://owner/name[/file.gguf]`, or `s3://bucket/folder/`.
        source: String,
        /// Git revision on the hub: 40 hex digits pin it; a branch or tag is resolved and then pinned by the plan.
        revision: Option<String>,
        /// Number type to compute in.
        dtype: Dtype,
        /// Longest prompt plus output, if it is to be less than the model's own context.
        context_tokens: Option<u32>,
        /// How an encoder's token vectors become one.
        pooling: Option<Pooling>,
        /// Folder of a LoRA adapter that is merged into the weights: absolute path, `hf://owner/name` or `s3://bucket/folder/`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        adapter: Option<String>,
        /// Commit of an adapter on the hub, 40 hex digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        adapter_revision: Option<String>,
    },
    /// A model at a provider, or on a server of the operator's, over the network.
    Managed {
        /// The provider's kind, one of [`PROVIDER_KINDS`].
        kind: String,
        /// The provider's name in the operator's `rowmill.toml`.
        provider: String,
        /// The model, as the provider calls it.
        name: String,
        /// Length of its vectors, if it embeds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dimensions: Option<u32>,
        /// How its requests are sent.
        #[serde(default, skip_serializing_if = "LaneChoice::is_online")]
        lane: LaneChoice,
        /// What it can do, over what is known of it.
        #[serde(default, skip_serializing_if = "Capabilities::is_empty")]
        capabilities: Capabilities,
    },
    /// Answers without a model, deterministically: for dry runs and for measuring the machinery.
    Echo {
        /// Time each request takes.
        delay_ms: u64,
        /// Share of requests, from 0 to 1, that end in a row error; which ones depends on their content only.
        fail_ratio: f64,
        /// Length of its vectors.
        dimensions: u32,
        /// A request whose values contain this text ends the process, as a model that crashes does. For tests.
        abort_on: Option<String>,
    },
}

/// Number types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// The best for the machine and the weights.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit floats.
    F16,
    /// 8-bit floats (E4M3), on GPUs.
    Fp8,
}

/// How token vectors become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Mean over tokens.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
    /// The greatest of each element.
    Max,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(spill_when: &str) -> JobSpec {
        let echo = json!({"engine": "echo", "delay_ms": 0, "fail_ratio": 0.0, "dimensions": 8, "abort_on": null});
        let away = json!({"engine": "managed", "kind": "openai", "provider": "p", "name": "x"});
        serde_json::from_value(json!({
            "name": "j", "file": "", "tables": [], "query": "", "query_start": [1, 1], "output": "file:///o/",
            "logical_date": "1", "key": [], "model": null, "shard_rows": null, "max_error_ratio": 0.0, "pool": "default",
            "params": {}, "spill": {"to": ["away"], "when": [spill_when]},
            "models": [{"name": "own", "engine": echo}, {"name": "away", "engine": away}],
        }))
        .unwrap()
    }

    fn task(model: &str, kind: TaskKind) -> Task {
        Task { model: model.into(), kind, system: None, template: Vec::new(), input: Vec::new() }
    }

    #[test]
    fn a_job_does_without_a_model_only_if_all_that_is_asked_of_it_may_be_asked_elsewhere() {
        let choose = || TaskKind::Choose { labels: vec!["a".into(), "b".into()], calibrate: false };
        let (classify, embed) = (task("own", choose()), task("own", TaskKind::Embed));
        for (case, does) in [("always", true), ("unavailable", true), ("overflow", false), ("late", false)] {
            assert_eq!(job(case).does_without("own", [&classify]), does, "{case}");
            assert!(!job(case).does_without("own", [&classify, &embed]), "{case}: vectors do not spill");
            // What is asked of other models is their matter.
            assert_eq!(job(case).does_without("own", [&classify, &task("other", TaskKind::Embed)]), does, "{case}");
        }
    }
}
