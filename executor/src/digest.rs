//! sha256 of model files, remembered between processes by path, size and modification time: hashing a large model takes
//! longer than loading it. The memory is a cache; losing or deleting it only costs time.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rowmill_jobs::plan::FilePin;
use rowmill_jobs::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered(BTreeMap<String, Entry>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    modified_ns: i64,
    inode: u64,
    sha256: String,
}

/// Pins the files of a model. Paths in the pins are relative to `folder`. Blocks: call it off the async threads.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn pin_files(folder: &Path, files: &[PathBuf]) -> Result<Vec<FilePin>> {
    let memory = memory_path();
    let mut remembered: Remembered = memory
        .as_deref()
        .and_then(|path| std::fs::read(path).ok())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let known = remembered.0.len();
    let mut pins = Vec::with_capacity(files.len());
    for file in files {
        let unreadable = |error| Error::invalid(format!("cannot read {}", file.display())).caused_by(error);
        let metadata = std::fs::metadata(file).map_err(unreadable)?;
        let key = file.display().to_string();
        let modified_ns = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
        let seen = remembered.0.get(&key).filter(|entry| {
            (entry.bytes, entry.modified_ns, entry.inode) == (metadata.len(), modified_ns, metadata.ino())
        });
        let sha256 = match seen {
            Some(entry) => entry.sha256.clone(),
            None => sha256_of(file).map_err(unreadable)?,
        };
        let entry = Entry { bytes: metadata.len(), modified_ns, inode: metadata.ino(), sha256: sha256.clone() };
        remembered.0.insert(key, entry);
        let path = file.strip_prefix(folder).unwrap_or(file).display().to_string();
        pins.push(FilePin { path, bytes: metadata.len(), sha256 });
    }
    if let (Some(path), true) = (memory, remembered.0.len() > known) {
        remember(&path, &remembered);
    }
    pins.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(pins)
}

/// One digest over all files' names and sums.
pub(crate) fn digest_of(files: &[FilePin]) -> String {
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(format!("{} {}\n", file.sha256, file.path));
    }
    hex(&hasher.finalize())
}

/// sha256 of bytes, in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn sha256_of(file: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(file)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn memory_path() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("rowmill").join("digests.json"))
}

/// Replaces the memory as a whole, so that a reader never sees half of it. Failing to is no error.
fn remember(path: &Path, remembered: &Remembered) {
    let written = || -> Option<()> {
        let folder = path.parent()?;
        std::fs::create_dir_all(folder).ok()?;
        let mut file = tempfile::NamedTempFile::new_in(folder).ok()?;
        serde_json::to_writer(&mut file, remembered).ok()?;
        file.persist(path).ok().map(drop)
    };
    if written().is_none() {
        tracing::debug!(path = %path.display(), "cannot remember model digests");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_has_another_digest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, b"abc").unwrap();
        let first = pin_files(folder.path(), std::slice::from_ref(&file)).unwrap();
        assert_eq!(first[0].sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!((first[0].path.as_str(), first[0].bytes), ("model.safetensors", 3));
        std::fs::write(&file, b"abd").unwrap();
        let second = pin_files(folder.path(), &[file]).unwrap();
        assert_ne!(digest_of(&first), digest_of(&second));
    }
}
