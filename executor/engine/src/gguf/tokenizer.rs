//! The tokenizer that a GGUF file carries, rebuilt as a `tokenizers` one: byte-level BPE (`gpt2`) and SentencePiece BPE
//! (`llama`). A pre-tokenizer it does not know is refused by name: a wrong split would quietly give worse answers.

use std::collections::HashMap;

use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::gguf::GgufFile;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Token types of the format.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Builds the tokenizer.
pub(crate) fn tokenizer(file: &GgufFile) -> Result<Tokenizer> {
    let list = file.texts("tokenizer.ggml.tokens").ok_or_else(|| lacks(file, "tokenizer.ggml.tokens"))?;
    let parts = match file.text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(file)?,
        Some("llama") => sentence_piece(file, &list)?,
        other => return Err(unknown(file, "tokenizer.ggml.model", other.unwrap_or("none"))),
    };
    let types = file.integers("tokenizer.ggml.token_type").unwrap_or_default();
    let added: Vec<Value> = list
        .iter()
        .enumerate()
        .filter_map(|(id, content)| {
            let kind = *types.get(id)?;
            (kind == CONTROL || kind == USER_DEFINED).then(|| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind == CONTROL})
            })
        })
        .collect();
    let bos = file.integer("tokenizer.ggml.bos_token_id").and_then(|id| Some((id, *list.get(id as usize)?)));
    // Where the flag is missing, llama.cpp takes it to be set for SentencePiece.
    let adds_bos =
        file.flag("tokenizer.ggml.add_bos_token").unwrap_or(file.text("tokenizer.ggml.model") == Some("llama"));
    let post_processor = match bos.filter(|_| adds_bos) {
        None => Value::Null,
        Some((id, bos)) => json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}}),
    };
    let mut model = parts.model;
    model["vocab"] = list
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": parts.normalizer, "pre_tokenizer": parts.pre_tokenizer, "post_processor": post_processor,
        "decoder": parts.decoder, "model": model});
    let bytes = serde_json::to_vec(&whole).map_err(|e| Error::internal("a tokenizer is not JSON").caused_by(e))?;
    Tokenizer::from_bytes(bytes)
        .map_err(|e| Error::invalid(format!("the tokenizer in {} cannot be used", file.path.display())).caused_by(e))
}

struct Parts {
    model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

fn byte_level(file: &GgufFile) -> Result<Parts> {
    let merges = file.texts("tokenizer.ggml.merges").ok_or_else(|| lacks(file, "tokenizer.ggml.merges"))?;
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, bytes(false)]})
    };
    let pre = file.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let (pre_tokenizer, normalizer) = match pre {
        "gpt-2" | "default" => (bytes(true), Value::Null),
        "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3), Value::Null),
        "qwen2" => (split(QWEN2), json!({"type": "NFC"})),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), Value::Null)
        }
        other => return Err(unknown(file, "tokenizer.ggml.pre", other)),
    };
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": pre.starts_with("llama"), "merges": merges});
    Ok(Parts { model, normalizer, pre_tokenizer, decoder: bytes(true) })
}

fn sentence_piece(file: &GgufFile, list: &[&str]) -> Result<Parts> {
    let scores = file.floats("tokenizer.ggml.scores").ok_or_else(|| lacks(file, "tokenizer.ggml.scores"))?;
    let ids: HashMap<&str, usize> = list.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    // SentencePiece merges whatever gives the best-scored piece; as a list of merges that is: all ways to cut a piece in
    // two known ones, best piece first.
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (token, score) in list.iter().zip(&scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, *l, *r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(_, _, _, left, right)| [left, right]).collect();
    let unknown = file.integer("tokenizer.ggml.unknown_token_id").and_then(|id| list.get(id as usize));
    let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "merges": merges});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefixed = file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let normalizer = if prefixed {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    } else {
        replace
    };
    Ok(Parts {
        model,
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
    })
}

fn lacks(file: &GgufFile, key: &str) -> Error {
    Error::invalid(format!("{} has no `{key}`", file.path.display())).hint("convert the model again with its tokenizer")
}

fn unknown(file: &GgufFile, key: &str, value: &str) -> Error {
    Error::invalid(format!("{} has a tokenizer the engine does not know: {key} = \"{value}\"", file.path.display()))
        .hint("use the model's safetensors folder, whose tokenizer.json says it all")
}
