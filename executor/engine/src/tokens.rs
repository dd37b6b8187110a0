//! Text to token ids and back, with the `tokenizers` library, and what it said of words before. Its truncation and padding
//! settings are ignored: packing needs neither. Text that is data is encoded so that nothing in it becomes a special token.

use std::path::Path;

use rowmill_jobs::{Error, Result};
use serde_json::Value;
use tokenizers::{AddedVocabulary, Tokenizer};

use crate::pieces::Pieces;

/// Names of the token for unknown characters.
const UNKNOWN: [&str; 2] = ["[UNK]", "<unk>"];

/// Bytes of text that a token has at least, by and large; for how much room is taken at first.
pub(crate) const BYTES_PER_TOKEN: usize = 3;

/// A model's tokenizer.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    /// The same without added tokens, but for those that only spell something: whatever it encodes is text.
    text_only: Tokenizer,
    /// Pieces of texts for `tokenizer`, if it need not see them whole.
    pieces: Option<Pieces>,
    markers: Vec<Marker>,
    /// By id: whether the token is a marker.
    is_marker: Vec<bool>,
    /// Special tokens that stand before a text (`<s>`, `[CLS]`).
    pub(crate) prefix: Vec<u32>,
    /// Special tokens that stand after a text (`[SEP]`).
    pub(crate) suffix: Vec<u32>,
}

/// An added token that steers the model, as opposed to one that only spells something.
#[derive(Debug, Clone)]
struct Marker {
    content: String,
    id: u32,
    /// It takes the white space on its left, or right, with it.
    strips_left: bool,
    strips_right: bool,
}

/// A piece of a prompt that was taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Span<'a> {
    Marker(u32),
    Text(&'a str),
}

impl Tokens {
    /// Reads a `tokenizer.json`.
    pub(crate) fn from_file(path: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(path).map_err(|e| {
            Error::invalid(format!("{} cannot be read", path.display())).caused_by(e).hint("download the model again")
        })?;
        Self::new(tokenizer)
    }

