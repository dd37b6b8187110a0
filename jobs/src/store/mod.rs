//! [`Store`]: where a run's truth lives. One write primitive, put-if-absent; no overwrite and no delete, by design:
//! whoever writes can then never destroy (reliability: an ambiguous PUT followed by a clean-up loses committed data).

pub mod aws;
pub mod contract;
pub mod erase;
pub mod local;
pub mod s3;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::planted::{self, Bug};
use crate::{Error, Result};

/// Objects by name. Names are relative, `/`-separated, without `.` or `..`.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The store's root as a URL that ends in `/`.
    fn url(&self) -> &str;

    /// Creates an object unless the name is taken. The object appears whole or not at all.
    ///
    /// # Errors
    /// Any error leaves open whether the object was created: look (see [`create`]), do not guess.
    async fn put_if_absent(&self, name: &str, payload: &Payload) -> Result<Put>;

    /// The whole object, if it exists.
    async fn get(&self, name: &str) -> Result<Option<Bytes>>;

    /// The last `bytes_max` bytes of an object that exists.
    async fn get_tail(&self, name: &str, bytes_max: u64) -> Result<Bytes>;

    /// What is known of an object, if it exists.
    async fn head(&self, name: &str) -> Result<Option<ObjectInfo>>;

    /// All objects whose names start with `prefix`, sorted by name.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>>;
}

/// What a put-if-absent did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is there and this call made it.
    Created,
    /// The name was taken; nothing changed.
    Exists,
}

/// What to write.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A finished file on this machine, which nobody writes to any more.
    File(PathBuf),
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Changes whenever the content does.
    pub etag: Option<String>,
    /// When it was created, by the store's own clock: milliseconds since 1970.
    pub modified_ms: i64,
}

/// Opens the store that a URL names.
///
/// # Errors
/// The URL has no known scheme, or names no bucket.
pub fn open(url: &str) -> Result<Arc<dyn Store>> {
    if let Some(path) = local_path(url) {
        return Ok(Arc::new(local::LocalStore::new(path)));
    }
    if url.starts_with("s3://") {
        return Ok(Arc::new(s3::S3Store::new(url)?));
    }
    Err(Error::invalid(format!("cannot write to {url}")).hint("an output is a folder or s3://bucket/folder/"))
}

/// The path that a `file://` URL names, with `%20` and the like undone; `None` for anything else.
pub fn local_path(url: &str) -> Option<PathBuf> {
    url::Url::parse(url).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

/// The `file://` URL of a folder; it ends in `/`. A relative path has none: then the path itself, for messages.
pub fn folder_url(path: &Path) -> String {
    url::Url::from_directory_path(path).map_or_else(|()| path.display().to_string(), String::from)
}

/// Refuses what is no object's name: it could lead out of the store's folder.
fn check_name(name: &str) -> Result<()> {
    if name.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(Error::internal(format!("{name:?} is no object name")));
    }
    Ok(())
}

/// How long a [`create`] tries again before it gives up.
const CREATE_PATIENCE: Duration = Duration::from_secs(10);
/// Wait before the second try; doubles for each further one, up to [`CREATE_WAIT_MAX`].
const CREATE_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between two tries.
const CREATE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Creates an object and is sure about it: after any error it looks whether the object is there, and tries again only
/// if it is not.
///
/// # Errors
/// The last error, when the object is still not there after ten seconds of tries or can never be.
pub async fn create(store: &dyn Store, name: &str, payload: &Payload) -> Result<Put> {
    create_within(store, name, payload, CREATE_PATIENCE).await
}

/// As [`create`], with a patience of one's own: what took minutes to compute is worth minutes of trying.
///
/// # Errors
/// As [`create`].
pub async fn create_within(store: &dyn Store, name: &str, payload: &Payload, patience: Duration) -> Result<Put> {
    let started = tokio::time::Instant::now();
    let mut wait = CREATE_WAIT;
    loop {
        let error = match store.put_if_absent(name, payload).await {
            Ok(put) => return Ok(put),
            Err(error) => error,
        };
        if planted::is(Bug::DeleteOnError) {
            planted::sabotage(name, None);
        } else if let Ok(Some(_)) = store.head(name).await {
            return Ok(Put::Exists);
        }
        if !error.retryable() || started.elapsed() >= patience {
            return Err(error);
        }
        tracing::warn!(name, error = %error, "put failed and the object is not there; trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(CREATE_WAIT_MAX);
    }
}

/// Reads a JSON object, if it exists.
///
/// # Errors
/// The store does not answer, or the object is not what it should be.
pub async fn get_json<T: serde::de::DeserializeOwned>(store: &dyn Store, name: &str) -> Result<Option<T>> {
    let Some(bytes) = store.get(name).await? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Error::invalid("cannot read a record of the run")
            .with("object", format!("{}{name}", store.url()))
            .caused_by(error)
            .hint("it was written by another version of Rowmill, or somebody changed it")
    })
}

/// Creates a JSON object, surely (see [`create`]).
///
/// # Errors
/// As [`create`].
pub async fn create_json(store: &dyn Store, name: &str, value: &impl serde::Serialize) -> Result<Put> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|error| Error::internal("cannot write JSON").caused_by(error))?;
    create(store, name, &Payload::Bytes(text.into())).await
}
