//! [`Scratch`]: this process's folder for unfinished files. It is removed when the process ends, and what a killed
//! process left behind is removed by the next one that starts.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use rowmill_jobs::{Error, Result};
use ulid::Ulid;

/// Name of the lock that a living process holds in its folder.
const LOCK: &str = "lock";

/// A private folder for unfinished files.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    /// Held, not read: the operating system drops it with the process, however that ends.
    _lock: File,
}

impl Scratch {
    /// A new folder below `parent` (for example the system's temporary folder); removes those of processes that died.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn new(parent: &Path) -> Result<Self> {
        use std::os::unix::fs::{DirBuilderExt, MetadataExt};
        // One for each user, closed to the others: unfinished parts hold rows.
        let user = std::fs::metadata("/proc/self").map_or(0, |process| process.uid());
        let parent = parent.join(format!("rowmill-{user}"));
        remove_abandoned(&parent);
        let folder = parent.join(Ulid::new().to_string().to_lowercase());
        let create = || -> std::io::Result<File> {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let lock = File::create(folder.join(LOCK))?;
            lock.lock()?;
            Ok(lock)
        };
        let lock = create().map_err(|error| {
            Error::invalid(format!("cannot create a folder for temporary files in {}", parent.display()))
                .caused_by(error)
                .hint("set TMPDIR to a folder you can write to")
        })?;
        Ok(Self { folder, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next process.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Removes folders whose process is gone: nobody holds their lock. Best effort; another process may be at it too.
fn remove_abandoned(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let folder = entry.path();
        // A folder without a lock file is just being made.
        let Ok(lock) = File::open(folder.join(LOCK)) else { continue };
        match lock.try_lock() {
            Ok(()) => drop(std::fs::remove_dir_all(&folder)),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_folder_stays_and_an_abandoned_one_goes() {
        let parent = tempfile::tempdir().unwrap();
        let user = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
        let abandoned = parent.path().join(format!("rowmill-{user}/dead"));
        std::fs::create_dir_all(&abandoned).unwrap();
        std::fs::write(abandoned.join(LOCK), "").unwrap();
        let first = Scratch::new(parent.path()).unwrap();
        let second = Scratch::new(parent.path()).unwrap();
        assert!(!abandoned.exists());
        assert!(first.path().exists() && second.path().exists() && first.path() != second.path());
        let path = first.path().to_path_buf();
        drop(first);
        assert!(!path.exists());
    }
}
