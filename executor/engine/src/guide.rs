//! Constrained decoding: which tokens may come next so that the output is JSON of a schema or text of a pattern, by
//! llguidance. Valid by construction; this file builds the token table and holds each row's place in the grammar.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::prompt::Prompter;

/// Makes guides for one model.
pub(crate) struct Guides {
    factory: ParserFactory,
    environment: TokEnv,
}

impl std::fmt::Debug for Guides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guides")
    }
}

/// One row's place in its grammar. Clones share what its lexer has learned, and that it failed: then each of them fails with
/// what it is asked next.
#[derive(Clone)]
pub(crate) struct Guide(Matcher);

struct Environment {
    trie: TokTrie,
    prompter: Arc<Prompter>,
    canonical: bool,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if !self.canonical {
            return self.trie.greedy_tokenize(bytes);
        }
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.prompter.tokens.encode_data(text).unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}

impl Guides {
    /// Builds the table of what each token spells. Slow (a pass over the vocabulary): once a model, when first needed.
    pub(crate) fn new(prompter: &Arc<Prompter>) -> Result<Self> {
        let end = prompter.end_of_turn.ok_or_else(|| {
            Error::invalid("the model names no token that ends an answer, so output of a given shape cannot end")
                .hint("use an instruction-tuned model")
        })?;
        let spelling = Spelling::of(&prompter.tokens.decoder_json());
        let words: Vec<Vec<u8>> = (0..prompter.vocab as u32).map(|id| spell(prompter, id, spelling)).collect();
        let mut ends = vec![end];
        ends.extend(prompter.ends.iter().copied().filter(|id| *id != end));
        let trie = TokTrie::from(&TokRxInfo::new(prompter.vocab as u32, end), &words).with_eos_tokens(&ends);
        // A tokenizer that puts a space before every text cannot say how a piece within a text is spelled.
        let adds_space = prompter.tokens.pre_tokenizer_json().to_string().contains("\"add_prefix_space\":true");
        let canonical = spelling == Spelling::ByteLevel && !adds_space;
        let environment: TokEnv = Arc::new(Environment { trie, prompter: Arc::clone(prompter), canonical });
        let mut factory = ParserFactory::new_simple(&environment).map_err(failed)?;
        factory.quiet();
        Ok(Self { factory, environment })
    }

    /// Compiles a schema. Clone the guide for each row.
    pub(crate) fn json(&self, schema: &Value) -> Result<Guide> {
        let mut schema = schema.clone();
        let compact = json!({"item_separator": ",", "key_separator": ":", "whitespace_flexible": false});
        match &mut schema {
            Value::Object(object) => {
                object.insert("x-guidance".to_owned(), compact);
            }
            // `true` is the schema that anything fits.
            _ => schema = json!({"x-guidance": compact}),
        }
        self.compile(TopLevelGrammar::from_json_schema(schema)).map_err(|why| {
            Error::invalid("the output's JSON schema cannot be enforced")
                .caused_by(why)
                .hint("use objects, arrays, strings, numbers, booleans, enum and const")
        })
    }

    /// Compiles a regular expression that the whole output matches. Clone the guide for each row.
    pub(crate) fn pattern(&self, pattern: &str) -> Result<Guide> {
        self.compile(TopLevelGrammar::from_regex(pattern)).map_err(|why| {
            Error::invalid("the output's pattern cannot be enforced")
                .caused_by(why)
                .hint("use characters, classes, groups, alternatives and repetitions, without look-around")
        })
    }

    fn compile(&self, grammar: TopLevelGrammar) -> std::result::Result<Guide, std::io::Error> {
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            None => Ok(Guide(matcher)),
            Some(why) => Err(std::io::Error::other(why.lines().next().unwrap_or_default().to_owned())),
        }
    }

    /// The bytes that tokens spell.
    pub(crate) fn bytes(&self, ids: &[u32]) -> Vec<u8> {
        self.environment.tok_trie().decode(ids)
    }
}

impl Guide {
    /// The same place, with a lexer of its own: whatever it fails with, no other does. Takes as much memory as the lexer has.
    pub(crate) fn apart(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// Tokens that have no alternative now; they count as taken.
    pub(crate) fn forced(&mut self) -> Vec<u32> {
        self.0.consume_ff_tokens()
    }

    /// The best allowed token for these logits (`[vocab]`), or `None` if the grammar has failed.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let mask = self.0.compute_mask_or_eos().ok()?;
        let mut best: Option<(f32, u32)> = None;
        mask.iter_set_entries(|id| {
            if let Some(logit) = logits.get(id)
                && best.is_none_or(|(top, _)| *logit > top)
            {
                best = Some((*logit, id as u32));
            }
        });
        best.map(|(_, id)| id)
    }

    /// A bit for each token, the first lowest: whether it is allowed now. None is if the grammar has failed.
    #[cfg(feature = "cuda")]
    pub(crate) fn allowed(&mut self) -> Vec<u32> {
        self.0.compute_mask_or_eos().map(|mask| mask.as_slice().to_vec()).unwrap_or_default()
    }

    /// Takes a chosen token. One that the grammar does not allow makes it fail.
    pub(crate) fn take(&mut self, token: u32) {
        // What came of it is asked of `has_failed`.
        drop(self.0.consume_token(token));
    }

    /// Whether the output is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.is_stopped() && !self.has_failed()
    }

    /// Whether nothing more can be known of the grammar: it met a limit of its library, or the library a defect.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.is_error()
    }

    /// Makes it and all that share its lexer fail.
    #[cfg(test)]
    pub(crate) fn fail(&mut self) {
        drop(self.0.test_trigger_lexer_error());
    }
}

/// How token texts stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's table of one character a byte.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0x0A>` a byte.
    Pieces,
}

impl Spelling {
    fn of(decoder: &Value) -> Self {
        if decoder.to_string().contains("\"ByteLevel\"") { Self::ByteLevel } else { Self::Pieces }
    }
}

fn spell(prompter: &Prompter, id: u32, spelling: Spelling) -> Vec<u8> {
    let marked = |name: String| [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
    let Some(text) = prompter.tokens.content_of(id) else { return marked(format!("<[{id}]>")) };
    if prompter.tokens.is_marker_id(id) || prompter.ends.contains(&id) {
        return marked(text);
    }
    match spelling {
        // Added tokens that only spell something are written as they are, not in the table's characters.
        Spelling::ByteLevel => text.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or(text.into_bytes()),
        Spelling::Pieces => {
            match text.strip_prefix("<0x").and_then(|rest| u8::from_str_radix(rest.strip_suffix('>')?, 16).ok()) {
                Some(byte) => vec![byte],
                None => text.replace('▁', " ").into_bytes(),
            }
        }
    }
}

/// The byte a character of GPT-2's table stands for.
fn byte_of(c: char) -> Option<u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = c as u32;
    match u8::try_from(code) {
        Ok(byte) if plain(byte) => Some(byte),
        Ok(_) => None,
        // The others were given the characters from 256 on, in order.
        Err(_) => (0..=255u8).filter(|byte| !plain(*byte)).nth((code as usize).checked_sub(256)?),
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::internal("constrained decoding could not be prepared").caused_by(std::io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_gpt_2s() {
        assert_eq!(byte_of('A'), Some(b'A'));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('ł'), Some(0xa0));
        assert_eq!(byte_of('Ń'), Some(0xad));
        assert_eq!(byte_of('東'), None);
        let table: Vec<u8> = (0..324u32).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(table.len(), 256);
    }
}
