//! [`Journal`]: what came in, for tests that must show that no byte was sent, or none twice. It knows keys by name only.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::config::Keep;
use crate::limit::Take;
use crate::provider::Provider;
use crate::random;

/// Requests beyond these are counted, not listed.
const ENTRIES_MAX: usize = 200_000;

/// A request that came in.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Simulated milliseconds since 1970.
    pub at_ms: i64,
    /// Whom it was for.
    pub provider: Provider,
    /// `POST`.
    pub method: String,
    /// Path after the provider's name, without the query.
    pub path: String,
    /// Name of its key; `None` if it showed none that is known.
    pub key_name: Option<String>,
    /// Bytes of its body.
    pub bytes: usize,
    /// Its body, if bodies are kept.
    pub body: Option<Bytes>,
    /// Status of the answer; `None` until there is one, and for ever when none was given.
    pub status: Option<u16>,
}

/// Sums over requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that came in.
    pub requests: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Those that were answered with a status of 2xx.
    pub answered: u64,
}

/// What a provider was paid for: answers of models, whether or not anybody got them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bill {
    /// Answers.
    pub answers: u64,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Answers that were cut off on their way.
    pub cut: u64,
}

/// What came in.
#[derive(Debug)]
pub struct Journal {
    keep: Keep,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    counts: BTreeMap<(Provider, String), Count>,
    /// How often each body was answered by a model and so paid for, by hash: online, and as a row of a batch.
    paid: BTreeMap<(Provider, u64), u64>,
    bills: BTreeMap<Provider, Bill>,
}

/// A request in the journal.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    index: usize,
    provider: Provider,
    path: String,
}

impl Journal {
    pub(crate) fn new(keep: Keep) -> Self {
        Self { keep, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn came(&self, entry: Entry) -> Ticket {
        let mut inner = self.inner();
        let ticket = Ticket { index: inner.entries.len(), provider: entry.provider, path: entry.path.clone() };
        let count = inner.counts.entry((entry.provider, entry.path.clone())).or_default();
        count.requests += 1;
        count.bytes += entry.bytes as u64;
        if inner.entries.len() < ENTRIES_MAX {
            let body = entry.body.filter(|_| self.keep == Keep::Everything);
            inner.entries.push(Entry { body, ..entry });
        }
        ticket
    }

    pub(crate) fn answered(&self, ticket: &Ticket, status: u16) {
        let mut inner = self.inner();
        if let Some(entry) = inner.entries.get_mut(ticket.index) {
            entry.status = Some(status);
        }
        if (200..300).contains(&status)
            && let Some(count) = inner.counts.get_mut(&(ticket.provider, ticket.path.clone()))
        {
            count.answered += 1;
        }
    }

    pub(crate) fn paid(&self, provider: Provider, body: &[u8], take: Take) {
        let mut inner = self.inner();
        *inner.paid.entry((provider, random::of(body))).or_default() += 1;
        let bill = inner.bills.entry(provider).or_default();
        bill.answers += 1;
        bill.input_tokens += take.input_tokens;
        bill.output_tokens += take.output_tokens;
    }

    pub(crate) fn cut(&self, provider: Provider) {
        self.inner().bills.entry(provider).or_default().cut += 1;
    }

    /// All requests, in the order of their coming; at most 200,000.
    pub fn entries(&self) -> Vec<Entry> {
        self.inner().entries.clone()
    }

    /// Sums by provider and path.
    pub fn counts(&self) -> BTreeMap<(Provider, String), Count> {
        self.inner().counts.clone()
    }

    /// Sums over the requests of a provider whose paths contain `path`.
    pub fn count(&self, provider: Provider, path: &str) -> Count {
        let inner = self.inner();
        let fitting = inner.counts.iter().filter(|((other, whole), _)| *other == provider && whole.contains(path));
        fitting.fold(Count::default(), |sum, (_, count)| Count {
            requests: sum.requests + count.requests,
            bytes: sum.bytes + count.bytes,
            answered: sum.answered + count.answered,
        })
    }

    /// Requests to anybody.
    pub fn requests(&self) -> u64 {
        self.inner().counts.values().map(|count| count.requests).sum()
    }

    /// Whether a kept body contains this text.
    pub fn contains(&self, text: &str) -> bool {
        let holds = |body: &Bytes| body.windows(text.len().max(1)).any(|window| window == text.as_bytes());
        self.inner().entries.iter().filter_map(|entry| entry.body.as_ref()).any(holds)
    }

    /// How many answers of models a provider was paid for, and how many of them it gave to a body that it had answered
    /// before. Rows of batches count by their bodies.
    pub fn paid_answers(&self, provider: Provider) -> (u64, u64) {
        let inner = self.inner();
        let counts = inner.paid.iter().filter(|((other, _), _)| *other == provider).map(|(_, count)| *count);
        counts.fold((0, 0), |(all, again), count| (all + count, again + count - 1))
    }

    /// What a provider was paid for until now, rows of batches included.
    pub fn bill(&self, provider: Provider) -> Bill {
        self.inner().bills.get(&provider).copied().unwrap_or_default()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.inner() = Inner::default();
    }
}
