//! Whether an audit is whole: what was changed, what is missing, and what was sent without its end being known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result, layout};
use serde::Serialize;

use super::record::{self, Hash, Said};

/// Where a chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The line, from 1. Lines before it are as they were written.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

/// What is known of one executor's audit of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// The file.
    pub file: String,
    /// Lines that are as they were written.
    pub lines: u64,
    /// Requests that were to be sent.
    pub intents: u64,
    /// Lines of those whose end is not known: they count as sent.
    pub without_ending: Vec<u64>,
    /// Bytes after the last whole line: what a killed process had begun to write. Nothing was sent on it.
    pub cut_bytes: u64,
    /// Whether the executor closed it. If not, it was killed, still writes, or somebody took lines off the end.
    pub closed: bool,
    /// The first line that is not as it was written.
    pub broken: Option<Broken>,
}

impl FileReport {
    /// Whether every line is as it was written, and none is missing.
    pub fn is_whole(&self) -> bool {
        self.broken.is_none() && self.closed
    }
}

/// What is known of all audits in a place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One for each file, by name.
    pub files: Vec<FileReport>,
}

impl Report {
    /// The first break, with its file.
    pub fn first_broken(&self) -> Option<(&str, &Broken)> {
        self.files.iter().find_map(|file| file.broken.as_ref().map(|broken| (file.file.as_str(), broken)))
    }
}

/// Checks all audits in a folder of an executor.
///
/// # Errors
/// The folder cannot be read.
pub fn verify(folder: &Path) -> Result<Report> {
    let unreadable = |path: &Path, error| Error::invalid(format!("cannot read {}", path.display())).caused_by(error);
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, error))? {
            let entry = entry.map_err(|error| unreadable(&folder, error))?;
            let kind = entry.file_type().map_err(|error| unreadable(&folder, error))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|extension| extension == "jsonl") {
                paths.push(entry.path());
            }
        }
    }
    paths.sort();
    let mut report = Report::default();
    for path in paths {
        let bytes = std::fs::read(&path).map_err(|error| unreadable(&path, error))?;
        report.files.push(verify_lines(&path.display().to_string(), &bytes));
    }
    Ok(report)
}

/// Checks the copies of a run's audits in its store.
///
/// # Errors
/// The store does not answer.
pub async fn verify_copies(store: &dyn Store, run_key: &str) -> Result<Report> {
    let mut audits: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for object in store.list(&layout::audits(run_key)).await? {
        let Some((executor, _)) = object.name.rsplit_once('/') else { continue };
        // Names are sorted, so pieces come in their order; a piece that is missing breaks the chain.
        let piece = store.get(&object.name).await?.unwrap_or_default();
        audits.entry(executor.to_owned()).or_default().extend_from_slice(&piece);
    }
    Ok(Report { files: audits.iter().map(|(name, bytes)| verify_lines(name, bytes)).collect() })
}

/// Checks the content of one file.
pub fn verify_lines(file: &str, bytes: &[u8]) -> FileReport {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
    let mut report =
        FileReport { file: file.to_owned(), cut_bytes: (bytes.len() - whole) as u64, ..FileReport::default() };
    let mut before: Hash = [0; 32];
    let mut open = BTreeSet::new();
    for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
        let checked = check(line, &before, &report);
        match checked {
            Ok((record, hash)) => {
                before = hash;
                match record.said {
                    Said::Intent(_) => {
                        report.intents += 1;
                        open.insert(record.seq);
                    }
                    Said::Ending(ending) => drop(open.remove(&ending.intent)),
                    Said::Closing {} => report.closed = true,
                    Said::Opening(_) => {}
                }
                report.lines += 1;
            }
            Err(why) => {
                report.broken = Some(Broken { line: report.lines + 1, why: why.to_owned() });
                break;
            }
        }
    }
    report.without_ending = open.into_iter().collect();
    report
}

fn check(line: &[u8], before: &Hash, report: &FileReport) -> Result<(record::Record, Hash), &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "the line is no text")?;
    let (record, hash) = record::read(text.trim_end_matches('\n'), before)?;
    if record.seq != report.lines {
        return Err("the line has another line's number");
    }
    if matches!(record.said, Said::Opening(_)) != (report.lines == 0) {
        return Err("an audit opens with its first line, and with no other");
    }
    if report.closed {
        return Err("there is a line after the last one");
    }
    Ok((record, hash))
}
