//! The way to a simulated provider that keeps accounts: what is set aside for a batch, by its name, and what is settled of it.
//! It outlives the processes, as a ledger does. Calls can be made to fail.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rowmill_managed::batch::{BatchBody, BatchCall, BatchRef, BatchWire, Folder, Part, RowResult};
use rowmill_managed::call::{CallError, Class, Reply};

/// Which calls fail, and with which status; without one, nobody answers.
type Trouble = Box<dyn Fn(&BatchCall) -> Option<Option<u16>> + Send + Sync>;

/// Sends over HTTP, with no policy of any kind.
pub struct PlainWire {
    client: reqwest::Client,
    base: String,
    folder: Folder,
    /// Rows that are set aside for batches.
    deposits: Mutex<BTreeMap<String, usize>>,
    /// Rows of deposits that were settled as taken, by batch.
    taken: Mutex<BTreeMap<String, usize>>,
    trouble: Mutex<Option<Trouble>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PlainWire {
    pub fn new(base: String, folder: Folder) -> Self {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().expect("a client");
        let (deposits, taken, trouble) = Default::default();
        Self { client, base, folder, deposits, taken, trouble }
    }

    /// From now on, calls fail of which this gives a status.
    pub fn fail(&self, trouble: impl Fn(&BatchCall) -> Option<Option<u16>> + Send + Sync + 'static) {
        *locked(&self.trouble) = Some(Box::new(trouble));
    }

    /// From now on, calls do what the provider does.
    pub fn heal(&self) {
        *locked(&self.trouble) = None;
    }

    /// Sets aside what a batch needs, unless that was done.
    pub fn set_aside(&self, batch: &BatchRef) {
        locked(&self.deposits).entry(batch.name.clone()).or_insert(batch.rows.len());
    }

    /// What is set aside and not settled.
    pub fn deposits(&self) -> BTreeMap<String, usize> {
        locked(&self.deposits).clone()
    }

    /// Rows that were settled as taken.
    pub fn taken(&self) -> usize {
        locked(&self.taken).values().sum()
    }

    async fn exchange(&self, call: BatchCall) -> Result<Reply, CallError> {
        let url = format!("{}{}", self.base, call.path);
        let request = match call.body {
            BatchBody::Put(content) => {
                let url = self.folder.put(&call.path, content).await.expect("a folder of this machine");
                return Ok(Reply { body: url.into(), request_id: None, first_byte: Duration::ZERO });
            }
            BatchBody::Read => {
                let object = self.folder.read(&call.path).await.expect("a folder of this machine");
                let body = object.ok_or_else(|| error(Some(404)))?;
                return Ok(Reply { body, request_id: None, first_byte: Duration::ZERO });
            }
            BatchBody::Get => self.client.get(url),
            BatchBody::Empty => self.client.post(url),
            BatchBody::Json(body) => self.client.post(url).header("content-type", "application/json").body(body),
            BatchBody::Form { fields, name, content } => {
                let part = reqwest::multipart::Part::stream(content).file_name(name);
                let form = reqwest::multipart::Form::new().part("file", part);
                let form = fields.into_iter().fold(form, |form, (name, value)| form.text(name, value));
                self.client.post(url).multipart(form)
            }
        };
        let request = request.bearer_auth("k").header("anthropic-version", "2023-06-01");
        let answer = request.send().await.map_err(|_| error(None))?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|_| error(None))?;
        match status {
            200..300 => Ok(Reply { body, request_id: None, first_byte: Duration::ZERO }),
            status => Err(error(Some(status))),
        }
    }
}

fn error(status: Option<u16>) -> CallError {
    let class = match status {
        Some(429 | 503 | 529) => Class::Throttled,
        Some(401 | 403 | 404) => Class::Denied,
        Some(400..500) => Class::Refused,
        _ => Class::Transient,
    };
    let message = format!("status {status:?}");
    CallError { class, status, code: None, message, retry_after: None, request_id: None }
}

/// Whether nothing was done for certain, as [`BatchWire::send`] says.
fn did_nothing(error: &CallError) -> bool {
    error.status.is_some_and(|status| (400..500).contains(&status) && status != 408 && status != 409)
}

#[async_trait]
impl BatchWire for PlainWire {
    async fn send(&self, call: BatchCall) -> Result<Reply, CallError> {
        let of = call.of.clone();
        of.iter().for_each(|batch| self.set_aside(batch));
        let trouble = locked(&self.trouble).as_ref().and_then(|trouble| trouble(&call));
        let reply = match trouble {
            Some(status) => Err(error(status)),
            None => self.exchange(call).await,
        };
        if let (Some(batch), Err(error)) = (&of, &reply)
            && (batch.part == Part::Input || did_nothing(error))
        {
            locked(&self.deposits).remove(&batch.name);
        }
        reply
    }

    async fn settle(&self, batch: &BatchRef, results: &[RowResult]) -> rowmill_jobs::Result<()> {
        let Some(held) = locked(&self.deposits).remove(&batch.name) else { return Ok(()) };
        let took = results.iter().filter(|result| !result.is_unsent()).count();
        assert!(took <= held, "{} took {took} rows of {held}", batch.name);
        let before = locked(&self.taken).insert(batch.name.clone(), took);
        assert_eq!(before, None, "{} was settled twice", batch.name);
        Ok(())
    }
}
