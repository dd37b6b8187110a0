//! What several commands start with: the job file, its output's store, its models on this machine.

use std::path::Path;
use std::sync::Arc;

use rowmill_executor::ResolvedModel;
use rowmill_jobs::plan::ModelPin;
use rowmill_jobs::spec::{JobSpec, ModelSpec};
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Result};
use rowmill_sql::read_job_file;

use crate::args::{JobArgs, OutputArgs, parameters};
use crate::output::tell;

/// Reads and checks a job file.
///
/// # Errors
/// Whatever is wrong with it, with its place in the file.
pub(crate) fn read_job(args: &JobArgs) -> Result<JobSpec> {
    read_job_file(&args.job, &parameters(&args.params)?)
}

/// Brings models to this machine and pins them.
///
/// # Errors
/// A model cannot be fetched or loaded.
pub(crate) async fn resolve_models(models: &[ModelSpec]) -> Result<Vec<ResolvedModel>> {
    let mut resolved = Vec::with_capacity(models.len());
    for model in models {
        resolved.push(rowmill_executor::resolve(model, &tell).await?);
    }
    Ok(resolved)
}

/// The models' pins.
pub(crate) fn pins(models: &[ResolvedModel]) -> Vec<ModelPin> {
    models.iter().map(|model| model.pin.clone()).collect()
}

/// An output's store, with the job if it was named by one.
///
/// # Errors
/// The job file is wrong, or the place is none.
pub(crate) fn open_output(args: &OutputArgs) -> Result<(Arc<dyn Store>, Option<JobSpec>)> {
    if args.target.extension().is_some_and(|extension| extension == "sql") {
        let job = read_job_file(&args.target, &parameters(&args.params)?)?;
        return Ok((store::open(&job.output)?, Some(job)));
    }
    let text = args.target.to_string_lossy();
    if text.contains("://") {
        return Ok((store::open(&text)?, None));
    }
    let folder = std::path::absolute(&args.target)
        .map_err(|error| Error::invalid(format!("{text} is no folder")).caused_by(error))?;
    if !folder.is_dir() {
        return Err(Error::invalid(format!("there is no folder {}", folder.display()))
            .hint("name a job file (*.sql) or the folder that its `output` names"));
    }
    Ok((store::open(&store::folder_url(&folder))?, None))
}

/// A URL as people and other tools want it: a plain path where it is one.
pub(crate) fn plain(url: &str) -> String {
    store::local_path(url).map_or_else(|| url.to_owned(), |path| path.display().to_string())
}

/// The system's folder for temporary files.
pub(crate) fn temporary() -> std::path::PathBuf {
    let folder = std::env::temp_dir();
    if folder.as_os_str().is_empty() { Path::new("/tmp").into() } else { folder }
}
