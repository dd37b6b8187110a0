//! SentencePiece vocabularies (`llama`): pieces with scores, merged best score first, bytes to fall back to.

use std::collections::HashMap;

use rowmill_jobs::Result;
use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;

use super::byte_pair::ids;
use super::vocabulary::{Vocabulary, lacks};
use super::{Parts, spaces_decoder, unusable, without_first_space};
use crate::gguf::GgufFile;

/// Builds the model.
pub(super) fn sentence_piece(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let scores = file.floats("tokenizer.ggml.scores").ok_or_else(|| lacks(file, "tokenizer.ggml.scores"))?;
    let mut builder = BPE::builder()
        .vocab_and_merges(ids(vocabulary), merges(vocabulary, &scores))
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some((_, unknown)) = vocabulary.named(file, "unknown", Some(0)) {
        builder = builder.unk_token(unknown.to_owned());
    }
    let model = builder.build().map_err(|e| unusable(file, e))?;
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefixed = file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let normalizer = if prefixed {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    } else {
        replace
    };
    Ok(Parts {
        model: model.into(),
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: spaces_decoder(prefixed.then(without_first_space)),
        begins: true,
        ends: false,
    })
}

/// SentencePiece merges whatever gives the best-scored piece; as a list of merges that is: all ways to cut a piece in two
/// known ones, best piece first.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.as_ref(), id)).collect();
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (token, score) in vocabulary.tokens.iter().zip(scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, *l, *r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}
