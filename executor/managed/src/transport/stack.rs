//! What the layers of a transport say to each other, its outermost layer (the deadline) and the two ends: what async-openai
//! hands in and what it gets back.
//!
//! What a call is expected to take and when it has to be over travels beside the request in a task-local, not in a header:
//! a header could leave the machine, and could not bring back the provider's name for the request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::StatusCode;
use rowmill_jobs::allowance::{Charge, Seen};
use tokio::time::{Instant, timeout_at};
use tower::Service;

use crate::call::{CallError, Class, Estimate, Left, Witness};

/// An answer without an error in it, read whole.
#[derive(Debug)]
pub(super) struct Answer {
    /// The body.
    pub(super) body: Bytes,
    /// The provider's name for the request.
    pub(super) request_id: Option<String>,
    /// Time until the headers came.
    pub(super) first_byte: Duration,
    /// What the headers say about limits.
    pub(super) seen: Vec<Seen>,
    /// Tokens that were used, if the body says so.
    pub(super) used: Option<Charge>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct Failed {
    /// What the caller is told.
    pub(super) error: CallError,
    /// What the headers say about limits.
    pub(super) seen: Vec<Seen>,
    /// Whether the provider got anything of it.
    pub(super) left: Left,
}

impl Failed {
    /// Nothing of it was sent.
    pub(super) fn unsent(error: CallError) -> Box<Self> {
        Box::new(Self { error, seen: Vec::new(), left: Left::Nothing })
    }

    /// It was sent, and there is no answer.
    pub(super) fn unanswered(error: CallError) -> Box<Self> {
        Box::new(Self { error, seen: Vec::new(), left: Left::Something })
    }
}

/// An error in our words, without a response.
pub(super) fn error(class: Class, message: &str) -> CallError {
    CallError { class, status: None, code: None, message: message.to_owned(), retry_after: None, request_id: None }
}

/// A layer within the outermost: takes what makes requests, gives an answer. The outermost alone is tower's, for async-openai.
pub(super) trait Layered: Clone + Send + Sync + 'static {
    /// One call, with whatever this layer does about it.
    fn call(&self, request: HttpRequestFactory) -> impl Future<Output = Result<Answer, Box<Failed>>> + Send;
}

tokio::task_local! {
    static FACTS: Arc<Facts>;
}

/// What is known of a call beside its request.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) estimate: Estimate,
    pub(super) deadline: Instant,
    /// Asked before each attempt.
    pub(super) witness: Option<Arc<dyn Witness>>,
    /// What the answer is to be taken for.
    pub(super) answers: Answers,
    noted: Mutex<Option<Noted>>,
    /// An attempt has left, by the witness's leave, and has not ended.
    under_way: AtomicBool,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// A model's: it may hold an error, and says what it took.
    Model,
    /// About a batch or a file: whatever is in it is not about this request.
    Batch,
}

/// What was learned of a call beside its answer.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) request_id: Option<String>,
    pub(super) first_byte: Duration,
}

impl Facts {
    pub(super) fn new(estimate: Estimate, deadline: Instant, witness: Option<Arc<dyn Witness>>) -> Arc<Self> {
        Self::answered_by(Answers::Model, estimate, deadline, witness)
    }

    /// Facts of a request about batches: it takes nothing of the limits of tokens, and whoever sends it keeps its accounts.
    pub(super) fn of_batch(deadline: Instant) -> Arc<Self> {
        Self::answered_by(Answers::Batch, Estimate::default(), deadline, None)
    }

    fn answered_by(
        answers: Answers,
        estimate: Estimate,
        deadline: Instant,
        witness: Option<Arc<dyn Witness>>,
    ) -> Arc<Self> {
        let (noted, under_way) = Default::default();
        Arc::new(Self { estimate, deadline, witness, answers, noted, under_way })
    }

    /// An attempt leaves.
    pub(super) fn begin(&self) {
        self.under_way.store(true, Ordering::Relaxed);
    }

    /// The attempt has ended. Returns whether one was under way.
    pub(super) fn end(&self) -> bool {
        self.under_way.swap(false, Ordering::Relaxed)
    }

    /// Runs a call with its facts.
    pub(super) async fn run<F: Future>(self: Arc<Self>, call: F) -> F::Output {
        FACTS.scope(self, call).await
    }

    /// The facts of the call that is running. Outside of one: nothing expected, no time left.
    pub(super) fn of_this_call() -> Arc<Self> {
        FACTS.try_with(Arc::clone).unwrap_or_else(|_| Self::new(Estimate::default(), Instant::now(), None))
    }

    /// What was learned; once.
    pub(super) fn take_noted(&self) -> Option<Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The outermost layer: ends calls at their deadline, and speaks with async-openai. It never hands on a refusal's body:
/// async-openai writes those to the log.
#[derive(Debug, Clone)]
pub(super) struct Deadline<S> {
    pub(super) inner: S,
}

impl<S: Layered> Service<HttpRequestFactory> for Deadline<S> {
    type Response = reqwest::Response;
    type Error = OpenAIError;
    type Future = BoxFuture<'static, Result<reqwest::Response, OpenAIError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequestFactory) -> Self::Future {
        let inner = self.inner.clone();
        Box::pin(async move {
            let facts = Facts::of_this_call();
            let answer = match timeout_at(facts.deadline, inner.call(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(late(&facts).await),
            };
            let answer = answer.map_err(|failed| OpenAIError::Boxed(Box::new(failed.error)))?;
            let noted = Noted { request_id: answer.request_id, first_byte: answer.first_byte };
            *facts.noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted);
            let mut response = http::Response::new(answer.body);
            *response.status_mut() = StatusCode::OK;
            Ok(response.into())
        })
    }
}

/// A call is over at its deadline. An attempt that was under way was dropped, and its witness is told here: nobody else can.
async fn late(facts: &Facts) -> Box<Failed> {
    let failed =
        Failed::unanswered(error(Class::Transient, "the call was not answered within the time that calls may take"));
    if let Some(witness) = facts.witness.as_ref().filter(|_| facts.end()) {
        witness.unanswered(&failed.error, failed.left).await;
    }
    failed
}

/// What async-openai made of our error.
pub(super) fn call_error(error: OpenAIError) -> CallError {
    match error {
        OpenAIError::Boxed(inner) => match inner.downcast::<CallError>() {
            Ok(error) => *error,
            Err(_) => self::error(Class::Transient, "the call failed within the client"),
        },
        // Its text would be the body.
        OpenAIError::JSONDeserialize(..) => self::error(Class::Transient, "the answer is no JSON"),
        _ => self::error(Class::Refused, "the request cannot be made"),
    }
}
