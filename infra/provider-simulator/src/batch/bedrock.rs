//! Bedrock's batch jobs: input and results are objects of a bucket, for which a folder of this machine stands (`file:///…`).
//! Jobs are named by their whole ARNs, and a creation with a token that was seen makes none.

use std::path::PathBuf;

use http::Method;
use serde_json::{Value, json};

use super::results::RowResult;
use super::timeline::{Look, Phase};
use super::{Desk, Input, Row, page};
use crate::dialect::Operation;
use crate::reply::Reply;
use crate::serve::Incoming;
use crate::time::rfc3339;
use crate::trouble::{self, Trouble};

/// Most rows of a file.
const ROWS_MAX: usize = 50_000;
/// What precedes a job's id in its ARN.
const ARN: &str = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/";
/// Digits of a job's id.
const ID_DIGITS: usize = 12;
/// Longest name of a job.
const NAME_MAX: usize = 63;

pub(super) fn answer(desk: &mut Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    if incoming.path == "/model-invocation-jobs" && incoming.method == Method::GET {
        return list(desk, incoming);
    }
    let tail = incoming.path.strip_prefix("/model-invocation-job").ok_or(Trouble::NotFound)?;
    let tail: Vec<&str> = tail.split('/').filter(|segment| !segment.is_empty()).collect();
    match (&incoming.method, tail.as_slice()) {
        (&Method::POST, []) => create(desk, &incoming.json()?),
        (&Method::GET, [arn]) => {
            let index = find(desk, arn)?;
            Ok(Reply::ok(&shown(desk, index)))
        }
        (&Method::POST, [arn, "stop"]) => {
            let index = find(desk, arn)?;
            desk.cancel(index);
            Ok(Reply::ok(&json!({})))
        }
        _ => Err(Trouble::NotFound),
    }
}

/// The job that a path names: by its ARN, encoded as one segment.
fn find(desk: &Desk<'_>, segment: &str) -> Result<usize, Trouble> {
    let arn = segment.replace("%3A", ":").replace("%2F", "/");
    let id = arn.strip_prefix(ARN).ok_or_else(|| Trouble::Invalid("The provided ARN is invalid".into()))?;
    desk.find(id)
}

fn list(desk: &mut Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    let limit = incoming.query.get("maxResults").and_then(|limit| limit.parse().ok()).unwrap_or(100);
    let (indexes, has_more) = page(desk.shelf, incoming.query.get("nextToken"), limit)?;
    let last = indexes.last().filter(|_| has_more).map(|index| desk.shelf.jobs[*index].id.clone());
    let jobs: Vec<Value> = indexes.into_iter().map(|index| shown(desk, index)).collect();
    let mut list = json!({ "invocationJobSummaries": jobs });
    if let Some(last) = last {
        list["nextToken"] = json!(last);
    }
    Ok(Reply::ok(&list))
}

fn create(desk: &mut Desk<'_>, body: &Value) -> Result<Reply, Trouble> {
    let invalid = |what: &str| Trouble::Invalid(what.to_owned());
    let text = |value: &Value, what: &str| value.as_str().map(str::to_owned).ok_or_else(|| invalid(what));
    let name = text(&body["jobName"], "missing `jobName`")?;
    if name.len() > NAME_MAX || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
        return Err(invalid("`jobName` is no name"));
    }
    let model = text(&body["modelId"], "missing `modelId`")?;
    if !body["roleArn"].as_str().is_some_and(|role| role.starts_with("arn:aws:iam::")) {
        return Err(invalid("`roleArn` is no role"));
    }
    if !body["timeoutDurationInHours"].as_u64().is_none_or(|hours| (24..=168).contains(&hours)) {
        return Err(invalid("`timeoutDurationInHours` is from 24 to 168"));
    }
    let token = &body["clientRequestToken"];
    let known = desk.shelf.jobs.iter().find(|job| token.is_string() && job.said["clientRequestToken"] == *token);
    if let Some(known) = known {
        return Ok(Reply::ok(&json!({"jobArn": format!("{ARN}{}", known.id)})));
    }
    let file = object(&body["inputDataConfig"]["s3InputDataConfig"]["s3Uri"])?;
    object(&body["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"])?;
    let content = std::fs::read(file).map_err(|_| invalid("the input cannot be read"))?;
    let mut input = Input::of_lines(&content, |line| {
        let custom_id = line["recordId"].as_str().filter(|_| line["modelInput"].is_object())?;
        Some(Row { custom_id: custom_id.to_owned(), body: line["modelInput"].clone() })
    });
    if input.rows.len() > ROWS_MAX {
        input.failure = Some(("request_limit_exceeded", format!("a job has at most {ROWS_MAX} records")));
    }
    let mut id = desk.name();
    id.truncate(ID_DIGITS);
    let arn = format!("{ARN}{id}");
    desk.create(id, Operation::Messages(Some(model)), input, body.clone());
    Ok(Reply::ok(&json!({ "jobArn": arn })))
}

