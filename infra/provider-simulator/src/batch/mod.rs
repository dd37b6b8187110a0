//! Batches and their files, as each provider has them. What happens to a batch is told by the time alone
//! ([`timeline`]), and its results are made when somebody first looks after its end.

mod anthropic;
mod bedrock;
mod files;
mod gemini;
mod mistral;
mod openai;
mod results;
mod timeline;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use self::results::RowResult;
use self::timeline::Look;
use crate::dialect::Operation;
use crate::provider::Provider;
use crate::random;
use crate::reply::Reply;
use crate::serve::{Incoming, State};
use crate::trouble::Trouble;

/// What a provider keeps.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    next: u64,
    files: BTreeMap<String, StoredFile>,
    /// In the order of their creation.
    jobs: Vec<Job>,
    /// Uploads that were begun: name by number.
    uploads: BTreeMap<String, String>,
}

/// A file.
#[derive(Debug, Clone)]
struct StoredFile {
    name: String,
    purpose: String,
    content: Bytes,
    created_ms: i64,
}

/// A batch.
#[derive(Debug)]
struct Job {
    id: String,
    number: u64,
    created_ms: i64,
    operation: Operation,
    rows: Vec<Row>,
    /// Why it fails as a whole, if it does.
    failure: Option<(&'static str, String)>,
    /// What the client said of it.
    said: Value,
    cancelled_ms: Option<i64>,
    /// Made when somebody first looks after the end.
    results: Option<Vec<(String, RowResult)>>,
    /// Files of the results, where the provider has files: output, errors.
    result_files: [Option<String>; 2],
}

/// A row of a batch.
#[derive(Debug, Clone)]
struct Row {
    custom_id: String,
    body: Value,
}

/// A form with a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Form {
    fields: BTreeMap<String, String>,
    /// Name and content.
    file: Option<(String, Bytes)>,
}

impl Form {
    /// The form in a body, if it is one.
    pub(crate) async fn read(headers: &HeaderMap, body: &Bytes) -> Option<Self> {
        let boundary = multer::parse_boundary(headers.get(CONTENT_TYPE)?.to_str().ok()?).ok()?;
        let body = body.clone();
        let whole = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(body) });
        let mut parts = multer::Multipart::new(whole, boundary);
        let mut form = Self::default();
        while let Ok(Some(part)) = parts.next_field().await {
            let name = part.name().unwrap_or_default().to_owned();
            match part.file_name().map(str::to_owned) {
                Some(file_name) => form.file = Some((file_name, part.bytes().await.ok()?)),
                None => {
                    form.fields.insert(name, part.text().await.ok()?);
                }
            }
        }
        Some(form)
    }
}

/// Answers a request about files or batches.
pub(crate) fn answer(state: &State, incoming: &Incoming) -> Result<Reply, Trouble> {
    let mut shelves = state.shelves();
    let shelf = shelves.entry(incoming.provider).or_default();
    let mut desk = Desk { state, shelf, provider: incoming.provider, now_ms: state.time.now_ms() };
    desk.forget_old_files();
    match incoming.provider {
        Provider::Anthropic => anthropic::answer(&mut desk, incoming),
        Provider::Gemini => gemini::answer(&mut desk, incoming),
        Provider::Bedrock => bedrock::answer(&mut desk, incoming),
        Provider::Openai | Provider::Azure | Provider::Groq | Provider::Together | Provider::Mistral => {
            let tail = openai::tail(&incoming.path);
            match (incoming.provider, tail.first().copied()) {
                (_, Some("files")) => files::answer(&mut desk, incoming, &tail[1..]),
                (Provider::Mistral, Some("jobs")) => mistral::answer(&mut desk, incoming, &tail[1..]),
                (provider, Some("batches")) if provider != Provider::Mistral => {
                    openai::answer(&mut desk, incoming, &tail[1..])
                }
                _ => Err(Trouble::NotFound),
            }
        }
        _ => Err(Trouble::NotFound),
    }
}

