//! `rowmill plan`: what a run would read, ask and cost, before anything is spent. Reads footers, model headers and a small
//! sample of rows.

use std::path::Path;

use rowmill_jobs::Result;
use rowmill_jobs::infer::TaskKind;
use rowmill_jobs::plan::{TableInput, run_key};
use rowmill_scheduler::Draft;
use rowmill_sql::Source;
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::estimate::{Estimate, estimate};
use crate::footers;
use crate::output::{Format, say, table};
use crate::setup::{egress, pins, plain, process_name, read_job, resolve_models};

/// Shows a run's plan.
///
/// # Errors
/// Whatever would keep the run from starting.
pub(crate) async fn plan(args: &PlanArgs, config: Option<&Path>, format: Format) -> Result<()> {
    let job = read_job(&args.id.job)?;
    let models = resolve_models(&job.models).await?;
    let draft = rowmill_scheduler::draft(&job, &pins(&models), footers::watch()).await?;
    let egress = egress(config, &process_name(), None)?;
    egress.permits(&job, draft.compiled.calls())?;
    let staged = match draft.compiled.source() {
        Source::Staged { why } => Some(why),
        Source::Table { .. } => None,
    };
    let key = run_key(&job, args.id.rerun.as_deref());
    let estimate = estimate(&job, &draft, models, &egress, args).await?;
    match format {
        Format::Json => say(&to_json(&key, &draft, staged.as_deref(), estimate.as_ref()).to_string()),
        Format::Text => {
            say(&format!("job     {} for {}  (run {key})", job.name, job.logical_date));
            say(&format!("output  {}", plain(&job.output)));
            match (&draft.shards, staged) {
                (Some(shards), _) => {
                    let rows: u64 = shards.iter().map(rowmill_jobs::plan::Shard::rows).sum();
                    say(&format!("shards  {} over {rows} input rows, cut along row groups", shards.len()));
                }
                (None, why) => {
                    let why = why.unwrap_or_default();
                    say(&format!("shards  known after staging: {why}"));
                }
            }
            say("");
            say(&table(&input_rows(&draft.inputs)));
            say("");
            say(&table(&call_rows(&draft)));
            if let Some(estimate) = estimate {
                say("");
                say(&estimate.to_text());
            }
        }
    }
    Ok(())
}

fn to_json(run_key: &str, draft: &Draft, staged: Option<&str>, estimate: Option<&Estimate>) -> Value {
    let inputs = draft.inputs.iter().map(|input| {
        json!({ "table": input.table, "files": input.files.len(), "rows": rows_of(input), "bytes": bytes_of(input) })
    });
    let calls = draft
        .compiled
        .calls()
        .iter()
        .map(|call| json!({ "column": call.column, "function": call.function, "model": call.task.model }));
    json!({
        "status": "planned",
        "run_key": run_key,
        "shards": draft.shards.as_ref().map(Vec::len),
        "rows": draft.shards.as_ref().map(|shards| shards.iter().map(rowmill_jobs::plan::Shard::rows).sum::<u64>()),
        "staged": staged,
        "inputs": inputs.collect::<Vec<_>>(),
        "calls": calls.collect::<Vec<_>>(),
        "estimate": estimate.map(Estimate::to_json),
    })
}

fn rows_of(input: &TableInput) -> u64 {
    input.files.iter().flat_map(|file| &file.row_groups).map(|group| group.rows).sum()
}

fn bytes_of(input: &TableInput) -> u64 {
    input.files.iter().map(|file| file.bytes).sum()
}

fn input_rows(inputs: &[TableInput]) -> Vec<Vec<String>> {
    let mut rows = vec![["table", "files", "MiB", "rows"].map(String::from).to_vec()];
    rows.extend(inputs.iter().map(|input| {
        let counted = input.files.iter().all(|file| !file.row_groups.is_empty());
        let count = if counted { rows_of(input).to_string() } else { "not known before reading".into() };
        let mebibytes = format!("{:.1}", bytes_of(input) as f64 / f64::from(1 << 20));
        vec![input.table.clone(), input.files.len().to_string(), mebibytes, count]
    }));
    rows
}

fn call_rows(draft: &Draft) -> Vec<Vec<String>> {
    let mut rows = vec![["column", "function", "model", "asks for"].map(String::from).to_vec()];
    rows.extend(draft.compiled.calls().iter().map(|call| {
        let asked = match &call.task.kind {
            TaskKind::Complete { tokens_max, .. } => format!("text, at most {tokens_max} tokens a row"),
            TaskKind::Choose { labels, .. } => format!("one of {} labels", labels.len()),
            TaskKind::Embed => "a vector".into(),
        };
        vec![call.column.clone(), call.function.clone(), call.task.model.clone(), asked]
    }));
    rows
}
