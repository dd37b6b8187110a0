//! OpenAI's batches, and those of Azure, Groq and Together, which differ in spelling.

use http::Method;
use serde_json::{Value, json};

use super::results::RowResult;
use super::timeline::{Look, Phase};
use super::{Desk, Input, Row, StoredFile, page};
use crate::dialect::Operation;
use crate::provider::Provider;
use crate::random;
use crate::reply::Reply;
use crate::serve::Incoming;
use crate::time::rfc3339;
use crate::trouble::{self, Trouble};

/// Most rows of a file.
const ROWS_MAX: usize = 50_000;
/// Most pairs of metadata.
const METADATA_MAX: usize = 16;

/// The segments of a path from `files`, `batches` or `jobs` on.
pub(super) fn tail(path: &str) -> Vec<&str> {
    let segments: Vec<&str> = path.split('/').collect();
    let start = segments.iter().position(|segment| matches!(*segment, "files" | "batches" | "jobs"));
    start.map_or_else(Vec::new, |start| segments[start..].to_vec())
}

pub(super) fn answer(desk: &mut Desk<'_>, incoming: &Incoming, tail: &[&str]) -> Result<Reply, Trouble> {
    match (&incoming.method, tail) {
        (&Method::POST, []) => create(desk, &incoming.json()?),
        (&Method::GET, []) => {
            let limit = incoming.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(20);
            let is_together = desk.provider == Provider::Together;
            let limit: usize = if is_together { usize::MAX } else { limit };
            let (indexes, has_more) = page(desk.shelf, incoming.query.get("after"), limit)?;
            let data: Vec<Value> = indexes.into_iter().map(|index| shown(desk, index)).collect();
            if is_together {
                return Ok(Reply::ok(&Value::Array(data)));
            }
            let id = |job: Option<&Value>| job.map_or(Value::Null, |job| job["id"].clone());
            let (first, last) = (id(data.first()), id(data.last()));
            Ok(Reply::ok(&json!({
                "object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more,
            })))
        }
        (&Method::GET, [id]) => {
            let index = desk.find(id)?;
            Ok(Reply::ok(&shown(desk, index)))
        }
        (&Method::POST, [id, "cancel"]) => {
            let index = desk.find(id)?;
            desk.cancel(index);
            Ok(Reply::ok(&shown(desk, index)))
        }
        _ => Err(Trouble::NotFound),
    }
}

fn create(desk: &mut Desk<'_>, body: &Value) -> Result<Reply, Trouble> {
    let invalid = |what: &str| Trouble::Invalid(what.to_owned());
    let file_id = body["input_file_id"].as_str().ok_or_else(|| invalid("missing `input_file_id`"))?;
    let file = desk.shelf.files.get(file_id).ok_or_else(|| invalid("no such file"))?;
    let endpoint = body["endpoint"].as_str().unwrap_or_default();
    let operation = operation(endpoint).ok_or_else(|| invalid("`endpoint` is not supported"))?;
    if desk.provider != Provider::Together && body["completion_window"].as_str().is_none() {
        return Err(invalid("missing `completion_window`"));
    }
    let metadata = body["metadata"].as_object();
    let is_small = |value: &Value| value.as_str().is_some_and(|text| text.len() <= 512);
    if metadata.is_some_and(|pairs| pairs.len() > METADATA_MAX || !pairs.values().all(is_small)) {
        return Err(invalid("`metadata` is too large"));
    }
    let mut input = Input::of_lines(&file.content, |line| {
        let is_same = desk.provider == Provider::Together || line["url"] == body["endpoint"];
        let custom_id = line["custom_id"].as_str().filter(|_| is_same && line["body"].is_object())?;
        Some(Row { custom_id: custom_id.to_owned(), body: line["body"].clone() })
    });
    let models: std::collections::BTreeSet<&str> =
        input.rows.iter().filter_map(|row| row.body["model"].as_str()).collect();
    if models.len() > 1 {
        input.failure = Some(("mismatched_model", "all requests of a batch must have one model".into()));
    }
    if input.rows.len() > ROWS_MAX {
        input.failure = Some(("request_limit_exceeded", format!("a batch has at most {ROWS_MAX} requests")));
    }
    let id = format!("batch_{}", desk.name());
    let index = desk.create(id, operation, input, body.clone());
    let job = shown(desk, index);
    // Together's answer to a creation is wrapped, others are not.
    Ok(Reply::ok(&if desk.provider == Provider::Together { json!({ "job": job }) } else { job }))
}

fn operation(endpoint: &str) -> Option<Operation> {
    match endpoint {
        _ if endpoint.ends_with("/chat/completions") => Some(Operation::Chat),
        _ if endpoint.ends_with("/embeddings") => Some(Operation::Embeddings),
        _ => None,
    }
}

