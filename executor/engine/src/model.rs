//! From a source to a model: [`inspect`] says what it is from headers alone, [`Model::load`] reads it. Both refuse the same
//! things with the same words, so that whatever can be known before a run is known before a run.

use std::path::{Path, PathBuf};

use candle_core::DType;
use rowmill_jobs::plan::Ability;
use rowmill_jobs::spec::{Dtype, Pooling};
use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::chat::ChatTemplate;
use crate::decoder::shape::DecoderShape;
use crate::decoder::{self, Decoder, Embedder};
use crate::descriptor::{self, Descriptor};
use crate::encoder::Encoder;
use crate::gguf::GgufFile;
use crate::gguf_tokenizer;
use crate::prompt::Prompter;
use crate::safetensors::SafetensorsFiles;
use crate::source::{Folder, Source, read_json_if_there, unreadable};
use crate::tokens::Tokens;
use crate::weights::Weights;

/// What a model folder or GGUF file is, from its headers alone (no weights are read).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// Architecture, as the weights name it.
    pub architecture: String,
    /// What it can do.
    pub abilities: Vec<Ability>,
    /// Length of its vectors, if it embeds.
    pub dimensions: Option<u32>,
    /// Longest prompt plus output (decoders) or longest text (encoders, which cut it), in tokens.
    pub context_tokens: u32,
    /// Every file loading will read: sorted, absolute.
    pub files: Vec<PathBuf>,
}

/// With `dtype = 'auto'`, quantised GGUF models up to this size (as `f32`) are widened, which is exact; larger ones stay
/// quantised in memory, and their products are rounded to 8 bits as llama.cpp's are.
const WIDENED_BYTES_MAX: usize = 4 << 30;

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Number type to compute in.
    pub dtype: Dtype,
    /// Longest prompt plus output, if it is to be less than the model's own context. Models with LongRoPE (Phi-3) are used up
    /// to their original context unless more is asked for here: then all rows get the factors for long ones.
    pub context_tokens: Option<u32>,
    /// How an encoder's token vectors become one; as the model says, else the mean.
    pub pooling: Option<Pooling>,
    /// Threads to compute with; all of the machine's if not given.
    pub threads: Option<usize>,
}

/// Everything known of a model before its weights are read.
struct Opened {
    architecture: String,
    descriptor: Descriptor,
    weights: Weights,
    files: Vec<PathBuf>,
    folder: Option<Folder>,
}

/// Looks at a model folder or a `.gguf` file and checks what can be checked without reading weights.
///
/// # Errors
/// [`rowmill_jobs::Kind::Invalid`] where files are missing, damaged, pickled, or of an architecture that is not supported.
pub fn inspect(source: &Path) -> Result<ModelFacts> {
    let opened = open(source)?;
    check_tensors(&opened)?;
    let (abilities, dimensions, context) = match &opened.descriptor {
        Descriptor::Decoder(shape) => {
            (vec![Ability::Complete, Ability::Choose], None, shape.clone().used_with(None).context)
        }
        Descriptor::Embedder(shape) => {
            let settings = EncoderSettings::read(opened.folder.as_ref(), shape.clone().used_with(None).context)?;
            (vec![Ability::Embed], Some(shape.hidden as u32), settings.context)
        }
        Descriptor::Encoder(shape) => {
            let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context)?;
            (vec![Ability::Embed], Some(shape.hidden as u32), settings.context)
        }
    };
    Ok(ModelFacts {
        architecture: opened.architecture,
        abilities,
        dimensions,
        context_tokens: u32::try_from(context).unwrap_or(u32::MAX),
        files: opened.files,
    })
}

fn open(source: &Path) -> Result<Opened> {
    match Source::find(source)? {
        Source::Folder(folder) => {
            let architecture = descriptor::architecture_of(&folder.config);
            let descriptor = descriptor::from_config(&folder.config)
                .map_err(|e| e.with("file", folder.root.join("config.json").display()))?;
            let descriptor = match descriptor {
                Descriptor::Decoder(shape) if pools(&folder, &architecture)? => Descriptor::Embedder(shape.headless()),
                other => other,
            };
            let files = SafetensorsFiles::open(&folder.weights)?;
            // BERT checkpoints of a task (masked language model, classifier) hold the encoder under a prefix.
            let prefixed =
                matches!(descriptor, Descriptor::Encoder(_)) && files.has("bert.embeddings.word_embeddings.weight");
            let weights = Weights::Safetensors { files, prefix: if prefixed { "bert." } else { "" } };
            Ok(Opened { architecture, descriptor, weights, files: folder.files.clone(), folder: Some(folder) })
        }
        Source::Gguf(path) => {
            let file = GgufFile::open(&path)?;
            let (architecture, shape) = decoder::from_gguf(&file)?;
            Ok(Opened {
                architecture,
                descriptor: Descriptor::Decoder(shape),
                weights: Weights::Gguf { file, keep: false },
                files: vec![path],
                folder: None,
            })
        }
    }
}

