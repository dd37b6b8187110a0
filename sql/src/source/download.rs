//! Objects as they are, not as tables: listing a place and downloading from it, for whoever fetches model files. It
//! interprets nothing.

use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use rowmill_jobs::{Error, Kind, Result};
use tokio::io::AsyncWriteExt;

use super::storage::{object_store_for, root_of, url_of};

/// An object in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteObject {
    /// Where it is.
    pub url: String,
    /// Its name below the place that was listed; for a single object, its last segment.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Changes whenever the content does.
    pub etag: Option<String>,
}

/// All objects below `url`, or the one object that `url` names, sorted by name.
///
/// # Errors
/// The store does not answer or refuses.
pub async fn list_objects(url: &str) -> Result<Vec<RemoteObject>> {
    let (store, place) = object_store_for(url).await?;
    let root = url::Url::parse(url).map(|url| root_of(&url)).unwrap_or_default();
    let describe = |meta: object_store::ObjectMeta| {
        let segments = meta
            .location
            .prefix_match(&place)
            .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>());
        let name = segments.filter(|segments| !segments.is_empty()).map(|segments| segments.join("/"));
        let name = name.or_else(|| meta.location.filename().map(str::to_owned)).unwrap_or_default();
        RemoteObject { url: url_of(&root, &meta.location), name, bytes: meta.size, etag: meta.e_tag }
    };
    if !url.ends_with('/')
        && let Ok(meta) = store.head(&place).await
    {
        return Ok(vec![describe(meta)]);
    }
    let mut found: Vec<RemoteObject> =
        store.list(Some(&place)).map_ok(describe).try_collect().await.map_err(|error| failed("list", url, error))?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Writes an object to a file of this machine.
///
/// # Errors
/// The store does not answer or refuses, or the object is not the one that was listed any more.
pub async fn download(object: &RemoteObject, path: &Path) -> Result<()> {
    let (store, place) = object_store_for(&object.url).await?;
    let options = object_store::GetOptions { if_match: object.etag.clone(), ..Default::default() };
    let get = store.get_opts(&place, options).await.map_err(|error| failed("fetch", &object.url, error))?;
    let unwritable =
        |error: std::io::Error| Error::invalid(format!("cannot write {}", path.display())).caused_by(error);
    let mut file = tokio::fs::File::create(path).await.map_err(unwritable)?;
    let mut chunks = get.into_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| failed("fetch", &object.url, error))?;
        file.write_all(&chunk).await.map_err(unwritable)?;
    }
    file.sync_all().await.map_err(unwritable)
}

fn failed(action: &str, url: &str, error: object_store::Error) -> Error {
    use object_store::Error as Store;
    let (kind, hint) = match &error {
        Store::NotFound { .. } => (Kind::Invalid, "check the place's name"),
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
            (Kind::Invalid, "check the AWS_* variables or profile: they must allow reading there")
        }
        Store::Precondition { .. } => (Kind::Invalid, "the object changed meanwhile; start again"),
        _ => (Kind::Temporary, "check the network, AWS_ENDPOINT_URL and AWS_REGION"),
    };
    Error::new(kind, format!("cannot {action} {url}")).caused_by(error).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lists_and_downloads_a_folder_and_a_single_object() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("1_Pooling/config.json"), "{ }").unwrap();
        let url = format!("file://{}/", folder.path().display());
        let listed = list_objects(&url).await.unwrap();
        let names: Vec<&str> = listed.iter().map(|object| object.name.as_str()).collect();
        assert_eq!(names, ["1_Pooling/config.json", "config.json"]);
        let copy = folder.path().join("copy");
        download(&listed[1], &copy).await.unwrap();
        assert_eq!(std::fs::read(copy).unwrap(), b"{}");
        let one = list_objects(&format!("{url}config.json")).await.unwrap();
        assert_eq!((one.len(), one[0].name.as_str()), (1, "config.json"));
    }
}
