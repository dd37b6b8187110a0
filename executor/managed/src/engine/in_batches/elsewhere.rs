//! A model in the batch lane beside others that can be asked for the same rows: when its provider is away, so that no batch can
//! be created, it leaves the rows to them. That is recorded like any end of batches, for all who come, so no row goes into a
//! batch that another model was asked for. Once a batch may exist, its rows are left to nobody.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use rowmill_jobs::infer::{Partial, Request, Task};
use rowmill_jobs::{Error, Result};
use tokio::time::Instant;

use super::super::ManagedEngine;
use super::OnBehalf;
use crate::batch::{Patience, Reason, RowEnd};

/// Looks in which nothing could be created, after which a provider is away: five minutes, with the usual time between two.
const AWAY_LOOKS: i64 = 10;

/// A provider that was away gets a single look for this long.
const AWAY_FOR: Duration = Duration::from_secs(300);

/// When a provider was last found to be away.
#[derive(Debug, Default)]
pub(super) struct Away(Mutex<Option<Instant>>);

impl Away {
    /// It is.
    pub(super) fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// From when on rows are left, if nothing could be created until then: milliseconds since 1970.
    pub(super) fn leaves_ms(&self, others: Others, patience: &Patience) -> Option<i64> {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = since.is_some_and(|since| since.elapsed() < AWAY_FOR);
        let wait_ms = if is_recent { 0 } else { AWAY_LOOKS * patience.poll_least_ms };
        (others == Others::Next).then(|| Utc::now().timestamp_millis() + wait_ms)
    }
}

/// Who is asked for rows that a provider which is away leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// Nobody: it is waited for.
    None,
    /// Another model.
    Next,
}

/// What makes an error one of rows that are left.
#[derive(Debug)]
struct Left;

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no batch of these rows was created, and none will be")
    }
}

impl std::error::Error for Left {}

/// That other models are to be asked for all rows, if that was decided.
pub(super) fn left(provider: &str, ends: &[RowEnd]) -> Option<Error> {
    let is_left = |end: &RowEnd| matches!(end, RowEnd::Failed(failed) if failed.reason == Reason::Elsewhere);
    let all = !ends.is_empty() && ends.iter().all(is_left);
    all.then(|| {
        Error::temporary("the provider's batch API is away, and the rows are left to other models")
            .with("provider", provider)
            .caused_by(Left)
    })
}

impl ManagedEngine {
    /// As [`ManagedEngine::infer_some`], where another model can be asked for the rows. One in the batch lane whose provider is
    /// away for ten looks ([`Patience::poll_least_ms`] each) leaves them: with an error that [`ManagedEngine::has_left`] knows.
    pub async fn infer_or_leave(
        self: &Arc<Self>,
        who: &Arc<OnBehalf>,
        task: &Arc<Task>,
        requests: Vec<Request>,
    ) -> Partial {
        let Some(batches) = &self.batches else { return self.infer_some(who, task, requests).await };
        let nothing = Partial::nothing(requests.len());
        let asked = async {
            let asked = self.asked(task)?;
            batches.infer_beside(self, &asked, who, (requests, Others::Next)).await
        };
        let answered: Result<_> = asked.await;
        match answered {
            Ok(outcomes) => Partial { outcomes: outcomes.into_iter().map(Some).collect(), stopped: None },
            Err(error) => Partial { stopped: Some(error), ..nothing },
        }
    }

    /// Whether rows without an answer may be asked of another model after this error: nothing of them is under way or was
    /// paid here, and never will be. Any other error of a model in the batch lane says nothing of the kind.
    pub fn has_left(error: &Error) -> bool {
        let source = std::error::Error::source(error);
        source.is_some_and(|source| source.is::<Left>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Failed;

    #[test]
    fn rows_are_left_all_or_none() {
        let failed = |reason| RowEnd::Failed(Failed::of(reason));
        let all = left("p", &[failed(Reason::Elsewhere), failed(Reason::Elsewhere)]).unwrap();
        assert!(all.retryable() && ManagedEngine::has_left(&all), "{}", all.report());
        assert!(left("p", &[failed(Reason::Elsewhere), failed(Reason::NotEnded)]).is_none());
        assert!(left("p", &[failed(Reason::Stopped)]).is_none() && left("p", &[]).is_none());
        assert!(!ManagedEngine::has_left(&Error::temporary("a store is away")));
    }
}
