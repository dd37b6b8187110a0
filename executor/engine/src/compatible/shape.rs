//! Which architectures candle-transformers computes for us, and what is known of a model before its weights are read.
//! Reads no keys of one family only: that is [`super::families`]'.

use half::bf16;
use rowmill_jobs::Result;
use serde_json::{Map, Value};

use super::families::{glm4, granite_hybrid, helium, lfm2, mamba, olmo, phi, recurrent_gemma, smollm3, stablelm};
use super::tensors::{Instead, Manner, Reading};
use crate::config::{size, unsupported_value};
use crate::descriptor::names_of;

/// What candle-transformers has a model for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Phi,
    StableLm,
    Glm4,
    Helium,
    Olmo,
    SmolLm3,
    GraniteMoeHybrid,
    Lfm2,
    Mamba,
    RecurrentGemma,
}

/// How many tokens at a time a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pieces {
    /// Any number, at any place.
    Any,
    /// Any number at the beginning of a sequence, then one at a time.
    AtFirst,
    /// One at a time.
    One,
}

type Read = fn(&Value) -> Result<Map<String, Value>>;

const FAMILIES: [(&str, (Family, Read)); 10] = [
    ("GraniteMoeHybridForCausalLM", (Family::GraniteMoeHybrid, granite_hybrid)),
    ("Glm4ForCausalLM", (Family::Glm4, glm4)),
    ("HeliumForCausalLM", (Family::Helium, helium)),
    ("Lfm2ForCausalLM", (Family::Lfm2, lfm2)),
    ("MambaForCausalLM", (Family::Mamba, mamba)),
    ("OlmoForCausalLM", (Family::Olmo, olmo)),
    ("PhiForCausalLM", (Family::Phi, phi)),
    ("RecurrentGemmaForCausalLM", (Family::RecurrentGemma, recurrent_gemma)),
    ("SmolLM3ForCausalLM", (Family::SmolLm3, smollm3)),
    ("StableLmForCausalLM", (Family::StableLm, stablelm)),
];

/// Architectures of the compatible path, by the names weights give them.
pub(crate) const ARCHITECTURES: [&str; FAMILIES.len()] = names_of(&FAMILIES);

/// Longest rows of this path: some of the library's models keep masks whose size grows with the square of a row's.
const CONTEXT_MAX: usize = 1 << 15;
/// Tokens of a label may lie beyond the context, as the last prompt token may be its last.
const BEYOND_CONTEXT: usize = 256;

/// A model of the compatible path, as its configuration describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompatibleShape {
    pub(super) family: Family,
    /// What candle-transformers reads.
    config: Map<String, Value>,
    pub(crate) vocab: usize,
    /// Longest prompt plus output.
    pub(crate) context: usize,
}

/// Reads the `config.json` of one of [`ARCHITECTURES`].
pub(crate) fn from_config(architecture: &str, config: &Value) -> Result<CompatibleShape> {
    let Some((_, (family, read))) = FAMILIES.iter().find(|(name, _)| *name == architecture) else {
        return Err(unsupported_value("architectures", architecture));
    };
    let read = read(config)?;
    let context = read.get("max_position_embeddings").and_then(Value::as_u64).unwrap_or(CONTEXT_MAX as u64) as usize;
    Ok(CompatibleShape {
        family: *family,
        config: read,
        vocab: size(config, "vocab_size")?,
        context: context.min(CONTEXT_MAX),
    })
}

impl CompatibleShape {
    /// The same with a context of at most so many tokens.
    pub(crate) fn used_with(mut self, context: Option<usize>) -> Self {
        self.context = context.map_or(self.context, |context| context.min(self.context));
        self
    }

    pub(super) fn pieces(&self) -> Pieces {
        match self.family {
            // Phi's mask has no columns for the tokens before; the others' convolutions forget them.
            Family::Phi | Family::Lfm2 | Family::RecurrentGemma => Pieces::AtFirst,
            Family::Mamba => Pieces::One,
            _ => Pieces::Any,
        }
    }

    /// Most tokens of a sequence that the model is fed.
    pub(super) fn positions(&self) -> usize {
        self.context + BEYOND_CONTEXT
    }

    /// The configuration for a model of sequences of at most so many tokens.
    pub(super) fn config(&self, positions: usize) -> Value {
        let mut config = self.config.clone();
        for key in ["max_position_embeddings", "max_seq_len"] {
            if config.contains_key(key) {
                config.insert(key.to_owned(), positions.into());
            }
        }
        Value::Object(config)
    }

    /// How its tensors are read.
    pub(super) fn manner(&self, reading: Reading) -> Manner {
        let instead: Instead = match self.family {
            // These two read an output matrix even where it is the embedding.
            Family::Phi | Family::StableLm if self.config.get("tie_word_embeddings") == Some(&Value::Bool(true)) => {
                &[("lm_head.weight", "model.embed_tokens.weight")]
            }
            Family::Mamba => &[("backbone.embedding.weight", "backbone.embeddings.weight")],
            _ => &[],
        };
        let embedding = match self.family {
            // The library multiplies by the root of the hidden size, the authors by that in bf16.
            Family::RecurrentGemma => {
                let root = self.config.get("hidden_size").and_then(Value::as_f64).unwrap_or(1.0).sqrt();
                (bf16::from_f64(root).to_f64() / root) as f32
            }
            _ => 1.0,
        };
        Manner { instead, embedding, reading }
    }
}
