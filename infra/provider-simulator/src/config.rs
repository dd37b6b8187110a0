//! What a simulator is told: keys, limits, faults, and how batches go. All rates are from 0 to 1. Nothing is decided here.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::provider::Provider;

/// A simulator's configuration; by default it answers everything, at once, to any key.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Decides all chance.
    pub seed: u64,
    /// Simulated seconds in a real one; 0 stands still until it is moved.
    pub clock_speed: u32,
    /// Credentials by their names. Any is accepted if there are none.
    pub keys: BTreeMap<String, String>,
    /// Whether the journal keeps the bodies of requests.
    pub keep_bodies: Keep,
    /// What a key may use of a provider.
    pub limits: Limits,
    /// What goes wrong.
    pub faults: Faults,
    /// How batches go.
    pub batches: Batches,
    /// What is different at one provider; each table there stands for the whole one here.
    pub providers: BTreeMap<Provider, Own>,
}

/// One provider's own configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Own {
    /// In place of [`Config::limits`].
    pub limits: Option<Limits>,
    /// In place of [`Config::faults`].
    pub faults: Option<Faults>,
    /// In place of [`Config::batches`].
    pub batches: Option<Batches>,
}

/// Whether bodies are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// They are counted and forgotten.
    #[default]
    Nothing,
    /// All of them, in memory.
    Everything,
}

/// Token buckets of one key at one provider; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests a minute.
    pub requests: Option<u64>,
    /// Prompt and output tokens together, a minute.
    pub tokens: Option<u64>,
    /// Prompt tokens a minute.
    pub input_tokens: Option<u64>,
    /// Output tokens a minute.
    pub output_tokens: Option<u64>,
    /// Size of the full buckets, in seconds of their refill, at most 60; 60 when it is 0.
    pub burst_seconds: u64,
}

/// What goes wrong, and how often. The rates of what happens instead of an answer add up to at most 1, and so do those of
/// what is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// A 429 without a reason, and for as many of the following requests as `throttled_burst` says.
    pub throttled: f64,
    /// Further requests that a 429 takes with it.
    pub throttled_burst: u64,
    /// A 500 in the provider's shape.
    pub server_error: f64,
    /// A 529 of a proxy: HTML.
    pub overloaded_html: f64,
    /// No answer, ever.
    pub silent: f64,
    /// An answer whose body ends before its declared length.
    pub cut_body: f64,
    /// A 200 whose body is an error.
    pub error_in_ok: f64,
    /// A stop for lack of money.
    pub billing: f64,
    /// No room for a request of the flex tier; others are not touched.
    pub no_room: f64,
    /// A model that declines, or a content filter.
    pub refused: f64,
    /// Output that ends at the token limit.
    pub truncated: f64,
    /// Output that does not have the shape that was asked for.
    pub invalid_output: f64,
    /// First byte late, by `slow_ms`.
    pub slow: f64,
    /// Real milliseconds until the first byte of a slow answer.
    pub slow_ms: u64,
    /// A batch that is created although its answer is lost.
    pub create_answer_lost: f64,
    /// Which requests faults happen to.
    pub reach: Reach,
}

/// Requests that faults happen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Those for a model's answer.
    #[default]
    Inference,
    /// Those about files and batches.
    Batches,
    /// All.
    Everything,
}

/// How batches go. Times are in simulated milliseconds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batches {
    /// Until the input is checked.
    pub validating_ms: i64,
    /// For each row.
    pub row_ms: i64,
    /// Until files are there after the last row.
    pub finalizing_ms: i64,
    /// Until a batch expires.
    pub window_ms: i64,
    /// How long results and files are kept.
    pub retention_ms: i64,
    /// Batches that stand still half-way, and expire.
    pub stalled: f64,
    /// Batches that fail whole.
    pub failed: f64,
    /// Batches that go on as if they were not cancelled.
    pub cancel_ignored: f64,
    /// Rows that end in an error of the provider.
    pub row_error: f64,
    /// Rows that the provider refuses.
    pub row_refused: f64,
    /// Rows whose answer does not have the shape that was asked for.
    pub row_invalid: f64,
    /// Rows whose line has another shape than is documented.
    pub row_odd: f64,
    /// Result lines that come twice.
    pub duplicate_line: f64,
    /// Result lines beside which there is one of a row that nobody sent.
    pub stranger_line: f64,
    /// Rows for which there is no line at all.
    pub row_lost: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            clock_speed: 1,
            keys: BTreeMap::new(),
            keep_bodies: Keep::Nothing,
            limits: Limits::default(),
            faults: Faults::default(),
            batches: Batches::default(),
            providers: BTreeMap::new(),
        }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            throttled: 0.0,
            throttled_burst: 0,
            server_error: 0.0,
            overloaded_html: 0.0,
            silent: 0.0,
            cut_body: 0.0,
            error_in_ok: 0.0,
            billing: 0.0,
            no_room: 0.0,
            refused: 0.0,
            truncated: 0.0,
            invalid_output: 0.0,
            slow: 0.0,
            slow_ms: 1_000,
            create_answer_lost: 0.0,
            reach: Reach::Inference,
        }
    }
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            validating_ms: 1_000,
            row_ms: 10,
            finalizing_ms: 1_000,
            window_ms: 24 * 3_600_000,
            retention_ms: 30 * 24 * 3_600_000,
            stalled: 0.0,
            failed: 0.0,
            cancel_ignored: 0.0,
            row_error: 0.0,
            row_refused: 0.0,
            row_invalid: 0.0,
            row_odd: 0.0,
            duplicate_line: 0.0,
            stranger_line: 0.0,
            row_lost: 0.0,
        }
    }
}

impl Config {
    pub(crate) fn limits_of(&self, provider: Provider) -> &Limits {
        self.providers.get(&provider).and_then(|own| own.limits.as_ref()).unwrap_or(&self.limits)
    }

    pub(crate) fn faults_of(&self, provider: Provider) -> &Faults {
        self.providers.get(&provider).and_then(|own| own.faults.as_ref()).unwrap_or(&self.faults)
    }

    pub(crate) fn batches_of(&self, provider: Provider) -> &Batches {
        self.providers.get(&provider).and_then(|own| own.batches.as_ref()).unwrap_or(&self.batches)
    }
}
