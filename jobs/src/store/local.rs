//! [`LocalStore`]: a folder of this machine. An object appears by hard-linking a finished temporary file, which the
//! file system does atomically and only if the name is free. It refuses to overwrite, and to delete anything but unfinished
//! files that killed processes left behind.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{ObjectInfo, Payload, Put, Store, check_name};
use crate::{Error, Kind, Result};

/// Folder below the root for files that are not finished; nobody lists it.
const UNFINISHED: &str = "_tmp";
/// What the names of unfinished files start with.
const UNFINISHED_PREFIX: &str = ".rowmill-unfinished-";
/// Unfinished files that nobody has written to for so long have lost their process.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder of this machine.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: PathBuf,
    url: String,
    /// Whether abandoned files were looked for; clones share it.
    swept: Arc<AtomicBool>,
}

impl LocalStore {
    /// The store in this folder, which need not exist yet. `root` must be absolute.
    pub fn new(root: PathBuf) -> Self {
        let url = super::folder_url(&root);
        Self { root, url, swept: Arc::default() }
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
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
        let swept = Arc::clone(&self.swept);
        self.blocking("write", self.path(name)?, move |path| {
            if !swept.swap(true, Ordering::Relaxed) {
                remove_abandoned(&unfinished);
            }
            if path.try_exists()? {
                return Ok(Put::Exists);
            }
            match payload {
                Payload::Bytes(bytes) => {
                    create_folder(&unfinished)?;
                    let mut file = unfinished_file(&unfinished)?;
                    file.write_all(&bytes)?;
                    link_finished(file.as_file(), file.path(), path)
                }
                Payload::File(finished) => {
                    let file = std::fs::File::open(&finished)?;
                    match link_finished(&file, &finished, path) {
                        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                            create_folder(&unfinished)?;
                            let mut copy = unfinished_file(&unfinished)?;
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

/// A new file in a folder that exists, for content that gets its name when it is whole. It goes when it is dropped.
///
/// # Errors
/// The file cannot be created.
pub fn unfinished_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    // As any other file of this user, umask applied; a temporary file's usual 0600 would hide results from readers.
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(UNFINISHED_PREFIX).permissions(permissions).tempfile_in(folder)
}

/// Removes from a folder what [`unfinished_file`] made there for processes that are long gone. Best effort: nobody waits
/// for it, and another process may be at it too.
pub fn remove_abandoned(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX);
        // An age that cannot be told, or lies in the future, is none.
        let age = || entry.metadata().ok().filter(std::fs::Metadata::is_file)?.modified().ok()?.elapsed().ok();
        if is_ours && age().is_some_and(|age| age > ABANDONED_AFTER) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Gives a finished file its name, unless the name is taken. Content and name are on disk when it returns.
fn link_finished(file: &std::fs::File, finished: &Path, path: &Path) -> io::Result<Put> {
    file.sync_all()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    create_folder(folder)?;
    match std::fs::hard_link(finished, path) {
        Ok(()) => {
            sync_folder(folder)?;
            Ok(Put::Created)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Exists),
        Err(error) => Err(not_linked(error)),
    }
}

/// Sorts out file systems without hard links: they say that it is not permitted (EPERM), which is not what they say where
/// a user may not write (EACCES), though Rust calls both the same.
fn not_linked(error: io::Error) -> io::Error {
    const EPERM: i32 = 1;
    if error.raw_os_error() == Some(EPERM) { io::Error::new(io::ErrorKind::Unsupported, error) } else { error }
}

/// Creates a folder with those above it that are missing. Their names are on disk when it returns: a crash must not lose
/// the folder of an object that was reported as written.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new("/"));
    create_folder(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(io::ErrorKind::NotADirectory.into()),
        created => created?,
    }
    // Also when another process was faster: it may not have come to this line yet.
    sync_folder(parent)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

fn describe(name: String, metadata: &std::fs::Metadata) -> io::Result<ObjectInfo> {
    use std::os::unix::fs::MetadataExt;
    let etag = format!(
        "{:x}-{:x}-{:x}",
        metadata.ino(),
        metadata.mtime_nsec() + metadata.mtime() * 1_000_000_000,
        metadata.len()
    );
    let modified_ms = metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000;
    Ok(ObjectInfo { name, bytes: metadata.len(), etag: Some(etag), modified_ms })
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
        io::ErrorKind::Unsupported => {
            (Kind::Invalid, Some("this file system has no hard links, which `output` needs: use another folder or S3"))
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

    #[tokio::test]
    async fn missing_folders_are_created_and_a_file_in_their_place_is_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let put = async |root: &str| {
            let store = LocalStore::new(folder.path().join(root));
            store.put_if_absent("a/b/c", &Payload::Bytes(Bytes::new())).await
        };
        assert_eq!(put("x/y/z").await.unwrap(), Put::Created);
        assert!(folder.path().join("x/y/z/a/b/c").is_file());
        let error = put("file").await.unwrap_err();
        assert_eq!((error.kind(), error.hint_text()), (Kind::Invalid, Some("check that `output` names a folder")));
    }

    #[test]
    fn a_file_system_without_hard_links_is_not_mistaken_for_one_without_permission() {
        let hint = |error| classify("write", Path::new("x"), not_linked(error)).hint_text().unwrap_or("").to_owned();
        let of = |code| hint(io::Error::from_raw_os_error(code));
        let (eperm, eacces, enosys, eopnotsupp) = (1, 13, 38, 95);
        for code in [eperm, enosys, eopnotsupp] {
            assert!(of(code).contains("hard links"), "{code}: {}", of(code));
        }
        assert!(of(eacces).contains("write access"), "{}", of(eacces));
        let full_chain = classify("write", Path::new("x"), not_linked(io::Error::from_raw_os_error(eperm))).report();
        assert!(full_chain.contains("because: Operation not permitted"), "{full_chain}");
    }

    #[tokio::test]
    async fn the_first_write_removes_unfinished_files_of_yesterday_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let unfinished = folder.path().join(UNFINISHED);
        std::fs::create_dir(&unfinished).unwrap();
        let aged = |name: &str, hours: u64| {
            let path = unfinished.join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
            path
        };
        let old = aged(&format!("{UNFINISHED_PREFIX}old"), 25);
        let kept = [aged(&format!("{UNFINISHED_PREFIX}young"), 23), aged("of somebody else", 1000)];
        let store = LocalStore::new(folder.path().to_path_buf());
        store.put_if_absent("object", &Payload::Bytes(Bytes::new())).await.unwrap();
        assert!(!old.exists());
        assert!(kept.iter().all(|path| path.exists()));
        assert_eq!(std::fs::read_dir(&unfinished).unwrap().count(), kept.len());
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
