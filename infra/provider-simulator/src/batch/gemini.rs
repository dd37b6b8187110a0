//! Gemini's batches: rows in the body or in a file, an operation that is looked at, answers inline or in a file.

use http::Method;
use serde_json::{Value, json};

use super::results::RowResult;
use super::timeline::{Look, Phase};
use super::{Desk, Input, Row, StoredFile, page};
use crate::dialect::Operation;
use crate::reply::Reply;
use crate::serve::Incoming;
use crate::time::rfc3339;
use crate::trouble::{self, Trouble};

/// Most bytes of a batch whose rows are in the body.
const INLINE_BYTES_MAX: usize = 20 << 20;

pub(super) fn answer(desk: &mut Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    let path = incoming.path.as_str();
    let (_, tail) = path.split_once("/v1beta/").ok_or(Trouble::NotFound)?;
    let model = |verb: &str| tail.strip_prefix("models/")?.strip_suffix(verb).map(str::to_owned);
    match incoming.method {
        Method::POST if path.starts_with("/upload/") => upload(desk, incoming),
        // Clients differ in whether `/download` comes first.
        Method::GET if tail.ends_with(":download") => {
            let name = tail.strip_suffix(":download").ok_or(Trouble::NotFound)?;
            let file = desk.shelf.files.get(name).ok_or(Trouble::NotFound)?;
            Ok(Reply::lines(file.content.clone()))
        }
        Method::GET if tail.starts_with("files/") => {
            let file = desk.shelf.files.get(tail).ok_or(Trouble::NotFound)?;
            Ok(Reply::ok(&shown_file(tail, file)))
        }
        Method::POST => match (model(":batchGenerateContent"), model(":asyncBatchEmbedContent"), cancelled(tail)) {
            (Some(model), ..) => create(desk, incoming, Operation::Generate(model)),
            (_, Some(model), _) => create(desk, incoming, Operation::Embed(model)),
            (.., Some(name)) => {
                let index = desk.find(name)?;
                desk.cancel(index);
                Ok(Reply::ok(&json!({})))
            }
            _ => Err(Trouble::NotFound),
        },
        Method::GET if tail == "batches" => {
            let size = incoming.query.get("pageSize").and_then(|size| size.parse().ok()).unwrap_or(50);
            let (indexes, has_more) = page(desk.shelf, incoming.query.get("pageToken"), size)?;
            let operations: Vec<Value> = indexes.into_iter().map(|index| shown(desk, index)).collect();
            let last = operations.last().map(|last| last["name"].clone()).filter(|_| has_more);
            let mut list = json!({ "operations": operations });
            if let Some(last) = last {
                list["nextPageToken"] = last;
            }
            Ok(Reply::ok(&list))
        }
        Method::GET if tail.starts_with("batches/") => {
            let index = desk.find(tail)?;
            Ok(Reply::ok(&shown(desk, index)))
        }
        _ => Err(Trouble::NotFound),
    }
}

fn cancelled(tail: &str) -> Option<&str> {
    tail.strip_suffix(":cancel").filter(|name| name.starts_with("batches/"))
}

/// A resumable upload: it begins with the name, and ends with the bytes.
fn upload(desk: &mut Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    let command = incoming.headers.get("x-goog-upload-command").and_then(|value| value.to_str().ok());
    match command {
        Some("start") => {
            let name = incoming.json().map(|body| body["file"]["displayName"].as_str().unwrap_or("file").to_owned())?;
            let upload_id = desk.name();
            desk.shelf.uploads.insert(upload_id.clone(), name);
            let host = incoming.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
            let url = format!("http://{host}/gemini/upload/v1beta/files?upload_id={upload_id}");
            Ok(Reply::ok(&json!({})).header("x-goog-upload-url", url).header("x-goog-upload-status", "active"))
        }
        Some("upload, finalize") => {
            let name = incoming.query.get("upload_id").and_then(|id| desk.shelf.uploads.remove(id));
            let name = name.ok_or(Trouble::NotFound)?;
            let id = format!("files/{}", desk.name());
            let file =
                StoredFile { name, purpose: "upload".into(), content: incoming.body.clone(), created_ms: desk.now_ms };
            let shown = json!({"file": shown_file(&id, &file)});
            desk.store(id, file);
            Ok(Reply::ok(&shown).header("x-goog-upload-status", "final"))
        }
        _ => Err(Trouble::Invalid("unknown upload command".into())),
    }
}

fn shown_file(name: &str, file: &StoredFile) -> Value {
    json!({
        "name": name, "displayName": file.name, "mimeType": "application/jsonl",
        "sizeBytes": file.content.len().to_string(), "createTime": rfc3339(file.created_ms), "state": "ACTIVE",
        "uri": format!("https://generativelanguage.googleapis.com/v1beta/{name}"),
    })
}

