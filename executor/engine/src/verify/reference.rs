//! A reference: texts, and what another implementation answers to them. Reads the JSON file that
//! infra/models/export_reference.py writes; refuses one that leaves nothing to compare.
//!
//! ```json
//! {"kind": "decoder", "dtype": "float32", "items": [
//!   {"text": "…", "ids": [1, 2], "top_logits": [[id, logit], …], "logit_range": 31.5, "greedy_ids": [3, 4]}]}
//! ```
//!
//! With `"kind": "encoder"` and `"vector": […]`, or `"kind": "classifier"` and `"logits": {"label": logit, …}`, in place of the
//! last three. `ids` and `logit_range` may be left out, and so may `dtype` (float32); unknown fields mean nothing.

use std::path::Path;

use rowmill_jobs::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Texts of a reference.
const ITEMS_MAX: usize = 256;
/// Bytes of a reference file.
const BYTES_MAX: u64 = 64 << 20;

/// What kind of model a reference is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Writes text.
    Decoder,
    /// Makes vectors.
    Encoder,
    /// Gives each of its labels a logit.
    Classifier,
}

impl Kind {
    /// The kind in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decoder => "decoder",
            Self::Encoder => "encoder",
            Self::Classifier => "classifier",
        }
    }
}

/// The number type a reference was computed in, by the name PyTorch gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum NumberType {
    /// 32-bit floats.
    #[default]
    Float32,
    /// 16-bit brain floats.
    Bfloat16,
    /// 16-bit floats.
    Float16,
}

/// Texts with another implementation's answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// What it is of.
    pub kind: Kind,
    /// What it was computed in.
    pub dtype: NumberType,
    /// The texts.
    pub items: Vec<Item>,
    /// Highest minus lowest logit of all items of a classifier's reference: two labels that happen to be close in one
    /// text make that text no more exact.
    pub(super) range: f64,
}

/// One text.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// It is tokenised as it stands, without template or special tokens, unless `ids` say otherwise.
    pub text: String,
    /// The token ids the other implementation saw.
    pub ids: Option<Vec<u32>>,
    /// What it answered.
    pub expected: Expected,
}

/// What the other implementation answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// Of a decoder.
    Next {
        /// The highest logits after the last id, with their ids.
        top_logits: Vec<(u32, f32)>,
        /// Highest minus lowest of all logits; of the listed ones, if the file does not say.
        range: f64,
        /// The ids that follow by argmax; special tokens do not end them.
        greedy_ids: Vec<u32>,
    },
    /// Of an encoder, of any length.
    Vector(Vec<f32>),
    /// Of a classifier, by label.
    Labels(Vec<(String, f32)>),
}

impl Expected {
    /// The ids that follow; none but a decoder's.
    pub(super) fn greedy_ids(&self) -> &[u32] {
        match self {
            Self::Next { greedy_ids, .. } => greedy_ids,
            Self::Vector(_) | Self::Labels(_) => &[],
        }
    }
}

#[derive(Deserialize)]
struct File {
    kind: Kind,
    #[serde(default)]
    dtype: NumberType,
    items: Vec<FileItem>,
}

#[derive(Deserialize)]
struct FileItem {
    text: String,
    ids: Option<Vec<u32>>,
    top_logits: Option<Vec<(u32, f32)>>,
    logit_range: Option<f64>,
    #[serde(default)]
    greedy_ids: Vec<u32>,
    vector: Option<Vec<f32>>,
    logits: Option<Map<String, Value>>,
}

impl Reference {
    /// Reads a reference file.
    ///
    /// # Errors
    /// [`rowmill_jobs::Kind::Invalid`] where it cannot be read, or an item holds nothing to compare.
    pub fn read(path: &Path) -> Result<Self> {
        let at = |error: Error| error.with("file", path.display());
        let unreadable = |e| at(Error::invalid("the reference cannot be read").caused_by(e).hint(HINT));
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > BYTES_MAX {
            return Err(at(Error::invalid(format!("the reference has {bytes} bytes; {BYTES_MAX} are read at most"))));
        }
        Self::parse(&std::fs::read(path).map_err(unreadable)?).map_err(at)
    }

    /// Reads a reference from memory.
    ///
    /// # Errors
    /// [`rowmill_jobs::Kind::Invalid`] where an item holds nothing to compare.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let file: File = serde_json::from_slice(json)
            .map_err(|e| Error::invalid("the reference is not what it should be").caused_by(e).hint(HINT))?;
        if file.items.is_empty() || file.items.len() > ITEMS_MAX {
            let found = file.items.len();
            return Err(Error::invalid(format!("the reference has {found} items; it may have 1 to {ITEMS_MAX}")));
        }
        let read = |(at, item): (usize, FileItem)| {
            let named = |what: &str| Error::invalid(format!("item {} of the reference {what}", at + 1)).hint(HINT);
            Ok(Item { expected: expected(file.kind, &item).map_err(named)?, text: item.text, ids: item.ids })
        };
        let items = file.items.into_iter().enumerate().map(read).collect::<Result<Vec<Item>>>()?;
        let labels = items.iter().flat_map(|item| match &item.expected {
            Expected::Labels(logits) => logits.iter().map(|(_, logit)| *logit).collect(),
            _ => Vec::new(),
        });
        let range = range_of(labels);
        if file.kind == Kind::Classifier && range <= 0.0 {
            return Err(Error::invalid("all logits of the reference are the same: there is no range to measure in")
                .hint("export more texts"));
        }
        Ok(Self { kind: file.kind, dtype: file.dtype, items, range })
    }
}

