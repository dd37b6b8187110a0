//! [`Payment`]: a call's way through the budget and the audit, an attempt at a time. An attempt that was not answered may have
//! been computed and be on the bill, so each reserves for itself, is on record before it leaves, and is settled for itself.

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
        self.end(ending).await?;
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

    async fn end(&self, ending: Ending) -> Result<()> {
        let (intended, reserved, rows) = {
            let mut state = self.lock();
            let Some((intended, reserved)) = state.open.take() else { return Ok(()) };
            let rows = if state.rows_left { 0 } else { self.most.rows };
            state.rows_left = true;
            state.nano_usd = state.nano_usd.saturating_add(ending.nano_usd);
            (intended, reserved, rows)
        };
        let tokens = ending.input_tokens.saturating_add(ending.output_tokens);
        reserved.settle(Amount { rows, tokens, nano_usd: ending.nano_usd });
        self.audit.end(intended, ending).await
    }

    async fn leave(&self) -> Result<()> {
        let rows = if self.lock().rows_left { 0 } else { self.most.rows };
        let reserved = self.budget.reserve(Amount { rows, ..self.most }).await?;
        let intended = self.audit.intend(self.intent.clone()).await?;
        self.lock().open = Some((intended, reserved));
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
        if let Err(error) = self.end(ending).await {
            // The next attempt's intent cannot be written either, and is then not sent.
            tracing::warn!(error = %error, "the audit could not be told how a request ended");
        }
    }
}
