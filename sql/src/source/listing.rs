//! Lists a table's files: a file, a folder without its hidden files, or the published runs of a job's output. It reads no
//! data, and nothing of a run that is not published.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use rowmill_jobs::layout;
use rowmill_jobs::publish::Published;
use rowmill_jobs::spec::{TableFormat, TableSpec};
use rowmill_jobs::{Error, Result};
use url::Url;

use super::storage::object_store_for;

/// A table of more files than this was not meant.
pub(super) const FILES_MAX: usize = 100_000;
/// Publications read at the same time.
const PUBLICATIONS_AT_ONCE: usize = 16;

/// The table's files, sorted by path.
pub(super) async fn list(table: &TableSpec) -> Result<(Arc<dyn ObjectStore>, Vec<ObjectMeta>)> {
    let (store, prefix) = object_store_for(&table.location).await?;
    let nothing = |what: &str| {
        Error::invalid(format!("{what}: {}", shown(&table.location)))
            .hint("check LOCATION, and whether the data of this day has arrived")
    };
    let failed = |error: object_store::Error| match error {
        object_store::Error::NotFound { .. } => nothing("there is no such file"),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            Error::invalid(format!("the store denies access to {}", table.location))
                .caused_by(error)
                .hint("check the AWS_* variables or profile: they must allow listing and reading there")
        }
        other => Error::temporary(format!("cannot list {}", table.location)).caused_by(other),
    };
    let mut absent = "the folder has no files";
    if !table.location.ends_with('/') {
        match store.head(&prefix).await {
            Ok(meta) => return Ok((store, vec![meta])),
            // `s3://bucket/folder` without the slash is a folder more often than a mistake.
            Err(object_store::Error::NotFound { .. }) if table.location.starts_with("s3://") => {
                absent = "there is no such file or folder";
            }
            Err(error) => return Err(failed(error)),
        }
    }
    match folder(&store, &prefix, table).await.map_err(failed)? {
        Folder::Files(files) => Ok((store, files)),
        Folder::Nothing => Err(nothing(absent)),
        Folder::NotPublished => {
            let what = format!("nothing is published yet in the output of a job: {}", shown(&table.location));
            Err(Error::invalid(what)
                .hint("wait for that job's run, or start it again: a run is read once it is published"))
        }
    }
}

/// What a folder has for a reader.
enum Folder {
    /// Its files, sorted by path.
    Files(Vec<ObjectMeta>),
    Nothing,
    /// It is a job's output, of which no run is published: parts may be there, but not all of them.
    NotPublished,
}

async fn folder(store: &Arc<dyn ObjectStore>, prefix: &Path, table: &TableSpec) -> object_store::Result<Folder> {
    let mut objects = store.list(Some(prefix));
    let (mut files, mut publications, mut is_output) = (Vec::new(), Vec::new(), false);
    while let Some(meta) = objects.try_next().await? {
        let Some(name) = name_below(prefix, &meta.location) else { continue };
        is_output |= is_claim(&name) || layout::run_of_plan(&name).is_some();
        if name.starts_with(&layout::publications(None)) {
            publications.push((name, meta.location));
        } else if meta.size > 0 && !is_hidden(&name, table.format) && files.len() <= FILES_MAX {
            files.push((name, meta));
        }
    }
    drop(objects);
    if publications.is_empty() && is_output {
        return Ok(Folder::NotPublished);
    }
    if !publications.is_empty() {
        let parts = published_parts(store, publications).await?;
        files.retain(|(name, _)| parts.iter().any(|parts| name.starts_with(parts)));
    }
    files.sort_by(|(_, a), (_, b)| a.location.cmp(&b.location));
    let files: Vec<ObjectMeta> = files.into_iter().map(|(_, meta)| meta).collect();
    Ok(if files.is_empty() { Folder::Nothing } else { Folder::Files(files) })
}

/// Whether this is the name of a run's claim on a date: a run has one before it has parts.
fn is_claim(name: &str) -> bool {
    layout::date_and_seq(name).is_some_and(|(date, seq)| name == layout::claim(date, seq))
}

/// A job's output has runs of all dates, some of them superseded or not published yet. Reading it means reading the last
/// publication of each date: what the names of their parts start with.
async fn published_parts(
    store: &Arc<dyn ObjectStore>,
    publications: Vec<(String, Path)>,
) -> object_store::Result<Vec<String>> {
    let mut last: BTreeMap<String, (u64, Path)> = BTreeMap::new();
    for (name, path) in publications {
        let Some((date, seq)) = layout::date_and_seq(&name) else { continue };
        match last.get(date) {
            Some((known, _)) if *known >= seq => {}
            _ => {
                last.insert(date.to_owned(), (seq, path));
            }
        }
    }
    stream::iter(last.into_values().map(|(_, path)| async move {
        let bytes = store.get(&path).await?.bytes().await?;
        let published: Published = serde_json::from_slice(&bytes).map_err(|error| object_store::Error::Generic {
            store: "publications",
            source: format!("{path} is not a publication: {error}").into(),
        })?;
        Ok(layout::parts(&published.run_key))
    }))
    .buffered(PUBLICATIONS_AT_ONCE)
    .try_collect()
    .await
}

/// An object's name below a folder.
fn name_below(prefix: &Path, path: &Path) -> Option<String> {
    let parts: Vec<String> = path.prefix_match(prefix)?.map(|part| part.as_ref().to_owned()).collect();
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// `_SUCCESS`, `_plan.json`, `.part.crc`, and everything in folders named so.
fn is_hidden(name: &str, format: TableFormat) -> bool {
    name.split('/').any(|part| part.starts_with(['_', '.']))
        || name.ends_with(".crc")
        || (format == TableFormat::Parquet && [".json", ".txt", ".md"].iter().any(|end| name.ends_with(end)))
}

/// A local path as people write it.
pub(super) fn shown(url: &str) -> String {
    Url::parse(url)
        .ok()
        .filter(|url| url.scheme() == "file")
        .and_then(|url| url.to_file_path().ok())
        .map_or_else(|| url.to_owned(), |path| path.display().to_string())
}
