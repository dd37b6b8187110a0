//! The list of tokens in a GGUF file, and what each of them is. Some files say wrongly what a token is; where llama.cpp goes
//! by a token's name instead, so does this, because the ids of special tokens would otherwise be those of their letters.

use std::borrow::Cow;
use std::collections::HashMap;

use rowmill_jobs::{Error, Result};

use crate::gguf::GgufFile;

/// Token types of the format.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Names that end an answer: special, whatever the file says.
const ENDS: [&str; 21] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
];

/// Names of the tokens for filling in the middle, by the key that names another token for it.
const MIDDLES: [(&str, &[&str]); 6] = [
    ("fim_pre", &["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"]),
    ("fim_suf", &["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"]),
    ("fim_mid", &["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"]),
    ("fim_pad", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep", &["<|file_sep|>"]),
];

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Found by merging.
    Normal,
    /// Found in the text before anything is merged, and shown.
    UserDefined,
    /// Found in the text before anything is merged, and not shown.
    Special,
}

/// The tokens of a file, by id.
#[derive(Debug)]
pub(super) struct Vocabulary<'a> {
    /// Their texts; none is empty, none is there twice.
    pub(super) tokens: Vec<Cow<'a, str>>,
    pub(super) kinds: Vec<Kind>,
}

impl<'a> Vocabulary<'a> {
    /// Reads the list.
    pub(super) fn read(file: &'a GgufFile) -> Result<Self> {
        let list = file.texts("tokenizer.ggml.tokens").ok_or_else(|| lacks(file, "tokenizer.ggml.tokens"))?;
        let named = |(id, token)| match token {
            "" => Cow::Owned(format!("[EMPTY_{id}]")),
            token => Cow::Borrowed(token),
        };
        let tokens: Vec<Cow<'a, str>> = list.into_iter().enumerate().map(named).collect();
        let types = file.integers("tokenizer.ggml.token_type").unwrap_or_default();
        let mut kinds = vec![Kind::Normal; tokens.len()];
        for (kind, stored) in kinds.iter_mut().zip(types) {
            *kind = match stored {
                UNKNOWN | CONTROL => Kind::Special,
                USER_DEFINED => Kind::UserDefined,
                _ => Kind::Normal,
            };
        }
        let mut ids: HashMap<&str, usize> = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id) {
                let why = format!("{} has the token {token:?} twice, as {first} and {id}", file.path.display());
                return Err(Error::invalid(why).hint("convert the model again"));
            }
        }
        correct(file, &ids, &mut kinds);
        Ok(Self { tokens, kinds })
    }

    /// The token of an id that the metadata name, or of its default.
    pub(super) fn named(&self, file: &GgufFile, key: &str, default: Option<usize>) -> Option<(u32, &str)> {
        let named = file.integer(&format!("tokenizer.ggml.{key}_token_id")).map(|id| id as usize);
        let id = named.filter(|id| *id < self.tokens.len()).or(default)?;
        Some((u32::try_from(id).ok()?, self.tokens.get(id)?))
    }
}

/// Sets right what files often say wrongly.
fn correct(file: &GgufFile, ids: &HashMap<&str, usize>, kinds: &mut [Kind]) {
    let mut set = |token: &str, kind| {
        if let Some(id) = ids.get(token) {
            kinds[*id] = kind;
        }
    };
    for token in ENDS {
        set(token, Kind::Special);
    }
    for (key, names) in MIDDLES {
        if file.integer(&format!("tokenizer.ggml.{key}_token_id")).is_none() {
            names.iter().for_each(|token| set(token, Kind::Special));
        }
    }
    // What a model writes between its channels is wanted as text.
    for token in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
        set(token, Kind::UserDefined);
    }
    let has = |token: &str| ids.contains_key(token);
    let returns = has("<|return|>") && has("<|call|>");
    if returns || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>")) {
        set("<|end|>", Kind::UserDefined);
    }
    if has("<|tool_response>") {
        set("</s>", Kind::Normal);
    }
}

/// The refusal of a file without something its tokenizer needs.
pub(super) fn lacks(file: &GgufFile, key: &str) -> Error {
    Error::invalid(format!("{} has no `{key}`", file.path.display())).hint("convert the model again with its tokenizer")
}
