//! What a job will ask and take, from a sample of its rows: tokens, time and money before anything is spent. A sample is not
//! the table: what is told is an estimate, and says what of it is assumed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rowmill_engine::echo::{EchoEngine, smallest};
use rowmill_jobs::infer::{Engine, Outcome, Piece, Request, Task, TaskKind, TextFormat, Usage};
use rowmill_jobs::spec::EngineSpec;
use rowmill_jobs::{Error, Result};
use rowmill_sql::Call;

use crate::engines::{Engines, Loadable};
use crate::models::ResolvedModel;

/// Bytes of a token, about what English text has.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens of an answer whose length nobody knows, unless the call allows fewer.
const FREE_TEXT: u64 = 256;
/// Tokens of a text within an answer of known shape.
const TEXT_FIELD: u64 = 12;

/// Whether models of this machine answer the sample, which takes time and tells how long the job will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// They do.
    Models,
    /// Nobody does: only prompts are looked at.
    Prompts,
}

/// Answers a sample of a job's rows and writes down what was asked. Nothing leaves this machine: what managed models would be
/// asked is answered with what the `echo` engine says.
#[derive(Debug)]
pub struct Meter {
    models: BTreeMap<String, Source>,
    tasks: Mutex<BTreeMap<usize, Took>>,
}

#[derive(Debug)]
enum Source {
    Model(Arc<Loadable>),
    Echo(EchoEngine),
}

/// What requests took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Took {
    requests: u64,
    prompt_bytes: u64,
    /// None where nothing was computed.
    usage: Option<Usage>,
}

impl Meter {
    /// A meter over a job's models.
    pub fn new(models: Vec<ResolvedModel>, engines: &Engines, measure: Measure) -> Arc<Self> {
        let source = |model: ResolvedModel| {
            let name = model.spec.name.clone();
            let is_here = !matches!(model.spec.engine, EngineSpec::Managed { .. });
            let source = if is_here && measure == Measure::Models {
                Source::Model(engines.get(model))
            } else {
                let dimensions = model.pin.dimensions.unwrap_or(1) as usize;
                let (delay, fail_ratio) = (Duration::ZERO, 0.0);
                Source::Echo(EchoEngine { delay, fail_ratio, dimensions, abort_on: None })
            };
            (name, source)
        };
        Arc::new(Self { models: models.into_iter().map(source).collect(), tasks: Mutex::default() })
    }

    /// What a job's calls would take for all of `rows`, when `sampled` of them were answered.
    pub fn estimate(&self, calls: &[Call], sampled: u64, rows: u64) -> Vec<CallEstimate> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let took = |call: &Call| tasks.get(&address(&call.task)).copied().unwrap_or_default();
        calls.iter().map(|call| CallEstimate::new(call, took(call), (sampled, rows))).collect()
    }
}

#[async_trait]
impl Engine for Meter {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let mut took = Took {
            requests: requests.len() as u64,
            prompt_bytes: requests.iter().map(|request| prompt_bytes(task, request)).sum(),
            usage: None,
        };
        let outcomes = match self.models.get(&task.model) {
            Some(Source::Echo(echo)) => echo.infer(task, requests).await?,
            Some(Source::Model(model)) => {
                let outcomes = model.engine().await?.infer(task, requests).await?;
                let mut usage = Usage::default();
                outcomes.iter().flatten().for_each(|answered| usage += answered.usage);
                took.usage = Some(usage);
                outcomes
            }
            None => return Err(Error::internal(format!("no model is called {}", task.model))),
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = tasks.entry(address(task)).or_default();
        sum.requests += took.requests;
        sum.prompt_bytes += took.prompt_bytes;
        if let Some(usage) = took.usage {
            *sum.usage.get_or_insert_default() += usage;
        }
        Ok(outcomes)
    }
}

fn address(task: &Arc<Task>) -> usize {
    Arc::as_ptr(task) as usize
}

fn prompt_bytes(task: &Task, request: &Request) -> u64 {
    let pieces = task.template.iter().map(|piece| match piece {
        Piece::Text(text) => text.len(),
        Piece::Value(index) => request.values.get(*index).map_or(0, String::len),
    });
    (pieces.sum::<usize>() + task.system.as_ref().map_or(0, String::len)) as u64
}

/// What a call takes for all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallEstimate {
    /// Output columns it feeds.
    pub column: String,
    /// The model that it names.
    pub model: String,
    /// Requests; rows with the same question are asked once.
    pub requests: u64,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Output tokens that a managed model would write.
    pub output_tokens: u64,
    /// Why the output is not surely known: nobody has answered the sample.
    pub assumed: bool,
}

