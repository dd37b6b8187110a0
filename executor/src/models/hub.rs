//! Models from the Hugging Face Hub, by way of `hf-hub`: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` mean
//! what they mean everywhere. Files go into the hub's usual cache, so other tools' downloads are used too.
//!
//! `hf-hub` takes any folder of a commit for the whole commit, and any answer to a download for the file. So what it brings
//! is held against the hub's list of files, and that list is kept beside the cache's snapshots: a commit whose list is met
//! is used without asking the hub.

use std::io::Write;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError};
use rowmill_engine::inspect;
use rowmill_jobs::{Error, Result};

use super::{Revision, wanted};

/// Globs of the files that [`super::wanted`] describes, in the hub's own terms.
const ALLOW: [&str; 5] = ["*.json", "*.safetensors", "*.jinja", "*vocab.txt", "*merges.txt"];
const IGNORE: [&str; 5] = ["onnx/*", "openvino/*", "original/*", "coreml/*", "runs/*"];
/// Where a cached repository keeps our lists of files, one a commit, next to `snapshots/` and `blobs/`.
const LISTS: &str = ".rowmill";

/// Fetches `owner/name` (a folder) or `owner/name/file.gguf` (one file). Returns its local path and the commit it is of.
///
/// # Errors
/// The name is malformed, or the hub does not have it or does not let us have it.
pub(super) async fn fetch(
    name: &str,
    revision: Revision<'_>,
    note: &(dyn Fn(&str) + Send + Sync),
) -> Result<(PathBuf, String)> {
    let name = Name::parse(name)?;
    if offline() {
        let path = download(&name, revision, Reach::CacheOnly).await.map_err(|error| {
            explain(&name, revision, error)
                .hint("HF_HUB_OFFLINE is set: unset it, or run `rowmill models pull` where there is a network")
        })?;
        return Snapshot::of(&path).map(|snapshot| (path, snapshot.commit));
    }
    if let Revision::Commit(_) = revision
        && let Ok(path) = download(&name, revision, Reach::CacheOnly).await
    {
        // A commit never changes: if all of it is here, the hub need not be asked.
        let snapshot = Snapshot::of(&path)?;
        let whole = if name.gguf.is_some() { inspect(&path).is_ok() } else { snapshot.meets_its_list() };
        if whole {
            return Ok((path, snapshot.commit));
        }
    }
    note(&format!("fetching {}/{} at {} from the hub", name.owner, name.model, revision.text()));
    let failed = |error| explain(&name, revision, error);
    let path = download(&name, revision, Reach::Network).await.map_err(failed)?;
    let snapshot = Snapshot::of(&path)?;
    let files = list(&name, &snapshot.commit).await.map_err(failed)?;
    snapshot.check(&files).map_err(|error| error.with("from", format!("hf://{}/{}", name.owner, name.model)))?;
    if name.gguf.is_none()
        && let Err(error) = snapshot.keep_list(&files)
    {
        // A cache that others manage may be read-only: the hub is asked again next time.
        tracing::debug!(%error, "the list of a model's files is not kept");
    }
    Ok((path, snapshot.commit))
}

/// A file of a repository: its name and its size in bytes.
type Listed = (String, u64);

/// The folder of one commit in the hub's cache: `models--<owner>--<name>/snapshots/<commit>/`, of links into `blobs/`.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    root: PathBuf,
    commit: String,
}

impl Snapshot {
    /// The snapshot that a path is, or is in.
    fn of(path: &Path) -> Result<Self> {
        let is_root = |folder: &&Path| folder.parent().and_then(Path::file_name).is_some_and(|n| n == "snapshots");
        let root = path.ancestors().find(is_root);
        let commit = root.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        match (root, commit) {
            (Some(root), Some(commit)) => Ok(Self { root: root.to_owned(), commit }),
            _ => Err(Error::internal(format!("{} is in no snapshot folder", path.display()))),
        }
    }

    fn has(&self, name: &str, bytes: u64) -> bool {
        self.root.join(name).metadata().is_ok_and(|metadata| metadata.len() == bytes)
    }

