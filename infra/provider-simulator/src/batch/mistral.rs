//! Mistral's batch jobs: OpenAI's files, jobs of their own spelling, the model beside the file.

use http::Method;
use serde_json::{Value, json};

use super::results::RowResult;
use super::timeline::Phase;
use super::{Desk, Input, Row, StoredFile, openai};
use crate::dialect::Operation;
use crate::reply::Reply;
use crate::serve::Incoming;
use crate::trouble::Trouble;

pub(super) fn answer(desk: &mut Desk<'_>, incoming: &Incoming, tail: &[&str]) -> Result<Reply, Trouble> {
    match (&incoming.method, tail) {
        (&Method::POST, []) => create(desk, &incoming.json()?),
        (&Method::GET, []) => {
            let number = |name: &str, default: usize| {
                incoming.query.get(name).and_then(|number| number.parse().ok()).unwrap_or(default)
            };
            let (page, size) = (number("page", 0), number("page_size", 100));
            let total = desk.shelf.jobs.len();
            let newest_first = (0..total).rev().skip(page * size).take(size);
            let data: Vec<Value> = newest_first.map(|index| shown(desk, index)).collect();
            Ok(Reply::ok(&json!({"object": "list", "data": data, "total": total})))
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
    let model = body["model"].as_str().ok_or_else(|| invalid("missing `model`"))?;
    let operation = match body["endpoint"].as_str() {
        Some("/v1/chat/completions") => Operation::Chat,
        Some("/v1/embeddings") => Operation::Embeddings,
        _ => return Err(invalid("`endpoint` is not supported")),
    };
    let [file_id] = body["input_files"].as_array().map_or(&[][..], Vec::as_slice) else {
        return Err(invalid("`input_files` must name one file"));
    };
    let file = desk.shelf.files.get(file_id.as_str().unwrap_or_default()).ok_or_else(|| invalid("no such file"))?;
    let input = Input::of_lines(&file.content, |line| {
        let mut body = line["body"].clone();
        body.as_object_mut()?.entry("model").or_insert_with(|| json!(model));
        Some(Row { custom_id: line["custom_id"].as_str()?.to_owned(), body })
    });
    let id = desk.name();
    let index = desk.create(id, operation, input, body.clone());
    Ok(Reply::ok(&shown(desk, index)))
}

fn shown(desk: &mut Desk<'_>, index: usize) -> Value {
    let look = desk.look(index);
    if look.has_ended() && desk.shelf.jobs[index].result_files == [None, None] {
        store_results(desk, index);
    }
    let job = &desk.shelf.jobs[index];
    let status = match look.phase {
        Phase::Validating => "QUEUED",
        Phase::Running | Phase::Finalizing => "RUNNING",
        Phase::Completed => "SUCCESS",
        Phase::Failed => "FAILED",
        Phase::Expired => "TIMEOUT_EXCEEDED",
        Phase::Cancelling => "CANCELLATION_REQUESTED",
        Phase::Cancelled => "CANCELLED",
    };
    let results = job.results.as_deref().unwrap_or_default();
    let failed = results.iter().filter(|(_, result)| matches!(result, RowResult::Failed(_))).count();
    let errors: Vec<Value> = job.failure.iter().map(|(_, message)| json!({"message": message, "count": 1})).collect();
    json!({
        "id": job.id, "object": "batch", "input_files": job.said["input_files"], "metadata": job.said["metadata"],
        "endpoint": job.said["endpoint"], "model": job.said["model"], "agent_id": null,
        "output_file": job.result_files[0], "error_file": job.result_files[1], "errors": errors, "status": status,
        "created_at": job.created_ms / 1000, "started_at": null,
        "completed_at": look.ended_ms.map(|at_ms| at_ms / 1000),
        "total_requests": job.rows.len(), "completed_requests": look.done,
        "succeeded_requests": look.done.saturating_sub(failed), "failed_requests": failed,
    })
}

fn store_results(desk: &mut Desk<'_>, index: usize) {
    let results = desk.shelf.jobs[index].results.clone().unwrap_or_default();
    let mut files = [String::new(), String::new()];
    for (custom_id, result) in &results {
        // Rows that a timeout met have no line here.
        if *result == RowResult::Expired {
            continue;
        }
        let Some((file, line)) = openai::line(desk.provider, custom_id, result) else { continue };
        files[file].push_str(&line.to_string());
        files[file].push('\n');
    }
    for (file, content) in files.into_iter().enumerate().filter(|(_, content)| !content.is_empty()) {
        let id = format!("file-{}", desk.name());
        let stored = StoredFile {
            name: format!("{id}.jsonl"),
            purpose: "batch".into(),
            content: content.into(),
            created_ms: desk.now_ms,
        };
        desk.shelf.jobs[index].result_files[file] = Some(desk.store(id, stored));
    }
}
