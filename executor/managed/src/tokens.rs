//! How many tokens a call will take, before it is sent: from its bytes and from what calls before it took. Pure numbers;
//! whoever sends the calls keeps the estimates of a task and tells them what came of each call.

use crate::call::Spent;
use crate::target::Tokenizer;

/// Weight of a new observation in the ratio of counted to estimated input tokens.
const RATIO_WEIGHT: f64 = 0.05;
/// The ratio is believed within these bounds: beyond them the provider counts something else.
const RATIO_BOUNDS: (f64, f64) = (0.1, 10.0);
/// The share of answers that the output estimate shall cover.
const QUANTILE: f64 = 0.9;
/// Least step of the output estimate, relative to its value.
const STEP_MIN: f64 = 0.02;
/// Answers that must have been seen before the limit of an answer is set below the task's own.
const ANSWERS_KNOWN: u64 = 64;
/// The limit of an answer, as a multiple of what nine of ten take.
const BUDGET_FACTOR: f64 = 4.0;
/// No limit of an answer is set below this.
const BUDGET_MIN: u32 = 256;

/// Estimates for the calls of one task at one target.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimates {
    /// Of prompt tokens.
    pub input: InputEstimate,
    /// Of output tokens.
    pub output: OutputEstimate,
}

impl Estimates {
    /// What a call with a body of `bytes` took.
    pub fn observe(&mut self, bytes: usize, spent: &Spent) {
        self.input.observe(bytes, spent.input_tokens);
        self.output.observe(spent.output_tokens);
    }
}

/// Input tokens from bytes: bytes per token of the tokenizer's family, corrected by the ratio of what the provider counts to
/// what was estimated, an exponentially weighted mean.
#[derive(Debug, Clone, PartialEq)]
pub struct InputEstimate {
    bytes_per_token: f64,
    ratio: f64,
    observed: u64,
}

impl InputEstimate {
    /// An estimate that has seen nothing yet.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self { bytes_per_token: tokenizer.bytes_per_token(), ratio: 1.0, observed: 0 }
    }

    /// Tokens of a request of this many bytes.
    pub fn tokens(&self, bytes: usize) -> u64 {
        (bytes as f64 / self.bytes_per_token * self.ratio).ceil() as u64
    }

    /// A request of `bytes` had `tokens`. Providers that count nothing (0) teach nothing.
    pub fn observe(&mut self, bytes: usize, tokens: u64) {
        if bytes == 0 || tokens == 0 {
            return;
        }
        let (least, most) = RATIO_BOUNDS;
        let ratio = (tokens as f64 * self.bytes_per_token / bytes as f64).clamp(least, most);
        self.observed += 1;
        // The mean of all at first, so that the first few count as much as they are worth.
        let weight = RATIO_WEIGHT.max(1.0 / self.observed as f64);
        self.ratio += (ratio - self.ratio) * weight;
    }
}

/// The number of output tokens that nine of ten answers stay within. It follows the answers by multiplicative steps, up
/// by 9 parts when an answer is longer, down by 1 when it is not, so it rests where nine of ten are shorter.
///
/// Yazidi and Hammer, Multiplicative Update Methods for Incremental Quantile Estimation, IEEE Transactions on Cybernetics,
/// 2019. Steps begin large and end at [`STEP_MIN`], so that it follows a table whose rows change.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputEstimate {
    tokens: f64,
    tokens_max: u32,
    observed: u64,
}

impl OutputEstimate {
    /// An estimate that begins with a guess, for answers of at most `tokens_max`.
    pub fn new(guess: u32, tokens_max: u32) -> Self {
        Self { tokens: f64::from(guess.clamp(1, tokens_max.max(1))), tokens_max, observed: 0 }
    }

    /// Output tokens to reckon with, at most the task's limit. Zero for tasks without output.
    pub fn tokens(&self) -> u64 {
        (self.tokens.ceil() as u64).min(u64::from(self.tokens_max))
    }

    /// An answer took `tokens`.
    pub fn observe(&mut self, tokens: u64) {
        self.observed += 1;
        let step = STEP_MIN.max(0.5 / (self.observed as f64).sqrt());
        let toward = if tokens as f64 > self.tokens { QUANTILE } else { QUANTILE - 1.0 };
        // Never below a token: from nothing, no factor leads back.
        self.tokens = (self.tokens * (1.0 + step * toward)).max(1.0);
    }

    /// The limit to set for an answer at first. Providers that count the limit itself against their rates let more calls
    /// through if it is tight; the few answers that are longer are asked for again with the task's own limit.
    pub fn budget(&self) -> u32 {
        if self.observed < ANSWERS_KNOWN {
            return self.tokens_max;
        }
        ((self.tokens * BUDGET_FACTOR) as u32).max(BUDGET_MIN).min(self.tokens_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in [0, 1), the same in each run.
    fn uniform(seed: u64) -> impl Iterator<Item = f64> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        })
    }

    #[test]
    fn input_estimates_come_to_what_the_provider_counts() {
        let mut input = InputEstimate::new(Tokenizer::Claude);
        assert_eq!(input.tokens(3300), 1000);
        for (i, noise) in uniform(1).take(200).enumerate() {
            let bytes = 1000 + i * 10;
            input.observe(bytes, (bytes as f64 / 5.0 * (0.9 + 0.2 * noise)) as u64);
        }
        let estimate = input.tokens(5000) as f64;
        assert!((estimate / 1000.0 - 1.0).abs() < 0.05, "{estimate}");
        let before = input.clone();
        input.observe(1000, 0);
        assert_eq!(input, before, "a provider without usage teaches nothing");
    }

    #[test]
    fn output_estimates_rest_where_nine_of_ten_answers_are_shorter() {
        for (guess, spread) in [(4000, 100.0), (1, 2000.0), (50, 60.0)] {
            let mut output = OutputEstimate::new(guess, 8192);
            let answers: Vec<u64> = uniform(7).take(4000).map(|x| (20.0 + spread * x * x) as u64).collect();
            let mut covered = 0;
            for (i, answer) in answers.iter().enumerate() {
                covered += usize::from(i >= 1000 && *answer <= output.tokens());
                output.observe(*answer);
            }
            let share = covered as f64 / 3000.0;
            assert!((0.85..0.95).contains(&share), "{guess} {spread}: {share}");
        }
    }

    #[test]
    fn a_limit_is_tight_only_when_answers_are_known() {
        let mut output = OutputEstimate::new(100, 4096);
        assert_eq!(output.budget(), 4096);
        (0..500).for_each(|_| output.observe(40));
        assert_eq!(output.budget(), BUDGET_MIN);
        (0..500).for_each(|_| output.observe(4000));
        assert_eq!(output.budget(), 4096);
        assert!(output.tokens() <= 4096);
    }
}
