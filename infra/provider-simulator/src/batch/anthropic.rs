//! Anthropic's message batches: rows in the body, one stream of results, no metadata.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use super::results::RowResult;
use super::timeline::Phase;
use super::{Desk, Input, Row, page};
use crate::dialect::Operation;
use crate::reply::Reply;
use crate::serve::Incoming;
use crate::time::rfc3339;
use crate::trouble::{self, Trouble};

/// Most rows of a batch.
const ROWS_MAX: usize = 100_000;
/// Most bytes of a batch.
const BYTES_MAX: usize = 256 << 20;

pub(super) fn answer(desk: &mut Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    let (_, tail) = incoming.path.split_once("/v1/messages/batches").ok_or(Trouble::NotFound)?;
    let tail: Vec<&str> = tail.split('/').filter(|segment| !segment.is_empty()).collect();
    if !incoming.headers.contains_key("anthropic-version") {
        return Err(Trouble::Invalid("anthropic-version: header is required".into()));
    }
    match (&incoming.method, tail.as_slice()) {
        (&Method::POST, []) => create(desk, incoming),
        (&Method::GET, []) => {
            let limit = incoming.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(20);
            let (indexes, has_more) = page(desk.shelf, incoming.query.get("after_id"), limit)?;
            let data: Vec<Value> = indexes.into_iter().map(|index| shown(desk, index, incoming)).collect();
            let id = |job: Option<&Value>| job.map_or(Value::Null, |job| job["id"].clone());
            let (first, last) = (id(data.first()), id(data.last()));
            Ok(Reply::ok(&json!({"data": data, "first_id": first, "last_id": last, "has_more": has_more})))
        }
        (&Method::GET, [id]) => {
            let index = desk.find(id)?;
            Ok(Reply::ok(&shown(desk, index, incoming)))
        }
        (&Method::POST, [id, "cancel"]) => {
            let index = desk.find(id)?;
            desk.cancel(index);
            Ok(Reply::ok(&shown(desk, index, incoming)))
        }
        (&Method::GET, [id, "results"]) => results(desk, id),
        _ => Err(Trouble::NotFound),
    }
}

fn create(desk: &mut Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    if incoming.body.len() > BYTES_MAX {
        return Err(Trouble::TooLarge);
    }
    let body = incoming.json()?;
    let requests = body["requests"].as_array().filter(|requests| (1..=ROWS_MAX).contains(&requests.len()));
    let requests = requests.ok_or_else(|| Trouble::Invalid("requests: between 1 and 100000 are allowed".into()))?;
    let row = |request: &Value| {
        let custom_id = request["custom_id"].as_str().filter(|id| is_name(id))?;
        Some(Row { custom_id: custom_id.to_owned(), body: request["params"].clone() })
    };
    let rows: Option<Vec<Row>> = requests.iter().map(row).collect();
    let rows = rows.ok_or_else(|| Trouble::Invalid("requests.custom_id: must match ^[a-zA-Z0-9_-]{1,64}$".into()))?;
    let input = Input::new(rows);
    // What is wrong is said at once: these batches are never validated later.
    if let Some((_, message)) = input.failure {
        return Err(Trouble::Invalid(message));
    }
    let id = format!("msgbatch_{}", desk.name());
    let index = desk.create(id, Operation::Messages(None), input, Value::Null);
    Ok(Reply::ok(&shown(desk, index, incoming)))
}

fn is_name(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn shown(desk: &mut Desk<'_>, index: usize, incoming: &Incoming) -> Value {
    let look = desk.look(index);
    let job = &desk.shelf.jobs[index];
    let status = match (look.has_ended(), look.phase) {
        (true, _) => "ended",
        (false, Phase::Cancelling) => "canceling",
        (false, _) => "in_progress",
    };
    let results = job.results.as_deref().unwrap_or_default();
    let count = |test: fn(&RowResult) -> bool| {
        // A line that comes twice is one row.
        let rows: BTreeSet<&str> = results.iter().filter(|(_, r)| test(r)).map(|(id, _)| id.as_str()).collect();
        rows.len()
    };
    let host = incoming.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    let url = format!("http://{host}/anthropic/v1/messages/batches/{}/results", job.id);
    json!({
        "id": job.id, "type": "message_batch", "processing_status": status,
        "request_counts": {
            // Only the end tells rows apart; until then all are being processed.
            "processing": if look.has_ended() { 0 } else { job.rows.len() },
            "succeeded": count(|result| matches!(result, RowResult::Answered(_))),
            "errored": count(|result| matches!(result, RowResult::Failed(_))),
            "canceled": count(|result| *result == RowResult::Cancelled),
            "expired": count(|result| *result == RowResult::Expired),
        },
        "ended_at": look.ended_ms.map(rfc3339), "created_at": rfc3339(job.created_ms),
        "expires_at": rfc3339(job.created_ms + 86_400_000), "archived_at": null,
        "cancel_initiated_at": job.cancelled_ms.map(rfc3339),
        "results_url": look.has_ended().then_some(url),
    })
}

fn results(desk: &mut Desk<'_>, id: &str) -> Result<Reply, Trouble> {
    let index = desk.find(id)?;
    let ended_ms = desk.look(index).ended_ms.ok_or_else(|| Trouble::Invalid("the batch has not ended".into()))?;
    if desk.now_ms > ended_ms + desk.state.config.batches_of(desk.provider).retention_ms {
        return Err(Trouble::NotFound);
    }
    let mut lines = String::new();
    for (custom_id, result) in desk.shelf.jobs[index].results.iter().flatten() {
        let result = match result {
            RowResult::Answered(message) => json!({"type": "succeeded", "message": message}),
            RowResult::Odd => json!("no object"),
            RowResult::Failed(trouble) => {
                let reply = trouble::reply(desk.provider, trouble);
                let error: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
                json!({"type": "errored", "error": error})
            }
            RowResult::Expired => json!({"type": "expired"}),
            RowResult::Cancelled => json!({"type": "canceled"}),
        };
        lines.push_str(&json!({"custom_id": custom_id, "result": result}).to_string());
        lines.push('\n');
    }
    Ok(Reply::new(200, "application/x-jsonl", lines))
}
