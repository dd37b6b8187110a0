//! What batches leave: rows without an answer are asked online, where the lane was chosen among several; where it was not,
//! those alone that are too few for a batch. They were paid by nobody.

use std::collections::HashMap;
use std::sync::Arc;

use rowmill_jobs::Result;
use rowmill_jobs::infer::{Outcome, Request};

use super::super::ManagedEngine;
use super::{Asked, OnBehalf};
use crate::batch::{Reason, RowEnd};
use crate::call::Class;
use crate::on_behalf::Leaving;

/// Which rows are asked online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// All that may get an answer there.
    All,
    /// Those that are too few for a batch.
    TooFew,
}

/// Outcomes of the rows that have no answer from a batch and may get one, by their places among the rows that were to be
/// sent.
pub(super) async fn ask(
    (online, rest): (&Arc<ManagedEngine>, Rest),
    asked: &Asked,
    who: &OnBehalf,
    requests: &[Request],
    ends: &[RowEnd],
) -> Result<HashMap<usize, Outcome>> {
    let mut outcomes = HashMap::new();
    for leaving in [Leaving::First, Leaving::Again] {
        let places: Vec<usize> = (0..ends.len()).filter(|place| left(&ends[*place], rest) == Some(leaving)).collect();
        if places.is_empty() {
            continue;
        }
        tracing::info!(shard = who.shard, rows = places.len(), "rows without an answer from a batch go online");
        let open: Vec<Request> = places.iter().filter_map(|place| requests.get(*place).cloned()).collect();
        let answered = Box::pin(online.infer(&who.leaving(leaving), &asked.task, open)).await?;
        outcomes.extend(places.into_iter().zip(answered));
    }
    Ok(outcomes)
}

/// How a row leaves that is asked online; `None` for one that is not.
fn left(end: &RowEnd, rest: Rest) -> Option<Leaving> {
    let RowEnd::Failed(failed) = end else { return None };
    match (failed.reason, rest) {
        (Reason::TooFew, _) | (Reason::Stopped, Rest::All) => Some(Leaving::First),
        (Reason::TooFewLeft, _) => Some(Leaving::Again),
        (reason, Rest::All) => (reason.class() == Class::Transient).then_some(Leaving::Again),
        (_, Rest::TooFew) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::batch::Failed;

    #[test]
    fn what_is_answered_or_refused_stays_and_all_else_goes_on() {
        let failed = |reason| left(&RowEnd::Failed(Failed::of(reason)), Rest::All);
        assert_eq!(left(&RowEnd::Answered(RawValue::from_string("{}".into()).unwrap()), Rest::All), None);
        for reason in [Reason::Refused, Reason::TooLong] {
            assert_eq!(failed(reason), None, "{reason:?}");
        }
        for reason in [Reason::ProviderError, Reason::NotDone, Reason::NoLine, Reason::BatchFailed, Reason::NotEnded] {
            assert_eq!(failed(reason), Some(Leaving::Again), "{reason:?}");
        }
        assert_eq!(failed(Reason::Stopped), Some(Leaving::First));
    }

    #[test]
    fn where_batches_are_the_only_lane_too_few_rows_alone_go_on() {
        for (reason, rest, leaving) in [
            (Reason::TooFew, Rest::TooFew, Some(Leaving::First)),
            (Reason::TooFewLeft, Rest::TooFew, Some(Leaving::Again)),
            (Reason::TooFew, Rest::All, Some(Leaving::First)),
            (Reason::TooFewLeft, Rest::All, Some(Leaving::Again)),
            (Reason::ProviderError, Rest::TooFew, None),
            (Reason::Stopped, Rest::TooFew, None),
        ] {
            assert_eq!(left(&RowEnd::Failed(Failed::of(reason)), rest), leaving, "{reason:?}, {rest:?}");
        }
    }
}
