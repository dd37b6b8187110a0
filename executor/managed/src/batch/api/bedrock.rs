//! Bedrock's batch inference (`CreateModelInvocationJob` and its kin): a file of JSON lines in the operator's bucket, a job
//! over it, a file of results beside it. A job keeps its name, and the same creation twice is one job.
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_CreateModelInvocationJob.html>

use bytes::Bytes;
use rowmill_jobs::{Error, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::machine::NeedsUpload;
use super::super::reconcile::{Line, Lines, Says};
use super::super::rows::{Asks, Limits};
use super::super::seam::{BatchBody, BatchCall};
use super::{BatchApi, Listed, NewBatch, Page, Source, Status, milliseconds, plain_word, read, read_lines};
use crate::call::Estimate;
use crate::hex;
use crate::target::path_segment;

/// Jobs in a page of a list.
const PAGE: usize = 100;
/// Hours after which a job ends with what it has done: as for the other providers, and the least that may be asked for.
const TIMEOUT_HOURS: u32 = 24;
/// Bytes of the content's digest in the name of an input file.
const DIGEST_BYTES: usize = 8;

#[derive(Debug)]
pub(crate) struct Bedrock;

/// A job, as it is listed and as it is told.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    job_arn: String,
    #[serde(default)]
    job_name: Option<String>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    submit_time: Value,
    #[serde(default)]
    input_data_config: Value,
    #[serde(default)]
    output_data_config: Value,
}

impl Job {
    fn input(&self) -> Option<&str> {
        self.input_data_config["s3InputDataConfig"]["s3Uri"].as_str()
    }

    /// Where its results are: a file of the input's name, in a folder of the job's own.
    fn results(&self) -> Option<String> {
        let folder = self.output_data_config["s3OutputDataConfig"]["s3Uri"].as_str()?.trim_end_matches('/');
        let (_, id) = self.job_arn.rsplit_once('/')?;
        let (_, file) = self.input()?.rsplit_once('/')?;
        Some(format!("{folder}/{id}/{file}.out"))
    }

    fn has_ended(&self) -> bool {
        ["Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired"].contains(&self.status.as_str())
    }
}

/// The path of a job. Its whole ARN names it: the bare id, which is documented as well, is refused.
fn path_of(arn: &str) -> String {
    format!("/model-invocation-job/{}", path_segment(arn))
}

impl BatchApi for Bedrock {
    fn limits(&self) -> Limits {
        // A file may have a gigabyte; its results repeat the requests, and are in memory at once.
        Limits { rows_min: 100, rows_max: 50_000, bytes_max: 240 << 20 }
    }

    fn needs_upload(&self) -> NeedsUpload {
        NeedsUpload::Yes
    }