impl CallEstimate {
    fn new(call: &Call, took: Took, (sampled, rows): (u64, u64)) -> Self {
        let all = |count: u64| {
            let scaled = u128::from(count) * u128::from(rows) / u128::from(sampled.max(1));
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        let requests = all(took.requests);
        let measured = took.usage.filter(|usage| usage.input_tokens > 0);
        let input_tokens = measured.map_or(took.prompt_bytes.div_ceil(BYTES_PER_TOKEN), |usage| usage.input_tokens);
        // Here a label is chosen by its probability and costs no output; elsewhere it is written.
        let written = measured.map(|usage| usage.output_tokens).filter(|tokens| *tokens > 0);
        let (output_tokens, assumed) = match written {
            Some(tokens) => (all(tokens), false),
            None => (requests.saturating_mul(assumed_output(&call.task.kind)), call.task.kind != TaskKind::Embed),
        };
        Self {
            column: call.column.clone(),
            model: call.task.model.clone(),
            requests,
            input_tokens: all(input_tokens),
            output_tokens,
            assumed,
        }
    }
}

/// Output tokens of an answer that nobody has seen.
fn assumed_output(kind: &TaskKind) -> u64 {
    match kind {
        TaskKind::Embed => 0,
        TaskKind::Choose { labels, .. } => {
            let bytes: usize = labels.iter().map(String::len).sum();
            // As JSON: {"label":"…"}.
            5 + (bytes / labels.len().max(1)) as u64 / BYTES_PER_TOKEN
        }
        TaskKind::Complete { tokens_max, format } => {
            let tokens = match format {
                TextFormat::Json { schema } => {
                    let example = smallest(schema).to_string();
                    // Fields that may be absent are null there, and texts empty.
                    let texts = (example.matches("null").count() + example.matches("\"\"").count()) as u64;
                    example.len() as u64 / BYTES_PER_TOKEN + texts * TEXT_FIELD
                }
                TextFormat::Pattern { .. } => TEXT_FIELD,
                TextFormat::Free => FREE_TEXT,
            };
            tokens.min(u64::from(*tokens_max))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(kind: TaskKind) -> Call {
        let template = vec![Piece::Text("Say: ".into()), Piece::Value(0)];
        let task = Task { model: "m".into(), kind, system: None, input: template.clone(), template };
        Call { column: "c".into(), origins: Vec::new(), function: "ai_complete".into(), task: Arc::new(task) }
    }

    fn free(tokens_max: u32) -> TaskKind {
        TaskKind::Complete { tokens_max, format: TextFormat::Free }
    }

    #[test]
    fn a_sample_stands_for_all_rows() {
        let took = Took { requests: 50, prompt_bytes: 4_000, usage: None };
        let estimate = CallEstimate::new(&call(free(4_096)), took, (100, 10_000));
        assert_eq!((estimate.requests, estimate.input_tokens, estimate.output_tokens), (5_000, 100_000, 5_000 * 256));
        assert!(estimate.assumed);
        let usage = Usage { input_tokens: 900, output_tokens: 30, ..Usage::default() };
        let measured = CallEstimate::new(&call(free(4_096)), Took { usage: Some(usage), ..took }, (100, 10_000));
        assert_eq!((measured.input_tokens, measured.output_tokens, measured.assumed), (90_000, 3_000, false));
    }

    #[test]
    fn labels_cost_output_where_they_are_written() {
        let labels = vec!["billing".to_owned(), "bug".to_owned()];
        let took =
            Took { requests: 10, prompt_bytes: 100, usage: Some(Usage { input_tokens: 40, ..Usage::default() }) };
        let estimate = CallEstimate::new(&call(TaskKind::Choose { labels, calibrate: false }), took, (10, 10));
        assert_eq!((estimate.input_tokens, estimate.output_tokens, estimate.assumed), (40, 60, true));
        assert_eq!(CallEstimate::new(&call(TaskKind::Embed), took, (10, 10)).output_tokens, 0);
    }

    #[tokio::test]
    async fn the_meter_counts_what_passes() {
        let call = call(free(8));
        let echo = EchoEngine { delay: Duration::ZERO, fail_ratio: 0.0, dimensions: 1, abort_on: None };
        let models = BTreeMap::from([("m".to_owned(), Source::Echo(echo))]);
        let meter = Meter { models, tasks: Mutex::default() };
        for row in ["abc", "defgh"] {
            let request = Request { values: [row.to_owned()].into_iter().collect() };
            meter.infer(&call.task, vec![request]).await.unwrap();
        }
        let [estimate] = &meter.estimate(std::slice::from_ref(&call), 2, 4)[..] else { panic!("one call") };
        assert_eq!((estimate.requests, estimate.input_tokens), (4, 2 * 18u64.div_ceil(4)));
    }
}
