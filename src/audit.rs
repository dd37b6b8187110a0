//! `rowmill audit`: looks at the records of what was sent to models elsewhere. It changes none of them.

use std::path::Path;

use rowmill_executor::audit;
use rowmill_jobs::{Error, Result};
use serde_json::json;

use crate::output::{Format, say, table};

/// Checks the chains of a folder's audits.
///
/// # Errors
/// The folder cannot be read, or a record is not as it was written.
pub(crate) fn verify(folder: &Path, format: Format) -> Result<()> {
    let report = audit::verify(folder)?;
    let broken = report.files.iter().filter(|file| file.broken.is_some()).count();
    match format {
        Format::Json => {
            let files: Vec<_> = report.files.iter().map(file_json).collect();
            say(&json!({ "status": if broken == 0 { "whole" } else { "broken" }, "files": files }).to_string());
        }
        Format::Text => {
            let heading = ["file", "records", "sent without an answer", "state"].map(str::to_owned).to_vec();
            let rows = report.files.iter().map(|file| {
                let state = match &file.broken {
                    Some(broken) => format!("broken at line {}: {}", broken.line, broken.why),
                    None if file.cut_bytes > 0 => {
                        format!("whole but for its last {} bytes, which are cut", file.cut_bytes)
                    }
                    None if !file.closed => {
                        "whole; its executor was killed or still writes, or lines were taken off its end".to_owned()
                    }
                    None => "whole, to its end".to_owned(),
                };
                vec![file.file.clone(), file.lines.to_string(), file.without_ending.len().to_string(), state]
            });
            say(&table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()));
        }
    }
    if broken == 0 {
        return Ok(());
    }
    Err(Error::invalid(format!("{broken} of {} audits are not as they were written", report.files.len()))
        .hint("compare them with their copies under _audit/ in the runs' folders"))
}

fn file_json(file: &audit::FileReport) -> serde_json::Value {
    json!({
        "file": file.file,
        "records": file.lines,
        "without_ending": file.without_ending.len(),
        "cut_bytes": file.cut_bytes,
        "closed": file.closed,
        "broken": file.broken.as_ref().map(|broken| json!({ "line": broken.line, "why": broken.why })),
    })
}
