//! What tokens cost, in whole nano-dollars. Pure arithmetic, rounded up: a sum that is reserved or recorded is never less
//! than what it stands for.

use serde::{Deserialize, Serialize};

use crate::call::Spent;
use crate::lane::Lane;

/// Tokens that prices are given for.
const TOKENS_PER_PRICE: u128 = 1_000_000;

/// Prices of tokens: nano-dollars per million tokens ($2.50 per million is 2,500,000,000).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Prompt tokens.
    pub input: u64,
    /// Prompt tokens that the provider had cached.
    pub cached_input: u64,
    /// Prompt tokens that the provider puts into its cache.
    pub cache_write: u64,
    /// Output tokens, reasoning included.
    pub output: u64,
}

/// Rates that hold for prompts above a length, for all their tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Prompts of more tokens than this have these rates; 0 for the first tier.
    pub above_input_tokens: u64,
    /// The rates.
    pub rates: Rates,
}

/// A lane's tiers, by rising threshold; the first starts at 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LanePrice(Vec<Tier>);

/// A model's prices in each lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPrice {
    /// Online.
    pub online: LanePrice,
    /// Flex, if it has a price of its own; else the online price stands for it, which is not less.
    pub flex: Option<LanePrice>,
    /// Batch, likewise.
    pub batch: Option<LanePrice>,
    /// Where it comes from: a dated snapshot, the operator, the job.
    pub source: String,
}

/// Tokens that are paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Prompt tokens, cached and cache-written ones included.
    pub input: u64,
    /// Prompt tokens read from the provider's cache.
    pub cached: u64,
    /// Prompt tokens written to the provider's cache.
    pub cache_written: u64,
    /// Output tokens, reasoning included.
    pub output: u64,
}

impl From<&Spent> for Tokens {
    fn from(spent: &Spent) -> Self {
        Self { input: spent.input_tokens, cached: spent.cached_tokens, cache_written: 0, output: spent.output_tokens }
    }
}

impl LanePrice {
    /// One price for prompts of any length.
    pub fn flat(rates: Rates) -> Self {
        Self(vec![Tier { above_input_tokens: 0, rates }])
    }

    /// Rates for prompts of any length, and others above thresholds.
    pub(super) fn with_tiers(first: Rates, mut above: Vec<Tier>) -> Self {
        above.push(Tier { above_input_tokens: 0, rates: first });
        above.sort_by_key(|tier| tier.above_input_tokens);
        Self(above)
    }

    fn rates(&self, input_tokens: u64) -> Rates {
        let reached = |tier: &&Tier| tier.above_input_tokens == 0 || input_tokens > tier.above_input_tokens;
        self.0.iter().rev().find(reached).map_or_else(Rates::default, |tier| tier.rates)
    }

    /// The same prices, times `per_mille` / 1000.
    pub(super) fn scaled(&self, per_mille: u64) -> Self {
        let scale = |rate: u64| rate.saturating_mul(per_mille).div_ceil(1_000);
        Self(self.0.iter().map(|tier| Tier { rates: tier.rates.map(scale), ..*tier }).collect())
    }
}

impl Rates {
    fn map(self, change: impl Fn(u64) -> u64) -> Self {
        Self {
            input: change(self.input),
            cached_input: change(self.cached_input),
            cache_write: change(self.cache_write),
            output: change(self.output),
        }
    }
}

impl ModelPrice {
    /// A model whose tokens cost nothing: its machines are paid by the hour.
    pub fn free(source: &str) -> Self {
        Self { online: LanePrice::flat(Rates::default()), flex: None, batch: None, source: source.to_owned() }
    }

    fn lane(&self, lane: Lane) -> &LanePrice {
        let own = match lane {
            Lane::Online => None,
            Lane::Flex => self.flex.as_ref(),
            Lane::Batch => self.batch.as_ref(),
        };
        own.unwrap_or(&self.online)
    }

    /// What tokens cost, in nano-dollars.
    pub fn cost(&self, tokens: impl Into<Tokens>, lane: Lane) -> u64 {
        let tokens: Tokens = tokens.into();
        let rates = self.lane(lane).rates(tokens.input);
        let cached = tokens.cached.min(tokens.input);
        let written = tokens.cache_written.min(tokens.input - cached);
        sum(&[
            (tokens.input - cached - written, rates.input),
            (cached, rates.cached_input),
            (written, rates.cache_write),
            (tokens.output, rates.output),
        ])
    }

