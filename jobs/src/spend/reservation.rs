//! What a request holds of the ledger: [`Waiting`] while it cannot have its amount, then a [`Reservation`]. Both end however
//! the request ends, dropped in the middle included.

use std::sync::Arc;

use super::Ledger;

/// What may be spent on one request. Dropped without [`Reservation::settle`], all of it counts as spent: the request may have
/// reached the provider.
#[derive(Debug)]
pub struct Reservation {
    ledger: Arc<Ledger>,
    amount: u64,
}

impl Reservation {
    pub(super) fn new(ledger: &Arc<Ledger>, amount: u64) -> Self {
        Self { ledger: Arc::clone(ledger), amount }
    }

    /// What was reserved.
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// The request has ended and took this much; 0 if it was never sent. More than was reserved is accounted for, too, but
    /// may then exceed the cap: reserve the most it can be.
    pub fn settle(mut self, spent: u64) {
        if spent > self.amount {
            tracing::warn!(spent, reserved = self.amount, "a request took more than the most that was reserved for it");
        }
        let reserved = std::mem::take(&mut self.amount);
        self.ledger.settle(reserved, spent);
        // Dropping an empty reservation changes nothing.
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.ledger.settle(self.amount, self.amount);
        }
    }
}

/// A request that waits for its amount, until it is dropped.
pub(super) struct Waiting<'a> {
    ledger: &'a Ledger,
    amount: u64,
}

impl<'a> Waiting<'a> {
    pub(super) fn of(ledger: &'a Ledger, amount: u64) -> Self {
        let mut account = ledger.account();
        account.waiting = account.waiting.saturating_add(amount);
        Self { ledger, amount }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut account = self.ledger.account();
        account.waiting = account.waiting.saturating_sub(self.amount);
    }
}