    /// Takes a tokenizer.
    pub(crate) fn new(mut tokenizer: Tokenizer) -> Result<Self> {
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(broken)?;
        let mut text_only = tokenizer.clone();
        text_only.with_added_vocabulary(AddedVocabulary::new());
        let mut markers = Vec::new();
        let mut spellings = Vec::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            // Some models mark their control tokens as not special; by their looks they are recognised all the same.
            let looks = token.content.starts_with(['<', '[']) && token.content.ends_with(['>', ']']);
            if token.special || looks {
                let (strips_left, strips_right) = (token.lstrip, token.rstrip);
                markers.push(Marker { content: token.content, id, strips_left, strips_right });
            } else {
                spellings.push((id, token));
            }
        }
        // What stands for unknown characters is an added token too, but it steers nothing. Which one that is shows
        // with characters of two scripts nobody has written for long.
        let unknown = text_only.encode_fast("\u{13000} \u{10A60}", false).map_err(broken)?;
        markers.retain(|marker| !unknown.get_ids().contains(&marker.id) && !UNKNOWN.contains(&marker.content.as_str()));
        // Runs of blanks or new lines, say: text has them, too. Their ids are given anew in this order, and may differ.
        spellings.sort_by_key(|(id, _)| *id);
        text_only.add_tokens(spellings.iter().map(|(_, token)| token.clone())).map_err(broken)?;
        if spellings.iter().any(|(id, token)| text_only.token_to_id(&token.content) != Some(*id)) {
            text_only.with_added_vocabulary(AddedVocabulary::new());
        }
        // Longest first, so that the first one that matches is the longest.
        markers.sort_by_key(|marker| (std::cmp::Reverse(marker.content.len()), marker.id));
        let mut is_marker = vec![false; markers.iter().map(|marker| marker.id as usize + 1).max().unwrap_or(0)];
        for marker in &markers {
            is_marker[marker.id as usize] = true;
        }
        let pieces = Pieces::of(&tokenizer)?;
        let (prefix, suffix) = (Vec::new(), Vec::new());
        let mut tokens = Self { tokenizer, text_only, pieces, markers, is_marker, prefix, suffix };
        let plain = tokens.encode("a")?;
        let wrapped = tokens.tokenizer.encode_fast("a", true).map_err(broken)?.get_ids().to_vec();
        if let Some(at) = wrapped.windows(plain.len().max(1)).position(|window| window == plain) {
            tokens.prefix = wrapped[..at].to_vec();
            tokens.suffix = wrapped[at + plain.len()..].to_vec();
        }
        Ok(tokens)
    }

    /// The ids of a text, its special tokens recognised, none added.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if let Some(pieces) = &self.pieces {
            let mut ids = Vec::with_capacity(text.len() / BYTES_PER_TOKEN);
            if pieces.encode(&self.tokenizer, text, &mut ids)? {
                return Ok(ids);
            }
        }
        self.encode_whole(text)
    }

    fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(broken)?.get_ids().to_vec())
    }

    /// Adds the first ids, `ids_max` of them if there are so many, of a text that is data: if its special tokens would be
    /// recognised, those of [`Tokens::encode_data`].
    pub(crate) fn encode_beginning(&self, text: &str, ids_max: usize, ids: &mut Vec<u32>) -> Result<()> {
        let before = ids.len();
        if let Some(pieces) = self.pieces.as_ref().filter(|pieces| !pieces.has_added(text)) {
            pieces.encode_beginning(&self.tokenizer, text, before.saturating_add(ids_max), ids)?;
            if self.markers_in(&ids[before..]) == 0 {
                ids.truncate(before.saturating_add(ids_max));
                return Ok(());
            }
            ids.truncate(before);
        }
        let mut body = self.encode_whole(text)?;
        if self.markers_in(&body) > 0 {
            body = self.encode_data(text)?;
        }
        body.truncate(ids_max);
        ids.extend(body);
        Ok(())
    }

    /// The ids of a text in which nothing is special.
    pub(crate) fn encode_data(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.text_only.encode_fast(text, false).map_err(broken)?.get_ids().to_vec();
        if self.markers_in(&ids) == 0 {
            return Ok(ids);
        }
        // The model's own vocabulary spells a marker in one piece: taken character by character it has no such piece.
        let mut ids = Vec::new();
        for c in text.chars() {
            let piece = self.text_only.encode_fast(c.to_string(), false).map_err(broken)?;
            ids.extend(piece.get_ids().iter().filter(|id| !self.is_marker_id(**id)));
        }
        Ok(ids)
    }

    /// The ids of a trusted text with untrusted parts. `text` has a placeholder for each part; `fill` replaces them.
    pub(crate) fn encode_with_data(&self, text: &str, fill: impl Fn(&str) -> String) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for span in spans(text, &self.markers) {
            match span {
                Span::Marker(id) => ids.push(id),
                Span::Text(text) => ids.extend(self.encode_data(&fill(text))?),
            }
        }
        Ok(ids)
    }

    /// How many of these ids are special.
    pub(crate) fn markers_in(&self, ids: &[u32]) -> usize {
        ids.iter().filter(|id| self.is_marker_id(**id)).count()
    }

    /// Whether the token steers the model.
    pub(crate) fn is_marker_id(&self, id: u32) -> bool {
        self.is_marker.get(id as usize).copied().unwrap_or(false)
    }

    /// The id of a token, by its content.
    pub(crate) fn id_of(&self, content: &str) -> Option<u32> {
        self.tokenizer.token_to_id(content)
    }

    /// A token's content.
    pub(crate) fn content_of(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Text of generated ids, without special tokens.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(broken)
    }

    /// The tokenizer's decoder as its own JSON, which tells how tokens spell bytes.
    pub(crate) fn decoder_json(&self) -> Value {
        self.tokenizer.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok()).unwrap_or_default()
    }

    /// The pre-tokenizer as its own JSON.
    pub(crate) fn pre_tokenizer_json(&self) -> Value {
        self.tokenizer.get_pre_tokenizer().and_then(|pre| serde_json::to_value(pre).ok()).unwrap_or_default()
    }
}

/// Takes a text apart at its markers, as the tokenizer itself does before it looks at the rest.
fn spans<'a>(text: &'a str, markers: &[Marker]) -> Vec<Span<'a>> {
    let mut spans = Vec::new();
    let mut rest = text;
    let mut at = 0;
    while at < rest.len() {
        let found =
            rest.is_char_boundary(at).then(|| markers.iter().find(|m| rest[at..].starts_with(&m.content))).flatten();
        let Some(marker) = found else {
            at += 1;
            continue;
        };
        let before = if marker.strips_left { rest[..at].trim_end() } else { &rest[..at] };
        if !before.is_empty() {
            spans.push(Span::Text(before));
        }
        spans.push(Span::Marker(marker.id));
        rest = &rest[at + marker.content.len()..];
        if marker.strips_right {
            rest = rest.trim_start();
        }
        at = 0;
    }
    if !rest.is_empty() {
        spans.push(Span::Text(rest));
    }
    spans
}

fn broken(error: tokenizers::Error) -> Error {
    Error::internal("the tokenizer failed").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_at_the_longest_marker_first_from_the_left() {
        let marker =
            |content: &str, id, strips_right| Marker { content: content.into(), id, strips_left: false, strips_right };
        let markers = [marker("<|end|>x", 2, false), marker("<|end|>", 1, true)];
        let expected = [Span::Text("é"), Span::Marker(1), Span::Text("b "), Span::Marker(2), Span::Marker(1)];
        assert_eq!(spans("é<|end|>  b <|end|>x<|end|>", &markers), expected);
        assert_eq!(spans("", &markers), []);
    }
}
