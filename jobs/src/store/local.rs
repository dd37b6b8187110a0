//! [`LocalStore`]: a folder of this machine. An object appears by hard-linking a finished temporary file, which the
//! file system does atomically and only if the name is free. It refuses to overwrite and to delete.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use super::{ObjectInfo, Payload, Put, Store};
use crate::{Error, Kind, Result};

/// Folder below the root for files that are not finished; nobody lists it.
const UNFINISHED: &str = "_tmp";

/// A folder of this machine.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: PathBuf,
    url: String,
}

impl LocalStore {
    /// The store in this folder, which need not exist yet. `root` must be absolute.
    pub fn new(root: PathBuf) -> Self {
        let url = super::folder_url(&root);
        Self { root, url }
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        if name.is_empty() || name.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(Error::internal(format!("{name:?} is no object name")));
        }
        Ok(self.root.join(name))
    }

    /// Runs blocking file work off the async threads; `action` says what it was for in the error.
    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        path: PathBuf,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let worked_on = path.clone();
        match tokio::task::spawn_blocking(move || work(&worked_on)).await {
            Ok(result) => result.map_err(|error| classify(action, &path, error)),
            Err(error) => Err(Error::internal(format!("{action} did not finish")).caused_by(error)),
        }
    }
}

#[async_trait]
impl Store for LocalStore {
    fn url(&self) -> &str {
        &self.url
    }

    async fn put_if_absent(&self, name: &str, payload: &Payload) -> Result<Put> {
        let unfinished = self.root.join(UNFINISHED);
        let payload = payload.clone();
        self.blocking("write", self.path(name)?, move |path| {
            if path.try_exists()? {
                return Ok(Put::Exists);
            }
            match payload {
                Payload::Bytes(bytes) => {
                    let mut file = temporary_file(&unfinished)?;
                    file.write_all(&bytes)?;
                    link_finished(file.as_file(), file.path(), path)
                }
                Payload::File(finished) => {
                    let file = std::fs::File::open(&finished)?;
                    match link_finished(&file, &finished, path) {
                        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                            let mut copy = temporary_file(&unfinished)?;
                            io::copy(&mut &file, copy.as_file_mut())?;
                            link_finished(copy.as_file(), copy.path(), path)
                        }
                        linked => linked,
                    }
                }
            }
        })
        .await
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.blocking("read", self.path(name)?, |path| absent_is_none(std::fs::read(path).map(Bytes::from))).await
    }

    async fn get_tail(&self, name: &str, bytes_max: u64) -> Result<Bytes> {
        self.blocking("read", self.path(name)?, move |path| {
            let mut file = std::fs::File::open(path)?;
            let bytes = file.metadata()?.len();
            file.seek(SeekFrom::Start(bytes.saturating_sub(bytes_max)))?;
            let mut tail = Vec::new();
            file.take(bytes_max).read_to_end(&mut tail)?;
            Ok(tail.into())
        })
        .await
    }

    async fn head(&self, name: &str) -> Result<Option<ObjectInfo>> {
        let name = name.to_owned();
        self.blocking("look at", self.path(&name)?, move |path| {
            absent_is_none(std::fs::metadata(path).and_then(|metadata| describe(name, &metadata)))
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let root = self.root.clone();
        let prefix = prefix.to_owned();
        let folder = root.join(prefix.rsplit_once('/').map_or("", |(folder, _)| folder));
        self.blocking("list", folder, move |folder| {
            let mut found = Vec::new();
            let mut folders = vec![folder.to_path_buf()];
            while let Some(folder) = folders.pop() {
                let Some(entries) = absent_is_none(std::fs::read_dir(&folder))? else { continue };
                for entry in entries {
                    let entry = entry?;
                    let path = entry.path();
                    let name = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
                    if entry.file_type()?.is_dir() {
                        if name != UNFINISHED {
                            folders.push(path);
                        }
                    } else if name.starts_with(&prefix) {
                        found.extend(absent_is_none(entry.metadata().and_then(|metadata| describe(name, &metadata)))?);
                    }
                }
            }
            found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(found)
        })
        .await
    }
}

fn temporary_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(folder)?;
    // As any other file of this user, umask applied; a temporary file's usual 0600 would hide results from readers.
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o666)).tempfile_in(folder)
}

/// Gives a finished file its name, unless the name is taken. Content and name are on disk when it returns.
fn link_finished(file: &std::fs::File, finished: &Path, path: &Path) -> io::Result<Put> {
    file.sync_all()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    match std::fs::hard_link(finished, path) {
        Ok(()) => {
            std::fs::File::open(folder)?.sync_all()?;
            Ok(Put::Created)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Exists),
        Err(error) => Err(error),
    }
}

fn describe(name: String, metadata: &std::fs::Metadata) -> io::Result<ObjectInfo> {
    use std::os::unix::fs::MetadataExt;
    let etag = format!(
        "{:x}-{:x}-{:x}",
        metadata.ino(),
        metadata.mtime_nsec() + metadata.mtime() * 1_000_000_000,
        metadata.len()
    );
    Ok(ObjectInfo { name, bytes: metadata.len(), etag: Some(etag) })
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn classify(action: &str, path: &Path, error: io::Error) -> Error {
    let (kind, hint) = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (Kind::Invalid, Some("give this user write access to the folder, or choose another `output`"))
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            (Kind::Invalid, Some("free some space and start the same command again; finished parts are kept"))
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => {
            (Kind::Invalid, Some("check that `output` names a folder"))
        }
        _ => (Kind::Temporary, None),
    };
    let wrapped = Error::new(kind, format!("cannot {action} {}", path.display())).caused_by(error);
    match hint {
        Some(hint) => wrapped.hint(hint),
        None => wrapped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        super::super::contract::check(Arc::new(LocalStore::new(folder.path().to_path_buf()))).await.unwrap();
    }

    #[tokio::test]
    async fn objects_can_be_read_by_others_as_the_umask_allows() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plain"), "").unwrap();
        let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        let store = LocalStore::new(folder.path().to_path_buf());
        store.put_if_absent("object", &Payload::Bytes(Bytes::new())).await.unwrap();
        assert_eq!(mode("object"), mode("plain"));
    }

    #[tokio::test]
    async fn a_file_payload_is_published_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().join("out"));
        let finished = folder.path().join("finished");
        std::fs::write(&finished, b"whole").unwrap();
        assert_eq!(store.put_if_absent("a/b", &Payload::File(finished)).await.unwrap(), Put::Created);
        assert_eq!(store.get("a/b").await.unwrap().unwrap(), "whole");
    }

    #[test]
    fn a_folder_survives_its_url() {
        for folder in ["/tmp/a b", "/tmp/ü/100%/x#y?z", "/"] {
            let store = LocalStore::new(PathBuf::from(folder));
            assert_eq!(super::super::local_path(store.url()).unwrap(), PathBuf::from(folder), "{}", store.url());
        }
    }

    #[tokio::test]
    async fn names_cannot_leave_the_folder() {
        let store = LocalStore::new(PathBuf::from("/nowhere"));
        for name in ["../x", "a/../../x", "/etc/passwd", "", "a//b"] {
            assert_eq!(store.get(name).await.unwrap_err().kind(), Kind::Internal, "{name}");
        }
    }
}
