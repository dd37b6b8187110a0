//! [`LocalAllowance`]: limits that the callers of one process share. Other processes are not seen.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::book::Book;
use super::{Allowance, Charge, Grant, Limit, Seen, check_limits};
use crate::Result;

/// Limits within a process.
#[derive(Debug)]
pub struct LocalAllowance {
    started: Instant,
    book: Mutex<Book>,
}

impl LocalAllowance {
    /// Full.
    ///
    /// # Errors
    /// A limit would let no call through.
    pub fn new(limits: &[Limit]) -> Result<Self> {
        check_limits(limits)?;
        Ok(Self::checked(limits))
    }

    /// Of limits that were looked at.
    pub(super) fn checked(limits: &[Limit]) -> Self {
        Self { started: Instant::now(), book: Mutex::new(Book::new(limits, Duration::ZERO)) }
    }

    /// Waits for nobody.
    pub(super) fn reserve_now(&self, charge: Charge, wait_max: Duration) -> Grant {
        self.with(|book, now| book.reserve(charge, wait_max, now))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Book, Duration) -> T) -> T {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that time never runs backwards for the book.
        work(&mut book, self.started.elapsed())
    }
}

#[async_trait]
impl Allowance for LocalAllowance {
    async fn reserve(&self, charge: Charge, wait_max: Duration) -> Grant {
        self.reserve_now(charge, wait_max)
    }

    fn settle(&self, reserved: Charge, used: Charge) {
        self.with(|book, _| book.settle(reserved, used));
    }

    fn correct(&self, seen: &[Seen]) {
        if !seen.is_empty() {
            self.with(|book, now| book.correct(seen, now));
        }
    }

    fn pause(&self, time: Duration) {
        self.with(|book, now| book.pause(time, now));
    }

    fn paused(&self) -> Duration {
        self.with(|book, now| book.paused(now))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Resource;
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        super::super::contract::check(async |limits| {
            Arc::new(LocalAllowance::new(limits).unwrap()) as Arc<dyn Allowance>
        })
        .await
        .unwrap();
    }

    #[test]
    fn limits_that_let_nothing_through_are_refused() {
        assert!(LocalAllowance::new(&[Limit::per_minute(Resource::Requests, 0)]).is_err());
    }
}
