//! Deleting, kept apart from [`super::Store`]: nothing that writes can do it, and it may have credentials of its own.
//! Garbage collection alone has an [`Eraser`].

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::s3::S3Store;
use super::{check_name, local_path};
use crate::{Error, Result};

/// Deletes objects.
#[async_trait]
pub trait Eraser: Send + Sync {
    /// Deletes an object; one that is not there is no error.
    async fn erase(&self, name: &str) -> Result<()>;
}

/// Opens the store that a URL names, for deleting.
///
/// # Errors
/// The URL has no known scheme, or names no bucket.
pub fn open_eraser(url: &str) -> Result<Arc<dyn Eraser>> {
    if let Some(root) = local_path(url) {
        return Ok(Arc::new(LocalEraser { root }));
    }
    if url.starts_with("s3://") {
        return Ok(Arc::new(S3Eraser(S3Store::new(url)?)));
    }
    Err(Error::invalid(format!("cannot delete in {url}")).hint("an output is a folder or s3://bucket/folder/"))
}

#[derive(Debug)]
struct LocalEraser {
    root: PathBuf,
}

#[async_trait]
impl Eraser for LocalEraser {
    async fn erase(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let path = self.root.join(name);
        match tokio::fs::remove_file(&path).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::invalid(format!("cannot delete {}", path.display()))
                    .caused_by(error)
                    .hint("give this user write access to the folder"));
            }
        }
        // Folders that are empty now; one that is not stays, and that is all an error here means.
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != self.root) {
            if tokio::fs::remove_dir(folder).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct S3Eraser(S3Store);

#[async_trait]
impl Eraser for S3Eraser {
    async fn erase(&self, name: &str) -> Result<()> {
        self.0.erase(name).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn deletes_what_is_there_and_stays_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/c"), "").unwrap();
        std::fs::write(folder.path().join("a/d"), "").unwrap();
        let eraser = open_eraser(&super::super::folder_url(folder.path())).unwrap();
        eraser.erase("a/b/c").await.unwrap();
        eraser.erase("a/b/c").await.unwrap();
        assert!(!folder.path().join("a/b").exists() && folder.path().join("a/d").exists());
        for name in ["../x", "/etc/passwd", ""] {
            assert!(eraser.erase(name).await.is_err(), "{name}");
        }
    }
}
