//! `CREATE JOB`: its options, and the [`JobSpec`] they make. The query's AI calls are checked by `functions`.

use std::collections::BTreeMap;
use std::path::Path;

use datafusion::sql::sqlparser::ast::Query;
use rowmill_jobs::Result;
use rowmill_jobs::error::closest;
use rowmill_jobs::money;
use rowmill_jobs::queue::{POOL_DEFAULT, check_pool};
use rowmill_jobs::spec::{JobSpec, ModelSpec, TableSpec};

use super::absolute_url;
use super::options::{Options, Place};
use super::render::Rendered;
use super::spill;
use super::statements::JobStatement;

/// How secret data can be: the policy's words.
const DATA_CLASSES: [(&str, &str); 4] =
    [("public", "public"), ("internal", "internal"), ("confidential", "confidential"), ("restricted", "restricted")];
/// Share of rows with errors that a run may be published with, if the job does not say.
const ERROR_RATIO_DEFAULT: f64 = 0.01;

/// Reads the statement; the query comes back as its syntax tree too.
pub(super) fn read(
    source: &Rendered,
    folder: &Path,
    statement: JobStatement,
    tables: Vec<TableSpec>,
    models: Vec<ModelSpec>,
    params: &BTreeMap<String, String>,
) -> Result<(JobSpec, Box<Query>)> {
    let mut options =
        Options::new(source, format!("CREATE JOB {}", statement.name), statement.name_at, statement.options)?;
    let Some((output, output_at)) = options.text("output")? else {
        return Err(options.missing("output", "output = 's3://bucket/folder/' or a folder relative to the job file"));
    };
    let output =
        absolute_url(folder, &output, Some(true)).map_err(|error| options.error(output_at, error.to_string()))?;
    // One inside the other would feed tomorrow's run with today's results.
    let overlaps = |table: &&TableSpec| {
        table.location.starts_with(&output) || (table.location.ends_with('/') && output.starts_with(&table.location))
    };
    if let Some(table) = tables.iter().find(overlaps) {
        return Err(options
            .error(output_at, format!("the output and the folder that table `{}` is read from overlap", table.name))
            .hint("write to a folder of its own, beside the input"));
    }
    let Some((logical_date, date_at)) = options.text("logical_date")? else {
        return Err(options.missing("logical_date", "logical_date = '{{ ds }}', and run with --param ds=2026-11-20"));
    };
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '+' | '-');
    if logical_date.is_empty() || !logical_date.chars().all(safe) || logical_date.chars().all(|c| c == '.') {
        return Err(options
            .error(date_at, "a logical date has letters, digits and . _ : + - only")
            .hint("for example 2026-11-20 or 2026-11-20T06"));
    }
    let key = names(&mut options, "key", "key = 'ticket_id' or key = 'shop, ticket_id'")?;
    let key = key.map_or_else(Vec::new, |(names, _)| names);
    let model = default_model(&mut options, &models)?;
    let shard_rows = options.count("shard_rows", 1..=u64::MAX)?;
    let max_error_ratio = options.ratio("max_error_ratio")?.unwrap_or(ERROR_RATIO_DEFAULT);
    let pool = pool(&mut options)?;
    let never_send = names(&mut options, "never_send", "never_send = 'email' or never_send = 'email, phone'")?;
    let never_send = never_send.map_or_else(Vec::new, |(names, _)| names);
    let data_class = options.word("data_class", &DATA_CLASSES)?.map(str::to_owned);
    let nano_usd_max =
        match options.number_text("max_cost_usd")? {
            None => None,
            Some((text, at)) => Some(money::nano_usd(&text).map_err(|error| {
                options.error(at, error.to_string()).hint("max_cost_usd = 40 or max_cost_usd = 0.25")
            })?),
        };
    let (spill, deadline) = spill::read(&mut options, &models)?;
    options.finish()?;
    let spec = JobSpec {
        name: statement.name,
        file: source.file.clone(),
        tables,
        models,
        query: statement.query.text,
        query_start: {
            let place = source.locate(statement.query.start.0, statement.query.start.1);
            (place.line, place.column)
        },
        output,
        logical_date,
        key,
        model,
        shard_rows,
        max_error_ratio,
        pool,
        never_send,
        data_class,
        spill,
        deadline,
        nano_usd_max,
        params: params.clone(),
    };
    Ok((spec, statement.query.ast))
}

/// `pool = 'gpu'`: the executors that compute the job.
fn pool(options: &mut Options<'_>) -> Result<String> {
    match options.text("pool")? {
        None => Ok(POOL_DEFAULT.into()),
        Some((name, at)) => {
            check_pool(&name).map_err(|error| options.error(at, error.to_string()).hint("for example pool = 'gpu'"))?;
            Ok(name)
        }
    }
}

/// `key = 'a, b'`: names, with the option's place. `compile` checks that those of `key` are output columns.
pub(super) fn names(
    options: &mut Options<'_>,
    option: &'static str,
    usage: &str,
) -> Result<Option<(Vec<String>, Place)>> {
    match options.text(option)? {
        None => Ok(None),
        Some((text, at)) => {
            let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
            if let Some(index) = (0..names.len()).find(|i| names[*i].is_empty() || names[..*i].contains(&names[*i])) {
                return Err(options
                    .error(
                        at,
                        if names[index].is_empty() {
                            format!("an empty name in `{option}`")
                        } else {
                            format!("a name stands twice in `{option}`")
                        },
                    )
                    .hint(usage));
            }
            Ok(Some((names, at)))
        }
    }
}

/// `model = 'name'`: the model of calls that name none.
fn default_model(options: &mut Options<'_>, models: &[ModelSpec]) -> Result<Option<String>> {
    match options.text("model")? {
        None => Ok(None),
        Some((name, at)) => match models.iter().find(|model| model.name.eq_ignore_ascii_case(&name)) {
            Some(model) => Ok(Some(model.name.clone())),
            None => {
                let error = options.error(at, format!("there is no model `{name}`"));
                Err(match closest(&name, models.iter().map(|model| model.name.as_str())) {
                    Some(close) => error.hint(format!("did you mean '{close}'?")),
                    None => {
                        error.hint(format!("define it: CREATE MODEL {name} WITH (engine = 'candle', source = '…')"))
                    }
                })
            }
        },
    }
}
