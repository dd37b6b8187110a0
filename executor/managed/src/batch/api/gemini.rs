//! Gemini's batches: rows in the creation's body (shards larger than that are cut), an operation that is looked at, answers
//! in it. A creation is not idempotent; the display name tells a batch. Its input files of up to 2 GB are not used.

use bytes::Bytes;
use rowmill_jobs::{Error, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::machine::NeedsUpload;
use super::super::reconcile::{Line, Lines, Says};
use super::super::rows::{Asks, Limits};
use super::super::seam::BatchCall;
use super::{BatchApi, Listed, NewBatch, Page, Source, Status, milliseconds, read};

/// Batches in a page of a list.
const PAGE: usize = 100;

#[derive(Debug)]
pub(crate) struct Gemini;

#[derive(Debug, Deserialize)]
struct Operation {
    name: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    done: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    display_name: Option<String>,
    state: String,
    create_time: Value,
}

/// An operation's answers.
#[derive(Debug, Deserialize)]
struct WithResponse {
    #[serde(default)]
    response: Option<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    inlined_responses: Option<Inlined>,
    inlined_embed_content_responses: Option<Inlined>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Inlined {
    #[serde(default)]
    inlined_responses: Vec<Box<RawValue>>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    response: Option<Box<RawValue>>,
    #[serde(default)]
    error: Value,
}

impl BatchApi for Gemini {
    fn limits(&self) -> Limits {
        Limits { rows_min: 1, rows_max: 50_000, bytes_max: 18 << 20 }
    }

    fn needs_upload(&self) -> NeedsUpload {
        NeedsUpload::No
    }

    fn line(&self, name: &str, _asks: Asks, body: &[u8]) -> Result<Vec<u8>> {
        let body: &RawValue = read("a row's request", body)?;
        Ok(format!(r#"{{"request":{},"metadata":{{"key":"{name}"}}}}"#, body.get()).into_bytes())
    }

    fn upload(&self, _name: &str, _content: Bytes) -> BatchCall {
        BatchCall::post("/batches")
    }

    fn uploaded(&self, _answer: &[u8]) -> Result<String> {
        Err(Error::internal("batches of Gemini are sent without files"))
    }

    fn create(&self, batch: &NewBatch<'_>) -> Result<BatchCall> {
        let verb = match batch.asks {
            Asks::Text => "batchGenerateContent",
            Asks::Vectors => "asyncBatchEmbedContent",
        };
        let name = json!(batch.name);
        let mut body =
            format!(r#"{{"batch":{{"displayName":{name},"inputConfig":{{"requests":{{"requests":["#).into_bytes();
        body.extend_from_slice(&batch.lines.join(&b","[..]));
        body.extend_from_slice(b"]}}}}");
        Ok(BatchCall::json(format!("/models/{}:{verb}", batch.model), body))
    }

    fn created(&self, answer: &[u8]) -> Result<String> {
        read::<Operation>("the answer to a creation", answer).map(|operation| operation.name)
    }

    fn list(&self, after: Option<&str>) -> BatchCall {
        let after = after.map(|after| format!("&pageToken={after}")).unwrap_or_default();
        BatchCall::get(format!("/batches?pageSize={PAGE}{after}"))
    }

    fn listed(&self, _after: Option<&str>, answer: &[u8]) -> Result<Page> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct List {
            #[serde(default)]
            operations: Vec<Operation>,
            #[serde(default)]
            next_page_token: Option<String>,
        }
        let list: List = read("a list of batches", answer)?;
        let items = list.operations.into_iter().map(|operation| Listed {
            has_ended: has_ended(&operation),
            name: operation.metadata.display_name,
            file: None,
            created_ms: milliseconds(&operation.metadata.create_time),
            rows: None,
            remote: operation.name,
        });
        Ok(Page { items: items.collect(), next: list.next_page_token.filter(|token| !token.is_empty()) })
    }

    fn poll(&self, remote: &str) -> BatchCall {
        BatchCall::get(format!("/{remote}"))
    }

    fn status(&self, _remote: &str, answer: &[u8]) -> Result<Status> {
        let operation: Operation = read("the state of a batch", answer)?;
        Ok(match has_ended(&operation) {
            false => Status::running(),
            true if operation.metadata.state.ends_with("_FAILED") => Status::failed(),
            true => Status::ended(vec![Source::Inline(Bytes::copy_from_slice(answer))]),
        })
    }

    fn cancel(&self, remote: &str) -> BatchCall {
        BatchCall::post(format!("/{remote}:cancel"))
    }

    fn lines(&self, content: &[u8]) -> Result<Lines> {
        let response = read::<WithResponse>("a batch's results", content)?.response.unwrap_or_default();
        let inlined = response.inlined_responses.or(response.inlined_embed_content_responses);
        let answers = inlined.map(|inlined| inlined.inlined_responses).unwrap_or_default();
        // One that cannot be read has its place all the same: order may have to tell.
        let unreadable = || Line { name: None, says: Says::Unreadable };
        let read = |answer: Box<RawValue>| {
            serde_json::from_str::<Answer>(answer.get()).map_or_else(|_| unreadable(), Line::from)
        };
        Ok(Lines { lines: answers.into_iter().map(read).collect(), ..Lines::default() })
    }
}

fn has_ended(operation: &Operation) -> bool {
    let ends = ["_SUCCEEDED", "_FAILED", "_CANCELLED", "_EXPIRED"];
    operation.done || ends.iter().any(|end| operation.metadata.state.ends_with(end))
}

impl From<Answer> for Line {
    fn from(answer: Answer) -> Self {
        // Some answers come without the key that was sent; then their order tells.
        let name = answer.metadata["key"].as_str().map(str::to_owned);
        let says = match answer.response {
            Some(response) => Says::Answer(response),
            None => {
                // Codes of gRPC: cancelled, deadline exceeded; invalid argument, failed precondition, out of range.
                match answer.error["code"].as_u64() {
                    Some(1 | 4) => Says::NotDone,
                    Some(3 | 9 | 11 | 400) => Says::Error { status: Some(400), code: None },
                    _ => Says::Error { status: Some(500), code: None },
                }
            }
        };
        Self { name, says }
    }
}