fn create(desk: &mut Desk<'_>, incoming: &Incoming, operation: Operation) -> Result<Reply, Trouble> {
    let body = incoming.json()?;
    let batch = &body["batch"];
    // The API takes both spellings of a name, as JSON of protocol buffers does.
    let field = |value: &Value, camel: &str, snake: &str| {
        if value[camel].is_null() { value[snake].clone() } else { value[camel].clone() }
    };
    let config = field(batch, "inputConfig", "input_config");
    let file_name = field(&config, "fileName", "file_name");
    let row = |request: &Value, key: &Value| {
        Some(Row { custom_id: key.as_str()?.to_owned(), body: request.as_object().map(|_| request.clone())? })
    };
    let (input, is_file) = match file_name.as_str() {
        Some(name) => {
            let file = desk.shelf.files.get(name).ok_or_else(|| Trouble::Invalid("no such file".into()))?;
            (Input::of_lines(&file.content, |line| row(&line["request"], &line["key"])), true)
        }
        None if incoming.body.len() > INLINE_BYTES_MAX => return Err(Trouble::TooLarge),
        None => {
            let requests = config["requests"]["requests"].as_array().cloned().unwrap_or_default();
            let numbered = requests.iter().enumerate().map(|(index, request)| {
                let key = &request["metadata"]["key"];
                row(&request["request"], &if key.is_null() { json!(format!("#{index}")) } else { key.clone() })
            });
            let rows: Option<Vec<Row>> = numbered.collect();
            let rows = rows.filter(|rows| !rows.is_empty());
            (Input::new(rows.ok_or_else(|| Trouble::Invalid("no requests".into()))?), false)
        }
    };
    let said = json!({"display_name": field(batch, "displayName", "display_name"), "is_file": is_file});
    let name = format!("batches/{}", desk.name());
    let index = desk.create(name, operation, input, said);
    Ok(Reply::ok(&shown(desk, index)))
}

/// The operation that stands for a batch.
fn shown(desk: &mut Desk<'_>, index: usize) -> Value {
    let look = desk.look(index);
    let is_file = desk.shelf.jobs[index].said["is_file"] == json!(true);
    if look.has_ended() && is_file && desk.shelf.jobs[index].result_files[0].is_none() {
        store_results(desk, index);
    }
    let job = &desk.shelf.jobs[index];
    let model = match &job.operation {
        Operation::Generate(model) | Operation::Embed(model) => model.as_str(),
        _ => "",
    };
    let mut metadata = json!({
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "model": format!("models/{model}"), "displayName": job.said["display_name"], "name": job.id,
        "state": state(look), "createTime": rfc3339(job.created_ms), "updateTime": rfc3339(desk.now_ms),
        "batchStats": {"requestCount": job.rows.len().to_string()},
    });
    if let Some(ended_ms) = look.ended_ms {
        metadata["endTime"] = json!(rfc3339(ended_ms));
    }
    let mut operation = json!({"name": job.id, "metadata": metadata, "done": look.has_ended()});
    match look.phase {
        Phase::Failed => {
            let message = job.failure.as_ref().map_or("the batch failed", |(_, message)| message.as_str());
            operation["error"] = json!({"code": 3, "message": message});
        }
        Phase::Completed => {
            let output = output(desk, index);
            operation["metadata"]["output"] = output.clone();
            operation["response"] = output;
        }
        // An expired or cancelled batch has no results at all here.
        _ => {}
    }
    operation
}

fn output(desk: &Desk<'_>, index: usize) -> Value {
    let job = &desk.shelf.jobs[index];
    if let Some(file) = &job.result_files[0] {
        return json!({ "responsesFile": file });
    }
    // Inline answers keep the order of the requests, so what comes twice or not at all elsewhere does neither here.
    let results = job.results.as_deref().unwrap_or_default();
    let answers = job.rows.iter().map(|row| {
        let found = results.iter().find(|(id, _)| *id == row.custom_id).map(|(_, result)| result);
        line(desk, &row.custom_id, found.unwrap_or(&RowResult::Failed(Trouble::Broken)))
    });
    let inlined = json!({"inlinedResponses": answers.collect::<Vec<_>>()});
    match job.operation {
        Operation::Embed(_) => json!({ "inlinedEmbedContentResponses": inlined }),
        _ => json!({ "inlinedResponses": inlined }),
    }
}

fn line(desk: &Desk<'_>, key: &str, result: &RowResult) -> Value {
    let mut line = json!({"metadata": {"key": key}});
    match result {
        RowResult::Odd => return json!("no object"),
        RowResult::Answered(body) => line["response"] = body.clone(),
        RowResult::Failed(trouble) => {
            let reply = trouble::reply(desk.provider, trouble);
            let error: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            // An error in a batch has the codes of gRPC.
            let code = if error["error"]["status"] == json!("INVALID_ARGUMENT") { 3 } else { 13 };
            line["error"] = json!({"code": code, "message": error["error"]["message"]});
        }
        RowResult::Expired | RowResult::Cancelled => line["error"] = json!({"code": 1, "message": "cancelled"}),
    }
    line
}

fn store_results(desk: &mut Desk<'_>, index: usize) {
    let results = desk.shelf.jobs[index].results.clone().unwrap_or_default();
    let mut content = String::new();
    for (key, result) in &results {
        let mut line = line(desk, key, result);
        if line.is_object() {
            line["key"] = line["metadata"]["key"].take();
        }
        content.push_str(&line.to_string());
        content.push('\n');
    }
    let id = format!("files/batch-{}", desk.name());
    let created_ms = desk.now_ms;
    let file = StoredFile { name: "results".into(), purpose: "output".into(), content: content.into(), created_ms };
    desk.shelf.jobs[index].result_files[0] = Some(desk.store(id, file));
}

fn state(look: Look) -> &'static str {
    match look.phase {
        Phase::Validating => "BATCH_STATE_PENDING",
        Phase::Running | Phase::Finalizing | Phase::Cancelling => "BATCH_STATE_RUNNING",
        Phase::Completed => "BATCH_STATE_SUCCEEDED",
        Phase::Failed => "BATCH_STATE_FAILED",
        Phase::Expired => "BATCH_STATE_EXPIRED",
        Phase::Cancelled => "BATCH_STATE_CANCELLED",
    }
}
