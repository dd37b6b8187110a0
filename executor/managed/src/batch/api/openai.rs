//! OpenAI's batch API, and those of Azure, Groq, Together and Mistral, which differ in paths, spelling and what they wrap:
//! a file of JSON lines is uploaded, a batch is created of it, output and errors are two files.

use bytes::Bytes;
use rowmill_jobs::{Error, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::machine::NeedsUpload;
use super::super::reconcile::{Line, Lines, Says};
use super::super::rows::{Asks, Limits};
use super::super::seam::{BatchBody, BatchCall};
use super::{BatchApi, Listed, NewBatch, Page, Source, Status, milliseconds, plain_word, read, read_lines};
use crate::call::Estimate;

/// Batches in a page of a list.
const PAGE: usize = 100;
/// The metadata's key under which our name stands.
const NAME_KEY: &str = "rowmill_batch";

/// One of the copies.
#[derive(Debug)]
pub(crate) struct OpenAiLike {
    limits: Limits,
    upload_path: &'static str,
    purpose: &'static str,
    batches_path: &'static str,
    spelling: Spelling,
}

/// How jobs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Openai,
    /// Creation wrapped, list bare, no metadata.
    Together,
    /// The model beside the file, pages by number.
    Mistral,
}

const MIB: usize = 1 << 20;

pub(crate) static OPENAI: OpenAiLike = COPY;
pub(crate) static AZURE: OpenAiLike = COPY;
pub(crate) static GROQ: OpenAiLike = COPY;
pub(crate) static TOGETHER: OpenAiLike = OpenAiLike {
    limits: Limits { rows_min: 1, rows_max: 50_000, bytes_max: 95 * MIB },
    upload_path: "/files/upload",
    purpose: "batch-api",
    batches_path: "/batches",
    spelling: Spelling::Together,
};
pub(crate) static MISTRAL: OpenAiLike = OpenAiLike {
    limits: Limits { rows_min: 1, rows_max: 100_000, bytes_max: 500 * MIB },
    upload_path: "/files",
    purpose: "batch",
    batches_path: "/batch/jobs",
    spelling: Spelling::Mistral,
};
/// OpenAI's, and that of those who copied all of it. Limits leave room for what surrounds the rows.
const COPY: OpenAiLike = OpenAiLike {
    limits: Limits { rows_min: 1, rows_max: 50_000, bytes_max: 190 * MIB },
    upload_path: "/files",
    purpose: "batch",
    batches_path: "/batches",
    spelling: Spelling::Openai,
};

fn endpoint(asks: Asks) -> &'static str {
    match asks {
        Asks::Text => "/v1/chat/completions",
        Asks::Vectors => "/v1/embeddings",
    }
}

/// A job as any of them tells it.
#[derive(Debug, Deserialize)]
struct Job {
    id: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    input_file_id: Option<String>,
    #[serde(default)]
    input_files: Vec<String>,
    #[serde(default, alias = "output_file")]
    output_file_id: Option<String>,
    #[serde(default, alias = "error_file")]
    error_file_id: Option<String>,
    #[serde(default)]
    created_at: Value,
}

/// How the states of a job end, in lower case.
fn has_ended(status: &str) -> bool {
    let ends = ["completed", "failed", "expired", "cancelled", "canceled", "success", "timeout_exceeded"];
    ends.contains(&status.to_lowercase().as_str())
}

/// Whether a job that has not ended was asked to. Together does not say.
fn is_ending(status: &str) -> bool {
    ["cancelling", "cancellation_requested"].contains(&status.to_lowercase().as_str())
}

impl BatchApi for OpenAiLike {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn needs_upload(&self) -> NeedsUpload {
        NeedsUpload::Yes
    }

