//! Models from the Hugging Face Hub, by way of `hf-hub`: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` mean
//! what they mean everywhere. Files go into the hub's usual cache, so other tools' downloads are used too.

use std::path::{Path, PathBuf};

use hf_hub::{HFClient, HFError};
use rowmill_engine::inspect;
use rowmill_jobs::{Error, Result};

use super::Revision;

/// Globs of the files that [`super::wanted`] describes, in the hub's own terms.
const ALLOW: [&str; 5] = ["*.json", "*.safetensors", "*.jinja", "*vocab.txt", "*merges.txt"];
const IGNORE: [&str; 5] = ["onnx/*", "openvino/*", "original/*", "coreml/*", "runs/*"];

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
    if let Revision::Commit(_) = revision {
        // A commit never changes: if all of it is here, the hub need not be asked.
        if let Ok(path) = download(&name, revision, Reach::CacheOnly).await
            && inspect(&path).is_ok()
        {
            return with_commit(path);
        }
    }
    if offline() {
        let path = download(&name, revision, Reach::CacheOnly).await.map_err(|error| {
            explain(&name, revision, error)
                .hint("HF_HUB_OFFLINE is set: unset it, or run `rowmill models pull` where there is a network")
        })?;
        return with_commit(path);
    }
    note(&format!("fetching {}/{} at {} from the hub", name.owner, name.model, revision.text()));
    with_commit(download(&name, revision, Reach::Network).await.map_err(|error| explain(&name, revision, error))?)
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

/// The hub's cache keeps a snapshot in `snapshots/<commit>/`.
fn with_commit(path: PathBuf) -> Result<(PathBuf, String)> {
    let commit = path
        .ancestors()
        .find(|folder| folder.parent().and_then(Path::file_name).is_some_and(|name| name == "snapshots"));
    let commit = commit.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let commit = commit.ok_or_else(|| Error::internal(format!("{} is in no snapshot folder", path.display())))?;
    Ok((path, commit))
}

fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
}

fn explain(name: &Name<'_>, revision: Revision<'_>, error: HFError) -> Error {
    let (permanent, hint) = match &error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
            (true, "accept the model's licence on the hub and set HF_TOKEN to a token that may read it")
        }
        HFError::RepoNotFound { .. } => (true, "check the name; for a private or gated model set HF_TOKEN"),
        HFError::RevisionNotFound { .. } => (true, "check `revision`: a commit (40 hex digits), branch or tag"),
        HFError::EntryNotFound { .. } => (true, "check the file's name in the model's repository"),
        _ => (false, "check the network, HF_ENDPOINT and proxy settings; a local folder works without a network"),
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
        let (_, commit) = with_commit(PathBuf::from("/c/models--o--m/snapshots/abc/q/x.gguf")).unwrap();
        assert_eq!(commit, "abc");
    }
}
