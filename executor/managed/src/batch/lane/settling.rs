//! Settling what a batch took: once, whoever dies. It goes as a creation does: who settles has recorded a permission, and
//! others come after it only when nothing can be under way under it any more. Settling again what was settled under an
//! earlier permission does nothing, so what was begun may be begun again.

use rowmill_jobs::Result;
use rowmill_jobs::store::Put;

use super::super::machine::Patience;
use super::super::reconcile::RowResult;
use super::super::record::Settled;
use super::super::seam::{BatchRef, Part};
use super::BatchLane;

/// Permissions that are given. What they could not settle stays counted as taken: too much, never too little.
const PERMISSIONS_MAX: usize = 3;

/// What to do about what a batch took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Record the permission with this number, and settle.
    Settle(usize),
    /// Another does it, or did not come to its end: look again at this time.
    Wait(i64),
    /// It is settled, or cannot be.
    Done,
}

/// Decides by the permissions that were given so far, of a batch that is not settled.
fn next(permitted: &[Settled], patience: &Patience, now_ms: i64) -> Next {
    let over_ms = permitted.last().map(|last| last.at_ms + patience.settle_ms);
    match over_ms.filter(|over_ms| now_ms < *over_ms) {
        Some(over_ms) => Next::Wait(over_ms.min(now_ms + patience.poll_least_ms)),
        None if permitted.len() < PERMISSIONS_MAX => Next::Settle(permitted.len() + 1),
        None => Next::Done,
    }
}

impl BatchLane {
    /// Settles what a batch took; nothing of rows that were never sent. Returns when to come again, unless it is settled.
    pub(super) async fn settle(
        &self,
        (round, index): (u32, usize),
        rows: Vec<u32>,
        results: &[RowResult],
        now_ms: &(dyn Fn() -> i64 + Sync),
    ) -> Result<Option<i64>> {
        if self.records.read::<Settled>(round, index, "settled.json").await?.is_some() {
            return Ok(None);
        }
        let mut permitted = Vec::new();
        while let Some(given) = self.records.read(round, index, &permission(permitted.len() + 1)).await? {
            permitted.push(given);
        }
        let at_ms = now_ms();
        let number = match next(&permitted, &self.patience, at_ms) {
            Next::Settle(number) => number,
            Next::Wait(until_ms) => return Ok(Some(until_ms)),
            Next::Done => return Ok(None),
        };
        let settled = Settled { executor: self.executor.clone(), at_ms };
        let again_ms = Some(at_ms + self.patience.poll_least_ms);
        let put = self.records.write(round, index, &permission(number), &settled).await?;
        if put == Put::Exists || now_ms() > at_ms + self.patience.call_ms {
            return Ok(again_ms);
        }
        let batch = BatchRef { name: self.job.batch_name(round, index), rows, round, part: Part::Creation };
        if let Err(error) = self.wire.settle(&batch, results).await {
            tracing::warn!(batch = batch.name, %error, "what a batch took could not be settled; trying again later");
            return Ok(again_ms);
        }
        let is_first = self.records.write(round, index, "settled.json", &settled).await? == Put::Created;
        if is_first && !results.iter().all(RowResult::is_unsent) {
            self.wire.settled(&batch, results).await;
        }
        Ok(None)
    }
}

fn permission(number: usize) -> String {
    format!("settling-{number}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_permitted_is_waited_for_until_nothing_can_be_under_way_and_then_followed_a_few_times() {
        let patience = Patience::default();
        let given = |at_ms| Settled { executor: "e".into(), at_ms };
        let over_ms = 1_000 + patience.settle_ms;
        assert_eq!(next(&[], &patience, 0), Next::Settle(1));
        assert_eq!(next(&[given(1_000)], &patience, 1_000), Next::Wait(1_000 + patience.poll_least_ms));
        assert_eq!(next(&[given(1_000)], &patience, over_ms - 1), Next::Wait(over_ms));
        assert_eq!(next(&[given(1_000)], &patience, over_ms), Next::Settle(2));
        let all = [0, 0, 1_000].map(given);
        assert_eq!(
            (next(&all, &patience, over_ms - 1), next(&all, &patience, over_ms)),
            (Next::Wait(over_ms), Next::Done)
        );
    }
}
