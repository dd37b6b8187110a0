//! From a source to a model: [`inspect`] says what it is from headers alone, [`Model::load`] reads it. Both refuse the same
//! models with the same words, so that whatever can be known of a model before a run is known before a run. How it is to be
//! loaded ([`EngineOptions`]) only `load` is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::linear::Precision;
use rowmill_jobs::plan::Ability;
use rowmill_jobs::spec::{Dtype, Pooling};
use rowmill_jobs::{Error, Result};

use crate::compatible::{Compatible, CompatibleEncoder};
use crate::decoder::{self, Decoder, Embedder as DecoderEmbedder};
use crate::descriptor::{self, Descriptor};
use crate::encoder::Encoder;
use crate::encoder::head::Classifier;
use crate::encoder::pool::{Embedder, States};
use crate::encoder::settings::EncoderSettings;
use crate::gemm;
use crate::gguf::{GgufFile, tokenizer as gguf_tokenizer};
use crate::lora::Adapter;
use crate::place::{Place, check_carried};
use crate::prompt::Prompter;
use crate::safetensors::SafetensorsFiles;
use crate::source::{Folder, Source, read_json_if_there};
use crate::texts::{folder_texts, gguf_texts, prompter};
use crate::tokens::Tokens;
use crate::weights::{Kept, Weights};
use crate::writer::Writer;

/// What a model folder or GGUF file is, from its headers alone (no weights are read).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// Architecture, as the weights name it.
    pub architecture: String,
    /// What it can do.
    pub abilities: Vec<Ability>,
    /// Length of its vectors, if it embeds.
    pub dimensions: Option<u32>,
    /// The labels it can choose among, if it is a classifier.
    pub labels: Option<Vec<String>>,
    /// Longest prompt plus output (decoders) or longest text (encoders, which cut it), in tokens.
    pub context_tokens: u32,
    /// Every file loading will read: sorted, absolute.
    pub files: Vec<PathBuf>,
    /// Those of its adapter, likewise.
    pub adapter_files: Vec<PathBuf>,
}

/// Quantised GGUF models up to this size (as `f32`) are widened unless their type can be multiplied as tiles; larger ones
/// stay quantised in memory, and their products are rounded to 8 bits as llama.cpp's are.
const WIDENED_BYTES_MAX: usize = 4 << 30;

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Number type to compute in. `Auto`, where the processor multiplies tiles: matrices that are `bf16` or quantised are
    /// multiplied as `bf16`, all others with 16 bits of each number. Elsewhere it is `F32`, as everywhere for models that
    /// candle-transformers computes: they refuse `F16` and `Bf16`.
    pub dtype: Dtype,
    /// Longest prompt plus output, if it is to be less than the model's own context. Models with LongRoPE (Phi-3) are used up
    /// to their original context unless more is asked for here: then all rows get the factors for long ones.
    pub context_tokens: Option<u32>,
    /// How an encoder's token vectors become one; as the model says, else the mean.
    pub pooling: Option<Pooling>,
    /// Threads to compute with; all of the machine's if not given.
    pub threads: Option<usize>,
    /// Folder of a LoRA adapter in the layout of PEFT, merged into the weights.
    pub adapter: Option<PathBuf>,
    /// Most memory for the keys and values of rows that run, in bytes. On a processor it is taken when it is needed, and
    /// [`KV_BYTES_DEFAULT`] if not given; on a GPU it is taken when the model is loaded: six tenths of what is free then, or
    /// this if it is less. With less, fewer rows run at a time; a row that does not fit alone is a row error. Models that
    /// candle-transformers computes hold those of one row, and of up to four beginnings of it, outside of this limit.
    pub kv_bytes_max: Option<usize>,
}

/// Memory for keys and values on a processor where nobody says how much the machine has.
pub const KV_BYTES_DEFAULT: usize = 2 << 30;

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
    inspect_adapted(source, None)
}

