//! The tokenizer that a GGUF file carries, rebuilt as a `tokenizers` one so that it gives llama.cpp's ids: byte-level and
//! character-level byte pairs (`gpt2`, `gemma4`), SentencePiece (`llama`) and WordPiece (`bert`). A kind or a way of cutting
//! text that it does not know is refused by name: a wrong one would quietly give worse answers.

mod byte_pair;
mod sentence_piece;
mod splits;
mod vocabulary;
mod word_piece;

#[cfg(test)]
mod tests;

use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use self::vocabulary::{Kind, Vocabulary};
use super::GgufFile;

/// What the kinds of tokenizers differ in; beside the model, as the JSON of the `tokenizers` library.
struct Parts {
    model: ModelWrapper,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// A text begins with a token for it, unless the file says otherwise.
    begins: bool,
    /// A text ends with a separator.
    ends: bool,
}

/// Builds the tokenizer.
pub(crate) fn tokenizer(file: &GgufFile) -> Result<Tokenizer> {
    let vocabulary = Vocabulary::read(file)?;
    let kind = file.text("tokenizer.ggml.model").unwrap_or("none");
    let (parts, first) = match kind {
        "gpt2" => (byte_pair::byte_level(file, &vocabulary)?, Some(11)),
        "gemma4" => (byte_pair::character_level(file, &vocabulary)?, None),
        "llama" => (sentence_piece::sentence_piece(file, &vocabulary)?, Some(1)),
        "bert" => (word_piece::word_piece(file, &vocabulary)?, Some(101)),
        other => return Err(unknown(file, "tokenizer.ggml.model", other)),
    };
    // Gemma 4 begins its texts whatever its files say, and the pieces of BERT are nothing without their frame.
    let always = ["gemma4", "bert"].contains(&kind);
    let begins = always || file.flag("tokenizer.ggml.add_bos_token").unwrap_or(parts.begins);
    let before = vocabulary.named(file, "bos", first).filter(|_| begins);
    let eos = vocabulary.named(file, "eos", None).filter(|_| file.flag("tokenizer.ggml.add_eos_token") == Some(true));
    let after = if parts.ends { vocabulary.named(file, "seperator", Some(102)) } else { eos };
    let mut tokenizer = Tokenizer::new(parts.model);
    let json = |e: serde_json::Error| unusable(file, e.into());
    tokenizer
        .with_normalizer(
            serde_json::from_value::<Option<tokenizers::NormalizerWrapper>>(parts.normalizer).map_err(json)?,
        )
        .map_err(|e| unusable(file, e))?
        .with_pre_tokenizer(
            serde_json::from_value::<Option<tokenizers::PreTokenizerWrapper>>(parts.pre_tokenizer).map_err(json)?,
        )
        .with_decoder(serde_json::from_value::<Option<tokenizers::DecoderWrapper>>(parts.decoder).map_err(json)?)
        .with_post_processor(
            serde_json::from_value::<Option<tokenizers::PostProcessorWrapper>>(frame(before, after)).map_err(json)?,
        );
    tokenizer.add_tokens(added(file, &vocabulary)).map_err(|e| unusable(file, e))?;
    Ok(tokenizer)
}

/// The tokens that are found in a text before it is cut.
fn added(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Vec<AddedToken> {
    // Phi-3's special tokens take the white space behind them along; nothing in its files says so but their name.
    let name = file.text("general.name").unwrap_or_default().to_lowercase();
    let strips = name.contains("phi-3") || name.contains("phi3");
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds);
    let found = tokens.filter(|(_, kind)| **kind != Kind::Normal).map(|(token, kind)| {
        let exempt = ["<unk>", "<s>", "<|endoftext|>"].contains(&token.as_ref());
        AddedToken::from(token.to_string(), *kind == Kind::Special).normalized(false).rstrip(strips && !exempt)
    });
    found.collect()
}

/// The post-processor that puts tokens around a text.
fn frame(before: Option<(u32, &str)>, after: Option<(u32, &str)>) -> Value {
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(u32, &str)>, part: u32| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": part}}))
    };
    let text = |id: &str, part: u32| Some(json!({"Sequence": {"id": id, "type_id": part}}));
    let single: Vec<Value> = [special(before, 0), text("A", 0), special(after, 0)].into_iter().flatten().collect();
    let second = [text("B", 1), special(after, 1)].into_iter().flatten();
    let pair: Vec<Value> = single.iter().cloned().chain(second).collect();
    let tokens: serde_json::Map<String, Value> = [before, after]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

/// The decoder of pieces that write a space as `▁`, and what it does to the text at last.
fn spaces_decoder(last: Option<Value>) -> Value {
    let spaces = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let steps = [spaces, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    json!({"type": "Sequence", "decoders": steps.into_iter().chain(last).collect::<Vec<_>>()})
}

/// Takes a space that was put before a text off again.
fn without_first_space() -> Value {
    json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})
}

fn unusable(file: &GgufFile, error: tokenizers::Error) -> Error {
    Error::invalid(format!("the tokenizer in {} cannot be used", file.path.display()))
        .caused_by(error)
        .hint("convert the model again")
}

fn unknown(file: &GgufFile, key: &str, value: &str) -> Error {
    Error::invalid(format!("{} has a tokenizer the engine does not know: {key} = \"{value}\"", file.path.display()))
        .hint("use the model's safetensors folder, whose tokenizer.json says it all")
}
