//! From a model's name in a job file to files on this machine and a pin that says exactly which they are. Only here are
//! weights fetched; the engine is given a local path and never opens a connection.

mod hub;
mod s3;

use std::path::{Path, PathBuf};

use rowmill_engine::inspect_adapted;
use rowmill_jobs::lane::{Lane, LaneChoice};
use rowmill_jobs::plan::{Ability, FilePin, ModelPin};
use rowmill_jobs::spec::{EngineSpec, ModelSpec};
use rowmill_jobs::{Error, Result};
use rowmill_managed::Target;

use crate::digest;

/// Before the names of an adapter's files in a pin.
const ADAPTER: &str = "adapter";

/// A model whose files are on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedModel {
    /// What the job file says.
    pub spec: ModelSpec,
    /// What it is.
    pub pin: ModelPin,
    /// Folder or GGUF file; `None` for engines without files.
    pub path: Option<PathBuf>,
    /// Folder of its adapter, if it has one.
    pub adapter: Option<PathBuf>,
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
        EngineSpec::Managed { kind, name, dimensions, lane, .. } => managed(spec, (kind, name), *dimensions, *lane),
        EngineSpec::Candle { source, revision, adapter, adapter_revision, .. } => {
            let adapter = adapter.as_deref().map(|source| (source, adapter_revision.as_deref()));
            candle(spec, (source, revision.as_deref()), adapter, note).await
        }
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
    ResolvedModel { spec: spec.clone(), pin, path: None, adapter: None }
}

/// A model elsewhere has no files: its pin says what it is called and what it can be asked for.
fn managed(
    spec: &ModelSpec,
    (kind, name): (&str, &str),
    dimensions: Option<u32>,
    lane: LaneChoice,
) -> Result<ResolvedModel> {
    let can = Target::can(kind, name)?;
    let mut abilities = Vec::new();
    if can.completes {
        abilities.extend([Ability::Complete, Ability::Choose]);
    }
    // No provider has a flex tier for embeddings.
    if can.embeds && dimensions.is_some() && lane != LaneChoice::Fixed(Lane::Flex) {
        abilities.push(Ability::Embed);
    }
    if abilities.is_empty() {
        return Err(Error::invalid(format!("how long are the vectors of {name}?"))
            .hint("say it in CREATE MODEL: dimensions = 1536"));
    }
    let options = serde_json::to_vec(&spec.engine).unwrap_or_default();
    let pin = ModelPin {
        name: spec.name.clone(),
        engine: kind.to_owned(),
        architecture: name.to_owned(),
        abilities,
        dimensions,
        labels: None,
        context_tokens: None,
        revision: None,
        digest: digest::sha256_hex(&options),
        files: Vec::new(),
    };
    Ok(ResolvedModel { spec: spec.clone(), pin, path: None, adapter: None })
}

async fn candle(
    spec: &ModelSpec,
    (source, revision): (&str, Option<&str>),
    adapter: Option<(&str, Option<&str>)>,
    note: &(dyn Fn(&str) + Send + Sync),
) -> Result<ResolvedModel> {
    let (path, revision) = fetch(source, revision, note).await?;
    let adapter = match adapter {
        None => None,
        Some((source, revision)) => {
            let fetched = fetch(source, revision, note).await;
            Some(fetched.map_err(|error| error.with("adapter", source))?.0)
        }
    };
    let named = spec.clone();
    let looked = tokio::task::spawn_blocking(move || {
        pin(&named, &path, adapter.as_deref(), revision).map(|pin| (pin, path, adapter))
    });
    let (pin, path, adapter) =
        looked.await.map_err(|error| Error::internal("looking at the model did not finish").caused_by(error))??;
    Ok(ResolvedModel { spec: spec.clone(), pin, path: Some(path), adapter })
}

/// Brings a source's files to this machine. Returns their path and, if they are of the hub, their commit.
async fn fetch(
    source: &str,
    revision: Option<&str>,
    note: &(dyn Fn(&str) + Send + Sync),
) -> Result<(PathBuf, Option<String>)> {
    if let Some(name) = source.strip_prefix("hf://") {
        let (path, commit) = hub::fetch(name, Revision::of(revision), note).await?;
        Ok((path, Some(commit)))
    } else if revision.is_some() {
        Err(Error::invalid("`revision` needs a source on the hub")
            .with("source", source)
            .hint("write source = 'hf://owner/name', or leave revision out"))
    } else if source.starts_with("s3://") {
        Ok((s3::fetch(source, note).await?, None))
    } else {
        Ok((PathBuf::from(source), None))
    }
}

/// Looks at a model on this machine, and hashes its files.
fn pin(spec: &ModelSpec, path: &Path, adapter: Option<&Path>, revision: Option<String>) -> Result<ModelPin> {
    let facts = inspect_adapted(path, adapter)?;
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let mut files = digest::pin_files(folder, &facts.files)?;
    if let Some(folder) = adapter {
        // Where a machine keeps the adapter is no part of what the model is.
        let own = digest::pin_files(folder, &facts.adapter_files)?.into_iter();
        files.extend(own.map(|file| FilePin { path: format!("{ADAPTER}/{}", file.path), ..file }));
    }
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

    /// An adapter that changes nothing, in a folder of this name.
    fn adapter(root: &Path, name: &str, alpha: u32) -> String {
        let module = "base_model.model.model.layers.0.self_attn.q_proj";
        let header = format!(
            r#"{{"{module}.lora_A.weight":{{"dtype":"F32","shape":[1,64],"data_offsets":[0,256]}},"{module}.lora_B.weight":{{"dtype":"F32","shape":[64,1],"data_offsets":[256,512]}}}}"#
        );
        let folder = root.join(name);
        std::fs::create_dir(&folder).unwrap();
        let config = format!(r#"{{"peft_type":"LORA","r":1,"lora_alpha":{alpha}}}"#);
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 512]].concat();
        std::fs::write(folder.join("adapter_model.safetensors"), bytes).unwrap();
        folder.display().to_string()
    }

    #[tokio::test]
    async fn an_adapter_is_part_of_what_a_model_is_and_its_place_is_not() {
        let source = format!("{}/engine/tests/fixtures/llama-tiny", env!("CARGO_MANIFEST_DIR"));
        let spec = |adapter: Option<String>| ModelSpec {
            name: "m".into(),
            engine: EngineSpec::Candle {
                source: source.clone(),
                revision: None,
                dtype: Default::default(),
                context_tokens: None,
                pooling: None,
                adapter,
                adapter_revision: None,
            },
        };
        let root = tempfile::tempdir().unwrap();
        let mut digests = Vec::new();
        for adapter in [None, Some(adapter(root.path(), "a", 1)), Some(adapter(root.path(), "b", 1))] {
            digests.push(resolve(&spec(adapter), &|_| ()).await.unwrap().pin.digest);
        }
        assert_ne!(digests[0], digests[1]);
        assert_eq!(digests[1], digests[2]);
        let other = resolve(&spec(Some(adapter(root.path(), "c", 2))), &|_| ()).await.unwrap();
        assert_ne!(other.pin.digest, digests[1]);
        assert!(other.pin.files.iter().any(|file| file.path == "adapter/adapter_config.json"));
        let lost = resolve(&spec(Some("/nowhere".into())), &|_| ()).await.unwrap_err();
        assert!(lost.report().contains("/nowhere/adapter_config.json"), "{}", lost.report());
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