const HINT: &str = "infra/models/export_reference.py writes one";

fn expected(kind: Kind, item: &FileItem) -> std::result::Result<Expected, &'static str> {
    match kind {
        Kind::Decoder => {
            let top_logits = item.top_logits.clone().unwrap_or_default();
            let listed = range_of(top_logits.iter().map(|(_, logit)| *logit));
            let range = item.logit_range.unwrap_or(listed);
            if top_logits.len() < 2 || range < listed || range <= 0.0 || !range.is_finite() {
                return Err("needs `top_logits` of two ids at least, in a range above 0");
            }
            Ok(Expected::Next { top_logits, range, greedy_ids: item.greedy_ids.clone() })
        }
        Kind::Encoder => match &item.vector {
            Some(vector) if vector.iter().any(|x| *x != 0.0) => Ok(Expected::Vector(vector.clone())),
            _ => Err("needs a `vector` that is not zero"),
        },
        Kind::Classifier => {
            let pairs = item.logits.iter().flatten();
            let logits = pairs.map(|(label, logit)| Some((label.clone(), logit.as_f64()? as f32)));
            match logits.collect::<Option<Vec<_>>>() {
                Some(logits) if !logits.is_empty() => Ok(Expected::Labels(logits)),
                _ => Err("needs `logits`: a number for each label"),
            }
        }
    }
}

/// Highest minus lowest; 0 of none.
pub(super) fn range_of(values: impl IntoIterator<Item = f32>) -> f64 {
    let bounds = values.into_iter().fold(None, |bounds: Option<(f32, f32)>, value| {
        Some(bounds.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
    });
    bounds.map_or(0.0, |(low, high)| f64::from(high) - f64::from(low))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_kind_is_read_with_its_range() {
        let decoder = br#"{"kind": "decoder", "dtype": "bfloat16", "items": [
            {"text": "a", "ids": [1], "top_logits": [[7, 2.5], [8, -1.5]], "greedy_ids": [7]},
            {"text": "b", "top_logits": [[7, 2.5], [8, -1.5]], "logit_range": 20}], "chat": []}"#;
        let reference = Reference::parse(decoder).unwrap();
        assert_eq!((reference.kind, reference.dtype), (Kind::Decoder, NumberType::Bfloat16));
        let range = |at: usize| match &reference.items[at].expected {
            Expected::Next { range, .. } => *range,
            _ => 0.0,
        };
        assert_eq!((range(0), range(1)), (4.0, 20.0));
        let classifier = br#"{"kind": "classifier", "items": [
            {"text": "a", "logits": {"x": 0.5, "y": 0.25}}, {"text": "b", "logits": {"x": -1.5, "y": 1}}]}"#;
        let reference = Reference::parse(classifier).unwrap();
        assert_eq!((reference.range, reference.dtype), (2.5, NumberType::Float32));
    }

    #[test]
    fn what_leaves_nothing_to_compare_is_refused() {
        for (json, words) in [
            (r#"{"kind": "decoder", "items": []}"#, "0 items"),
            (r#"{"kind": "diffuser", "items": []}"#, "not what it should be"),
            (r#"{"kind": "decoder", "items": [{"text": "a"}]}"#, "item 1"),
            (r#"{"kind": "decoder", "items": [{"text": "a", "top_logits": [[1, 2], [3, 2]]}]}"#, "range above 0"),
            (
                r#"{"kind": "decoder", "items": [{"text": "a", "top_logits": [[1, 2], [3, 1]], "logit_range": 0.5}]}"#,
                "range",
            ),
            (
                r#"{"kind": "encoder", "items": [{"text": "a", "vector": [1]}, {"text": "a", "vector": [0, 0]}]}"#,
                "item 2",
            ),
            (r#"{"kind": "classifier", "items": [{"text": "a", "logits": {"x": "y"}}]}"#, "a number for each label"),
            (r#"{"kind": "classifier", "items": [{"text": "a", "logits": {"x": 1, "y": 1}}]}"#, "all logits"),
        ] {
            let report = Reference::parse(json.as_bytes()).unwrap_err().report();
            assert!(report.contains(words), "`{words}` is not in:\n{report}");
        }
        let report = Reference::read(Path::new("/nowhere/reference.json")).unwrap_err().report();
        assert!(report.contains("/nowhere/reference.json"), "{report}");
    }
}
