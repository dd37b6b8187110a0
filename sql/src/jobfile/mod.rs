//! Reads job files: parameters, statements, options. Checks everything that can be checked without touching data or
//! models, and says where in the file it is wrong. It plans nothing and opens no table.

mod job;
mod model;
pub(crate) mod options;
pub(crate) mod render;
mod spill;
mod statements;
mod table;

pub(crate) use statements::{DEPTH_MAX, split_place};

use std::collections::BTreeMap;
use std::path::Path;

use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Error, Kind, Result};

use crate::functions::{self, Places};

/// A job file is text that people write; anything larger is something else.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Reads and checks a job file.
///
/// # Errors
/// Kind `Usage` for parameters, `Invalid` with a location for everything in the file.
pub fn read_job_file(path: &Path, params: &BTreeMap<String, String>) -> Result<JobSpec> {
    let shown = path.display().to_string();
    let cannot_read = |error: std::io::Error| {
        Error::invalid(format!("cannot read the job file {shown}"))
            .caused_by(error)
            .hint("give the path of a .sql file")
    };
    let size = std::fs::metadata(path).map_err(cannot_read)?.len();
    if size > FILE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the job file {shown} has {size} bytes; at most {FILE_BYTES_MAX} are read"
        ))
        .hint("is this a job file? data belongs into tables"));
    }
    let text = std::fs::read_to_string(path).map_err(cannot_read)?;
    let folder = std::path::absolute(path)
        .map_err(cannot_read)?
        .parent()
        .map(Path::to_path_buf)
        .ok_or_else(|| Error::internal("an absolute file path has a parent"))?;
    parse_job(&shown, &folder, &text, params)
}

/// Reads a job file's text; `folder` is what its relative paths are relative to.
pub(crate) fn parse_job(file: &str, folder: &Path, text: &str, params: &BTreeMap<String, String>) -> Result<JobSpec> {
    let source = render::render(file, text, params)?;
    let statements = statements::parse(&source)?;
    let mut tables = Vec::new();
    for statement in &statements.tables {
        let table = table::read(&source, folder, statement)?;
        if tables.iter().any(|earlier: &rowmill_jobs::spec::TableSpec| earlier.name == table.name) {
            return Err(source.error(statement.name_at, format!("table `{}` is defined twice", table.name)));
        }
        tables.push(table);
    }
    let mut models = Vec::new();
    for statement in statements.models {
        let at = statement.name_at;
        let model = model::read(&source, folder, statement)?;
        if models.iter().any(|earlier: &rowmill_jobs::spec::ModelSpec| earlier.name == model.name) {
            return Err(source.error(at, format!("model `{}` is defined twice", model.name)));
        }
        models.push(model);
    }
    let Some(statement) = statements.job else {
        return Err(source
            .error(source.end(), "the file defines no job")
            .hint("add CREATE JOB name WITH (output = '…', logical_date = '{{ ds }}') AS SELECT …"));
    };
    let (spec, mut ast) = job::read(&source, folder, statement, tables, models, params)?;
    functions::rewrite(&mut ast, &spec, &Places::InFile(&source))?;
    Ok(spec)
}

/// The place in the user's file of a line and column of a job's query. Reads the file again where parameters may have
/// moved columns; without the file the place in the filled-in text is the best there is.
pub(crate) fn locate_in_query(spec: &JobSpec, line: u64, column: u64) -> rowmill_jobs::Location {
    let (first_line, first_column) = spec.query_start;
    let at = (first_line + line.max(1) - 1, if line <= 1 { first_column + column.max(1) - 1 } else { column });
    let again = std::fs::metadata(&spec.file)
        .ok()
        .filter(|metadata| metadata.len() <= FILE_BYTES_MAX)
        .and_then(|_| std::fs::read_to_string(&spec.file).ok())
        .and_then(|text| render::render(&spec.file, &text, &spec.params).ok())
        .filter(|source| source.text.contains(&spec.query));
    match again {
        Some(source) => source.locate(at.0, at.1),
        None => rowmill_jobs::Location { file: spec.file.clone(), line: at.0, column: at.1 },
    }
}

/// A local path or URL of the job file as an absolute URL. Folders end in `/`.
pub(crate) fn absolute_url(folder: &Path, text: &str, is_folder: Option<bool>) -> Result<String> {
    if text.starts_with("s3://") {
        let url =
            url::Url::parse(text).map_err(|error| Error::invalid(format!("'{text}' is not a URL")).caused_by(error))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(Error::invalid(format!("'{text}' names no bucket")).hint("s3://bucket/folder/"));
        }
        let end = if is_folder == Some(true) && !text.ends_with('/') { "/" } else { "" };
        return Ok(format!("{text}{end}"));
    }
    let path = if text.starts_with("file://") {
        url::Url::parse(text)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .ok_or_else(|| Error::invalid(format!("'{text}' is not a local file URL")).hint("file:///absolute/path"))?
    } else if let Some((scheme, _)) = text.split_once("://") {
        return Err(Error::new(Kind::Invalid, format!("'{scheme}://' is not a store this version reads"))
            .hint("use a path relative to the job file, file:///… or s3://bucket/…"));
    } else {
        folder.join(text)
    };
    let path = clean(&path);
    let folder_wanted = is_folder.unwrap_or_else(|| text.ends_with('/') || path.is_dir());
    let url = if folder_wanted { url::Url::from_directory_path(&path) } else { url::Url::from_file_path(&path) };
    url.map(String::from).map_err(|()| Error::invalid(format!("'{text}' is not a path that can be made absolute")))
}

/// Removes `.` and `..` by name only, so that the result does not depend on what exists.
fn clean(path: &Path) -> std::path::PathBuf {
    let mut result = std::path::PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}
