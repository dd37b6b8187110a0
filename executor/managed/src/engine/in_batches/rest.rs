//! What batches leave: rows without an answer are asked online, where the lane was chosen among several. They were paid by
//! nobody; the deadline is the reason that nothing else is tried.

use std::collections::HashMap;

use rowmill_jobs::Result;
use rowmill_jobs::infer::{Outcome, Request};

use super::super::Due;
use super::{Asked, OnBehalf};
use crate::batch::{Reason, RowEnd};
use crate::call::Class;
use crate::on_behalf::Leaving;

/// Outcomes of the rows that have no answer from a batch and may get one, by their places among the rows that were to be
/// sent.
pub(super) async fn ask(
    due: &Due,
    asked: &Asked,
    who: &OnBehalf,
    requests: &[Request],
    ends: &[RowEnd],
) -> Result<HashMap<usize, Outcome>> {
    let mut outcomes = HashMap::new();
    for leaving in [Leaving::First, Leaving::Again] {
        let places: Vec<usize> = (0..ends.len()).filter(|place| left(&ends[*place]) == Some(leaving)).collect();
        if places.is_empty() {
            continue;
        }
        tracing::info!(shard = who.shard, rows = places.len(), "rows without an answer from a batch go online");
        let open: Vec<Request> = places.iter().filter_map(|place| requests.get(*place).cloned()).collect();
        let answered = Box::pin(due.online().infer(&who.leaving(leaving), &asked.task, open)).await?;
        outcomes.extend(places.into_iter().zip(answered));
    }
    Ok(outcomes)
}

/// How a row leaves that is asked online; `None` for one that is not.
fn left(end: &RowEnd) -> Option<Leaving> {
    match end {
        RowEnd::Answered(_) => None,
        RowEnd::Failed(failed) if failed.reason == Reason::Stopped => Some(Leaving::First),
        RowEnd::Failed(failed) => (failed.reason.class() == Class::Transient).then_some(Leaving::Again),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::batch::Failed;

    #[test]
    fn what_is_answered_or_refused_stays_and_all_else_goes_on() {
        let failed = |reason| left(&RowEnd::Failed(Failed::of(reason)));
        assert_eq!(left(&RowEnd::Answered(RawValue::from_string("{}".into()).unwrap())), None);
        for reason in [Reason::Refused, Reason::TooLong] {
            assert_eq!(failed(reason), None, "{reason:?}");
        }
        for reason in [Reason::ProviderError, Reason::NotDone, Reason::NoLine, Reason::BatchFailed, Reason::NotEnded] {
            assert_eq!(failed(reason), Some(Leaving::Again), "{reason:?}");
        }
        assert_eq!(failed(Reason::Stopped), Some(Leaving::First));
    }
}
