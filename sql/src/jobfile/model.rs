//! `CREATE MODEL`: engines and their options. It knows which engines this version has; it opens no weights.

use std::path::Path;

use rowmill_jobs::Result;
use rowmill_jobs::capability::{Capabilities, SchemaSubset, StructuredMode};
use rowmill_jobs::error::closest;
use rowmill_jobs::lane::{Lane, LaneChoice};
use rowmill_jobs::spec::{Dtype, EngineSpec, ModelSpec, PROVIDER_KINDS, Pooling};

use super::absolute_url;
use super::options::{Options, Place};
use super::render::Rendered;
use super::statements::ModelStatement;

/// Longest vectors of the engine that makes them of a hash.
const ECHO_DIMENSIONS_MAX: u32 = 65_536;

/// Reads one statement.
pub(super) fn read(source: &Rendered, folder: &Path, statement: ModelStatement) -> Result<ModelSpec> {
    let owner = format!("CREATE MODEL {}", statement.name);
    let mut options = Options::new(source, owner, statement.name_at, statement.options)?;
    let engine_hint = "engine = 'candle' runs open weights on this machine, engine = 'echo' answers without a model, \
                       engine = 'openai' and others ask a provider that the operator allows";
    let Some((engine, engine_at)) = options.text("engine")? else { return Err(options.missing("engine", engine_hint)) };
    let engine = match engine.to_lowercase().as_str() {
        "candle" => candle(&mut options, folder)?,
        "echo" => echo(&mut options)?,
        kind if PROVIDER_KINDS.contains(&kind) => managed(&mut options, kind)?,
        unknown => {
            let error = options.error(engine_at, format!("there is no engine '{engine}'"));
            let known = ["candle", "echo"].into_iter().chain(PROVIDER_KINDS);
            return Err(match closest(unknown, known.clone()) {
                Some(close) => error.hint(format!("did you mean '{close}'?")),
                None => error.hint(format!("one of {}", known.collect::<Vec<_>>().join(", "))),
            });
        }
    };
    options.finish()?;
    Ok(ModelSpec { name: statement.name, engine })
}

fn candle(options: &mut Options<'_>, folder: &Path) -> Result<EngineSpec> {
    let Some((source, source_at)) = options.text("source")? else {
        return Err(options.missing("source", "source = 'hf://owner/name', a folder with safetensors, or a .gguf file"));
    };
    let source = model_source(options, folder, &source, source_at)?;
    let revision = match options.text("revision")? {
        Some((revision, at)) => {
            let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
            if revision.is_empty() || !revision.chars().all(safe) {
                return Err(options.error(at, "a revision is 40 hex digits, a branch or a tag"));
            }
            if !source.starts_with("hf://") {
                return Err(options.error(at, "a revision belongs to an hf:// source only"));
            }
            Some(revision)
        }
        None => None,
    };
    let dtype = options.word(
        "dtype",
        &[("auto", Dtype::Auto), ("f32", Dtype::F32), ("bf16", Dtype::Bf16), ("f16", Dtype::F16), ("fp8", Dtype::Fp8)],
    )?;
    let context_tokens = options.count("context_tokens", 16..=u32::MAX)?;
    let pooling = options.word(
        "pooling",
        &[("mean", Pooling::Mean), ("cls", Pooling::Cls), ("last", Pooling::Last), ("max", Pooling::Max)],
    )?;
    let (adapter, adapter_revision) = adapter(options, folder)?;
    let dtype = dtype.unwrap_or_default();
    Ok(EngineSpec::Candle { source, revision, dtype, context_tokens, pooling, adapter, adapter_revision })
}

/// The adapter's source and its commit on the hub: a branch that moves would change the model without a trace.
fn adapter(options: &mut Options<'_>, folder: &Path) -> Result<(Option<String>, Option<String>)> {
    let Some((text, at)) = options.text("adapter")? else {
        return match options.text("adapter_revision")? {
            None => Ok((None, None)),
            Some((_, at)) => Err(options.error(at, "an adapter_revision belongs to an adapter")),
        };
    };
    let source = model_source(options, folder, &text, at)?;
    let revision = options.text("adapter_revision")?;
    let on_hub = source.starts_with("hf://");
    match revision {
        Some((commit, _)) if on_hub && commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok((Some(source), Some(commit)))
        }
        Some((_, at)) if on_hub => Err(options.error(at, "an adapter_revision is a commit: 40 hex digits")),
        Some((_, at)) => Err(options.error(at, "an adapter_revision belongs to an hf:// adapter only")),
        None if on_hub => Err(options
            .error(at, "an adapter of the hub needs its commit")
            .hint("adapter_revision = '<40 hex digits>'")),
        None => Ok((Some(source), None)),
    }
}

