//! Models from S3: a folder of safetensors, or one GGUF file. Downloads into the model cache under a name made from the
//! objects' entity tags, so a changed model never mixes with an older download of itself.

use std::path::{Path, PathBuf};

use rowmill_jobs::store::local::{remove_abandoned, unfinished_file};
use rowmill_jobs::{Error, Result};
use rowmill_sql::download::{RemoteObject, download, list_objects};

use super::{cache_folder, wanted};
use crate::digest::sha256_hex;

/// Fetches the folder or GGUF file at `url`. Returns its local path.
///
/// # Errors
/// There is no such object, or the store does not let us have it.
pub(super) async fn fetch(url: &str, note: &(dyn Fn(&str) + Send + Sync)) -> Result<PathBuf> {
    let objects: Vec<RemoteObject> =
        list_objects(url).await?.into_iter().filter(|object| wanted(&object.name)).collect();
    if objects.is_empty() {
        return Err(Error::invalid(format!("there is no model at {url}"))
            .hint("name a folder (s3://bucket/folder/) with config.json and *.safetensors, or one .gguf object"));
    }
    let identity: String =
        objects.iter().map(|object| format!("{} {} {:?}\n", object.url, object.bytes, object.etag)).collect();
    let folder = cache_folder()?.join(&sha256_hex(identity.as_bytes())[..32]);
    for object in &objects {
        let path = folder.join(&object.name);
        if path.metadata().is_ok_and(|metadata| metadata.len() == object.bytes) {
            continue;
        }
        note(&format!("fetching {} ({:.0} MiB)", object.url, object.bytes as f64 / f64::from(1 << 20)));
        fetch_one(object, &path).await?;
    }
    match objects.as_slice() {
        [only] if only.name.ends_with(".gguf") => Ok(folder.join(&only.name)),
        _ => Ok(folder),
    }
}

/// Downloads one object beside its place, then gives it its name: half a file is never taken for a whole one.
async fn fetch_one(object: &RemoteObject, path: &Path) -> Result<()> {
    let unwritable =
        |error: std::io::Error| Error::invalid(format!("cannot write {}", path.display())).caused_by(error);
    let folder = path.parent().unwrap_or(Path::new("/"));
    tokio::fs::create_dir_all(folder).await.map_err(unwritable)?;
    remove_abandoned(folder);
    let unfinished = unfinished_file(folder).map_err(unwritable)?;
    download(object, unfinished.path()).await?;
    unfinished.persist(path).map_err(|error| unwritable(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_fetched_file_is_readable_as_any_other_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "{}").unwrap();
        let cache = folder.path().join("cache");
        let object = list_objects(&format!("file://{}", plain.display())).await.unwrap().remove(0);
        fetch_one(&object, &cache.join("config.json")).await.unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(&cache.join("config.json")), mode(&plain));
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
    }
}
