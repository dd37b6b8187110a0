//! `CREATE EXTERNAL TABLE`: DataFusion's statement, narrowed to what a job can pin: one location, Parquet, CSV or
//! newline-delimited JSON. It looks at no file beyond whether a local location is a folder.

use std::collections::BTreeMap;
use std::path::Path;

use datafusion::sql::sqlparser::ast::Value;
use datafusion::sql::sqlparser::tokenizer::Token;
use rowmill_jobs::error::closest;
use rowmill_jobs::spec::{TableFormat, TableSpec};
use rowmill_jobs::{Error, Result};

use super::absolute_url;
use super::options::Place;
use super::render::Rendered;
use super::statements::{TableStatement, normal, place};
use crate::functions::sql_type;
use crate::plan::row_notes::Note;

/// Options of CSV tables.
pub(crate) const CSV_OPTIONS: [&str; 5] =
    ["format.has_header", "format.delimiter", "format.quote", "format.escape", "format.comment"];

/// Reads one statement.
pub(super) fn read(source: &Rendered, folder: &Path, statement: &TableStatement) -> Result<TableSpec> {
    let parsed = &statement.parsed;
    let name = match parsed.name.0.as_slice() {
        [part] => part.as_ident().map(normal),
        _ => None,
    }
    .ok_or_else(|| source.error(statement.name_at, "a table has a plain name, without a schema"))?;
    if name.starts_with("__") {
        return Err(source.error(statement.name_at, "names that start with `__` are Rowmill's own"));
    }
    refuse_extras(source, statement)?;
    let format = format(source, statement)?;
    let location = location(source, folder, statement)?;
    let (columns, partition_columns) = columns(source, statement)?;
    let options = options(source, statement, format)?;
    Ok(TableSpec { name, format, location, columns, partition_columns, options })
}

fn refuse_extras(source: &Rendered, statement: &TableStatement) -> Result<()> {
    let parsed = &statement.parsed;
    let what = if parsed.or_replace {
        "OR REPLACE"
    } else if parsed.if_not_exists {
        "IF NOT EXISTS"
    } else if parsed.temporary {
        "TEMPORARY"
    } else if parsed.unbounded {
        "UNBOUNDED"
    } else if !parsed.order_exprs.is_empty() {
        "WITH ORDER"
    } else if !parsed.constraints.is_empty() {
        "constraints"
    } else {
        return Ok(());
    };
    Err(source.error(statement.name_at, format!("{what}: not supported for the tables of a job")))
}

fn format(source: &Rendered, statement: &TableStatement) -> Result<TableFormat> {
    match statement.parsed.file_type.to_uppercase().as_str() {
        "PARQUET" => Ok(TableFormat::Parquet),
        "CSV" => Ok(TableFormat::Csv),
        "JSON" | "NDJSON" => Ok(TableFormat::Json),
        other => {
            let error =
                source.error(word_at(statement, other), format!("STORED AS {other}: not a format that can be read"));
            Err(error.hint("PARQUET, CSV or JSON (one object a line)"))
        }
    }
}

fn location(source: &Rendered, folder: &Path, statement: &TableStatement) -> Result<String> {
    let [text] = statement.parsed.locations.as_slice() else {
        return Err(source
            .error(statement.name_at, "a table has one LOCATION")
            .hint("put the files into one folder, or define several tables and UNION ALL them"));
    };
    let at = string_at(statement, text);
    if text.contains(['*', '?', '[']) {
        return Err(source
            .error(at, "patterns in LOCATION are not supported")
            .hint("name a file, or a folder: all files in it and in its subfolders are read"));
    }
    absolute_url(folder, text, None).map_err(|error| relocate(source, at, &error))
}

/// Columns as `(name, SQL type)`.
type Columns = Vec<(String, String)>;