    fn line(&self, name: &str, _asks: Asks, body: &[u8]) -> Result<Vec<u8>> {
        let body: &RawValue = read("a row's request", body)?;
        let mut line = format!(r#"{{"recordId":"{name}","modelInput":{}}}"#, body.get()).into_bytes();
        line.push(b'\n');
        Ok(line)
    }

    fn upload(&self, name: &str, content: Bytes) -> BatchCall {
        // The folder outlives the run's records: content that differs has another name, and is another job.
        let digest = hex::encode(&Sha256::digest(&content)[..DIGEST_BYTES]);
        let path = format!("{name}-{digest}.jsonl");
        BatchCall { path, body: BatchBody::Put(content), estimate: Estimate::default(), of: None }
    }

    fn uploaded(&self, answer: &[u8]) -> Result<String> {
        String::from_utf8(answer.to_vec()).map_err(|_| Error::internal("the URL of an object is no text"))
    }

    fn create(&self, batch: &NewBatch<'_>) -> Result<BatchCall> {
        let file = batch.file.ok_or_else(|| Error::internal("a batch without a file"))?;
        let role = batch.role.ok_or_else(|| Error::internal("a batch without a role"))?;
        let (folder, token) = file.rsplit_once('/').ok_or_else(|| Error::internal("an object without a folder"))?;
        let body = json!({
            "jobName": batch.name,
            "roleArn": role,
            "modelId": batch.model,
            // The same for whoever creates this batch of this input: Bedrock makes one job of it.
            "clientRequestToken": token.trim_end_matches(".jsonl"),
            "inputDataConfig": {"s3InputDataConfig": {"s3Uri": file, "s3InputFormat": "JSONL"}},
            "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": format!("{folder}/")}},
            "timeoutDurationInHours": TIMEOUT_HOURS,
        });
        Ok(BatchCall::json("/model-invocation-job", body.to_string()))
    }

    fn created(&self, answer: &[u8]) -> Result<String> {
        read::<Job>("the answer to a creation", answer).map(|job| job.job_arn)
    }

    fn list(&self, after: Option<&str>) -> BatchCall {
        let after = after.map(|token| format!("&nextToken={}", path_segment(token))).unwrap_or_default();
        let order = "sortBy=CreationTime&sortOrder=Descending";
        BatchCall::get(format!("/model-invocation-jobs?maxResults={PAGE}&{order}{after}"))
    }

    fn listed(&self, _after: Option<&str>, answer: &[u8]) -> Result<Page> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct List {
            #[serde(default)]
            invocation_job_summaries: Vec<Job>,
            #[serde(default)]
            next_token: Option<String>,
        }
        let list: List = read("a list of batches", answer)?;
        let items = list.invocation_job_summaries.into_iter().map(|job| Listed {
            has_ended: job.has_ended(),
            file: job.input().map(str::to_owned),
            created_ms: milliseconds(&job.submit_time),
            rows: None,
            name: job.job_name,
            remote: job.job_arn,
        });
        Ok(Page { items: items.collect(), next: list.next_token.filter(|token| !token.is_empty()) })
    }

    fn poll(&self, remote: &str) -> BatchCall {
        BatchCall::get(path_of(remote))
    }

    fn status(&self, _remote: &str, answer: &[u8]) -> Result<Status> {
        let job: Job = read("the state of a batch", answer)?;
        // A job that was stopped, or failed on its way, has written what it did until then, and that is billed.
        let results = |source: fn(String) -> Source| job.results().into_iter().map(source).collect();
        Ok(match job.status.as_str() {
            "Stopping" => Status::ending(),
            "Failed" => Status::failed_with(results(Source::ObjectIfAny)),
            "Stopped" | "Expired" => Status::ended(results(Source::ObjectIfAny)),
            _ if job.has_ended() => Status::ended(results(Source::Object)),
            _ => Status::running(),
        })
    }

    fn cancel(&self, remote: &str) -> BatchCall {
        BatchCall::post(format!("{}/stop", path_of(remote)))
    }

    fn lines(&self, content: &[u8]) -> Result<Lines> {
        read_lines::<ResultLine>(content)
    }
}

/// A line of results. It repeats the request, which is not looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResultLine {
    record_id: String,
    #[serde(default)]
    model_output: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<RowFailure>,
}

/// Why a row has no answer. The message may hold content and is forgotten.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RowFailure {
    #[serde(default)]
    error_code: Value,
}