/// The tensors whose shapes tell whether weights and configuration belong together.
fn check_tensors(opened: &Opened) -> Result<()> {
    match &opened.descriptor {
        Descriptor::Decoder(shape) | Descriptor::Embedder(shape) => Decoder::check(shape, &opened.weights),
        Descriptor::Encoder(shape) => Encoder::check(shape, &opened.weights),
    }
}

/// Whether a decoder's folder says that its hidden states are to be pooled, or holds nothing else.
fn pools(folder: &Folder, architecture: &str) -> Result<bool> {
    let modules = read_json_if_there(&folder.root, "modules.json")?.unwrap_or_default();
    let kinds = modules.as_array().into_iter().flatten().filter_map(|module| module.get("type")?.as_str());
    let listed = kinds.filter_map(|kind| kind.rsplit('.').next()).any(|kind| kind == "Pooling");
    Ok(listed || folder.root.join("1_Pooling/config.json").is_file() || architecture.ends_with("Model"))
}

/// What a sentence-transformers folder says beside the architecture.
struct EncoderSettings {
    context: usize,
    /// `None`: one that the engine does not compute.
    pooling: Option<Pooling>,
    lower_case: bool,
}

impl EncoderSettings {
    fn read(folder: Option<&Folder>, context: usize) -> Result<Self> {
        let mut settings = Self { context, pooling: Some(Pooling::Mean), lower_case: false };
        let Some(folder) = folder else { return Ok(settings) };
        if let Some(modules) = read_json_if_there(&folder.root, "modules.json")? {
            let kinds = modules.as_array().into_iter().flatten().filter_map(|module| module.get("type")?.as_str());
            for kind in kinds.filter_map(|kind| kind.rsplit('.').next()) {
                if !["Transformer", "Pooling", "Normalize"].contains(&kind) {
                    return Err(Error::invalid(format!("the model has a sentence-transformers module `{kind}`"))
                        .with("file", folder.root.join("modules.json").display())
                        .hint("the engine computes Transformer, Pooling and Normalize; use another embedding model"));
                }
            }
        }
        if let Some(sentence) = read_json_if_there(&folder.root, "sentence_bert_config.json")? {
            if let Some(tokens) = sentence.get("max_seq_length").and_then(Value::as_u64) {
                settings.context = settings.context.min(tokens as usize);
            }
            settings.lower_case = sentence.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false);
        }
        if let Some(pooling) = read_json_if_there(&folder.root, "1_Pooling/config.json")? {
            settings.pooling = pooling_of(&pooling);
        }
        Ok(settings)
    }
}

impl EncoderSettings {
    /// How token vectors become one.
    fn pooling(&self, options: &EngineOptions) -> Result<Pooling> {
        options.pooling.or(self.pooling).ok_or_else(|| {
            Error::invalid("the model pools in a way the engine does not compute")
                .hint("the engine pools by mean, first or last token; CREATE MODEL can say which: pooling = 'mean'")
        })
    }
}

/// The pooling that a sentence-transformers configuration asks for; `None` if it is not one of ours.
fn pooling_of(config: &Value) -> Option<Pooling> {
    let named = |name: &str| match name {
        "cls" | "cls_token" => Some(Pooling::Cls),
        "mean" | "mean_tokens" => Some(Pooling::Mean),
        "lasttoken" => Some(Pooling::Last),
        _ => None,
    };
    if let Some(mode) = config.get("pooling_mode").and_then(Value::as_str) {
        return named(mode);
    }
    let set = config.as_object().into_iter().flatten().filter(|(_, value)| value.as_bool() == Some(true));
    let modes: Vec<&str> = set.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect();
    match modes[..] {
        [] => Some(Pooling::Mean),
        [mode] => named(mode),
        _ => None,
    }
}

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) prompter: Prompter,
    pub(crate) network: Network,
}

/// What computes.
#[derive(Debug)]
pub(crate) enum Network {
    Decoder { decoder: Box<Decoder>, shape: Box<DecoderShape> },
    Embedder(Box<Embedder>),
    Encoder { encoder: Box<Encoder>, pooling: Pooling },
}

impl Model {
    /// Reads everything.
    pub(crate) fn load(source: &Path, options: &EngineOptions) -> Result<Self> {
        let mut opened = open(source)?;
        check_tensors(&opened)?;
        if let Weights::Gguf { file, keep } = &mut opened.weights {
            *keep = options.dtype == Dtype::Auto && file.f32_bytes() > WIDENED_BYTES_MAX;
        }
        Self::load_opened(&opened, options)
    }