/// A batch as it is told; makes the files of its results when it has ended.
fn shown(desk: &mut Desk<'_>, index: usize) -> Value {
    let look = desk.look(index);
    if look.ended_ms.is_some() && desk.shelf.jobs[index].result_files == [None, None] {
        store_results(desk, index);
    }
    let (provider, job) = (desk.provider, &desk.shelf.jobs[index]);
    let status = status(provider, look.phase);
    let [output, errors] = &job.result_files;
    if provider == Provider::Together {
        return json!({
            "id": job.id, "user_id": "user", "input_file_id": job.said["input_file_id"], "file_size_bytes": 1,
            "status": status, "job_deadline": rfc3339(job.created_ms + 86_400_000),
            "created_at": rfc3339(job.created_ms), "completed_at": look.ended_ms.map(rfc3339),
            "endpoint": job.said["endpoint"], "progress": 100.0 * look.done as f64 / job.rows.len().max(1) as f64,
            "model_id": job.rows.first().map(|row| row.body["model"].clone()),
            "output_file_id": output, "error_file_id": errors,
        });
    }
    let failure =
        job.failure.as_ref().map_or(("server_error", "the batch failed"), |(code, text)| (*code, text.as_str()));
    let errors_of_file = json!({"object": "list", "data": [
        {"code": failure.0, "message": failure.1, "line": null, "param": null},
    ]});
    let count = |test: fn(&RowResult) -> bool| {
        job.results.as_ref().map_or(0, |results| {
            let ids: std::collections::BTreeSet<_> =
                results.iter().filter(|(_, result)| test(result)).map(|(id, _)| id).collect();
            ids.len()
        })
    };
    let failed = count(|result| matches!(result, RowResult::Failed(_)));
    let completed = if look.ended_ms.is_some() { count(|r| matches!(r, RowResult::Answered(_))) } else { look.done };
    json!({
        "id": job.id, "object": "batch", "endpoint": job.said["endpoint"],
        "errors": (look.phase == Phase::Failed).then_some(errors_of_file),
        "input_file_id": job.said["input_file_id"], "completion_window": job.said["completion_window"],
        "status": status, "output_file_id": output, "error_file_id": errors,
        "created_at": job.created_ms / 1000, "expires_at": job.created_ms / 1000 + 86_400,
        "completed_at": look.ended_ms.map(|at_ms| at_ms / 1000),
        "request_counts": {"total": job.rows.len(), "completed": completed, "failed": failed},
        "metadata": job.said["metadata"],
    })
}

fn status(provider: Provider, phase: Phase) -> &'static str {
    let is_together = provider == Provider::Together;
    match phase {
        Phase::Validating if is_together => "VALIDATING",
        Phase::Running | Phase::Finalizing | Phase::Cancelling if is_together => "IN_PROGRESS",
        Phase::Completed if is_together => "COMPLETED",
        Phase::Failed if is_together => "FAILED",
        Phase::Expired if is_together => "EXPIRED",
        Phase::Cancelled if is_together => "CANCELLED",
        Phase::Validating => "validating",
        Phase::Running => "in_progress",
        Phase::Finalizing => "finalizing",
        Phase::Completed => "completed",
        Phase::Failed => "failed",
        Phase::Expired => "expired",
        Phase::Cancelling => "cancelling",
        Phase::Cancelled => "cancelled",
    }
}

/// Makes the output file and the error file, each if it has a line.
fn store_results(desk: &mut Desk<'_>, index: usize) {
    let results = desk.shelf.jobs[index].results.clone().unwrap_or_default();
    let mut files = [String::new(), String::new()];
    for (custom_id, result) in &results {
        let Some((file, line)) = line(desk.provider, custom_id, result) else { continue };
        files[file].push_str(&line.to_string());
        files[file].push('\n');
    }
    for (file, content) in files.into_iter().enumerate().filter(|(_, content)| !content.is_empty()) {
        let id = format!("file-{}", desk.name());
        let name = ["output.jsonl", "errors.jsonl"][file].to_owned();
        let stored =
            StoredFile { name, purpose: "batch_output".into(), content: content.into(), created_ms: desk.now_ms };
        desk.shelf.jobs[index].result_files[file] = Some(desk.store(id, stored));
    }
}

/// A line of a result file, with the number of the file: 0 for output, 1 for errors.
pub(super) fn line(provider: Provider, custom_id: &str, result: &RowResult) -> Option<(usize, Value)> {
    let id = format!("batch_req_{:016x}", random::of(custom_id));
    let wrap =
        |response: Value, error: Value| json!({"id": id, "custom_id": custom_id, "response": response, "error": error});
    let response =
        |status: u16, body: &Value| json!({"status_code": status, "request_id": format!("req_{id}"), "body": body});
    match result {
        RowResult::Answered(body) => Some((0, wrap(response(200, body), Value::Null))),
        RowResult::Odd => Some((0, wrap("no object".into(), Value::Null))),
        RowResult::Failed(trouble) => {
            let reply = trouble::reply(provider, trouble);
            let body = serde_json::from_slice(&reply.body).unwrap_or_default();
            Some((1, wrap(response(reply.status, &body), Value::Null)))
        }
        RowResult::Expired => {
            let error = json!({"code": "batch_expired", "message": "This request could not be executed in time."});
            Some((1, wrap(Value::Null, error)))
        }
        // Rows that a cancellation met have no line.
        RowResult::Cancelled => None,
    }
}

impl Look {
    /// Whether the batch has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended_ms.is_some()
    }
}