impl From<ResultLine> for Line {
    fn from(line: ResultLine) -> Self {
        let says = match (line.model_output, line.error) {
            (Some(answer), None) => Says::Answer(answer),
            (_, Some(RowFailure { error_code })) => Says::Error {
                status: error_code.as_u64().and_then(|status| u16::try_from(status).ok()),
                code: error_code.as_str().and_then(plain_word),
            },
            (None, None) => Says::Unreadable,
        };
        Self { name: Some(line.record_id), says }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:bedrock:eu-central-1:123456789012:model-invocation-job/tcf29in6w6ts";
    const FILE: &str = "s3://bucket/batches/rowmill-1-00.jsonl";

    fn told(status: &str) -> Vec<u8> {
        json!({
            "jobArn": ARN, "jobName": "rowmill-1", "status": status, "submitTime": "2026-11-22T12:00:00.123Z",
            "modelId": "eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "message": "of no interest here",
            "inputDataConfig": {"s3InputDataConfig": {"s3InputFormat": "JSONL", "s3Uri": FILE}},
            "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://bucket/batches/"}},
            "totalRecordCount": 100, "timeoutDurationInHours": 24,
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn an_input_is_named_by_its_content_and_a_creation_by_its_input() {
        let (one, two) = (Bedrock.upload("rowmill-1", "a\n".into()), Bedrock.upload("rowmill-1", "b\n".into()));
        assert_eq!(one, Bedrock.upload("rowmill-1", "a\n".into()));
        assert!(one.path != two.path && one.path.starts_with("rowmill-1-") && one.path.ends_with(".jsonl"), "{one:?}");
        let new = NewBatch {
            name: "rowmill-1",
            model: "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
            asks: Asks::Text,
            file: Some(FILE),
            role: Some("arn:aws:iam::123456789012:role/batches"),
            lines: &[],
        };
        let call = Bedrock.create(&new).unwrap();
        let BatchBody::Json(body) = &call.body else { panic!("{call:?}") };
        let body: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(call.path, "/model-invocation-job");
        assert_eq!(body["clientRequestToken"], "rowmill-1-00");
        assert_eq!(body["jobName"], "rowmill-1");
        assert_eq!(body["inputDataConfig"]["s3InputDataConfig"]["s3Uri"], FILE);
        assert_eq!(body["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"], "s3://bucket/batches/");
        assert_eq!(Bedrock.created(format!(r#"{{"jobArn":"{ARN}"}}"#).as_bytes()).unwrap(), ARN);
    }

    #[test]
    fn a_job_is_named_by_its_whole_arn_in_one_segment() {
        let path = "/model-invocation-job/arn%3Aaws%3Abedrock%3Aeu-central-1%3A123456789012%3Amodel-invocation-job%2F\
                    tcf29in6w6ts";
        assert_eq!(Bedrock.poll(ARN), BatchCall::get(path));
        assert_eq!(Bedrock.cancel(ARN), BatchCall::post(format!("{path}/stop")));
        let next = Bedrock.list(Some("a+b/c=")).path;
        assert!(next.ends_with("&nextToken=a%2Bb%2Fc%3D"), "{next}");
    }

    #[test]
    fn results_lie_in_the_jobs_own_folder_whichever_way_it_ended() {
        let url = "s3://bucket/batches/tcf29in6w6ts/rowmill-1-00.jsonl.out".to_owned();
        let (results, if_any) = (vec![Source::Object(url.clone())], vec![Source::ObjectIfAny(url)]);
        for status in ["Submitted", "Validating", "Scheduled", "InProgress"] {
            assert_eq!(Bedrock.status(ARN, &told(status)).unwrap(), Status::running(), "{status}");
        }
        assert_eq!(Bedrock.status(ARN, &told("Stopping")).unwrap(), Status::ending());
        for status in ["Completed", "PartiallyCompleted"] {
            assert_eq!(Bedrock.status(ARN, &told(status)).unwrap(), Status::ended(results.clone()), "{status}");
        }
        for status in ["Stopped", "Expired"] {
            assert_eq!(Bedrock.status(ARN, &told(status)).unwrap(), Status::ended(if_any.clone()), "{status}");
        }
        assert_eq!(Bedrock.status(ARN, &told("Failed")).unwrap(), Status::failed_with(if_any));
    }

    #[test]
    fn a_job_is_found_by_its_name_its_input_and_its_time() {
        let job: Value = serde_json::from_slice(&told("InProgress")).unwrap();
        let list = json!({"invocationJobSummaries": [job], "nextToken": "t"}).to_string();
        let page = Bedrock.listed(None, list.as_bytes()).unwrap();
        let listed = &page.items[0];
        assert_eq!((page.next.as_deref(), listed.remote.as_str(), listed.has_ended), (Some("t"), ARN, false));
        assert_eq!((listed.name.as_deref(), listed.file.as_deref()), (Some("rowmill-1"), Some(FILE)));
        assert_eq!(listed.created_ms, Some(1_795_348_800_123));
        assert_eq!(Bedrock.listed(None, b"{}").unwrap(), Page { items: Vec::new(), next: None });
    }

    #[test]
    fn a_line_is_an_answer_or_an_error_of_its_record() {
        let lines = concat!(
            r#"{"recordId":"a","modelInput":{"max_tokens":9},"modelOutput":{"content":[{"type":"text","text":"x"}]}}"#,
            "\n",
            r#"{"recordId":"b","modelInput":{},"error":{"errorCode":400,"errorMessage":"with a row's text"}}"#,
            "\n",
            r#"{"modelInput":{},"recordId":"c","error":{"errorCode":500,"errorMessage":"failed"}}"#,
            "\n",
            r#"{"recordId":"d","modelInput":{}}"#,
            "\n",
            r#"{"recordId":"e","error":"no object"}"#,
            "\n",
        );
        let read = Bedrock.lines(lines.as_bytes()).unwrap();
        let said: Vec<String> =
            read.lines.iter().map(|line| format!("{} {:?}", line.name.as_deref().unwrap(), line.says)).collect();
        assert!(said[0].starts_with("a Answer"), "{said:?}");
        let expected = [
            "b Error { status: Some(400), code: None }",
            "c Error { status: Some(500), code: None }",
            "d Unreadable",
            "e Unreadable",
        ];
        assert_eq!((&said[1..], read.nameless), (&expected.map(str::to_owned)[..], 0));
    }
}
