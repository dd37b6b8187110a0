//! [`Payment`]: a call's way through the budget and the audit, an attempt at a time. An attempt that was not answered may have
//! been computed and be on the bill, so each reserves for itself, is on record before it leaves, and is settled for itself.
//! An attempt of which nothing left takes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rowmill_jobs::{Error, Result};

use crate::audit::{Audit, Ending, Intended, Intent};
use crate::budget::{Amount, Budget, Reserved};
use crate::call::{CallError, Class, Left, Spent, Witness};

/// The payment of one call.
#[derive(Debug)]
pub(crate) struct Payment {
    audit: Arc<Audit>,
    budget: Arc<Budget>,
    intent: Intent,
    most: Amount,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The attempt under way.
    open: Option<(Intended, Reserved)>,
    /// Rows have left with an earlier attempt.
    rows_left: bool,
    /// Why nothing may leave.
    refused: Option<Error>,
    /// What attempts cost so far.
    nano_usd: u64,
}

impl Payment {
    /// For a call of which each attempt takes `most` at most.
    pub(crate) fn new(audit: &Arc<Audit>, budget: &Arc<Budget>, intent: Intent, most: Amount) -> Arc<Self> {
        let (audit, budget) = (Arc::clone(audit), Arc::clone(budget));
        Arc::new(Self { audit, budget, intent, most, state: Mutex::default() })
    }

    /// Settles the attempt that was answered. Returns what all attempts cost.
    ///
    /// # Errors
    /// The audit cannot be written.
    pub(crate) async fn answered(&self, request_id: Option<String>, spent: Spent) -> Result<u64> {
        let ending = Ending {
            intent: 0,
            class: Ending::class_of(None),
            status: Some(200),
            request_id,
            input_tokens: spent.input_tokens,
            output_tokens: spent.output_tokens,
            nano_usd: spent.nano_usd,
        };
        self.end(ending, Left::Something).await?;
        Ok(self.lock().nano_usd)
    }

    /// What all attempts cost, none of which was answered.
    ///
    /// # Errors
    /// Why nothing might leave, if that is the reason.
    pub(crate) fn failed(&self) -> Result<u64> {
        let mut state = self.lock();
        match state.refused.take() {
            Some(error) => Err(error),
            None => Ok(state.nano_usd),
        }
    }

    async fn end(&self, ending: Ending, left: Left) -> Result<()> {
        let (intended, reserved, rows) = {
            let mut state = self.lock();
            let Some((intended, reserved)) = state.open.take() else { return Ok(()) };
            let leave_now = left == Left::Something && !state.rows_left;
            let rows = if leave_now { self.most.rows } else { 0 };
            state.rows_left |= leave_now;
            state.nano_usd = state.nano_usd.saturating_add(ending.nano_usd);
            (intended, reserved, rows)
        };
        let tokens = ending.input_tokens.saturating_add(ending.output_tokens);
        reserved.settle(Amount { rows, tokens, nano_usd: ending.nano_usd });
        self.audit.end(intended, ending).await
    }

    async fn leave(&self) -> Result<()> {
        let rows = if self.lock().rows_left { 0 } else { self.most.rows };
        let unsent = self.budget.reserve(Amount { rows, ..self.most }).await?;
        let intended = self.audit.intend(self.intent.clone()).await?;
        self.lock().open = Some((intended, unsent.leaves()));
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nobody panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Witness for Payment {
    async fn leaving(&self) -> bool {
        match self.leave().await {
            Ok(()) => true,
            Err(error) => {
                self.lock().refused = Some(error);
                false
            }
        }
    }

    async fn unanswered(&self, error: &CallError, left: Left) {
        // A response that says no was computed by nobody. One that was lost or broken may be on the bill.
        let computed = left == Left::Something && error.class == Class::Transient;
        let nano_usd = if computed { self.most.nano_usd } else { 0 };
        let ending = Ending {
            intent: 0,
            class: Ending::class_of(Some(error.class)),
            status: error.status,
            request_id: error.request_id.clone(),
            input_tokens: 0,
            output_tokens: 0,
            nano_usd,
        };
        if let Err(error) = self.end(ending, left).await {
            // The next attempt's intent cannot be written either, and is then not sent.
            tracing::warn!(error = %error, "the audit could not be told how a request ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use rowmill_jobs::spend::Ledger;
    use rowmill_jobs::store::Store;
    use rowmill_jobs::store::local::LocalStore;

    use super::*;
    use crate::budget::Books;
    use crate::policy::config::Amounts;

    const CAP: u64 = 1_000;

    struct Run {
        _folder: tempfile::TempDir,
        audit: Arc<Audit>,
        budget: Arc<Budget>,
        ledger: Arc<Ledger>,
    }

    impl Run {
        /// A run that may send two rows, for money that is plenty.
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().join("output")));
            let audit = Audit::open(&folder.path().join("audit"), "run", "one", None).await.unwrap();
            let books = Books { run: Some((&store, "run")), days: None, executor: "one" };
            let rows = Amounts { rows: Some(2), ..Amounts::default() };
            let ledger = Ledger::of_run(Arc::clone(&store), "run", "one", CAP);
            let budget = Budget::new().with_rule("r", &rows, &Amounts::default(), books).unwrap().with_cap(&ledger);
            Self { _folder: folder, audit: Arc::new(audit), budget: Arc::new(budget), ledger }
        }

        /// A call of one row and 100 nano-dollars at most.
        fn payment(&self) -> Arc<Payment> {
            let most = Amount { rows: 1, tokens: 10, nano_usd: 100 };
            Payment::new(&self.audit, &self.budget, Intent::default(), most)
        }
    }

    fn trouble() -> CallError {
        CallError {
            class: Class::Transient,
            status: None,
            code: None,
            message: String::new(),
            retry_after: None,
            request_id: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rows_of_which_nothing_left_are_not_counted_and_others_once() {
        let run = Run::new().await;
        for _ in 0..3 {
            let payment = run.payment();
            assert!(payment.leaving().await, "{:?}", payment.failed());
            payment.unanswered(&trouble(), Left::Nothing).await;
            assert_eq!(payment.failed().unwrap(), 0);
        }
        let payment = run.payment();
        for left in [Left::Nothing, Left::Something, Left::Something] {
            assert!(payment.leaving().await, "{:?}", payment.failed());
            payment.unanswered(&trouble(), left).await;
        }
        assert_eq!(payment.failed().unwrap(), 200, "two attempts may be on the bill");
        let second = run.payment();
        assert!(second.leaving().await);
        assert_eq!(second.answered(None, Spent { nano_usd: 7, ..Spent::default() }).await.unwrap(), 7);
        let third = run.payment();
        assert!(!third.leaving().await, "a third row left");
        assert!(third.failed().unwrap_err().report().contains("0 rows"));
        assert_eq!(run.ledger.spent(), 207);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_put_on_record_takes_nothing() {
        let run = Run::new().await;
        run.audit.close(None).await.unwrap();
        for _ in 0..2 * CAP / 100 {
            let payment = run.payment();
            assert!(!payment.leaving().await);
            let refused = payment.failed().unwrap_err();
            assert!(refused.to_string().contains("audit"), "{refused}");
        }
        assert_eq!(run.ledger.spent(), 0);
        let whole = Amount { rows: 2, tokens: 0, nano_usd: CAP };
        assert!(run.budget.reserve(whole).await.is_ok());
    }
}
