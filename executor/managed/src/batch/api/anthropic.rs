//! Anthropic's message batches: rows in the creation's body, one stream of results. A batch keeps no name of ours: it is
//! found again by its time and size, and told by the rows' names in its results.

use bytes::Bytes;
use rowmill_jobs::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::machine::NeedsUpload;
use super::super::reconcile::{Line, Lines, Says};
use super::super::rows::{Asks, Limits};
use super::super::seam::BatchCall;
use super::{BatchApi, Listed, NewBatch, Page, Source, Status, milliseconds, plain_word, read, read_lines};

/// Batches in a page of a list.
const PAGE: usize = 100;

#[derive(Debug)]
pub(crate) struct Anthropic;

#[derive(Debug, Deserialize)]
struct Batch {
    id: String,
    processing_status: String,
    #[serde(default)]
    created_at: Value,
    #[serde(default)]
    results_url: Option<String>,
    #[serde(default)]
    request_counts: std::collections::BTreeMap<String, u64>,
}

impl BatchApi for Anthropic {
    fn limits(&self) -> Limits {
        Limits { rows_min: 1, rows_max: 100_000, bytes_max: 240 << 20 }
    }

    fn needs_upload(&self) -> NeedsUpload {
        NeedsUpload::No
    }

    fn line(&self, name: &str, _asks: Asks, body: &[u8]) -> Result<Vec<u8>> {
        let body: &RawValue = read("a row's request", body)?;
        Ok(format!(r#"{{"custom_id":"{name}","params":{}}}"#, body.get()).into_bytes())
    }

    fn upload(&self, _name: &str, _content: Bytes) -> BatchCall {
        BatchCall::post("/v1/messages/batches")
    }

    fn uploaded(&self, _answer: &[u8]) -> Result<String> {
        Err(Error::internal("message batches have no files"))
    }

    fn create(&self, batch: &NewBatch<'_>) -> Result<BatchCall> {
        let mut body = br#"{"requests":["#.to_vec();
        body.extend_from_slice(&batch.lines.join(&b","[..]));
        body.extend_from_slice(b"]}");
        Ok(BatchCall::json("/v1/messages/batches", body))
    }

    fn created(&self, answer: &[u8]) -> Result<String> {
        read::<Batch>("the answer to a creation", answer).map(|batch| batch.id)
    }

    fn list(&self, after: Option<&str>) -> BatchCall {
        let after = after.map(|after| format!("&after_id={after}")).unwrap_or_default();
        BatchCall::get(format!("/v1/messages/batches?limit={PAGE}{after}"))
    }

    fn listed(&self, _after: Option<&str>, answer: &[u8]) -> Result<Page> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Batch>,
            #[serde(default)]
            has_more: bool,
        }
        let list: List = read("a list of batches", answer)?;
        let next = list.data.last().filter(|_| list.has_more).map(|batch| batch.id.clone());
        let items = list.data.into_iter().map(|batch| Listed {
            name: None,
            file: None,
            created_ms: milliseconds(&batch.created_at),
            rows: Some(batch.request_counts.values().sum()),
            has_ended: batch.processing_status == "ended",
            remote: batch.id,
        });
        Ok(Page { items: items.collect(), next })
    }

    fn poll(&self, remote: &str) -> BatchCall {
        BatchCall::get(format!("/v1/messages/batches/{remote}"))
    }

    fn status(&self, remote: &str, answer: &[u8]) -> Result<Status> {
        let batch: Batch = read("the state of a batch", answer)?;
        match batch.processing_status.as_str() {
            "ended" => {}
            "canceling" => return Ok(Status::ending()),
            _ => return Ok(Status::running()),
        }
        // The URL that is told leads to the provider's public host; the path is the same at any base.
        let results = Source::Path(format!("/v1/messages/batches/{remote}/results"));
        Ok(if batch.results_url.is_some() { Status::ended(vec![results]) } else { Status::failed() })
    }

    fn cancel(&self, remote: &str) -> BatchCall {
        BatchCall::post(format!("/v1/messages/batches/{remote}/cancel"))
    }

    fn lines(&self, content: &[u8]) -> Result<Lines> {
        read_lines::<ResultLine>(content)
    }
}

#[derive(Debug, Deserialize)]
struct ResultLine {
    custom_id: String,
    result: ResultOf,
}

#[derive(Debug, Deserialize)]
struct ResultOf {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: Option<Box<RawValue>>,
    #[serde(default)]
    error: Value,
}

impl From<ResultLine> for Line {
    fn from(line: ResultLine) -> Self {
        let says = match (line.result.kind.as_str(), line.result.message) {
            ("succeeded", Some(message)) => Says::Answer(message),
            ("canceled" | "expired", _) => Says::NotDone,
            _ => {
                let code = line.result.error["error"]["type"].as_str().and_then(plain_word);
                Says::Error { status: None, code }
            }
        };
        Self { name: Some(line.custom_id), says }
    }
}
