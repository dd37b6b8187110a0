//! What is known of a shard's rows as its rounds are gone through: their ends, and why those that go on have none yet. Pure.

use std::collections::{HashMap, HashSet};

use rowmill_jobs::{Error, Result};

use super::super::reconcile::{Failed, Reason, RowEnd, RowResult};
use super::super::record::{Round, Why};
use super::super::rows::rows_of;

/// All rows of a shard.
#[derive(Debug)]
pub(super) struct Standing {
    ends: Vec<Option<RowEnd>>,
    /// Rows without an end, sorted.
    open: Vec<u32>,
    /// Why those of them that were in a batch got no answer there.
    reasons: HashMap<u32, Reason>,
}

impl Standing {
    /// So many rows, of which nothing is known.
    pub(super) fn new(rows: usize) -> Self {
        let open = (0..u32::try_from(rows).unwrap_or(u32::MAX)).collect();
        Self { ends: vec![None; rows], open, reasons: HashMap::new() }
    }

    /// Rows without an end.
    pub(super) fn open(&self) -> &[u32] {
        &self.open
    }

    /// All that are open go into no batch any more.
    pub(super) fn end_all(&mut self, why: Why) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        open.into_iter().try_for_each(|row| self.end_unsent(row, why))
    }

    /// Those that are open and in none of a round's batches are too few for one.
    pub(super) fn end_those_in_none(&mut self, plan: &Round) -> Result<()> {
        let planned: HashSet<u32> = plan.batches.iter().flat_map(|ranges| rows_of(ranges)).collect();
        let open = std::mem::take(&mut self.open);
        let (open, in_none): (Vec<u32>, Vec<u32>) = open.into_iter().partition(|row| planned.contains(row));
        self.open = open;
        in_none.into_iter().try_for_each(|row| self.end_unsent(row, Why::TooFew))
    }

    /// The ends of all that are open in their batches; those that were not sent, or are sent again, are open still.
    pub(super) fn take(&mut self, results: impl IntoIterator<Item = RowResult>) -> Result<()> {
        self.open.clear();
        for result in results {
            let (row, is_unsent, reason) = (result.row, result.is_unsent(), result.resubmitted);
            match result.into_end().filter(|_| !is_unsent) {
                None => {
                    self.reasons.extend(reason.map(|reason| (row, reason)));
                    self.open.push(row);
                }
                Some(end) => self.end(row, end)?,
            }
        }
        self.open.sort_unstable();
        Ok(())
    }

    /// Every row's end, in their order.
    pub(super) fn into_ends(self) -> Result<Vec<RowEnd>> {
        let whole: Option<Vec<RowEnd>> = self.ends.into_iter().collect();
        whole.ok_or_else(|| Error::internal("a row has no end"))
    }

    fn end_unsent(&mut self, row: u32, why: Why) -> Result<()> {
        let reason = match (self.reasons.get(&row), why) {
            (None, Why::TooFew) => Reason::TooFew,
            (Some(_), Why::TooFew) => Reason::TooFewLeft,
            (None, Why::Elsewhere) => Reason::Elsewhere,
            (None, Why::Unwanted) => Reason::Stopped,
            (Some(last), _) => *last,
        };
        self.end(row, RowEnd::Failed(Failed::of(reason)))
    }

    fn end(&mut self, row: u32, end: RowEnd) -> Result<()> {
        let slot = self.ends.get_mut(row as usize);
        *slot.ok_or_else(|| Error::internal("a result of a row that the shard has not"))? = Some(end);
        Ok(())
    }
}
