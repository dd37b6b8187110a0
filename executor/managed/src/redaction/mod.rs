//! Redaction: what detectors find in a row is replaced by pseudonyms before it leaves, and put back into the answer. A value
//! has one pseudonym in a run (`<EMAIL_7QK2M4XZ3A>`), made with a key that stays inside, so that a model can still tell two
//! people apart.
//!
//! It lowers the risk of what leaves; it is not de-identification (45 CFR 164.514) and finds neither names nor addresses.
//! It fails closed: whatever a detector cannot do is an error, and the row is not sent.

mod detect;

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use regex::{Captures, Regex, RegexBuilder};
use rowmill_jobs::{Error, Result};
use secrecy::{ExposeSecret, SecretString};

pub use detect::BUILT_IN;
use detect::{Detector, Found};

/// Longest text that is searched.
const BYTES_MAX: usize = 4 << 20;
/// Most memory that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 4 << 20;
/// Characters of a pseudonym after its name, five bits each: two values of a run share one with a chance of 1 in 2⁵⁰.
const CHARACTERS: usize = 10;

/// Compiles a pattern, within bounds.
///
/// # Errors
/// It is no regular expression, or takes too much memory.
pub fn pattern(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build()
}

/// Whether a detector may have this name: it stands in the pseudonym, which must be told from other text.
pub fn is_name(name: &str) -> bool {
    let is_word = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    (2..=16).contains(&name.len()) && is_word && name.starts_with(|c: char| c.is_ascii_uppercase())
}

/// Replaces what detectors find, for one run.
#[derive(Debug)]
pub struct Redactor {
    detectors: Vec<Detector>,
    key: hmac::Key,
    pseudonym: Regex,
}

/// What was replaced in the texts of one request: to be kept until its answer has come, and then dropped.
#[derive(Default)]
pub struct Vault {
    values: BTreeMap<String, String>,
    counts: BTreeMap<String, u64>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Vault {
    /// How many times each detector replaced something: for the audit.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }
}

/// An answer with its values back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The text.
    pub text: String,
    /// Pseudonyms in it that stand for nothing that was sent: the model made them up or miscopied them.
    pub unknown: u64,
}