/// The same for a model with an adapter.
///
/// # Errors
/// As [`inspect`], and where the adapter is not of this model.
pub fn inspect_adapted(source: &Path, adapter: Option<&Path>) -> Result<ModelFacts> {
    let opened = open(source, adapter)?;
    check_tensors(&opened)?;
    check_carried(&opened.architecture, &opened.descriptor)?;
    let (abilities, dimensions, context, labels) = match &opened.descriptor {
        Descriptor::Decoder(shape) => {
            (vec![Ability::Complete, Ability::Choose], None, shape.clone().used_with(None).context, None)
        }
        Descriptor::Compatible(shape) => (vec![Ability::Complete, Ability::Choose], None, shape.context, None),
        Descriptor::Embedder(shape) => {
            let context = shape.clone().used_with(None).context;
            let settings = EncoderSettings::read(opened.folder.as_ref(), context, shape.hidden)?;
            (vec![Ability::Embed], Some(settings.dimensions as u32), settings.context, None)
        }
        Descriptor::CompatibleEncoder(shape) => {
            let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context, shape.hidden)?;
            (vec![Ability::Embed], Some(settings.dimensions as u32), settings.context, None)
        }
        Descriptor::Encoder(shape) => {
            let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context, shape.hidden)?;
            match &shape.head {
                Some(head) => (vec![Ability::Choose], None, settings.context, Some(head.labels.clone())),
                None => (vec![Ability::Embed], Some(settings.dimensions as u32), settings.context, None),
            }
        }
    };
    Ok(ModelFacts {
        architecture: opened.architecture,
        abilities,
        dimensions,
        labels,
        context_tokens: u32::try_from(context).unwrap_or(u32::MAX),
        files: opened.files,
        adapter_files: adapter.map(|folder| Adapter::files_of(folder).to_vec()).unwrap_or_default(),
    })
}

