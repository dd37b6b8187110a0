//! Byte-pair vocabularies: byte-level ones (`gpt2`), and those over characters with bytes to fall back to (`gemma4`).

use std::collections::HashSet;

use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};

use super::splits::{Rules, rules};
use super::vocabulary::{Vocabulary, lacks};
use super::{Parts, spaces_decoder, unknown, unusable};
use crate::gguf::GgufFile;

/// Byte-level merges.
pub(super) fn byte_level(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let rules = named_rules(file, file.text("tokenizer.ggml.pre").unwrap_or("default"))?;
    let model = BPE::builder()
        .vocab_and_merges(ids(vocabulary), merges(file, vocabulary)?)
        .ignore_merges(rules.whole_pieces)
        .build()
        .map_err(|e| unusable(file, e))?;
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let mut steps = splits(rules);
    steps.push(bytes.clone());
    Ok(Parts {
        model: model.into(),
        normalizer: Value::Null,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        decoder: bytes,
        begins: rules.begins,
        ends: false,
    })
}

/// Merges of characters, spaces written as `▁`.
pub(super) fn character_level(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let rules = named_rules(file, "gemma4")?;
    let model = BPE::builder()
        .vocab_and_merges(ids(vocabulary), merges(file, vocabulary)?)
        .byte_fallback(true)
        .build()
        .map_err(|e| unusable(file, e))?;
    Ok(Parts {
        model: model.into(),
        normalizer: json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": splits(rules)}),
        decoder: spaces_decoder(None),
        begins: true,
        ends: false,
    })
}

fn named_rules(file: &GgufFile, name: &str) -> Result<Rules> {
    rules(name).ok_or_else(|| unknown(file, "tokenizer.ggml.pre", name))
}

fn splits(rules: Rules) -> Vec<Value> {
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    rules.splits.iter().map(split).collect()
}

/// Token ids by their texts.
pub(super) fn ids(vocabulary: &Vocabulary<'_>) -> Vocab {
    vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id as u32)).collect()
}

/// The merges, best first. What they join and what they give must be tokens.
fn merges(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Vec<(String, String)>> {
    let list = file.texts("tokenizer.ggml.merges").ok_or_else(|| lacks(file, "tokenizer.ggml.merges"))?;
    let tokens: HashSet<&str> = vocabulary.tokens.iter().map(|token| token.as_ref()).collect();
    let mut seen = HashSet::with_capacity(list.len());
    let mut merges = Vec::with_capacity(list.len());
    for merge in list {
        // The blank in between is not the first character: that may be one itself.
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let parts = at.map(|at| (&merge[..at], &merge[at + 1..]));
        let known = |(left, right): &(&str, &str)| {
            tokens.contains(left) && tokens.contains(right) && tokens.contains(&*format!("{left}{right}"))
        };
        let Some((left, right)) = parts.filter(known) else {
            let why = format!("{} merges {merge:?}, which is not of its tokens", file.path.display());
            return Err(Error::invalid(why).hint("convert the model again"));
        };
        if seen.insert((left, right)) {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(merges)
}
