//! The providers' batch APIs: what is the same in all of them as one trait, what differs as one small file for each
//! family. Builds calls and reads answers; sends nothing.

mod anthropic;
mod bedrock;
mod gemini;
mod openai;

use std::fmt;

use bytes::Bytes;
use rowmill_jobs::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::machine::NeedsUpload;
use super::reconcile::{Line, Lines, Says};
use super::rows::{Asks, Limits};
use super::seam::BatchCall;

/// Providers whose batch API the lane speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are names")]
pub enum BatchProvider {
    Openai,
    Azure,
    Groq,
    Together,
    Mistral,
    Anthropic,
    Gemini,
    Bedrock,
}

impl BatchProvider {
    /// All of them.
    pub const ALL: [BatchProvider; 8] = [
        BatchProvider::Openai,
        BatchProvider::Azure,
        BatchProvider::Groq,
        BatchProvider::Together,
        BatchProvider::Mistral,
        BatchProvider::Anthropic,
        BatchProvider::Gemini,
        BatchProvider::Bedrock,
    ];

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            BatchProvider::Openai => "openai",
            BatchProvider::Azure => "azure",
            BatchProvider::Groq => "groq",
            BatchProvider::Together => "together",
            BatchProvider::Mistral => "mistral",
            BatchProvider::Anthropic => "anthropic",
            BatchProvider::Gemini => "gemini",
            BatchProvider::Bedrock => "bedrock",
        }
    }

    /// The one with this name, which is the kind's in a job file, too.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.name() == name)
    }

    /// Whether rows of a batch that ended without a word of them may have been paid for all the same.
    pub fn may_bill_lost_rows(self) -> bool {
        // An expired or cancelled batch there has no results at all, not even of the rows it came to.
        self == BatchProvider::Gemini
    }

    /// Whether it reads its input and writes its results in a folder of the operator's ([`super::Folder`]).
    pub fn needs_folder(self) -> bool {
        self == BatchProvider::Bedrock
    }

    /// How much it takes in one batch.
    pub fn limits(self) -> Limits {
        self.api().limits()
    }

    pub(crate) fn api(self) -> &'static dyn BatchApi {
        match self {
            BatchProvider::Openai => &openai::OPENAI,
            BatchProvider::Azure => &openai::AZURE,
            BatchProvider::Groq => &openai::GROQ,
            BatchProvider::Together => &openai::TOGETHER,
            BatchProvider::Mistral => &openai::MISTRAL,
            BatchProvider::Anthropic => &anthropic::Anthropic,
            BatchProvider::Gemini => &gemini::Gemini,
            BatchProvider::Bedrock => &bedrock::Bedrock,
        }
    }
}

/// A batch to be created.
#[derive(Debug, Clone)]
pub(crate) struct NewBatch<'a> {
    /// Its name, which is to be found again.
    pub(crate) name: &'a str,
    pub(crate) model: &'a str,
    pub(crate) asks: Asks,
    /// The provider's name for the uploaded input, where it takes a file.
    pub(crate) file: Option<&'a str>,
    /// As whom the provider reads and writes in the operator's folder, where it does.
    pub(crate) role: Option<&'a str>,
    /// The rows in the provider's format, where it takes none.
    pub(crate) lines: &'a [Vec<u8>],
}

/// How a batch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    phase: Phase,
    /// Where its results are.
    pub(crate) sources: Vec<Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Ending,
    Ended,
    Failed,
}

/// Where results are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// To be fetched.
    Path(String),
    /// An object in the operator's folder, by its URL.
    Object(String),
    /// The same, where there is one only if the batch did something.
    ObjectIfAny(String),
    /// They came with the status.
    Inline(Bytes),
}

impl Status {
    /// It has not ended.
    pub(crate) fn running() -> Self {
        Self { phase: Phase::Running, sources: Vec::new() }
    }

    /// It has not ended, and the provider is about to end it, as it was asked.
    pub(crate) fn ending() -> Self {
        Self { phase: Phase::Ending, sources: Vec::new() }
    }

    /// It has ended, and what it did is in these places.
    pub(crate) fn ended(sources: Vec<Source>) -> Self {
        Self { phase: Phase::Ended, sources }
    }

    /// It failed as a whole.
    pub(crate) fn failed() -> Self {
        Self::failed_with(Vec::new())
    }

    /// It failed, and what it did before may be in these places.
    pub(crate) fn failed_with(sources: Vec<Source>) -> Self {
        Self { phase: Phase::Failed, sources }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Failed)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.phase == Phase::Ending
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.phase == Phase::Failed
    }
}

/// A batch in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) remote: String,
    /// The name we gave it, where the provider keeps one.
    pub(crate) name: Option<String>,
    /// Its input, where that is a file.
    pub(crate) file: Option<String>,
    /// When it was created, if the list tells: milliseconds since 1970.
    pub(crate) created_ms: Option<i64>,
    /// Rows, where the list tells and nothing else does.
    pub(crate) rows: Option<u64>,
    pub(crate) has_ended: bool,
}

/// A page of a list, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) items: Vec<Listed>,
    /// What leads to the next page, if there is one.
    pub(crate) next: Option<String>,
}

/// One family of batch APIs.
pub(crate) trait BatchApi: Send + Sync + fmt::Debug {
    fn limits(&self) -> Limits;

    fn needs_upload(&self) -> NeedsUpload;

