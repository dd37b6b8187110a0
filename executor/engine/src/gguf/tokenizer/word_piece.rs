//! WordPiece vocabularies (`bert`): words cut off white space and punctuation, longest known piece first. Hangul is taken
//! apart whole, as the models were trained; llama.cpp keeps only the first letter of each syllable.

use rowmill_jobs::Result;
use serde_json::json;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;

use super::vocabulary::{Kind, Vocabulary};
use super::{Parts, unusable};
use crate::gguf::GgufFile;

/// What stands alone: punctuation, ASCII symbols, and the ideographs BERT takes for words.
const ALONE: &str = concat!(
    r"[\p{P}[\p{S}&&[\x00-\x7e]]\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}",
    r"\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]"
);

/// Builds the model.
pub(super) fn word_piece(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let piece = |(id, (token, kind)): (usize, (&str, &Kind))| {
        // The converter marks beginnings of words, WordPiece marks everything else.
        let text = match (token.strip_prefix('▁'), kind) {
            (Some(word), _) => word.to_owned(),
            (None, Kind::Special) => token.to_owned(),
            (None, _) => format!("##{token}"),
        };
        (text, id as u32)
    };
    let tokens = vocabulary.tokens.iter().map(|token| token.as_ref()).zip(&vocabulary.kinds);
    let pieces: Vocab = tokens.enumerate().map(piece).collect();
    let mut builder = WordPiece::builder().vocab(pieces).max_input_chars_per_word(usize::MAX);
    if let Some((_, unknown)) = vocabulary.named(file, "unknown", Some(100)) {
        builder = builder.unk_token(unknown.to_owned());
    }
    let lower = file.flag("tokenizer.ggml.normalizer.lowercase").unwrap_or(true);
    let strip = file.flag("tokenizer.ggml.normalizer.strip_accents").unwrap_or(lower);
    let without = |pattern: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""});
    let mut steps = vec![without(r"[[\p{Cc}\p{Cf}\p{Co}\x{FFFD}]&&\S]")];
    if strip {
        steps.extend([json!({"type": "NFD"}), without(r"\p{M}")]);
    }
    if lower {
        steps.push(json!({"type": "Lowercase"}));
    }
    let alone = json!({"type": "Split", "pattern": {"Regex": ALONE}, "behavior": "Isolated", "invert": false});
    Ok(Parts {
        model: builder.build().map_err(|e| unusable(file, e))?.into(),
        normalizer: json!({"type": "Sequence", "normalizers": steps}),
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, alone]}),
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        begins: true,
        ends: true,
    })
}
