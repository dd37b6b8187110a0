//! How the batch lane reaches a provider: [`BatchWire`], which the transport fills (authentication, limits, policy, audit
//! and spending are its own). No retry here: what failed is the machine's to decide.

use async_trait::async_trait;
use bytes::Bytes;

use crate::call::{CallError, Estimate, Reply};

/// A request of a provider's batch API, before authentication.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchCall {
    /// Path after the provider's base URL, query included: `/batches/batch_1`.
    pub path: String,
    /// The body; it decides the method.
    pub body: BatchBody,
    /// What the rows of a creation will take; nothing for all other calls.
    pub estimate: Estimate,
}

/// A request's method and body.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchBody {
    /// A GET.
    Get,
    /// A POST without a body.
    Empty,
    /// A POST of JSON.
    Json(Bytes),
    /// A POST of a form with a file, whose field is `file`.
    Form {
        /// The other fields.
        fields: Vec<(&'static str, String)>,
        /// Name of the file.
        name: String,
        /// Its content.
        content: Bytes,
    },
}

impl BatchCall {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self { path: path.into(), body: BatchBody::Get, estimate: Estimate::default() }
    }

    /// A POST without a body.
    pub fn post(path: impl Into<String>) -> Self {
        Self { path: path.into(), body: BatchBody::Empty, estimate: Estimate::default() }
    }

    /// A POST of JSON.
    pub fn json(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { path: path.into(), body: BatchBody::Json(body.into()), estimate: Estimate::default() }
    }
}

/// Sends calls to one provider with one credential.
#[async_trait]
pub trait BatchWire: Send + Sync {
    /// Sends a call once and returns its answer, whole and with a status of 2xx.
    ///
    /// # Errors
    /// Anything else. A call for which [`CallError::status`] is from 400 to 499 (but 408 and 409) did nothing at the
    /// provider; after any other error it may have. Every call must end within [`super::Patience::call_ms`].
    async fn send(&self, call: BatchCall) -> Result<Reply, CallError>;
}

/// Whether the provider surely did nothing.
pub(crate) fn did_nothing(error: &CallError) -> bool {
    matches!(error.status, Some(status) if (400..500).contains(&status) && status != 408 && status != 409)
        // Never sent: the policy, the budget or the breaker held it back.
        || (error.status.is_none() && error.class == crate::call::Class::Stopped)
}