    /// A row in the provider's format: a line of a file, or an element of a list. `body` is JSON.
    fn line(&self, name: &str, asks: Asks, body: &[u8]) -> Result<Vec<u8>>;

    /// Sends the input; for those that take a file.
    fn upload(&self, name: &str, content: Bytes) -> BatchCall;

    /// The provider's name for the input.
    fn uploaded(&self, answer: &[u8]) -> Result<String>;

    fn create(&self, batch: &NewBatch<'_>) -> Result<BatchCall>;

    /// The provider's name for the batch.
    fn created(&self, answer: &[u8]) -> Result<String>;

    /// A page of all batches.
    fn list(&self, after: Option<&str>) -> BatchCall;

    /// Reads a page; `after` is what led to it.
    fn listed(&self, after: Option<&str>, answer: &[u8]) -> Result<Page>;

    fn poll(&self, remote: &str) -> BatchCall;

    fn status(&self, remote: &str, answer: &[u8]) -> Result<Status>;

    fn cancel(&self, remote: &str) -> BatchCall;

    /// The lines of one source of results. What a line says may be anything; that it is one is certain, or an error.
    fn lines(&self, content: &[u8]) -> Result<Lines>;
}

/// Reads an answer's JSON; its text stays out of the error.
fn read<'a, T: Deserialize<'a>>(what: &str, text: &'a [u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| unreadable(what, &error))
}

/// Reads JSON lines. One that is not what it is documented to be counts for the row that it names, if it names one; for a
/// last one that is cut off, the content is fetched again.
fn read_lines<T: DeserializeOwned>(content: &[u8]) -> Result<Lines>
where
    Line: From<T>,
{
    #[derive(Deserialize)]
    struct Named {
        #[serde(alias = "recordId")]
        custom_id: String,
    }
    let mut read = Lines::default();
    let mut lines = content.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).peekable();
    while let Some(line) = lines.next() {
        let named = match serde_json::from_slice::<T>(line) {
            Ok(line) => Ok(Line::from(line)),
            Err(_) => serde_json::from_slice(line)
                .map(|Named { custom_id }| Line { name: Some(custom_id), says: Says::Unreadable }),
        };
        match named {
            Ok(line) => read.lines.push(line),
            Err(error) if error.is_eof() && lines.peek().is_none() => {
                return Err(unreadable("the last line of a batch's results", &error));
            }
            Err(_) => read.nameless += 1,
        }
    }
    Ok(read)
}

fn unreadable(what: &str, error: &serde_json::Error) -> Error {
    Error::temporary(format!("cannot read {what}"))
        .with("line", error.line())
        .with("column", error.column())
        .hint("the provider's answer has another shape than it is documented to have")
}

/// A word that a provider may have for an error; anything else could hold content and is forgotten.
fn plain_word(text: &str) -> Option<String> {
    const LENGTH_MAX: usize = 64;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (!text.is_empty() && text.len() <= LENGTH_MAX && text.bytes().all(is_plain)).then(|| text.to_owned())
}

/// Milliseconds since 1970 of what providers write: seconds as a number, or RFC 3339.
fn milliseconds(value: &serde_json::Value) -> Option<i64> {
    match value {
        serde_json::Value::Number(number) => number.as_f64().map(|seconds| (seconds * 1000.0) as i64),
        serde_json::Value::String(text) => {
            chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| at.timestamp_millis())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rowmill_jobs::lane::Lane;

    use super::*;
    use crate::target::{Overrides, Target};

    #[test]
    fn odd_lines_are_told_apart_and_none_of_them_stops_the_others() {
        let text = concat!(
            r#"{"custom_id":"a","response":{"status_code":200,"body":{"x":1}}}"#,
            "\n",
            r#"{"custom_id":"b","response":"no object"}"#,
            "\n\n",
            r#"{"custom_id":7}"#,
            "\nno JSON\n",
            r#"{"custom_id":"c","error":{"code":"batch_expired"}}"#,
        );
        let read = openai::OPENAI.lines(text.as_bytes()).unwrap();
        let said: Vec<String> =
            read.lines.iter().map(|line| format!("{} {:?}", line.name.as_deref().unwrap(), line.says)).collect();
        assert!(said.len() == 3 && said[0].starts_with("a Answer"), "{said:?}");
        assert_eq!((&said[1..], read.nameless), (&["b Unreadable".to_owned(), "c NotDone".to_owned()][..], 2));
        let cut = openai::OPENAI.lines(&text.as_bytes()[..text.len() - 9]).unwrap_err();
        assert!(cut.retryable(), "what was cut is fetched again: {cut}");
    }

    #[test]
    fn the_lanes_of_the_vocabulary_are_those_that_there_are() {
        let mut named: Vec<&str> = BatchProvider::ALL.iter().map(|provider| provider.name()).collect();
        let mut kinds = Lane::Batch.kinds().to_vec();
        named.sort_unstable();
        kinds.sort_unstable();
        assert_eq!(named, kinds);
        for kind in Lane::Online.kinds() {
            let overrides = Overrides {
                base_url: Some("https://example.com".to_owned()),
                holes: Some([("resource".to_owned(), "r".to_owned())].into()),
                ..Overrides::default()
            };
            let target = Target::resolve(kind, "m", &overrides);
            let has_flex = target.is_ok_and(|target| !target.flex_tier.is_empty());
            assert_eq!(has_flex, Lane::Flex.kinds().contains(kind), "{kind}");
        }
    }
}