fn model_source(options: &Options<'_>, folder: &Path, text: &str, at: Place) -> Result<String> {
    if let Some(name) = text.strip_prefix("hf://") {
        if name.split('/').filter(|part| !part.is_empty()).count() < 2 {
            return Err(options
                .error(at, format!("'{text}' does not name a model of the hub"))
                .hint("hf://owner/name, or hf://owner/name/file.gguf"));
        }
        return Ok(text.to_owned());
    }
    let url = absolute_url(folder, text, None).map_err(|error| {
        options
            .error(at, error.to_string())
            .hint(error.hint_text().unwrap_or("a path, hf://, s3:// or file://").to_owned())
    })?;
    // Folders and files of this machine are plain paths, so that the same source reads the same whether it exists or not.
    match url::Url::parse(&url).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok()) {
        Some(path) => Ok(path.display().to_string().trim_end_matches('/').to_owned()),
        None => Ok(url),
    }
}

/// A model at a provider. Where that is and what opens it are the operator's: a job names them, it holds neither.
fn managed(options: &mut Options<'_>, kind: &str) -> Result<EngineSpec> {
    let Some((name, name_at)) = options.text("name")? else {
        return Err(options.missing("name", "name = 'gpt-4o-mini', as the provider calls the model"));
    };
    let named = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    if name.is_empty() || !name.chars().all(named) {
        return Err(options.error(name_at, "a model's name has letters, digits and - _ . : / @ only"));
    }
    let provider = options.text("provider")?.map_or_else(|| kind.to_owned(), |(provider, _)| provider);
    let dimensions = options.count("dimensions", 1..=u32::MAX)?;
    let lane = lane(options, kind)?;
    let capabilities = capabilities(options)?;
    Ok(EngineSpec::Managed { kind: kind.to_owned(), provider, name, dimensions, lane, capabilities })
}

/// What the model can do, where the job knows it better than the table of providers.
fn capabilities(options: &mut Options<'_>) -> Result<Capabilities> {
    let structured = [
        ("json_schema", StructuredMode::JsonSchema),
        ("json_value", StructuredMode::JsonValue),
        ("tools", StructuredMode::Tools),
        ("json_object", StructuredMode::JsonObject),
        ("none", StructuredMode::None),
    ];
    let subsets = [
        ("strict", SchemaSubset::Strict),
        ("anthropic", SchemaSubset::Anthropic),
        ("gemini", SchemaSubset::Gemini),
        ("plain", SchemaSubset::Plain),
    ];
    Ok(Capabilities {
        structured: options.words("structured", &structured)?,
        schema_subset: options.word("schema_subset", &subsets)?,
        system_role: options
            .word("system_role", &[("system", "system"), ("developer", "developer")])?
            .map(str::to_owned),
        temperature: options.truth("temperature")?,
        logprobs: options.count("logprobs", 0..=u32::MAX)?,
        think_tags: options.truth("think_tags")?,
        thinking_tokens: options.count("thinking_tokens", 0..=u32::MAX)?,
    })
}

/// How a model's requests are sent: a lane that its kind of provider has.
fn lane(options: &mut Options<'_>, kind: &str) -> Result<LaneChoice> {
    let words = LaneChoice::ALL.map(|choice| (choice.as_str(), choice));
    let Some((choice, at)) = options.word_at("lane", &words)? else { return Ok(LaneChoice::default()) };
    let lane = match choice {
        LaneChoice::Fixed(lane) if lane.kinds().contains(&kind) => return Ok(choice),
        LaneChoice::Fixed(lane) => lane,
        LaneChoice::Auto if [Lane::Flex, Lane::Batch].iter().any(|lane| lane.kinds().contains(&kind)) => {
            return Ok(choice);
        }
        LaneChoice::Auto => {
            return Err(options
                .error(at, format!("engine '{kind}' has the online lane only: there is nothing to choose"))
                .hint("leave `lane` out"));
        }
    };
    let what = if lane == Lane::Batch { "batch interface that Rowmill speaks" } else { "flex tier" };
    Err(options
        .error(at, format!("engine '{kind}' has no {what}"))
        .hint(format!("lane = '{lane}' is for {}; without `lane` requests go online", lane.kinds().join(", "))))
}

fn echo(options: &mut Options<'_>) -> Result<EngineSpec> {
    let delay_ms = options.count("delay_ms", 0..=u64::MAX)?.unwrap_or(0);
    let fail_ratio = options.ratio("fail_ratio")?.unwrap_or(0.0);
    let dimensions = options.count("dimensions", 1..=ECHO_DIMENSIONS_MAX)?.unwrap_or(64);
    let abort_on = options.text("abort_on")?.map(|(text, _)| text).filter(|text| !text.is_empty());
    Ok(EngineSpec::Echo { delay_ms, fail_ratio, dimensions, abort_on })
}
