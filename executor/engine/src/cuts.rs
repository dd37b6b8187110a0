//! Where a text may be cut so that the ids of its parts, one after the other, are the ids of the whole. A tokenizer normalises a
//! text, splits it and looks at each split alone; where no step of the first two sees across a place, a cut there changes
//! nothing. [`Cuts::of`] finds such places from the steps themselves, their expressions included, and knows none for a
//! tokenizer with a step that it does not understand. Gives no ids.

use regex_syntax::hir::{Class, Hir, HirKind};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// How texts are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// At blanks, which are in no part, and around each punctuation mark of ASCII, which is one: what BERT's tokenizer does.
    Words,
    /// Before certain characters, depending on the one before them.
    Before(Box<Before>),
}

/// Cuts before characters of ASCII that are neither letters nor digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Before {
    /// By the character behind the cut: which of [`SOLID`] and [`ALPHANUMERIC`] may be before it.
    after: [u8; 128],
    /// Only where the character after that one is of ASCII, too: what is written on top of a character is normalised with it.
    plain: bool,
}

/// A character that is not white space.
const SOLID: u8 = 1;
/// A letter or digit of ASCII.
const ALPHANUMERIC: u8 = 2;

/// What GPT-2's tokenizer splits by, which `ByteLevel` has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

impl Cuts {
    /// Where this tokenizer's texts may be cut, if that is known. Its added tokens are somebody else's care.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        // With dropout, a text has other ids each time.
        if matches!(tokenizer.get_model(), ModelWrapper::BPE(model) if model.dropout.is_some()) {
            return None;
        }
        let normalizers = tokenizer.get_normalizer().map(normalizers).unwrap_or_default();
        match (normalizers.as_slice(), tokenizer.get_pre_tokenizer()?) {
            // It normalises character by character, or a character with the marks on top of it.
            ([NormalizerWrapper::BertNormalizer(_)], PreTokenizerWrapper::BertPreTokenizer(_)) => Some(Self::Words),
            ([], steps) => Before::of(steps, false),
            ([NormalizerWrapper::NFC(_)], steps) => Before::of(steps, true),
            _ => None,
        }
    }

    /// The first part of a text that is not empty, and the rest.
    #[inline]
    pub(crate) fn first<'a>(&self, text: &'a str) -> (&'a str, &'a str) {
        match self {
            Self::Words => first_word(text),
            Self::Before(before) => before.first(text),
        }
    }
}

/// Kinds of bytes where words are cut.
const INSIDE: u8 = 0;
const BLANK: u8 = 1;
const MARK: u8 = 2;
const WORD_BYTES: [u8; 256] = {
    let mut kinds = [INSIDE; 256];
    let mut byte = 0u8;
    while byte < 128 {
        kinds[byte as usize] = match byte {
            b' ' | b'\t' | b'\n' | b'\r' => BLANK,
            _ if byte.is_ascii_punctuation() => MARK,
            _ => INSIDE,
        };
        byte += 1;
    }
    kinds
};

/// The first word or mark, which is empty if there is none, and what is behind it.
#[inline]
fn first_word(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let kind = |byte: &u8| WORD_BYTES[*byte as usize];
    let start = bytes.iter().position(|byte| kind(byte) != BLANK).unwrap_or(bytes.len());
    let end = match bytes.get(start).map(kind) {
        Some(MARK) => start + 1,
        _ => bytes[start..].iter().position(|byte| kind(byte) != INSIDE).map_or(bytes.len(), |length| start + length),
    };
    (&text[start..end], &text[end..])
}