    fn load_opened(opened: &Opened, options: &EngineOptions) -> Result<Self> {
        let dtype = match options.dtype {
            Dtype::Auto | Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => {
                return Err(Error::invalid("the engine cannot multiply bf16 matrices on this machine's processor")
                    .hint("use dtype = 'auto' (computes in f32) or 'f16'; bf16 weights are read either way"));
            }
        };
        let (tokens, texts) = match (&opened.folder, &opened.weights) {
            (Some(folder), _) => (Tokens::from_file(&folder.root.join("tokenizer.json"))?, folder_texts(folder)?),
            (None, Weights::Gguf { file, .. }) => (Tokens::new(gguf_tokenizer::tokenizer(file)?)?, gguf_texts(file)),
            (None, Weights::Safetensors { .. }) => return Err(Error::internal("safetensors without a folder")),
        };
        let asked = options.context_tokens.map(|tokens| tokens as usize);
        let (network, vocab, context, lower_case) = match &opened.descriptor {
            Descriptor::Decoder(shape) => {
                let shape = shape.clone().used_with(asked);
                let decoder = Box::new(Decoder::load(&shape, &opened.weights, dtype)?);
                let (vocab, context) = (shape.vocab, shape.context);
                (Network::Decoder { decoder, shape: Box::new(shape) }, vocab, context, false)
            }
            Descriptor::Embedder(shape) => {
                let shape = shape.clone().used_with(asked);
                let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context)?;
                let decoder = Decoder::load(&shape, &opened.weights, dtype)?;
                let embedder = Embedder::new(decoder, &shape, settings.pooling(options)?);
                let network = Network::Embedder(Box::new(embedder));
                (network, shape.vocab, settings.context, settings.lower_case)
            }
            Descriptor::Encoder(shape) => {
                let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context)?;
                let pooling = settings.pooling(options)?;
                let encoder = Box::new(Encoder::load(shape, &opened.weights, dtype)?);
                let network = Network::Encoder { encoder, pooling };
                (network, shape.vocab, settings.context, settings.lower_case)
            }
        };
        let context = asked.map_or(context, |asked| asked.min(context));
        let prompter = prompter(tokens, texts, vocab, context, lower_case)?;
        Ok(Self { prompter, network })
    }
}

/// What belongs to prompts beside the tokenizer itself.
#[derive(Default)]
struct Texts {
    template: Option<String>,
    bos: String,
    eos: String,
    ends: Vec<u32>,
}

fn folder_texts(folder: &Folder) -> Result<Texts> {
    let config = read_json_if_there(&folder.root, "tokenizer_config.json")?.unwrap_or_default();
    let special = |key: &str| match config.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let file = folder.root.join("chat_template.jinja");
    let template = if file.is_file() {
        Some(std::fs::read_to_string(&file).map_err(|e| unreadable(&file, e))?)
    } else {
        match config.get("chat_template") {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(named)) => named
                .iter()
                .find(|item| item.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|item| item.get("template")?.as_str().map(str::to_owned)),
            _ => None,
        }
    };
    let generation = read_json_if_there(&folder.root, "generation_config.json")?.unwrap_or_default();
    let mut ends = Vec::new();
    for value in [generation.get("eos_token_id"), folder.config.get("eos_token_id")].into_iter().flatten() {
        let one = value.as_u64().into_iter();
        ends.extend(one.chain(value.as_array().into_iter().flatten().filter_map(Value::as_u64)).map(|id| id as u32));
    }
    Ok(Texts { template, bos: special("bos_token"), eos: special("eos_token"), ends })
}

fn gguf_texts(file: &GgufFile) -> Texts {
    let list = file.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let id = |key: &str| file.integer(&format!("tokenizer.ggml.{key}_token_id"));
    let text =
        |key: &str| id(key).and_then(|id| list.get(id as usize)).map(|text| (*text).to_owned()).unwrap_or_default();
    let mut ends: Vec<u32> = ["eos", "eot", "eom"].iter().filter_map(|key| id(key)).map(|id| id as u32).collect();
    // Files name one or two of these; llama.cpp ends at any of them that the vocabulary has.
    let known = ["<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|eom_id|>"];
    let also = list.iter().enumerate().filter(|(_, token)| known.contains(token)).map(|(id, _)| id as u32);
    ends.extend(also);
    Texts {
        template: file.text("tokenizer.chat_template").map(str::to_owned),
        bos: text("bos"),
        eos: text("eos"),
        ends,
    }
}

fn prompter(tokens: Tokens, texts: Texts, vocab: usize, context: usize, lower_case: bool) -> Result<Prompter> {
    let chat = texts.template.map(|template| ChatTemplate::new(template, &texts.bos, &texts.eos)).transpose()?;
    let mut ends = texts.ends;
    ends.extend(tokens.id_of(&texts.eos));
    let named = tokens.id_of(&texts.eos).or(ends.first().copied());
    let after = chat.as_ref().and_then(ChatTemplate::after_answer).unwrap_or_default();
    let written = ends.iter().copied().find(|id| {
        tokens.content_of(*id).is_some_and(|content| !content.is_empty() && after.trim_start().starts_with(&content))
    });
    ends.sort_unstable();
    ends.dedup();
    Ok(Prompter { tokens, chat, ends, end_of_turn: written.or(named), vocab, context, lower_case })
}

#[cfg(test)]
impl Model {
    /// A GGUF model whose matrices stay quantised, whatever its size.
    pub(crate) fn load_quantised(source: &Path) -> Result<Self> {
        let mut opened = open(source)?;
        if let Weights::Gguf { keep, .. } = &mut opened.weights {
            *keep = true;
        }
        Self::load_opened(&opened, &EngineOptions::default())
    }
}
