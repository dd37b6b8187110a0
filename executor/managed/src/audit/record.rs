//! Lines of the audit. A line is JSON; its last field is a hash over the line before and itself, so that no line can be
//! changed, taken out, put in or moved without breaking the chain. Names and numbers only, never row content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::call::Class;
use crate::hex;
use crate::lane::Lane;

/// Bytes of a line's hash.
pub(super) type Hash = [u8; 32];
/// What stands before a line's hash.
const BEFORE_HASH: &str = ",\"hash\":\"";
/// What stands after it.
const AFTER_HASH: &str = "\"}";

/// That something is about to be sent: written, and on disk, before its first byte goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The shard.
    pub shard: u32,
    /// The attempt at it.
    pub attempt: String,
    /// The provider's name in `rowmill.toml`.
    pub provider: String,
    /// Where the bytes go.
    pub host: String,
    /// The provider's region, if the address names one.
    pub region: Option<String>,
    /// The model, as the provider calls it.
    pub model: String,
    /// The lane.
    pub lane: Lane,
    /// The rule that permits it.
    pub rule: String,
    /// Hash of the policy that was decided by.
    pub policy_hash: String,
    /// Names of the columns whose values are in it.
    pub columns: Vec<String>,
    /// Rows whose values are in it.
    pub rows: u64,
    /// Bytes of the body.
    pub bytes: u64,
    /// Tokens, prompt and output, as estimated.
    pub tokens_estimated: u64,
    /// How many times each detector replaced something.
    pub redactions: BTreeMap<String, u64>,
    /// HMAC-SHA256 of the body, in hex: whoever has the key and the body can prove that it was this one. A plain hash of a
    /// short value could be guessed.
    pub payload_hmac: String,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    /// `seq` of the intent.
    pub intent: u64,
    /// `ok`, or the class of the error.
    pub class: String,
    /// HTTP status, if there was a response.
    pub status: Option<u16>,
    /// The provider's name for the request.
    pub request_id: Option<String>,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// What it cost.
    pub nano_usd: u64,
}

impl Ending {
    /// The word for a class of errors; `None` is success.
    pub fn class_of(class: Option<Class>) -> String {
        match class {
            None => "ok",
            Some(Class::Throttled) => "throttled",
            Some(Class::Transient) => "transient",
            Some(Class::InvalidOutput) => "invalid_output",
            Some(Class::Refused) => "refused",
            Some(Class::TooLong) => "too_long",
            Some(Class::Denied) => "denied",
            Some(Class::Billing) => "billing",
            Some(Class::Stopped) => "stopped",
        }
        .to_owned()
    }
}

/// Whose audit a file is: its first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The run.
    pub run: String,
    /// The executor.
    pub executor: String,
    /// Version of Rowmill.
    pub rowmill: String,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The first line.
    Opening(Opening),
    /// Something is about to be sent.
    Intent(Intent),
    /// Something has ended.
    Ending(Ending),
    /// The last line: nothing follows.
    Closing {},
}

/// A line without its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its number in the file, from 0.
    pub seq: u64,
    /// When it was written, as RFC 3339 in UTC.
    pub at: String,
    /// What it says.
    pub said: Said,
}

/// A record as a line, with the hash that follows `before`.
pub(super) fn write(record: &Record, before: &Hash) -> serde_json::Result<(String, Hash)> {
    let mut line = serde_json::to_string(record)?;
    let hash = chain(before, &line);
    // In place of the closing bracket.
    line.pop();
    line.push_str(BEFORE_HASH);
    line.push_str(&hex::encode(hash));
    line.push_str(AFTER_HASH);
    line.push('\n');
    Ok((line, hash))
}

/// A line (without its line break) as a record, if it is one and its hash follows `before`.
pub(super) fn read(line: &str, before: &Hash) -> Result<(Record, Hash), &'static str> {
    let inner = line.strip_suffix(AFTER_HASH).ok_or("the line has no hash")?;
    let (body, told) = inner.rsplit_once(BEFORE_HASH).ok_or("the line has no hash")?;
    let body = format!("{body}}}");
    let hash = chain(before, &body);
    if told != hex::encode(hash) {
        return Err("the line was changed, or is not the one that followed the line before");
    }
    let record = serde_json::from_str(&body).map_err(|_| "the line is none that Rowmill writes")?;
    Ok((record, hash))
}

fn chain(before: &Hash, body: &str) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(before);
    hasher.update(body.as_bytes());
    hasher.finalize().into()
}
