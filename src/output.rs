//! What the command line prints: data to standard output, words for people to standard error, summaries as JSON.

use std::io::Write;

use rowmill_jobs::infer::Usage;
use rowmill_jobs::publish::Manifest;
use rowmill_jobs::{Error, Kind, money};
use serde_json::{Value, json};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One object, as the last line.
    Json,
}

/// Prints a line of data. A closed pipe is the reader's choice, not our error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line for people.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The summary of a published run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary<'a> {
    /// What was published.
    pub(crate) manifest: &'a Manifest,
    /// Folder of the published table.
    pub(crate) published: &'a str,
    /// The run that readers of this date see instead, if a rerun superseded this one.
    pub(crate) superseded_by: Option<&'a str>,
    /// What was computed for it now.
    pub(crate) work: Work,
    /// Wall time.
    pub(crate) seconds: f64,
}

/// What was computed between a command's start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work {
    /// Parts.
    pub(crate) parts: u64,
    /// Rows of them.
    pub(crate) rows: u64,
}

impl Summary<'_> {
    /// As one JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let parts = self.manifest.parts.len() as u64;
        json!({
            "status": "published",
            "run_key": self.manifest.run_key,
            "published": self.published,
            "superseded_by": self.superseded_by,
            "logical_date": self.manifest.logical_date,
            "rows": self.manifest.rows,
            "errors": self.manifest.errors,
            "parts": parts,
            "computed": self.work.parts,
            "reused": parts.saturating_sub(self.work.parts),
            "tokens": tokens(self.manifest.usage),
            "seconds": round(self.seconds),
            "rows_per_second": round(self.work.rows as f64 / self.seconds.max(1e-9)),
            "cost_usd": cost(self.manifest.usage),
        })
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let Manifest { rows, errors, usage, parts, .. } = self.manifest;
        let work = match self.work.parts {
            0 => "all parts existed already; computed nothing".to_owned(),
            computed => format!(
                "{computed} of {} parts computed in {:.1} s ({:.0} rows/s)",
                parts.len(),
                self.seconds,
                self.work.rows as f64 / self.seconds.max(1e-9)
            ),
        };
        let superseded = self.superseded_by.map_or(String::new(), |run| {
            format!("\n  superseded: readers of this date see run {run} (`rowmill resolve`)")
        });
        format!(
            "published {} for {}: {rows} rows, {errors} with errors, {} tokens in, {} out\n  {work}{superseded}",
            self.manifest.job, self.manifest.logical_date, usage.input_tokens, usage.output_tokens
        )
    }
}

/// Tokens as JSON: `input` counts prompt tokens, of which `cached` shared their computation with other rows.
pub(crate) fn tokens(usage: Usage) -> Value {
    json!({ "input": usage.input_tokens, "cached": usage.cached_tokens, "output": usage.output_tokens })
}

/// What managed models asked for these tokens, in dollars as decimal text that JSON takes for a number; null without any.
fn cost(usage: Usage) -> Value {
    match usage.nano_usd {
        0 => Value::Null,
        nano_usd => serde_json::from_str(&money::show(nano_usd)).unwrap_or_default(),
    }
}

/// An error as JSON.
pub(crate) fn failure(error: &Error) -> Value {
    let status = match error.kind() {
        Kind::Incomplete => "incomplete",
        Kind::Gated => "gated",
        Kind::Cancelled => "cancelled",
        _ => "failed",
    };
    json!({
        "status": status,
        "error": error.to_string(),
        "report": error.report(),
        "location": error.location().map(ToString::to_string),
        "hint": error.hint_text(),
        "exit_code": error.kind().exit_code(),
    })
}

/// To milliseconds, or thousandths of whatever it is.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Rows as aligned columns. The first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["name".to_owned(), "rows".to_owned()], vec!["a".to_owned(), "1".to_owned()]];
        assert_eq!(table(&rows), "name  rows\na     1");
    }

    #[test]
    fn a_failure_says_its_exit_code_and_place() {
        let value = failure(&Error::new(Kind::Gated, "too many errors").hint("look"));
        assert_eq!((value["status"].as_str(), value["exit_code"].as_u64()), (Some("gated"), Some(4)));
    }
}
