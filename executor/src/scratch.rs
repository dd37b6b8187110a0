//! [`Scratch`]: this process's folder for unfinished files. It is removed when the process ends, and what a killed
//! process left behind is removed by the next one that starts.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rowmill_jobs::{Error, Result};
use ulid::Ulid;

/// Name of the lock that a living process holds in its folder.
const LOCK: &str = "lock";
/// What a folder's name starts with until its process holds its lock: till then the lock says nothing.
const NOT_LOCKED_YET: &str = ".";
/// Making a folder takes no time; one that is this old lost its process in the middle of it.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

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
        let name = Ulid::generate().to_string().to_lowercase();
        let folder = parent.join(&name);
        let create = || -> std::io::Result<File> {
            let unlocked = parent.join(format!("{NOT_LOCKED_YET}{name}"));
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&unlocked)?;
            let lock = File::create(unlocked.join(LOCK))?;
            lock.lock()?;
            std::fs::rename(unlocked, &folder)?;
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

    /// A folder in it for staged files.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn staging(&self) -> Result<PathBuf> {
        let folder = self.folder.join("staging");
        std::fs::create_dir_all(&folder).map_err(|error| {
            Error::invalid(format!("cannot create a folder for temporary files in {}", self.folder.display()))
                .caused_by(error)
        })?;
        Ok(folder)
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
        if entry.file_name().to_string_lossy().starts_with(NOT_LOCKED_YET) {
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            if age().is_some_and(|age| age > ABANDONED_AFTER) {
                let _ = std::fs::remove_dir_all(&folder);
            }
            continue;
        }
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

    #[test]
    fn a_folder_that_is_just_being_made_stays() {
        let parent = tempfile::tempdir().unwrap();
        let made = |name: &str, hours: u64| {
            let folder = parent.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(LOCK), "").unwrap();
            let then = std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
            File::open(&folder).unwrap().set_modified(then).unwrap();
            folder
        };
        let (young, old) = (made(".young", 0), made(".old", 25));
        remove_abandoned(parent.path());
        assert!(young.exists() && !old.exists());
    }

    #[test]
    fn processes_that_start_together_leave_each_other_alone() {
        let parent = tempfile::tempdir().unwrap();
        std::thread::scope(|threads| {
            for _ in 0..16 {
                threads.spawn(|| {
                    for _ in 0..200 {
                        let scratch = Scratch::new(parent.path()).unwrap();
                        assert!(scratch.path().join(LOCK).exists());
                    }
                });
            }
        });
    }
}
