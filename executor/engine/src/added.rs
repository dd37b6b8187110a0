//! The added tokens of a tokenizer: contents that are looked for in a text before anything else is done with it. [`Added`] takes
//! a text apart at them as the tokenizer would, and says of a text when only the tokenizer can. Knows no other ids.

use aho_corasick::{AhoCorasick, MatchKind};
use rowmill_jobs::{Error, Result};
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

use crate::cuts::normalizers;

/// What a tokenizer looks for in a text first.
#[derive(Debug)]
pub(crate) struct Added {
    /// All contents; where several begin, the longest is found. `None` if there are none.
    contents: Option<AhoCorasick>,
    /// By content: the token's id, if the token is just where its content is.
    ids: Vec<Option<u32>>,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// An added token.
    Token(u32),
    /// What is between them; not empty.
    Text(&'a str),
}

impl Added {
    /// Those of a tokenizer, if they can be found in a text that is not normalised.
    ///
    /// # Errors
    /// They are too many to look for.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let mut tokens: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        let normalizers = tokenizer.get_normalizer().map(normalizers).unwrap_or_default();
        let found_later = tokens.iter().filter(|(_, token)| token.normalized);
        let found = match normalizers.as_slice() {
            [] => true,
            [NormalizerWrapper::NFC(_)] => found_later.into_iter().all(|(_, token)| stays(&token.content)),
            _ => found_later.into_iter().next().is_none(),
        };
        if !found || tokenizer.get_encode_special_tokens() {
            return Ok(None);
        }
        let ids = tokens.iter().map(|(id, token)| {
            let moves = token.lstrip || token.rstrip || token.single_word || token.normalized;
            (!moves).then_some(*id)
        });
        let ids = ids.collect();
        let contents = tokens.iter().map(|(_, token)| &token.content);
        let contents = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(contents)
            .map_err(|e| Error::internal("the tokenizer's added tokens cannot be searched for").caused_by(e))?;
        Ok(Some(Self { contents: (!tokens.is_empty()).then_some(contents), ids }))
    }

    /// Whether one of them is in a text.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        self.contents.as_ref().is_some_and(|contents| contents.is_match(text))
    }

    /// A text's parts, in their order. `None` if there is a token that only the tokenizer can cut out.
    pub(crate) fn parts<'a>(&self, text: &'a str) -> Option<Vec<Part<'a>>> {
        let mut parts = Vec::new();
        let mut from = 0;
        for found in self.contents.iter().flat_map(|contents| contents.find_iter(text)) {
            let id = self.ids.get(found.pattern().as_usize()).copied().flatten()?;
            parts.extend(Some(&text[from..found.start()]).filter(|text| !text.is_empty()).map(Part::Text));
            parts.push(Part::Token(id));
            from = found.end();
        }
        parts.extend(Some(&text[from..]).filter(|text| !text.is_empty()).map(Part::Text));
        Some(parts)
    }
}

/// Whether NFC neither changes a text nor makes it of another one: what it makes of other characters is of ASCII three times.
fn stays(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii() && !b"K;`".contains(&byte))
}
