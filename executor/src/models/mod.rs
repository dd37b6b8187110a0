//! From a model's name in a job file to files on this machine and a pin that says exactly which they are. Only here are
//! weights fetched; the engine is given a local path and never opens a connection.

mod hub;
mod s3;

use std::path::{Path, PathBuf};

use rowmill_engine::inspect;
use rowmill_jobs::plan::{Ability, ModelPin};
use rowmill_jobs::spec::{EngineSpec, ModelSpec};
use rowmill_jobs::{Error, Result};

use crate::digest;

/// A model whose files are on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedModel {
    /// What the job file says.
    pub spec: ModelSpec,
    /// What it is.
    pub pin: ModelPin,
    /// Folder or GGUF file; `None` for engines without files.
    pub path: Option<PathBuf>,
}

/// Which revision of a hub's model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Revision<'a> {
    /// A commit: its files never change, so what is in the cache is right.
    Commit(&'a str),
    /// A branch or tag, which may have moved since.
    Name(&'a str),
}

impl<'a> Revision<'a> {
    fn of(text: Option<&'a str>) -> Self {
        match text {
            Some(text) if text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => Self::Commit(text),
            Some(text) => Self::Name(text),
            None => Self::Name("main"),
        }
    }

    fn text(self) -> &'a str {
        match self {
            Self::Commit(text) | Self::Name(text) => text,
        }
    }
}

/// Brings a model's files to this machine, if they are not there yet, and pins them.
///
/// `note` is told what is fetched, for people.
///
/// # Errors
/// The source cannot be fetched or is not a model that the engine can load.
pub async fn resolve(spec: &ModelSpec, note: &(dyn Fn(&str) + Send + Sync)) -> Result<ResolvedModel> {
    let resolved = match &spec.engine {
        EngineSpec::Echo { dimensions, .. } => Ok(echo(spec, *dimensions)),
        EngineSpec::Candle { source, revision, .. } => candle(spec, source, revision.as_deref(), note).await,
    };
    resolved.map_err(|error| error.with("model", &spec.name))
}

fn echo(spec: &ModelSpec, dimensions: u32) -> ResolvedModel {
    let options = serde_json::to_vec(&spec.engine).unwrap_or_default();
    let pin = ModelPin {
        name: spec.name.clone(),
        engine: "echo".into(),
        architecture: "echo".into(),
        abilities: vec![Ability::Complete, Ability::Choose, Ability::Embed],
        dimensions: Some(dimensions),
        labels: None,
        context_tokens: None,
        revision: None,
        digest: digest::sha256_hex(&options),
        files: Vec::new(),
    };
    ResolvedModel { spec: spec.clone(), pin, path: None }
}

async fn candle(
    spec: &ModelSpec,
    source: &str,
    revision: Option<&str>,
    note: &(dyn Fn(&str) + Send + Sync),
) -> Result<ResolvedModel> {
    let (path, revision) = if let Some(name) = source.strip_prefix("hf://") {
        let (path, commit) = hub::fetch(name, Revision::of(revision), note).await?;
        (path, Some(commit))
    } else if revision.is_some() {
        return Err(Error::invalid("`revision` needs a source on the hub")
            .with("source", source)
            .hint("write source = 'hf://owner/name', or leave revision out"));
    } else if source.starts_with("s3://") {
        (s3::fetch(source, note).await?, None)
    } else {
        (PathBuf::from(source), None)
    };
    let named = spec.clone();
    let pinned = tokio::task::spawn_blocking(move || pin(&named, &path, revision).map(|pin| (pin, path))).await;
    let (pin, path) =
        pinned.map_err(|error| Error::internal("looking at the model did not finish").caused_by(error))??;
    Ok(ResolvedModel { spec: spec.clone(), pin, path: Some(path) })
}

/// Looks at a model on this machine, and hashes its files.
fn pin(spec: &ModelSpec, path: &Path, revision: Option<String>) -> Result<ModelPin> {
    let facts = inspect(path)?;
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let files = digest::pin_files(folder, &facts.files)?;
    Ok(ModelPin {
        name: spec.name.clone(),
        engine: "candle".into(),
        architecture: facts.architecture,
        abilities: facts.abilities,
        dimensions: facts.dimensions,
        labels: facts.labels,
        context_tokens: Some(facts.context_tokens),
        revision,
        digest: digest::digest_of(&files),
        files,
    })
}

/// Where fetched models are kept: `ROWMILL_MODELS`, else `rowmill/models` in the user's cache folder.
fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("ROWMILL_MODELS") {
        return Ok(folder.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .map(|cache| cache.join("rowmill").join("models"))
        .ok_or_else(|| Error::invalid("there is no place to keep models").hint("set ROWMILL_MODELS to a folder"))
}

/// Whether a file of a model repository is one that an engine may read. Pickled weights, other frameworks' weights and
/// sample images stay where they are.
fn wanted(name: &str) -> bool {
    let skipped_folder =
        ["onnx/", "openvino/", "original/", "coreml/", "runs/"].iter().any(|folder| name.starts_with(folder));
    let suffixes = [".json", ".safetensors", ".jinja", ".gguf", "vocab.txt", "merges.txt"];
    !skipped_folder && suffixes.iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_told_from_a_branch() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Revision::of(Some(commit)), Revision::Commit(commit));
        assert_eq!(Revision::of(Some("v1.0")), Revision::Name("v1.0"));
        assert_eq!(Revision::of(None).text(), "main");
    }

    #[test]
    fn only_files_an_engine_reads_are_fetched() {
        for name in ["config.json", "model-00001-of-00002.safetensors", "1_Pooling/config.json", "chat_template.jinja"]
        {
            assert!(wanted(name), "{name}");
        }
        for name in ["pytorch_model.bin", "onnx/model.onnx", "original/params.json", "README.md", "model.pt"] {
            assert!(!wanted(name), "{name}");
        }
    }
}