impl Before {
    fn of(steps: &PreTokenizerWrapper, plain: bool) -> Option<Cuts> {
        let mut expressions = Vec::new();
        let mut prefixes = false;
        // Whether characters have become signs for their bytes, of which expressions say something else.
        let mut of_bytes = false;
        for step in pre_tokenizers(steps) {
            match step {
                PreTokenizerWrapper::Split(_) if of_bytes => return None,
                PreTokenizerWrapper::ByteLevel(bytes) if of_bytes && bytes.use_regex => return None,
                PreTokenizerWrapper::Split(split) => expressions.push(parsed(&expression(split)?)?),
                PreTokenizerWrapper::ByteLevel(bytes) => {
                    // A space is put before each split that has none: before one that a cut made, too.
                    prefixes |= bytes.add_prefix_space;
                    if bytes.use_regex {
                        expressions.push(parsed(GPT2)?);
                    }
                    of_bytes = true;
                }
                // Digits are split off whatever is beside them; no cut is between two of them.
                PreTokenizerWrapper::Digits(_) => {}
                _ => return None,
            }
        }
        let mut after = [0; 128];
        for byte in (0u8..128).filter(|byte| !byte.is_ascii_alphanumeric()) {
            let kinds = if prefixes && byte != b' ' { &[][..] } else { &[SOLID, ALPHANUMERIC][..] };
            let allowed = kinds.iter().filter(|kind| is_cut(&expressions, **kind, char::from(byte)));
            after[byte as usize] = allowed.sum();
        }
        after.iter().any(|kinds| *kinds != 0).then(|| Cuts::Before(Box::new(Self { after, plain })))
    }

    #[inline]
    fn first<'a>(&self, text: &'a str) -> (&'a str, &'a str) {
        let bytes = text.as_bytes();
        let cut = (1..bytes.len()).find(|at| {
            let kinds = self.after.get(bytes[*at] as usize).copied().unwrap_or(0);
            kinds != 0
                && kinds & kinds_before(text, *at) != 0
                && (!self.plain || bytes.get(at + 1).is_none_or(u8::is_ascii))
        });
        text.split_at(cut.unwrap_or(bytes.len()))
    }
}

/// What the character before `at`, where a character of ASCII begins, is.
#[inline]
fn kinds_before(text: &str, at: usize) -> u8 {
    match text.as_bytes()[at - 1] {
        byte if byte.is_ascii_alphanumeric() => SOLID | ALPHANUMERIC,
        byte if byte.is_ascii_graphic() => SOLID,
        byte if byte.is_ascii() => 0,
        _ if text[..at].ends_with(char::is_whitespace) => 0,
        _ => SOLID,
    }
}

/// A normaliser's steps, one after the other.
pub(crate) fn normalizers(steps: &NormalizerWrapper) -> Vec<&NormalizerWrapper> {
    match steps {
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().flat_map(normalizers).collect(),
        one => vec![one],
    }
}

/// A pre-tokenizer's steps, one after the other.
fn pre_tokenizers(steps: &PreTokenizerWrapper) -> Vec<&PreTokenizerWrapper> {
    match steps {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter().flat_map(pre_tokenizers).collect(),
        one => vec![one],
    }
}

/// What a split looks for, if each match is a split of its own.
fn expression(split: &Split) -> Option<String> {
    if split.invert || split.behavior != SplitDelimiterBehavior::Isolated {
        return None;
    }
    Some(match &split.pattern {
        SplitPattern::String(text) => regex_syntax::escape(text),
        SplitPattern::Regex(expression) => expression.clone(),
    })
}

/// An expression that looks nowhere but at what it matches, with one exception that most make: white space and no word behind it.
/// No cut is where that looks, right behind white space; but a single blank is not always matched by it.
fn parsed(expression: &str) -> Option<Hir> {
    regex_syntax::parse(&expression.replace(r"\s+(?!\S)", r"\s\s+")).ok()
}

/// Whether a text is split between a character of `kind` and `behind`, whatever is around them, and no expression's matches on one
/// side depend on the other side: none of them has `behind` anywhere after a character of `kind`, and one begins a match with
/// `behind` wherever it stands.
fn is_cut(expressions: &[Hir], kind: u8, behind: char) -> bool {
    let found: Option<Vec<Found>> =
        expressions.iter().map(|expression| Found::in_matches(expression, kind, behind)).collect();
    found.is_some_and(|found| {
        found.iter().all(|found| !found.behind_after_kind && !found.nothing)
            && found.iter().any(|found| found.behind_alone)
    })
}

