//! What batches leave: rows without an answer are asked online, where the lane was chosen among several; where it was not,
//! those alone that were never sent, or are too few for a further batch. They were paid by nobody.

use std::collections::HashMap;
use std::sync::Arc;

use rowmill_jobs::infer::{Outcome, Request};
use rowmill_jobs::{Error, Result};

use super::super::ManagedEngine;
use super::{Asked, OnBehalf};
use crate::batch::{Limits, Reason, RowEnd};
use crate::call::Class;
use crate::on_behalf::Leaving;

/// Which rows are asked online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// All that may get an answer there.
    All,
    /// Those that were never sent, or are too few for a further batch.
    Unsent,
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
        (reason, _) if is_unsent(reason) => Some(Leaving::First),
        (Reason::TooFewLeft, _) => Some(Leaving::Again),
        (reason, Rest::All) => (reason.class() == Class::Transient).then_some(Leaving::Again),
        (_, Rest::Unsent) => None,
    }
}

fn is_unsent(reason: Reason) -> bool {
    matches!(reason, Reason::Stopped | Reason::TooFew | Reason::Elsewhere)
}

/// How many rows were never sent.
pub(super) fn unsent(ends: &[RowEnd]) -> usize {
    ends.iter().filter(|end| matches!(end, RowEnd::Failed(failed) if is_unsent(failed.reason))).count()
}

/// That rows of a shard can be sent neither in batches nor in another way.
pub(super) fn too_few(provider: &str, (shard, rows): (u32, usize), limits: Limits) -> Error {
    Error::invalid(format!("{provider} takes {} rows or more in a batch", limits.rows_min))
        .with("shard", shard)
        .with("rows that are in none", rows)
        .hint(format!(
            "let the policy permit the online lane for rows that are left, or set rows_min in \
             [providers.{provider}.batches] if the account's quota is lower; or make shards larger (shard_rows), which \
             begins a new run that pays for everything again"
        ))
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
        let sent = [Reason::ProviderError, Reason::NotDone, Reason::NoLine, Reason::BatchFailed, Reason::NotEnded];
        for reason in sent.into_iter().chain([Reason::Gone, Reason::TooFewLeft]) {
            assert_eq!(failed(reason), Some(Leaving::Again), "{reason:?}");
        }
        for reason in [Reason::Stopped, Reason::TooFew, Reason::Elsewhere] {
            assert_eq!(failed(reason), Some(Leaving::First), "{reason:?}");
        }
    }

    #[test]
    fn where_batches_are_the_only_lane_rows_go_on_that_were_not_sent_or_are_too_few() {
        for (reason, leaving) in [
            (Reason::TooFew, Some(Leaving::First)),
            (Reason::Stopped, Some(Leaving::First)),
            (Reason::Elsewhere, Some(Leaving::First)),
            (Reason::TooFewLeft, Some(Leaving::Again)),
            (Reason::ProviderError, None),
            (Reason::NotEnded, None),
            (Reason::Gone, None),
        ] {
            assert_eq!(left(&RowEnd::Failed(Failed::of(reason)), Rest::Unsent), leaving, "{reason:?}");
        }
        let ends = [Reason::TooFew, Reason::Stopped, Reason::NotEnded].map(|reason| RowEnd::Failed(Failed::of(reason)));
        assert_eq!(unsent(&ends), 2);
    }
}
