//! The layer that asks before an attempt leaves: within the limiter, so that what waits for its turn holds no money, and
//! within the retries, so that each attempt is on record and paid for.

use async_openai::middleware::HttpRequestFactory;

use super::stack::{Answer, Facts, Failed, Layered, error};
use crate::call::Class;

/// Asks the call's witness, if it has one.
#[derive(Debug, Clone)]
pub(super) struct Witnessed<S> {
    pub(super) inner: S,
}

impl<S: Layered> Layered for Witnessed<S> {
    async fn call(&self, request: HttpRequestFactory) -> Result<Answer, Box<Failed>> {
        let facts = Facts::of_this_call();
        let Some(witness) = &facts.witness else { return self.inner.call(request).await };
        if !witness.leaving().await {
            return Err(Failed::unsent(error(Class::Stopped, "whoever has to be asked did not let it leave")));
        }
        let answered = self.inner.call(request).await;
        if let Err(failed) = &answered {
            witness.unanswered(&failed.error, failed.left).await;
        }
        answered
    }
}