/// What is among the matches of an expression.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// One with a character of the kind.
    kind: bool,
    /// One with the character behind the cut.
    behind: bool,
    /// One with both, the latter later.
    behind_after_kind: bool,
    /// The character behind the cut, and nothing else.
    behind_alone: bool,
    /// The empty one.
    nothing: bool,
    /// It takes the character behind the cut if it is there, though it need not, and does not give it back: `x?+`.
    takes: bool,
}

impl Found {
    const NOTHING: Self =
        Self { kind: false, behind: false, behind_after_kind: false, behind_alone: false, nothing: true, takes: false };

    /// `None` where a match depends on what is beside it.
    fn in_matches(expression: &Hir, kind: u8, behind: char) -> Option<Self> {
        match expression.kind() {
            HirKind::Empty => Some(Self::NOTHING),
            HirKind::Look(_) => None,
            HirKind::Literal(literal) => {
                let text = std::str::from_utf8(&literal.0).ok()?;
                let characters = text.chars().map(|c| Self::in_range((c, c), kind, behind));
                Some(characters.fold(Self::NOTHING, Self::then))
            }
            HirKind::Class(Class::Unicode(class)) => {
                let ranges = class.iter().map(|range| Self::in_range((range.start(), range.end()), kind, behind));
                Some(ranges.fold(Self { nothing: false, ..Self::NOTHING }, Self::or))
            }
            HirKind::Class(Class::Bytes(_)) => None,
            HirKind::Capture(capture) => Self::in_matches(&capture.sub, kind, behind),
            HirKind::Repetition(repetition) => {
                let once = Self::in_matches(&repetition.sub, kind, behind)?;
                let repeats = repetition.max.is_none_or(|max| max > 1);
                // `x?+` is read as a repetition of `x?` here.
                let is_possessive = matches!(repetition.sub.kind(), HirKind::Repetition(inner) if inner.min == 0);
                Some(Self {
                    behind_after_kind: once.behind_after_kind || (repeats && once.kind && once.behind),
                    behind_alone: once.behind_alone && (repetition.min <= 1 || once.nothing),
                    nothing: once.nothing || repetition.min == 0,
                    takes: once.takes || (is_possessive && once.behind),
                    ..once
                })
            }
            HirKind::Concat(parts) => {
                let parts: Option<Vec<Self>> = parts.iter().map(|part| Self::in_matches(part, kind, behind)).collect();
                Some(parts?.into_iter().fold(Self::NOTHING, Self::then))
            }
            HirKind::Alternation(parts) => {
                let parts: Option<Vec<Self>> = parts.iter().map(|part| Self::in_matches(part, kind, behind)).collect();
                parts?.into_iter().reduce(Self::or)
            }
        }
    }

    /// One character of a range, both ends included.
    fn in_range((start, end): (char, char), kind: u8, behind: char) -> Self {
        let kind = match kind {
            ALPHANUMERIC => ('0'..='z').any(|c| c.is_ascii_alphanumeric() && (start..=end).contains(&c)),
            _ => (start..=end).any(|c| !c.is_whitespace()),
        };
        let behind = (start..=end).contains(&behind);
        Self { kind, behind, behind_after_kind: false, behind_alone: behind, nothing: false, takes: false }
    }

    /// One, and then the other.
    fn then(self, next: Self) -> Self {
        Self {
            kind: self.kind || next.kind,
            behind: self.behind || next.behind,
            behind_after_kind: self.behind_after_kind || next.behind_after_kind || (self.kind && next.behind),
            behind_alone: (self.behind_alone && next.nothing) || (self.nothing && !self.takes && next.behind_alone),
            nothing: self.nothing && next.nothing,
            takes: self.takes || next.takes,
        }
    }

    /// One or the other.
    fn or(self, other: Self) -> Self {
        Self {
            kind: self.kind || other.kind,
            behind: self.behind || other.behind,
            behind_after_kind: self.behind_after_kind || other.behind_after_kind,
            behind_alone: self.behind_alone || other.behind_alone,
            nothing: self.nothing || other.nothing,
            takes: self.takes || other.takes,
        }
    }
}