fn open(source: &Path, adapter: Option<&Path>) -> Result<Opened> {
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
            let adapter = adapter.map(|folder| Adapter::open(folder, &files)).transpose()?;
            let weights = Weights::Safetensors { files, adapter };
            Ok(Opened { architecture, descriptor, weights, files: folder.files.clone(), folder: Some(folder) })
        }
        Source::Gguf(path) if adapter.is_some() => Err(Error::invalid(format!("{} cannot be adapted", path.display()))
            .hint("an adapter is merged into the safetensors it was trained on; name their folder as the source")),
        Source::Gguf(path) => {
            let file = GgufFile::open(&path)?;
            let (architecture, shape) = decoder::from_gguf(&file)?;
            Ok(Opened {
                architecture,
                descriptor: Descriptor::Decoder(shape),
                weights: Weights::Gguf { file, kept: Kept::None },
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
        Descriptor::Compatible(shape) => Compatible::check(shape, &opened.weights),
        Descriptor::CompatibleEncoder(shape) => CompatibleEncoder::check(shape, &opened.weights),
        Descriptor::Encoder(shape) => {
            Encoder::check(shape, &opened.weights)?;
            shape.head.as_ref().map_or(Ok(()), |head| Classifier::check(shape, head, &opened.weights))
        }
    }
}

/// Whether a decoder's folder says that its hidden states are to be pooled, or holds nothing else.
fn pools(folder: &Folder, architecture: &str) -> Result<bool> {
    let modules = read_json_if_there(&folder.root, "modules.json")?.unwrap_or_default();
    let kinds = modules.as_array().into_iter().flatten().filter_map(|module| module.get("type")?.as_str());
    let listed = kinds.filter_map(|kind| kind.rsplit('.').next()).any(|kind| kind == "Pooling");
    Ok(listed || folder.root.join("1_Pooling/config.json").is_file() || architecture.ends_with("Model"))
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
    Writer(Writer),
    Embedder(Arc<Embedder>),
    DecoderEmbedder(Box<DecoderEmbedder>),
    Classifier(Arc<Classifier>),
}

impl Model {
    /// Reads everything, for the first place where this build computes.
    pub(crate) fn load(source: &Path, options: &EngineOptions) -> Result<Self> {
        Self::load_at(source, options, Place::first()?)
    }

    /// Reads everything, to be computed at this place.
    pub(crate) fn load_at(source: &Path, options: &EngineOptions, place: Place) -> Result<Self> {
        let mut opened = open(source, options.adapter.as_deref())?;
        check_tensors(&opened)?;
        if let Weights::Gguf { file, kept } = &mut opened.weights {
            if options.dtype == Dtype::Fp8 {
                return Err(Error::invalid(format!("{} is not computed in fp8", file.path.display()))
                    .hint("leave `dtype` out: its matrices are computed as they are stored"));
            }
            *kept = match options.dtype {
                #[cfg(feature = "cuda")]
                Dtype::Auto if place.holds() => Kept::Carried,
                _ if place.holds() => Kept::None,
                Dtype::F32 | Dtype::F16 | Dtype::Fp8 => Kept::None,
                Dtype::Auto | Dtype::Bf16 if file.f32_bytes() > WIDENED_BYTES_MAX => Kept::All,
                Dtype::Auto | Dtype::Bf16 if gemm::available() => Kept::Tiles,
                Dtype::Auto | Dtype::Bf16 => Kept::None,
            };
        }
        place.check(&opened.architecture, &opened.descriptor, options)?;
        let dtype = match options.dtype {
            #[cfg(feature = "cuda")]
            _ if place.holds() => Precision::Held,
            Dtype::F32 => Precision::F32,
            Dtype::F16 => Precision::F16,
            Dtype::Bf16 => Precision::Bf16,
            Dtype::Auto | Dtype::Fp8 => Precision::Stored,
        };
        Self::load_opened(&opened, options, dtype, place)
    }

    fn load_opened(opened: &Opened, options: &EngineOptions, dtype: Precision, place: Place) -> Result<Self> {
        let (tokens, texts) = match (&opened.folder, &opened.weights) {
            (Some(folder), _) => (Tokens::from_file(&folder.root.join("tokenizer.json"))?, folder_texts(folder)?),
            (None, Weights::Gguf { file, .. }) => (Tokens::new(gguf_tokenizer::tokenizer(file)?)?, gguf_texts(file)),
            (None, Weights::Safetensors { .. }) => return Err(Error::internal("safetensors without a folder")),
        };
        let asked = options.context_tokens.map(|tokens| tokens as usize);
        let (network, vocab, context, lower_case) = match &opened.descriptor {
            Descriptor::Decoder(shape) => {
                let shape = shape.clone().used_with(asked);
                let (vocab, context) = (shape.vocab, shape.context);
                let decoder = Box::new(Decoder::load(&shape, &opened.weights, dtype)?);
                (Network::Writer(place.writer(decoder, shape, options)?), vocab, context, false)
            }
            Descriptor::Compatible(shape) => {
                refuse_rounding(opened, options)?;
                let shape = shape.clone().used_with(asked);
                let writer = Writer::Compatible(Box::new(Compatible::load(&shape, &opened.weights)?));
                (Network::Writer(writer), shape.vocab, shape.context, false)
            }
            Descriptor::Embedder(shape) => {
                let shape = shape.clone().used_with(asked);
                let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context, shape.hidden)?;
                let decoder = Decoder::load(&shape, &opened.weights, dtype)?;
                let pooling = settings.pooling(options.pooling)?;
                let dense = settings.dense(place.beside(dtype))?;
                let network = place.embedder(decoder, &shape, (pooling, dense), options)?;
                (network, shape.vocab, settings.context, settings.lower_case)
            }
            Descriptor::CompatibleEncoder(shape) => {
                refuse_rounding(opened, options)?;
                let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context, shape.hidden)?;
                let embedder = Embedder {
                    pooling: settings.pooling(options.pooling)?,
                    dense: settings.dense(dtype)?,
                    encoder: States::Compatible(Box::new(CompatibleEncoder::load(shape, &opened.weights)?)),
                };
                (Network::Embedder(Arc::new(embedder)), shape.vocab, settings.context, settings.lower_case)
            }
            Descriptor::Encoder(shape) => {
                let settings = EncoderSettings::read(opened.folder.as_ref(), shape.context, shape.hidden)?;
                let encoder = place.states(Encoder::load(shape, &opened.weights, dtype)?)?;
                let dtype = place.beside(dtype);
                let network = match &shape.head {
                    Some(head) => {
                        let classifier = Classifier::load(encoder, (shape, head), &opened.weights, dtype)?;
                        Network::Classifier(Arc::new(classifier))
                    }
                    None => Network::Embedder(Arc::new(Embedder {
                        pooling: settings.pooling(options.pooling)?,
                        dense: settings.dense(dtype)?,
                        encoder,
                    })),
                };
                (network, shape.vocab, settings.context, settings.lower_case)
            }
        };
        if let Weights::Safetensors { adapter: Some(adapter), .. } = &opened.weights {
            adapter.check_merged()?;
        }
        let context = asked.map_or(context, |asked| asked.min(context));
        let prompter = Prompter { lower_case, ..prompter(tokens, texts, vocab, context)? };
        Ok(Self { prompter, network })
    }
}

/// Number types that candle-transformers is not asked to compute in.
fn refuse_rounding(opened: &Opened, options: &EngineOptions) -> Result<()> {
    if !matches!(options.dtype, Dtype::Bf16 | Dtype::F16) {
        return Ok(());
    }
    Err(Error::invalid(format!("{} is computed in f32 only", opened.architecture))
        .hint("leave `dtype` out: candle-transformers computes this architecture"))
}

#[cfg(test)]
impl Model {
    /// A GGUF model whose matrices stay quantised, whatever its size.
    pub(crate) fn load_quantised(source: &Path) -> Result<Self> {
        let mut opened = open(source, None)?;
        if let Weights::Gguf { kept, .. } = &mut opened.weights {
            *kept = Kept::All;
        }
        Self::load_opened(&opened, &EngineOptions::default(), Precision::Stored, Place::Processor)
    }

    /// A model whose matrices are kept so on every processor.
    pub(crate) fn load_kept(source: &Path, options: &EngineOptions, dtype: Precision) -> Result<Self> {
        Self::load_opened(&open(source, None)?, options, dtype, Place::Processor)
    }
}
