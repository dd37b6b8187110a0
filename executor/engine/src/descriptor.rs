//! Which architecture a model is, by the name its weights give it, and who computes it. The decoder and the encoder are each
//! written once and driven by a shape, which their own folders read; what they lack, candle-transformers computes. Refuses
//! names it does not know.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::compatible::shape::CompatibleShape;
use crate::compatible::{self, CompatibleEncoderShape};
use crate::config::text;
use crate::decoder::{self, shape::DecoderShape};
use crate::encoder::families;
use crate::encoder::shape::EncoderShape;

/// A model's architecture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Descriptor {
    /// Writes text.
    Decoder(DecoderShape),
    /// Writes text, computed by candle-transformers.
    Compatible(CompatibleShape),
    /// Makes vectors with a decoder's hidden states.
    Embedder(DecoderShape),
    /// Makes vectors, or chooses labels.
    Encoder(EncoderShape),
    /// Makes vectors, computed by candle-transformers.
    CompatibleEncoder(CompatibleEncoderShape),
}

/// What computes an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputedBy {
    /// The decoder of this engine: packed rows, paged keys and values, shared prefixes.
    PackedDecoder,
    /// The encoder of this engine: packed rows.
    PackedEncoder,
    /// candle-transformers: one row at a time, slower.
    Compatible,
}

impl ComputedBy {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PackedDecoder => "packed decoder",
            Self::PackedEncoder => "packed encoder",
            Self::Compatible => "candle-transformers (slower)",
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

/// The architecture's name in a `config.json`.
pub(crate) fn architecture_of(config: &Value) -> String {
    let named = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    named.or_else(|| text(config, "model_type")).unwrap_or("unknown").to_owned()
}

/// Reads a `config.json`.
pub(crate) fn from_config(config: &Value) -> Result<Descriptor> {
    let architecture = architecture_of(config);
    if decoder::ARCHITECTURES.contains(&architecture.as_str()) {
        return decoder::from_config(&architecture, config).map(Descriptor::Decoder);
    }
    if families::ARCHITECTURES.contains(&architecture.as_str()) {
        return families::from_config(&architecture, config).map(Descriptor::Encoder);
    }
    if compatible::ARCHITECTURES.contains(&architecture.as_str()) {
        return compatible::from_config(&architecture, config).map(Descriptor::Compatible);
    }
    if compatible::ENCODERS.contains(&architecture.as_str()) {
        return compatible::encoder_from_config(config).map(Descriptor::CompatibleEncoder);
    }
    Err(unsupported(&architecture))
}

/// The names in a table of architectures.
pub(crate) const fn names_of<T, const N: usize>(table: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut i = 0;
    while i < N {
        names[i] = table[i].0;
        i += 1;
    }
    names
}

/// All architectures that the engine computes, in the order of their names.
#[must_use]
pub fn architectures() -> Vec<Architecture> {
    let of = |names: &[&'static str], computed_by| {
        let all = names.iter().map(move |name| Architecture { name, family: family_of(name), computed_by });
        all.collect::<Vec<_>>()
    };
    let mut all = of(&decoder::ARCHITECTURES, ComputedBy::PackedDecoder);
    all.extend(of(&families::ARCHITECTURES, ComputedBy::PackedEncoder));
    all.extend(of(&compatible::ARCHITECTURES, ComputedBy::Compatible));
    all.extend(of(&compatible::ENCODERS, ComputedBy::Compatible));
    all.sort_by_key(|architecture| architecture.name);
    all
}

/// `LlamaForCausalLM` and `LlamaModel` are of the family `Llama`, `T5EncoderModel` is of `T5`.
fn family_of(name: &'static str) -> &'static str {
    let head = name.split_once("For").map_or(name, |(family, _)| family);
    let head = head.strip_suffix("Model").unwrap_or(head);
    ["Text", "Encoder"].iter().find_map(|part| head.strip_suffix(part)).unwrap_or(head)
}

/// The refusal of an architecture, with those that are known.
pub(crate) fn unsupported(architecture: &str) -> Error {
    let known = [&decoder::ARCHITECTURES[..], &families::ARCHITECTURES[..]].concat();
    let compatible = [&compatible::ARCHITECTURES[..], &compatible::ENCODERS[..]].concat();
    let in_files = decoder::GGUF_FAMILIES.map(|(family, _)| family);
    Error::invalid(format!("the engine does not know the architecture {architecture}")).hint(format!(
        "it knows {}; through candle-transformers, one row at a time, {}; and GGUF files of {}",
        known.join(", "),
        compatible.join(", "),
        in_files.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn architectures_are_listed_once_with_their_families() {
        let all = architectures();
        assert!(all.windows(2).all(|pair| pair[0].name < pair[1].name));
        let named = |name: &str| all.iter().find(|one| one.name == name).map(|one| (one.family, one.computed_by));
        assert_eq!(named("LlamaForCausalLM"), Some(("Llama", ComputedBy::PackedDecoder)));
        assert_eq!(named("MistralModel"), Some(("Mistral", ComputedBy::PackedDecoder)));
        assert_eq!(named("GPTBigCodeForCausalLM"), Some(("GPTBigCode", ComputedBy::PackedDecoder)));
        assert_eq!(named("BertModel"), Some(("Bert", ComputedBy::PackedEncoder)));
        assert_eq!(named("T5EncoderModel"), Some(("T5", ComputedBy::Compatible)));
        assert_eq!(named("SmolLM3ForCausalLM"), Some(("SmolLM3", ComputedBy::Compatible)));
    }

    #[test]
    fn unknown_architectures_are_refused_with_the_known_ones() {
        let error = from_config(&json!({"architectures": ["RwkvForCausalLM"]})).unwrap_err();
        assert!(error.to_string().contains("RwkvForCausalLM"));
        for known in ["Qwen3ForCausalLM", "PhiForCausalLM"] {
            assert!(error.hint_text().unwrap().contains(known), "{known}");
        }
    }
}