    /// The most that a request can cost, in nano-dollars: nothing is cached, everything is written to a cache if that is dearer,
    /// and all output is used. `input_tokens` must not be less than the provider will count.
    pub fn most(&self, input_tokens: u64, output_tokens_max: u64, lane: Lane) -> u64 {
        let rates = self.lane(lane).rates(input_tokens);
        sum(&[(input_tokens, rates.input.max(rates.cache_write)), (output_tokens_max, rates.output)])
    }
}

/// Tokens times prices, rounded up once.
fn sum(parts: &[(u64, u64)]) -> u64 {
    let total =
        parts.iter().fold(0u128, |sum, (tokens, rate)| sum.saturating_add(u128::from(*tokens) * u128::from(*rate)));
    u64::try_from(total.div_ceil(TOKENS_PER_PRICE)).unwrap_or(u64::MAX)
}

/// What a local machine costs, in nano-dollars, at a price per hour in nano-dollars.
pub fn local_cost(time: std::time::Duration, nano_usd_per_machine_hour: u64) -> u64 {
    const NANOSECONDS_PER_HOUR: u128 = 3_600_000_000_000;
    let cost = time.as_nanos().saturating_mul(u128::from(nano_usd_per_machine_hour)).div_ceil(NANOSECONDS_PER_HOUR);
    u64::try_from(cost).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(input: u64, output: u64) -> Rates {
        Rates { input, cached_input: input / 10, cache_write: input * 5 / 4, output }
    }

    fn price() -> ModelPrice {
        let long = Tier { above_input_tokens: 200_000, rates: rates(5_000_000_000, 22_500_000_000) };
        ModelPrice {
            online: LanePrice::with_tiers(rates(2_500_000_000, 15_000_000_000), vec![long]),
            flex: None,
            batch: Some(LanePrice::flat(rates(1_250_000_000, 7_500_000_000))),
            source: "a test".into(),
        }
    }

    #[test]
    fn tokens_cost_what_the_lane_and_the_prompts_length_say() {
        let tokens = Tokens { input: 1_000, cached: 400, cache_written: 0, output: 100 };
        assert_eq!(price().cost(tokens, Lane::Online), 600 * 2_500 + 400 * 250 + 100 * 15_000);
        assert_eq!(price().cost(tokens, Lane::Flex), price().cost(tokens, Lane::Online));
        assert_eq!(price().cost(tokens, Lane::Batch), 600 * 1_250 + 400 * 125 + 100 * 7_500);
        let at = Tokens { input: 200_000, ..Tokens::default() };
        let above = Tokens { input: 200_001, ..Tokens::default() };
        assert_eq!(price().cost(at, Lane::Online), 200_000 * 2_500);
        assert_eq!(price().cost(above, Lane::Online), 200_001 * 5_000);
        let written = Tokens { input: 1_000, cache_written: 1_000, ..Tokens::default() };
        assert_eq!(price().cost(written, Lane::Online), 1_000 * 3_125);
    }

    #[test]
    fn no_request_costs_more_than_its_most() {
        for input in [0, 1, 999, 200_000, 200_001, 1_000_000] {
            for output in [0, 1, 4_096] {
                for lane in Lane::ALL {
                    let most = price().most(input, output, lane);
                    for (cached, cache_written) in [(0, 0), (input, 0), (0, input), (input / 2, input), (u64::MAX, 5)] {
                        let tokens = Tokens { input, cached, cache_written, output };
                        assert!(price().cost(tokens, lane) <= most, "{tokens:?} {lane}");
                    }
                }
            }
        }
    }

    #[test]
    fn fractions_of_a_nano_dollar_are_rounded_up_and_nothing_overflows() {
        let cheap = ModelPrice { online: LanePrice::flat(rates(1, 1)), ..price() };
        assert_eq!(cheap.cost(Tokens { input: 1, ..Tokens::default() }, Lane::Online), 1);
        assert_eq!(price().most(u64::MAX, u64::MAX, Lane::Online), u64::MAX);
    }

    #[test]
    fn a_machine_costs_its_share_of_an_hour() {
        let hour = std::time::Duration::from_secs(3_600);
        assert_eq!(local_cost(hour, 1_200_000_000), 1_200_000_000);
        assert_eq!(local_cost(hour / 7, 1_200_000_000), 171_428_572);
    }
}