/// The file that stands for an object.
fn object(uri: &Value) -> Result<PathBuf, Trouble> {
    let url = uri.as_str().and_then(|uri| url::Url::parse(uri).ok()).filter(|url| url.scheme() == "file");
    let path = url.and_then(|url| url.to_file_path().ok());
    path.ok_or_else(|| Trouble::Invalid("there is no such bucket".into()))
}

/// A job as it is told; writes its results when it has ended.
fn shown(desk: &mut Desk<'_>, index: usize) -> Value {
    let look = desk.look(index);
    if look.has_ended() && desk.shelf.jobs[index].result_files == [None, None] {
        write_results(desk, index);
    }
    let job = &desk.shelf.jobs[index];
    json!({
        "jobArn": format!("{ARN}{}", job.id), "jobName": job.said["jobName"], "modelId": job.said["modelId"],
        "clientRequestToken": job.said["clientRequestToken"], "roleArn": job.said["roleArn"], "status": status(&look),
        "message": job.failure.as_ref().map(|(_, message)| message),
        "submitTime": rfc3339(job.created_ms), "endTime": look.ended_ms.map(rfc3339),
        "inputDataConfig": job.said["inputDataConfig"], "outputDataConfig": job.said["outputDataConfig"],
        "timeoutDurationInHours": job.said["timeoutDurationInHours"],
    })
}

fn status(look: &Look) -> &'static str {
    match look.phase {
        Phase::Validating => "Validating",
        Phase::Running | Phase::Finalizing => "InProgress",
        Phase::Completed => "Completed",
        Phase::Failed => "Failed",
        Phase::Expired if look.done > 0 => "PartiallyCompleted",
        Phase::Expired => "Expired",
        Phase::Cancelling => "Stopping",
        Phase::Cancelled => "Stopped",
    }
}

/// Writes the results beside their manifest, in a folder of the job's own. A job that has done nothing has none.
fn write_results(desk: &mut Desk<'_>, index: usize) {
    let job = &desk.shelf.jobs[index];
    let results = job.results.as_deref().unwrap_or_default();
    let mut text = String::new();
    for (record_id, result) in results {
        let Some(mut line) = line(desk, result) else { continue };
        line["recordId"] = json!(record_id);
        let row = job.rows.iter().find(|row| row.custom_id == *record_id);
        line["modelInput"] = row.map_or(json!({}), |row| row.body.clone());
        text.push_str(&line.to_string());
        text.push('\n');
    }
    let input = object(&job.said["inputDataConfig"]["s3InputDataConfig"]["s3Uri"]);
    let folder = object(&job.said["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"]);
    let (Ok(input), Ok(folder)) = (input, folder) else { return };
    let (folder, mut name) = (folder.join(&job.id), input.file_name().unwrap_or_default().to_owned());
    name.push(".out");
    let manifest = json!({"totalRecordCount": job.rows.len(), "processedRecordCount": results.len()});
    if !text.is_empty() {
        // What cannot be written is not there when somebody looks.
        let _ = std::fs::create_dir_all(&folder);
        let _ = std::fs::write(folder.join(name), text);
        let _ = std::fs::write(folder.join("manifest.json.out"), manifest.to_string());
    }
    desk.shelf.jobs[index].result_files[0] = Some(folder.display().to_string());
}

/// What a line says; `None` for rows that were not come to.
fn line(desk: &Desk<'_>, result: &RowResult) -> Option<Value> {
    match result {
        RowResult::Answered(message) => Some(json!({ "modelOutput": message })),
        RowResult::Odd => Some(json!({"error": "no object"})),
        RowResult::Failed(trouble) => {
            let reply = trouble::reply(desk.provider, trouble);
            let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            Some(json!({"error": {"errorCode": reply.status, "errorMessage": said["message"]}}))
        }
        RowResult::Expired | RowResult::Cancelled => None,
    }
}
