//! What belongs to a model's prompts beside its tokenizer: the chat template, and the tokens that begin and end texts, from the
//! files beside the weights or from a GGUF's metadata. Ids that are none of the vocabulary are not used.

use rowmill_jobs::Result;
use serde_json::Value;

use crate::chat::ChatTemplate;
use crate::gguf::GgufFile;
use crate::prompt::Prompter;
use crate::source::{Folder, read_json_if_there, unreadable};
use crate::tokens::Tokens;

/// What belongs to prompts beside the tokenizer itself.
#[derive(Default)]
pub(crate) struct Texts {
    template: Option<String>,
    bos: String,
    eos: String,
    /// As the files say them: they may be none of the vocabulary.
    ends: Vec<u64>,
}

/// Those of a folder.
pub(crate) fn folder_texts(folder: &Folder) -> Result<Texts> {
    let config = read_json_if_there(&folder.root, "tokenizer_config.json")?.unwrap_or_default();
    let special = |key: &str| match config.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let file = folder.root.join("chat_template.jinja");
    let template = if file.is_file() {
        Some(std::fs::read_to_string(&file).map_err(|e| unreadable(&file, e))?)
    } else {
        match config.get("chat_template") {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(named)) => named
                .iter()
                .find(|item| item.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|item| item.get("template")?.as_str().map(str::to_owned)),
            _ => None,
        }
    };
    let generation = read_json_if_there(&folder.root, "generation_config.json")?.unwrap_or_default();
    let mut ends = Vec::new();
    for value in [generation.get("eos_token_id"), folder.config.get("eos_token_id")].into_iter().flatten() {
        let one = value.as_u64().into_iter();
        ends.extend(one.chain(value.as_array().into_iter().flatten().filter_map(Value::as_u64)));
    }
    Ok(Texts { template, bos: special("bos_token"), eos: special("eos_token"), ends })
}

/// Those of a GGUF file.
pub(crate) fn gguf_texts(file: &GgufFile) -> Texts {
    let list = file.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let id = |key: &str| file.integer(&format!("tokenizer.ggml.{key}_token_id"));
    let text =
        |key: &str| id(key).and_then(|id| list.get(id as usize)).map(|text| (*text).to_owned()).unwrap_or_default();
    let mut ends: Vec<u64> = ["eos", "eot", "eom"].iter().filter_map(|key| id(key)).collect();
    // Files name one or two of these; llama.cpp ends at any of them that the vocabulary has.
    let known = ["<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|eom_id|>"];
    let also = list.iter().enumerate().filter(|(_, token)| known.contains(token)).map(|(id, _)| id as u64);
    ends.extend(also);
    Texts {
        template: file.text("tokenizer.chat_template").map(str::to_owned),
        bos: text("bos"),
        eos: text("eos"),
        ends,
    }
}

/// Makes prompts of texts as they are.
pub(crate) fn prompter(tokens: Tokens, texts: Texts, vocab: usize, context: usize) -> Result<Prompter> {
    let chat = texts.template.map(|template| ChatTemplate::new(template, &texts.bos, &texts.eos)).transpose()?;
    // What the model cannot write ends nothing.
    let known = |id: u64| u32::try_from(id).ok().filter(|id| (*id as usize) < vocab);
    let eos = tokens.id_of(&texts.eos).and_then(|id| known(id.into()));
    let mut ends: Vec<u32> = texts.ends.into_iter().filter_map(known).collect();
    ends.extend(eos);
    let named = eos.or(ends.first().copied());
    let after = chat.as_ref().and_then(ChatTemplate::after_answer).unwrap_or_default();
    let written = ends.iter().copied().find(|id| {
        tokens.content_of(*id).is_some_and(|content| !content.is_empty() && after.trim_start().starts_with(&content))
    });
    ends.sort_unstable();
    ends.dedup();
    Ok(Prompter { tokens, chat, ends, end_of_turn: written.or(named), vocab, context, lower_case: false })
}