    /// Refuses, and removes, the first file that is not as long as the hub says.
    fn check(&self, files: &[Listed]) -> Result<()> {
        let Some((name, bytes)) = files.iter().find(|(name, bytes)| !self.has(name, *bytes)) else { return Ok(()) };
        let link = self.root.join(name);
        let found = link.metadata().map(|metadata| metadata.len());
        let blob = link.canonicalize().ok();
        for path in [Some(link), blob].into_iter().flatten().filter(|path| path.symlink_metadata().is_ok()) {
            std::fs::remove_file(&path).map_err(|error| {
                Error::invalid(format!("cannot remove the damaged file {}", path.display())).caused_by(error)
            })?;
        }
        let found = found.map_or("nothing".to_owned(), |found| format!("{found} bytes"));
        Err(Error::temporary(format!("the hub sent {found} for {name}, which has {bytes} bytes"))
            .hint("it was not kept: try again; if it stays so, look at what HF_ENDPOINT and the proxy answer"))
    }

    fn list_path(&self) -> Option<PathBuf> {
        let repository = self.root.parent()?.parent()?;
        Some(repository.join(LISTS).join(format!("{}.json", self.commit)))
    }

    /// Whether the list of this commit's files was kept, and all of them are here.
    fn meets_its_list(&self) -> bool {
        let text = self.list_path().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        serde_json::from_slice::<Vec<Listed>>(&text)
            .is_ok_and(|files| files.iter().all(|(name, bytes)| self.has(name, *bytes)))
    }

    /// Keeps the list, whole or not at all.
    fn keep_list(&self, files: &[Listed]) -> std::io::Result<()> {
        let Some((path, folder)) = self.list_path().and_then(|path| Some((path.clone(), path.parent()?.to_owned())))
        else {
            return Ok(());
        };
        std::fs::create_dir_all(&folder)?;
        let mut unfinished = tempfile::NamedTempFile::new_in(folder)?;
        unfinished.write_all(&serde_json::to_vec(files)?)?;
        unfinished.persist(path)?;
        Ok(())
    }
}

/// A name on the hub.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    owner: &'a str,
    model: &'a str,
    gguf: Option<&'a str>,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let mut segments = text.splitn(3, '/');
        let (owner, model, file) = (segments.next().unwrap_or(""), segments.next().unwrap_or(""), segments.next());
        let plain = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let gguf = file.filter(|file| !file.is_empty());
        let plain_file = gguf.is_none_or(|file| file.split('/').all(plain) && file.ends_with(".gguf"));
        if plain(owner) && plain(model) && plain_file {
            return Ok(Self { owner, model, gguf });
        }
        Err(Error::invalid(format!("hf://{text} is no name on the hub"))
            .hint("write hf://owner/name for safetensors, or hf://owner/name/file.gguf for one GGUF file"))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    CacheOnly,
    Network,
}

async fn download(name: &Name<'_>, revision: Revision<'_>, reach: Reach) -> Result<PathBuf, HFError> {
    let repository = HFClient::new()?.model(name.owner, name.model);
    let cache_only = reach == Reach::CacheOnly;
    match name.gguf {
        Some(file) => {
            repository
                .download_file()
                .filename(file)
                .revision(revision.text())
                .local_files_only(cache_only)
                .send()
                .await
        }
        None => {
            let globs = |globs: [&str; 5]| globs.map(String::from).to_vec();
            repository
                .snapshot_download()
                .revision(revision.text())
                .allow_patterns(globs(ALLOW))
                .ignore_patterns(globs(IGNORE))
                .local_files_only(cache_only)
                .send()
                .await
        }
    }
}

/// What the hub says that a commit has of what we want.
async fn list(name: &Name<'_>, commit: &str) -> Result<Vec<Listed>, HFError> {
    let repository = HFClient::new()?.model(name.owner, name.model);
    let entries = repository.list_tree().revision(commit).recursive(true).send()?;
    let files = entries.try_filter_map(async |entry| {
        Ok(match entry {
            RepoTreeEntry::File { path, size, .. } => Some((path, size)),
            RepoTreeEntry::Directory { .. } => None,
        })
    });
    let mut files: Vec<Listed> = files.try_collect().await?;
    // A name that leads out of the folder is none of a model's files, whoever the hub is.
    files.retain(|(path, _)| path.split(['/', '\\']).all(|part| !matches!(part, "" | "." | "..")));
    files.retain(|(path, _)| match name.gguf {
        Some(file) => path == file,
        None => wanted(path) && !path.ends_with(".gguf"),
    });
    Ok(files)
}

fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
}

fn explain(name: &Name<'_>, revision: Revision<'_>, error: HFError) -> Error {
    const NAME: (bool, &str) = (true, "check the name; for a private or gated model set HF_TOKEN");
    const LICENCE: (bool, &str) =
        (true, "accept the model's licence on the hub and set HF_TOKEN to a token that may read it");
    const REVISION: (bool, &str) = (true, "check `revision`: a commit (40 hex digits), branch or tag");
    const FILE: (bool, &str) = (true, "check the file's name in the model's repository");
    const CACHE: (bool, &str) = (true, "check HF_HOME: its disk may be full, or not ours to write to");
    const ENDPOINT: (bool, &str) = (true, "check HF_ENDPOINT");
    const LOCKED: (bool, &str) = (false, "another process is fetching the same model: try again when it is done");
    const NETWORK: (bool, &str) = (
        false,
        "check the network, HF_ENDPOINT and proxy settings; HF_HUB_OFFLINE=1 takes what the cache has, and a local \
         folder works without a network",
    );
    let (permanent, hint) = match &error {
        HFError::RepoNotFound { .. } => NAME,
        HFError::RevisionNotFound { .. } => REVISION,
        HFError::EntryNotFound { .. } => FILE,
        // Not every request of `hf-hub` sorts its answers, and the hub says 401 of what it does not have, too.
        HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => {
            match (context.status.as_u16(), context.error_code.as_deref()) {
                (_, Some("RepoNotFound")) => NAME,
                (_, Some("RevisionNotFound")) => REVISION,
                (_, Some("EntryNotFound")) => FILE,
                (401 | 403, _) => LICENCE,
                (404, _) => NAME,
                _ => NETWORK,
            }
        }
        HFError::LocalEntryNotFound { .. } => NAME,
        HFError::Io(_) => CACHE,
        HFError::CacheLockTimeout { .. } => LOCKED,
        HFError::Url(_) => ENDPOINT,
        _ => NETWORK,
    };
    let message = format!("cannot fetch hf://{}/{} at {}", name.owner, name.model, revision.text());
    let wrapped = if permanent { Error::invalid(message) } else { Error::temporary(message) };
    wrapped.caused_by(error).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_is_asked() {
        assert_eq!(Name::parse("Qwen/Qwen3-0.6B").unwrap(), Name { owner: "Qwen", model: "Qwen3-0.6B", gguf: None });
        assert_eq!(Name::parse("o/m/q/x.gguf").unwrap().gguf, Some("q/x.gguf"));
        for bad in ["Qwen", "a/b c", "../x/y", "a/b/../c.gguf", "a/b/pytorch_model.bin", "", "/", "a//x.gguf"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_snapshots_commit_is_its_folder() {
        let snapshot = Snapshot::of(Path::new("/c/models--o--m/snapshots/abc/q/x.gguf")).unwrap();
        assert_eq!(snapshot, Snapshot { root: "/c/models--o--m/snapshots/abc".into(), commit: "abc".into() });
        assert!(Snapshot::of(Path::new("/c/models--o--m")).is_err());
    }

    #[test]
    fn a_snapshot_is_whole_when_it_meets_the_list_that_was_kept() {
        let cache = tempfile::tempdir().unwrap();
        let root = cache.path().join("snapshots/abc");
        std::fs::create_dir_all(&root).unwrap();
        let snapshot = Snapshot::of(&root).unwrap();
        let files = [("config.json".to_owned(), 2)];
        assert!(!snapshot.meets_its_list(), "no list");
        snapshot.keep_list(&files).unwrap();
        assert!(!snapshot.meets_its_list(), "no file");
        std::fs::write(root.join("config.json"), "{}").unwrap();
        assert!(snapshot.meets_its_list());
        std::fs::write(root.join("config.json"), "an error page").unwrap();
        assert!(!snapshot.meets_its_list(), "another file");
        assert!(snapshot.check(&files).unwrap_err().retryable());
        assert!(!root.join("config.json").exists(), "what is not the file is removed");
    }
}
