//! Money that is set aside under a name for something that outlives the process that began it: a provider's batch, which is
//! paid for a day later. The log itself remembers it, as what an executor of that name holds; so another process neither
//! sets it aside again nor loses what was not spent of it.

use std::sync::Arc;
use std::time::Duration;

use super::{Ledger, Pace, Reserve, last};
use crate::Result;

/// Deposits do not move for hours: only what others may give back at once is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer to [`Ledger::set_aside`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetAside {
    /// It is, now or since before.
    Done,
    /// It would exceed the cap.
    CapReached {
        /// What is left below the cap: less than was asked for.
        left: u64,
    },
}

impl Ledger {
    /// Sets an amount aside under a name, unless that was done already, by whichever process. At most one process at a time
    /// may set aside or release under a name.
    ///
    /// # Errors
    /// The store does not answer. Whether it is set aside is not known then: ask again, or release it.
    pub async fn set_aside(&self, name: &str, amount: u64) -> Result<SetAside> {
        let ledger = self.of_deposit(name).await?;
        match ledger.reserve(amount).await? {
            Reserve::CapReached { left } => Ok(SetAside::CapReached { left }),
            Reserve::Granted(reservation) => {
                // A lease may be larger than what it was for.
                ledger.give_back().await?;
                // Not settled: it stays with the name, in the log.
                drop(reservation);
                Ok(SetAside::Done)
            }
        }
    }

    /// Ends what was set aside under a name: so much of it was spent, the rest is free again. Nothing where nothing is.
    ///
    /// # Errors
    /// The store does not answer. What was not given back counts as spent.
    pub async fn release(&self, name: &str, spent: u64) -> Result<()> {
        let ledger = self.of_deposit(name).await?;
        let held = ledger.account().leased;
        if held == 0 {
            // Released before, or on a day whose ledger is another: what was spent is counted there.
            return Ok(());
        }
        if spent > held {
            tracing::warn!(spent, held, "more was spent than was set aside for it");
        }
        ledger.settle(0, spent.min(held));
        ledger.give_back().await
    }

    /// The ledger as the one of this name uses it, with what the log says that it holds.
    async fn of_deposit(&self, name: &str) -> Result<Arc<Ledger>> {
        let pace = Pace { patience: PATIENCE, ..self.pace };
        let ledger = Ledger::new(Arc::clone(&self.store), self.folder.clone(), name.to_owned(), self.cap, pace);
        let standing = last(self.store.as_ref(), &self.folder).await?;
        ledger.account().leased = standing.and_then(|entry| entry.held.get(name).copied()).unwrap_or(0);
        Ok(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;
    use crate::store::Store;
    use crate::store::local::LocalStore;

    const CAP: u64 = 1_000;

    fn ledger(store: &Arc<dyn Store>, executor: &str) -> Arc<Ledger> {
        Ledger::of_run(Arc::clone(store), "k", executor, CAP)
    }

    async fn out(store: &Arc<dyn Store>) -> u64 {
        last(store.as_ref(), &layout::spend("k")).await.unwrap().map_or(0, |entry| entry.out)
    }

    #[tokio::test]
    async fn a_deposit_outlives_its_process_and_is_made_and_released_once() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_path_buf()));
        let first = ledger(&store, "first");
        assert_eq!(first.set_aside("batch a", 600).await.unwrap(), SetAside::Done);
        drop(first);
        // Another process finds it, and has no room for a second one beside it.
        let second = ledger(&store, "second");
        assert_eq!(second.set_aside("batch a", 600).await.unwrap(), SetAside::Done);
        assert_eq!(out(&store).await, 600);
        assert_eq!(second.set_aside("batch b", 500).await.unwrap(), SetAside::CapReached { left: 400 });
        second.release("batch a", 150).await.unwrap();
        assert_eq!(out(&store).await, 150);
        assert_eq!(second.set_aside("batch b", 850).await.unwrap(), SetAside::Done);
        second.release("batch b", 0).await.unwrap();
        second.release("batch b", 0).await.unwrap();
        second.release("never made", 0).await.unwrap();
        assert_eq!(out(&store).await, 150);
    }

    #[tokio::test]
    async fn deposits_and_requests_share_the_cap() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_path_buf()));
        let executor = ledger(&store, "executor");
        assert_eq!(executor.set_aside("batch a", 900).await.unwrap(), SetAside::Done);
        let Reserve::Granted(reservation) = executor.reserve(100).await.unwrap() else { panic!("there is room") };
        reservation.settle(100);
        executor.release("batch a", 900).await.unwrap();
        executor.give_back().await.unwrap();
        assert_eq!(out(&store).await, CAP);
        assert_eq!(executor.set_aside("batch b", 1).await.unwrap(), SetAside::CapReached { left: 0 });
    }

    #[tokio::test]
    async fn releasing_again_is_no_overspending() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let writer = Arc::new(log.reopen().unwrap());
        // This test's runtime has one thread, so that everything is heard.
        let _listening = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(writer).finish());
        let warned = || std::fs::read_to_string(log.path()).unwrap().matches("more was spent").count();
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_path_buf()));
        let executor = ledger(&store, "executor");
        assert_eq!(executor.set_aside("batch a", 600).await.unwrap(), SetAside::Done);
        executor.release("batch a", 150).await.unwrap();
        executor.release("batch a", 150).await.unwrap();
        assert_eq!((out(&store).await, warned()), (150, 0));
        assert_eq!(executor.set_aside("batch b", 100).await.unwrap(), SetAside::Done);
        executor.release("batch b", 101).await.unwrap();
        assert_eq!((out(&store).await, warned()), (250, 1), "the log is not heard");
    }
}