impl Redactor {
    /// The redactor of a run. `detectors` names built-in ones, all of them if `None`; `patterns` are the operator's, which win.
    ///
    /// # Errors
    /// There is no such detector, or a pattern is wrong.
    pub fn new(
        key: &SecretString,
        run_key: &str,
        detectors: Option<&[String]>,
        patterns: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let all = || BUILT_IN.map(str::to_owned).to_vec();
        let wrong = |name: &str, error: regex::Error| {
            Error::invalid(format!("the pattern of detector {name} is wrong")).caused_by(error)
        };
        let mut chosen = Vec::new();
        for (name, text) in patterns {
            if !is_name(name) {
                return Err(Error::invalid(format!("{name:?} is no name of a detector")));
            }
            chosen.push(Detector::own(name, pattern(text).map_err(|error| wrong(name, error))?));
        }
        for name in detectors.map_or_else(all, <[String]>::to_vec) {
            let detector =
                detect::built_in(&name).ok_or_else(|| Error::invalid(format!("there is no detector {name:?}")))?;
            chosen.push(detector.map_err(|error| wrong(&name, error))?);
        }
        // A key of the run's own: the same value has another pseudonym in another run.
        let operators = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret().as_bytes());
        let of_run = hmac::sign(&operators, run_key.as_bytes());
        let names: Vec<&str> = chosen.iter().map(|detector| detector.name.as_str()).collect();
        // With its brackets it stands anywhere; a model may leave them out, and then it must be a word.
        let word = format!("({})_[A-Z2-7]{{{CHARACTERS}}}", names.join("|"));
        let form = format!(r"(?i)<{word}>|\b{word}\b");
        let pseudonym = pattern(&form).map_err(|error| wrong("pseudonyms", error))?;
        Ok(Self { detectors: chosen, key: hmac::Key::new(hmac::HMAC_SHA256, of_run.as_ref()), pseudonym })
    }

    /// A text without what the detectors find. What was replaced is in the vault, which may serve several texts of one request.
    ///
    /// # Errors
    /// The text is too long to be searched, or two values have one pseudonym. The row must not be sent then.
    pub fn redact(&self, text: &str, vault: &mut Vault) -> Result<String> {
        if text.len() > BYTES_MAX {
            return Err(Error::invalid(format!("a value of {} bytes is too long to be redacted", text.len())));
        }
        let mut redacted = String::with_capacity(text.len());
        let mut copied = 0;
        for Found { range, detector } in self.find(text) {
            let (name, value) = (&self.detectors[detector].name, &text[range.clone()]);
            let pseudonym = self.pseudonym_of(name, value);
            let known = vault.values.entry(pseudonym.clone()).or_insert_with(|| value.to_owned());
            if known != value {
                return Err(Error::invalid("two values of a row have the same pseudonym"));
            }
            *vault.counts.entry(name.clone()).or_default() += 1;
            redacted.push_str(&text[copied..range.start]);
            redacted.push('<');
            redacted.push_str(&pseudonym);
            redacted.push('>');
            copied = range.end;
        }
        redacted.push_str(&text[copied..]);
        Ok(redacted)
    }

    /// An answer with its values back.
    pub fn restore(&self, text: &str, vault: &Vault) -> Restored {
        let mut unknown = 0;
        let replaced = self.pseudonym.replace_all(text, |found: &Captures<'_>| {
            let pseudonym = found[0].trim_matches(['<', '>']).to_ascii_uppercase();
            vault.values.get(&pseudonym).cloned().unwrap_or_else(|| {
                unknown += 1;
                found[0].to_owned()
            })
        });
        Restored { text: replaced.into_owned(), unknown }
    }

    /// A JSON answer with its values back: in strings and names of fields, escaped as JSON needs it.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn restore_json(&self, text: &str, vault: &Vault) -> Result<Restored> {
        let value: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("the answer is no JSON, from line {} on", error.line())))?;
        let mut unknown = 0;
        let restored = self.restore_value(value, vault, &mut unknown);
        Ok(Restored { text: restored.to_string(), unknown })
    }

    fn restore_value(&self, value: serde_json::Value, vault: &Vault, unknown: &mut u64) -> serde_json::Value {
        use serde_json::Value;
        let mut text = |text: String| {
            let restored = self.restore(&text, vault);
            *unknown += restored.unknown;
            restored.text
        };
        match value {
            Value::String(string) => Value::String(text(string)),
            Value::Array(values) => {
                Value::Array(values.into_iter().map(|value| self.restore_value(value, vault, unknown)).collect())
            }
            Value::Object(fields) => {
                let named = fields.into_iter().map(|(name, value)| (text(name), value)).collect::<Vec<_>>();
                let restored = named.into_iter().map(|(name, value)| (name, self.restore_value(value, vault, unknown)));
                Value::Object(restored.collect())
            }
            other => other,
        }
    }

    /// What all detectors find, in order and without overlap: where two claim the same text, the one that begins first, then
    /// the one that the table names first.
    fn find(&self, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        for (index, detector) in self.detectors.iter().enumerate() {
            detector.find(text, index, &mut found);
        }
        found.sort_by_key(|found| (found.range.start, found.detector));
        let mut end = 0;
        found.retain(|found| {
            let is_free = found.range.start >= end;
            if is_free {
                end = found.range.end;
            }
            is_free
        });
        found
    }

    fn pseudonym_of(&self, name: &str, value: &str) -> String {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut context = hmac::Context::with_key(&self.key);
        context.update(name.as_bytes());
        context.update(&[0]);
        context.update(value.as_bytes());
        let tag = context.sign();
        let bits = tag.as_ref().iter().take(8).fold(0u64, |bits, byte| (bits << 8) | u64::from(*byte));
        let characters = (0..CHARACTERS).map(|i| char::from(ALPHABET[((bits >> (59 - 5 * i)) & 31) as usize]));
        format!("{name}_{}", characters.collect::<String>())
    }
}

#[cfg(test)]
mod tests;