    fn line(&self, name: &str, asks: Asks, body: &[u8]) -> Result<Vec<u8>> {
        let body: &RawValue = read("a row's request", body)?;
        let mut line = match self.spelling {
            Spelling::Mistral => format!(r#"{{"custom_id":"{name}","body":"#),
            _ => format!(r#"{{"custom_id":"{name}","method":"POST","url":"{}","body":"#, endpoint(asks)),
        }
        .into_bytes();
        line.extend_from_slice(body.get().as_bytes());
        line.extend_from_slice(b"}\n");
        Ok(line)
    }

    fn upload(&self, name: &str, content: Bytes) -> BatchCall {
        let file = format!("{name}.jsonl");
        let mut fields = vec![("purpose", self.purpose.to_owned())];
        if self.spelling == Spelling::Together {
            fields.extend([("file_name", file.clone()), ("file_type", "jsonl".to_owned())]);
        }
        let body = BatchBody::Form { fields, name: file, content };
        BatchCall { path: self.upload_path.to_owned(), body, estimate: Estimate::default(), of: None }
    }

    fn uploaded(&self, answer: &[u8]) -> Result<String> {
        read::<Job>("the answer to an upload", answer).map(|file| file.id)
    }

    fn create(&self, batch: &NewBatch<'_>) -> Result<BatchCall> {
        let file = batch.file.ok_or_else(|| Error::internal("a batch without a file"))?;
        let (endpoint, metadata) = (endpoint(batch.asks), json!({ NAME_KEY: batch.name }));
        let body = match self.spelling {
            Spelling::Openai => json!({
                "input_file_id": file, "endpoint": endpoint, "completion_window": "24h", "metadata": metadata,
            }),
            Spelling::Together => json!({"input_file_id": file, "endpoint": endpoint}),
            Spelling::Mistral => json!({
                "input_files": [file], "model": batch.model, "endpoint": endpoint, "metadata": metadata,
            }),
        };
        Ok(BatchCall::json(self.batches_path, body.to_string()))
    }

    fn created(&self, answer: &[u8]) -> Result<String> {
        let mut answer: Value = read("the answer to a creation", answer)?;
        let job = if answer["job"].is_object() { answer["job"].take() } else { answer };
        let id = job["id"].as_str().map(str::to_owned);
        id.ok_or_else(|| Error::temporary("the answer to a creation names no batch"))
    }

    fn list(&self, after: Option<&str>) -> BatchCall {
        let after = after.unwrap_or_default();
        let query = match self.spelling {
            Spelling::Together => String::new(),
            Spelling::Mistral if after.is_empty() => format!("?page=0&page_size={PAGE}"),
            Spelling::Mistral => format!("?page={after}&page_size={PAGE}"),
            Spelling::Openai if after.is_empty() => format!("?limit={PAGE}"),
            Spelling::Openai => format!("?limit={PAGE}&after={after}"),
        };
        BatchCall::get(format!("{}{query}", self.batches_path))
    }

    fn listed(&self, after: Option<&str>, answer: &[u8]) -> Result<Page> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            data: Vec<Job>,
            #[serde(default)]
            has_more: bool,
        }
        let list = match self.spelling {
            Spelling::Together => List { data: read("a list of batches", answer)?, has_more: false },
            _ => read("a list of batches", answer)?,
        };
        let next = match self.spelling {
            // Its pages have numbers, and none says that it is the last.
            Spelling::Mistral => {
                let number: u64 = after.and_then(|after| after.parse().ok()).unwrap_or(0);
                (list.data.len() == PAGE).then(|| (number + 1).to_string())
            }
            _ => list.data.last().filter(|_| list.has_more).map(|job| job.id.clone()),
        };
        let items = list.data.into_iter().map(|job| Listed {
            has_ended: job.status.as_deref().is_some_and(has_ended),
            name: job.metadata[NAME_KEY].as_str().map(str::to_owned),
            file: job.input_file_id.or_else(|| job.input_files.into_iter().next()),
            created_ms: milliseconds(&job.created_at),
            rows: None,
            remote: job.id,
        });
        Ok(Page { items: items.collect(), next })
    }

    fn poll(&self, remote: &str) -> BatchCall {
        BatchCall::get(format!("{}/{remote}", self.batches_path))
    }

    fn status(&self, _remote: &str, answer: &[u8]) -> Result<Status> {
        let job: Job = read("the state of a batch", answer)?;
        let status = job.status.unwrap_or_default();
        let files: Vec<Source> = [job.output_file_id, job.error_file_id]
            .into_iter()
            .flatten()
            .filter(|id| !id.is_empty())
            .map(|id| Source::Path(format!("/files/{id}/content")))
            .collect();
        Ok(match has_ended(&status) {
            false if is_ending(&status) => Status::ending(),
            false => Status::running(),
            true if files.is_empty() && status.eq_ignore_ascii_case("failed") => Status::failed(),
            true => Status::ended(files),
        })
    }

    fn cancel(&self, remote: &str) -> BatchCall {
        BatchCall::post(format!("{}/{remote}/cancel", self.batches_path))
    }

    fn lines(&self, content: &[u8]) -> Result<Lines> {
        read_lines::<ResultLine>(content)
    }
}

#[derive(Debug, Deserialize)]
struct ResultLine {
    custom_id: String,
    #[serde(default)]
    response: Option<Response>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Response {
    status_code: u16,
    #[serde(default)]
    body: Option<Box<RawValue>>,
}

impl From<ResultLine> for Line {
    fn from(line: ResultLine) -> Self {
        let word = |value: &Value| value.as_str().and_then(plain_word);
        let says = match (line.response, line.error) {
            (Some(Response { status_code: 200..300, body: Some(body) }), _) => Says::Answer(body),
            (Some(response), _) => {
                let body: Value =
                    response.body.and_then(|body| serde_json::from_str(body.get()).ok()).unwrap_or_default();
                Says::Error { status: Some(response.status_code), code: word(&body["error"]["code"]) }
            }
            (None, error) => {
                let code = error.and_then(|error| word(&error["code"]));
                match code.as_deref() {
                    Some("batch_expired" | "batch_cancelled") => Says::NotDone,
                    _ => Says::Error { status: None, code },
                }
            }
        };
        Self { name: Some(line.custom_id), says }
    }
}