/// Declared columns and partition columns, with types that can be read.
fn columns(source: &Rendered, statement: &TableStatement) -> Result<(Columns, Columns)> {
    let parsed = &statement.parsed;
    let mut columns: Columns = Vec::new();
    for column in &parsed.columns {
        let at = (column.name.span.start.line.max(1), column.name.span.start.column.max(1));
        let name = normal(&column.name);
        if columns.iter().any(|(earlier, _)| *earlier == name) {
            return Err(source.error(at, format!("column `{name}` is declared twice")));
        }
        if Note::is_output(&name) || name.starts_with("__ai_") {
            return Err(source.error(at, format!("column `{name}`: this name is Rowmill's own")));
        }
        sql_type::to_arrow(&column.data_type)
            .map_err(|message| source.error(at, format!("column `{name}`: {message}")).hint(sql_type::HINT))?;
        columns.push((name, column.data_type.to_string()));
    }
    let mut partitions = Vec::new();
    for name in &parsed.table_partition_cols {
        // The parser appends typed partition columns to the columns.
        let declared = columns.iter().position(|(column, _)| column.eq_ignore_ascii_case(name.trim_matches('"')));
        partitions.push(match declared {
            Some(index) => columns.remove(index),
            None => (name.trim_matches('"').to_lowercase(), "STRING".to_owned()),
        });
    }
    Ok((columns, partitions))
}

fn options(source: &Rendered, statement: &TableStatement, format: TableFormat) -> Result<BTreeMap<String, String>> {
    let known: &[&str] = if format == TableFormat::Csv { &CSV_OPTIONS } else { &[] };
    let mut options = BTreeMap::new();
    for (name, value) in &statement.parsed.options {
        let full = name.to_lowercase();
        let full = if full.contains('.') { full } else { format!("format.{full}") };
        let at = word_at(statement, name.rsplit('.').next().unwrap_or(name));
        if !known.contains(&full.as_str()) {
            let error =
                source.error(at, format!("option `{name}`: not an option of {} tables", statement.parsed.file_type));
            return Err(match closest(&full, known.iter().copied()) {
                Some(close) => error.hint(format!("did you mean `{close}`?")),
                None if known.is_empty() => error.hint("this format has no options"),
                None => error.hint(format!("its options are: {}", known.join(", "))),
            });
        }
        let text = match value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => text.clone(),
            Value::Boolean(value) => value.to_string(),
            other => other.to_string().trim_matches('\'').to_owned(),
        };
        let fits =
            if full == "format.has_header" { text.parse::<bool>().is_ok() } else { text.len() == 1 && text.is_ascii() };
        if !fits {
            let wanted = if full == "format.has_header" { "true or false" } else { "one ASCII character" };
            return Err(source.error(at, format!("option `{name}` takes {wanted}")));
        }
        if options.insert(full, text).is_some() {
            return Err(source.error(at, format!("option `{name}` is given twice")));
        }
    }
    Ok(options)
}

fn relocate(source: &Rendered, at: Place, error: &Error) -> Error {
    let moved = source.error(at, error.to_string());
    match error.hint_text() {
        Some(hint) => moved.hint(hint.to_owned()),
        None => moved,
    }
}

/// Where a word or quoted string of the statement stands.
fn word_at(statement: &TableStatement, wanted: &str) -> Place {
    let fits = |token: &Token| match token {
        Token::Word(word) => word.value.eq_ignore_ascii_case(wanted),
        Token::SingleQuotedString(text) => {
            text.eq_ignore_ascii_case(wanted) || text.to_lowercase().ends_with(&wanted.to_lowercase())
        }
        _ => false,
    };
    statement.tokens.iter().find(|token| fits(&token.token)).map_or(statement.name_at, place)
}

fn string_at(statement: &TableStatement, wanted: &str) -> Place {
    let fits = |token: &Token| matches!(token, Token::SingleQuotedString(text) if text == wanted);
    statement.tokens.iter().find(|token| fits(&token.token)).map_or(statement.name_at, place)
}
