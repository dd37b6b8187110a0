//! Providers' words for trouble: codes first, then phrases of messages where codes say too little. Data; what a provider
//! says only in its message is matched in lower case.

use std::time::Duration;

use super::headers;
use crate::call::Class;

/// What a word means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    /// What sort of trouble.
    pub(super) class: Class,
    /// In our words.
    pub(super) message: &'static str,
}

const BILLING: Meaning = Meaning { class: Class::Billing, message: "the provider's account has no money left" };
const TOO_LONG: Meaning = Meaning { class: Class::TooLong, message: "the prompt is longer than the model takes" };
pub(super) const FILTERED: Meaning =
    Meaning { class: Class::Refused, message: "the provider's content filter refused the request" };
const DENIED: Meaning = Meaning { class: Class::Denied, message: "the provider does not accept the credentials" };
const UNKNOWN: Meaning = Meaning { class: Class::Denied, message: "the provider knows no such model or path" };
const THROTTLED: Meaning = Meaning { class: Class::Throttled, message: "the provider asks for fewer requests" };
const OVERLOADED: Meaning = Meaning { class: Class::Throttled, message: "the provider is overloaded" };
const FAILED: Meaning = Meaning { class: Class::Transient, message: "the provider failed" };

/// Codes, in lower case. Where an answer has several, the first of this list counts: what stops a lane before what waits.
const CODES: [(&[&str], Meaning); 8] = [
    (
        &[
            "insufficient_quota",
            "billing_limit",
            "credit_balance_exhausted",
            "billing_hard_limit_reached",
            "billing_not_active",
            "billing_error",
            "account_deactivated",
            "insufficient_credits",
            "insufficient_balance",
            "payment_required",
        ],
        BILLING,
    ),
    (
        &[
            "context_length_exceeded",
            "string_above_max_length",
            "exceed_context_size_error",
            "request_too_large",
            "context_window_exceeded",
        ],
        TOO_LONG,
    ),
    (
        &[
            "content_filter",
            "content_policy_violation",
            "responsibleaipolicyviolation",
            "data_inspection_failed",
            "moderation_blocked",
            "flagged_input",
            "invalid_prompt",
            "prohibited_content",
        ],
        FILTERED,
    ),
    (
        &[
            "invalid_api_key",
            "api_key_invalid",
            "authentication_error",
            "permission_error",
            "unauthenticated",
            "permission_denied",
            "accessdeniedexception",
            "unrecognizedclientexception",
            "invalidsignatureexception",
            "expiredtokenexception",
            "incompletesignature",
            "missingauthenticationtokenexception",
            "unsupported_country_region_territory",
        ],
        DENIED,
    ),
    (&["model_not_found", "not_found_error", "deploymentnotfound", "resourcenotfoundexception"], UNKNOWN),
    (
        &[
            "rate_limit_exceeded",
            "rate_limit_error",
            "rate_limit_reached",
            "throttlingexception",
            "toomanyrequestsexception",
            "servicequotaexceededexception",
            "modelnotreadyexception",
            "resource_exhausted",
            "too_many_requests",
            "resource_unavailable",
            "capacity_exceeded",
        ],
        THROTTLED,
    ),
    (
        &[
            "overloaded_error",
            "overloaded",
            "engine_overloaded",
            "server_overloaded",
            "serviceunavailableexception",
            "unavailable",
            "nocapacity",
        ],
        OVERLOADED,
    ),
    (
        &[
            "server_error",
            "internal_error",
            "api_error",
            "internal",
            "internal_server_error",
            "internalserverexception",
            "modelerrorexception",
            "modeltimeoutexception",
            "modelstreamerrorexception",
            "timeout_error",
            "deadline_exceeded",
        ],
        FAILED,
    ),
];

/// Phrases of billing that mean nothing else.
const BILLING_PHRASES: [&str; 7] = [
    "credit balance is too low",
    "insufficient balance",
    "insufficient credits",
    "requires more credits",
    "billing hard limit",
    "account is not active",
    "billing details are not",
];

/// Other phrases.
const PHRASES: [(&[&str], Meaning); 4] = [
    (
        &[
            "maximum context length",
            "context length exceeded",
            "exceeds the context",
            "exceeds the available context size",
            "prompt is too long",
            "input is too long",
            "too large for model with",
            "exceeds the maximum number of tokens",
            "reduce the length of the messages",
            "must have less than",
            "inputs tokens + max_new_tokens",
            "maximum allowed input length",
        ],
        TOO_LONG,
    ),
    (&["content filtering policy", "content management policy", "input was flagged", "content exists risk"], FILTERED),
    (
        &["api key not valid", "invalid api key", "incorrect api key", "security token included in the request is"],
        DENIED,
    ),
    (&["too many requests", "rate limit", "too many tokens", "model is overloaded", "loading model"], THROTTLED),
];

/// A request that exceeds a whole minute's tokens is throttled in name only: it would be for ever.
pub(super) fn of_size(text: &str) -> Option<Meaning> {
    text.contains("request too large for").then_some(TOO_LONG)
}

/// What the codes of an answer mean together.
pub(super) fn of_codes(codes: &[String]) -> Option<Meaning> {
    let said = |known: &&str| codes.iter().any(|code| code.eq_ignore_ascii_case(known));
    CODES.iter().find(|(known, _)| known.iter().any(said)).map(|(_, meaning)| *meaning)
}

/// What one code means.
pub(super) fn of_code(code: &str) -> Option<Meaning> {
    let known = |known: &&str| code.eq_ignore_ascii_case(known);
    CODES.iter().find(|(codes, _)| codes.iter().any(known)).map(|(_, meaning)| *meaning)
}

/// Whether a message in lower case says for certain that there is no money.
pub(super) fn is_of_money(text: &str) -> bool {
    BILLING_PHRASES.iter().any(|phrase| text.contains(phrase))
}

/// What a message in lower case means. Google words a passing rate limit as a used-up quota and says when to come back;
/// OpenAI words an empty account so and does not.
pub(super) fn of_text(text: &str, comes_back: bool) -> Option<Meaning> {
    if is_of_money(text) {
        return Some(BILLING);
    }
    if text.contains("exceeded your current quota") {
        return Some(if comes_back { THROTTLED } else { BILLING });
    }
    PHRASES.iter().find(|(known, _)| known.iter().any(|known| text.contains(known))).map(|(_, meaning)| *meaning)
}

/// `… Please try again in 6m0s. …`, `… try again in 20ms …`.
pub(super) fn try_again_in(text: &str) -> Option<Duration> {
    let (_, after) = text.split_once("try again in ")?;
    let word = after.split_whitespace().next()?;
    headers::duration(word.trim_end_matches(['.', ',', ')', ';']))
}