/// A provider's shelf at one moment.
struct Desk<'a> {
    state: &'a State,
    shelf: &'a mut Shelf,
    provider: Provider,
    now_ms: i64,
}

impl Desk<'_> {
    /// A new name that nobody can guess and every run repeats.
    fn name(&mut self) -> String {
        self.shelf.next += 1;
        format!("{:016x}", random::draw(random::of(self.provider.name()), &[self.shelf.next]))
    }

    fn forget_old_files(&mut self) {
        let oldest_ms = self.now_ms - self.state.config.batches_of(self.provider).retention_ms;
        self.shelf.files.retain(|_, file| file.created_ms >= oldest_ms);
    }

    fn store(&mut self, id: String, file: StoredFile) -> String {
        self.shelf.files.insert(id.clone(), file);
        id
    }

    /// Adds a batch; a failure found in its input ends it when it is validated.
    fn create(&mut self, id: String, operation: Operation, input: Input, said: Value) -> usize {
        self.shelf.jobs.push(Job {
            id,
            number: self.shelf.next,
            created_ms: self.now_ms,
            operation,
            rows: input.rows,
            failure: input.failure,
            said,
            cancelled_ms: None,
            results: None,
            result_files: [None, None],
        });
        self.shelf.jobs.len() - 1
    }

    fn find(&self, id: &str) -> Result<usize, Trouble> {
        self.shelf.jobs.iter().position(|job| job.id == id).ok_or(Trouble::NotFound)
    }

    /// Where a batch is now; makes its results if it is at its end.
    fn look(&mut self, index: usize) -> Look {
        let behaviour = self.state.config.batches_of(self.provider);
        let seed = self.state.config.seed;
        let job = &mut self.shelf.jobs[index];
        let look = timeline::look(job, behaviour, seed, self.now_ms);
        if look.ended_ms.is_some() && job.results.is_none() {
            job.results = Some(results::make(self.state, self.provider, job, &look));
        }
        look
    }

    fn cancel(&mut self, index: usize) {
        let now_ms = self.now_ms;
        if self.look(index).ended_ms.is_none() {
            self.shelf.jobs[index].cancelled_ms.get_or_insert(now_ms);
        }
    }
}

/// Rows of a new batch.
#[derive(Debug, Default)]
struct Input {
    rows: Vec<Row>,
    failure: Option<(&'static str, String)>,
}

impl Input {
    /// Rows that were read, checked for names that occur twice.
    fn new(rows: Vec<Row>) -> Self {
        let mut seen = BTreeSet::new();
        let twice = rows.iter().find(|row| !seen.insert(row.custom_id.as_str()));
        let failure = match twice {
            Some(row) => Some(("duplicate_custom_id", format!("the custom_id {} occurs twice", row.custom_id))),
            None if rows.is_empty() => Some(("empty_file", "the input file is empty".into())),
            None => None,
        };
        Self { rows, failure }
    }

    /// Rows of a file of JSON lines; `read` makes a row of a line.
    fn of_lines(content: &[u8], read: impl Fn(&Value) -> Option<Row>) -> Self {
        let mut rows = Vec::new();
        for line in content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let row = serde_json::from_slice(line).ok().and_then(|line| read(&line));
            let Some(row) = row else {
                let failure = Some(("invalid_json_line", format!("line {} is not parseable", rows.len() + 1)));
                return Self { rows: Vec::new(), failure };
            };
            rows.push(row);
        }
        Self::new(rows)
    }
}

/// A page of a list that has the newest first: the indexes of its items, and whether more follow.
fn page(shelf: &Shelf, after: Option<&String>, limit: usize) -> Result<(Vec<usize>, bool), Trouble> {
    let end = match after {
        Some(id) => shelf.jobs.iter().position(|job| job.id == *id).ok_or(Trouble::NotFound)?,
        None => shelf.jobs.len(),
    };
    let start = end.saturating_sub(limit);
    Ok(((start..end).rev().collect(), start > 0))
}
