//! Which architecture a model is, by the name its weights give it, and who computes it. The decoder and the encoder are each
//! written once and driven by a shape, which their own folders read. Refuses names it does not know.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::config::text;
use crate::decoder::shape::{self as decoder_shape, DecoderShape};
use crate::encoder::shape::{self as encoder_shape, EncoderShape};

/// A model's architecture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Descriptor {
    /// Writes text.
    Decoder(DecoderShape),
    /// Makes vectors.
    Encoder(EncoderShape),
}

/// What computes an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputedBy {
    /// The decoder of this engine: packed rows, paged keys and values, shared prefixes.
    PackedDecoder,
    /// The encoder of this engine: packed rows.
    PackedEncoder,
    /// candle's own implementation, one row after the other.
    SlowerPath,
}

impl ComputedBy {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PackedDecoder => "packed decoder",
            Self::PackedEncoder => "packed encoder",
            Self::SlowerPath => "slower compatible path",
        }
    }
}

/// An architecture that the engine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// Its name in a `config.json`.
    pub name: &'static str,
    /// The family it belongs to, as people call it.
    pub family: &'static str,
    /// What computes it.
    pub computed_by: ComputedBy,
}

/// Every architecture that the engine knows by its `config.json`.
pub fn architectures() -> Vec<Architecture> {
    let of = |computed_by| move |name: &&'static str| Architecture { name, family: family(name), computed_by };
    let decoders = decoder_shape::ARCHITECTURES.iter().map(of(ComputedBy::PackedDecoder));
    decoders.chain(encoder_shape::ARCHITECTURES.iter().map(of(ComputedBy::PackedEncoder))).collect()
}

/// An architecture's name without what it was trained for.
fn family(name: &'static str) -> &'static str {
    let end = name.find("For").or_else(|| name.find("Model")).unwrap_or(name.len());
    name.get(..end).unwrap_or(name)
}

/// The architecture's name in a `config.json`.
pub(crate) fn architecture_of(config: &Value) -> String {
    let named = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    named.or_else(|| text(config, "model_type")).unwrap_or("unknown").to_owned()
}

/// Reads a `config.json`.
pub(crate) fn from_config(config: &Value) -> Result<Descriptor> {
    let architecture = architecture_of(config);
    if decoder_shape::ARCHITECTURES.contains(&architecture.as_str()) {
        return decoder_shape::from_config(&architecture, config).map(Descriptor::Decoder);
    }
    if encoder_shape::ARCHITECTURES.contains(&architecture.as_str()) {
        return encoder_shape::from_config(&architecture, config).map(Descriptor::Encoder);
    }
    Err(unsupported(&architecture))
}

/// The refusal of an architecture, with those that are known.
pub(crate) fn unsupported(architecture: &str) -> Error {
    let known = [&decoder_shape::ARCHITECTURES[..], &encoder_shape::ARCHITECTURES[..]].concat();
    Error::invalid(format!("the engine does not know the architecture {architecture}"))
        .hint(format!("it knows {} and GGUF files of `llama`, `qwen2` and `qwen3`", known.join(", ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_architecture_that_is_read_is_listed_with_its_family() {
        let all = architectures();
        assert_eq!(all.len(), decoder_shape::ARCHITECTURES.len() + encoder_shape::ARCHITECTURES.len());
        let named = |name: &str| all.iter().find(|one| one.name == name).map(|one| (one.family, one.computed_by));
        assert_eq!(named("Qwen3ForCausalLM"), Some(("Qwen3", ComputedBy::PackedDecoder)));
        assert_eq!(named("BertModel"), Some(("Bert", ComputedBy::PackedEncoder)));
    }

    #[test]
    fn unknown_architectures_are_refused_with_the_known_ones() {
        let error = from_config(&json!({"architectures": ["MambaForCausalLM"]})).unwrap_err();
        assert!(error.to_string().contains("MambaForCausalLM"));
        assert!(error.hint_text().unwrap().contains("Qwen3ForCausalLM"));
    }
}
