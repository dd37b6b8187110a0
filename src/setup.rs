//! What several commands start with: the job file, its output's store, its models on this machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rowmill_executor::policy::Policy;
use rowmill_executor::{Accounts, Egress, ResolvedModel};
use rowmill_jobs::plan::ModelPin;
use rowmill_jobs::queue::redis_server::{Plaintext, RedisServer};
use rowmill_jobs::spec::{Dtype, EngineSpec, JobSpec, ModelSpec};
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Kind, Result};
use rowmill_sql::read_job_file;

use crate::args::{EngineArgs, JobArgs, OutputArgs, RedisArgs, parameters};
use crate::output::tell;

/// Audits are written there, in the user's folder for state that lasts, if the operator does not say where.
const AUDIT_FOLDER: &str = "rowmill/audit";

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

/// A model's folder or GGUF file on this machine, fetched if it is named by a URL.
///
/// # Errors
/// The model cannot be fetched.
pub(crate) async fn model_files(source: &str) -> Result<PathBuf> {
    if !source.contains("://") {
        return Ok(source.into());
    }
    let engine = EngineSpec::Candle {
        source: source.to_owned(),
        revision: None,
        dtype: Dtype::Auto,
        context_tokens: None,
        pooling: None,
        adapter: None,
        adapter_revision: None,
    };
    let resolved = rowmill_executor::resolve(&ModelSpec { name: source.to_owned(), engine }, &tell).await?;
    resolved.path.ok_or_else(|| Error::internal("a fetched model has no files").with("source", source))
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
    Ok((store::open(&output_url(&args.target.to_string_lossy())?)?, None))
}

/// The URL of an output that is named by a URL or a path.
///
/// # Errors
/// There is no such folder.
pub(crate) fn output_url(text: &str) -> Result<String> {
    if text.contains("://") {
        return Ok(if text.ends_with('/') { text.to_owned() } else { format!("{text}/") });
    }
    let folder =
        std::path::absolute(text).map_err(|error| Error::invalid(format!("{text} is no folder")).caused_by(error))?;
    if !folder.is_dir() {
        return Err(Error::invalid(format!("there is no folder {}", folder.display()))
            .hint("name a job file (*.sql) or the folder that its `output` names"));
    }
    Ok(store::folder_url(&folder))
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

/// The user's folder for state that outlasts a start of the machine, after the XDG Base Directory Specification; without a home,
/// the one for temporary files.
fn state() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").map(|home| home.join(".local/state"));
    absolute("XDG_STATE_HOME").or_else(home).unwrap_or_else(temporary)
}

/// Names this process in records: host, process id and a word of its own.
pub(crate) fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let word = ulid::Ulid::generate().to_string().to_lowercase();
    format!("{}-{}-{}", host.trim(), std::process::id(), word.get(18..).unwrap_or_default())
}

/// What this process, under this name, may send to models elsewhere: what the operator's file says, or nothing. With a
/// Redis, the limits of providers' accounts are shared with all who use it.
///
/// # Errors
/// The file is wrong.
pub(crate) fn egress(config: Option<&Path>, name: &str, redis: Option<Arc<RedisServer>>) -> Result<Arc<Egress>> {
    let policy = match config {
        Some(file) => Policy::load(file)?,
        None => Policy::none()?,
    };
    let accounts = Accounts::new(policy, redis)?;
    Ok(Arc::new(Egress::new(accounts, name.to_owned(), state().join(AUDIT_FOLDER))))
}

/// The command that computes a shard in a process of its own.
pub(crate) fn isolation(engine: EngineArgs, config: Option<&Path>) -> Vec<OsString> {
    // Where the operating system does not tell, the name we were called by will do.
    let program = std::env::current_exe().unwrap_or_else(|_| "rowmill".into());
    let config = config.map(|file| [OsString::from("--config"), file.into()]).into_iter().flatten();
    [program.into_os_string(), "isolated".into()].into_iter().chain(engine.arguments()).chain(config).collect()
}

/// Waits for Ctrl-C or for the signal that supervisors stop processes with.
pub(crate) async fn told_to_stop() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => "Ctrl-C",
            _ = terminate.recv() => "SIGTERM",
        },
        Err(_) => {
            // Without a handler for it, SIGTERM ends the process at once, as it would any other.
            let _ = tokio::signal::ctrl_c().await;
            "Ctrl-C"
        }
    }
}

/// The Redis that the arguments name.
///
/// # Errors
/// None is named, or it would be reached without TLS.
pub(crate) fn redis_server(args: &RedisArgs) -> Result<Arc<RedisServer>> {
    let url = args.redis.as_deref().filter(|url| !url.is_empty()).ok_or_else(|| {
        Error::new(Kind::Usage, "no Redis is named")
            .hint("give --redis redis://localhost:6379, or set ROWMILL_REDIS_URL; `rowmill run` needs none")
    })?;
    let plaintext = if args.redis_plaintext { Plaintext::Allowed } else { Plaintext::Refused };
    Ok(Arc::new(RedisServer::new(url, plaintext)?))
}
