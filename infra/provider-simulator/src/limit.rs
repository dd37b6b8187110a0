//! Rate limits as token buckets that refill continuously. Pure: takes the time, returns what was decided.

use crate::config::Limits;

/// Parts that a token is counted in: what refills a token a minute adds one part a millisecond, so nothing is rounded.
const PARTS: i64 = 60_000;

/// One bucket. Sizes and levels are in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bucket {
    per_minute: i64,
    size: i64,
    level: i64,
    at_ms: i64,
}

impl Bucket {
    fn new(per_minute: u64, burst_seconds: u64, now_ms: i64) -> Self {
        let per_minute = i64::try_from(per_minute).unwrap_or(i64::MAX / PARTS).clamp(1, i64::MAX / PARTS);
        let seconds = if burst_seconds == 0 { 60 } else { burst_seconds.min(60) as i64 };
        // A bucket too small for one request would never let one through.
        let size = (per_minute * seconds * 1_000).max(PARTS);
        Self { per_minute, size, level: size, at_ms: now_ms }
    }

    fn refill(&mut self, now_ms: i64) {
        let passed = (now_ms - self.at_ms).max(0);
        self.level = self.level.saturating_add(passed.saturating_mul(self.per_minute)).min(self.size);
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// Milliseconds until `wanted` tokens are there. More than the bucket holds is let through a full one.
    fn wait_ms(&self, wanted: u64) -> i64 {
        let missing = parts(wanted).min(self.size) - self.level;
        if missing <= 0 { 0 } else { (missing + self.per_minute - 1) / self.per_minute }
    }

    fn state(&self) -> Level {
        let missing = (self.size - self.level).max(0);
        Level {
            limit: self.per_minute as u64,
            remaining: (self.level.max(0) / PARTS) as u64,
            reset_ms: (missing + self.per_minute - 1) / self.per_minute,
        }
    }
}

fn parts(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(PARTS)
}

/// What a provider tells of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    /// A minute's allowance.
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Until it is full.
    pub(crate) reset_ms: i64,
}

/// What a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Take {
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
}

/// The buckets of a key at a provider.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Account {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    input_tokens: Option<Bucket>,
    output_tokens: Option<Bucket>,
}

/// What a provider tells of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Levels {
    pub(crate) requests: Option<Level>,
    pub(crate) tokens: Option<Level>,
    pub(crate) input_tokens: Option<Level>,
    pub(crate) output_tokens: Option<Level>,
}

impl Account {
    pub(crate) fn new(limits: &Limits, now_ms: i64) -> Self {
        let bucket = |limit: Option<u64>| limit.map(|limit| Bucket::new(limit, limits.burst_seconds, now_ms));
        Self {
            requests: bucket(limits.requests),
            tokens: bucket(limits.tokens),
            input_tokens: bucket(limits.input_tokens),
            output_tokens: bucket(limits.output_tokens),
        }
    }

    /// Takes what a request needs, or says how many milliseconds to wait. All or nothing.
    pub(crate) fn take(&mut self, take: Take, now_ms: i64) -> Result<(), i64> {
        let mut buckets = [
            (self.requests.as_mut(), 1),
            (self.tokens.as_mut(), take.input_tokens + take.output_tokens),
            (self.input_tokens.as_mut(), take.input_tokens),
            (self.output_tokens.as_mut(), take.output_tokens),
        ];
        let mut wait_ms = 0;
        for (bucket, wanted) in &mut buckets {
            let Some(bucket) = bucket else { continue };
            bucket.refill(now_ms);
            wait_ms = wait_ms.max(bucket.wait_ms(*wanted));
        }
        if wait_ms > 0 {
            return Err(wait_ms);
        }
        for (bucket, wanted) in buckets {
            if let Some(bucket) = bucket {
                bucket.level = bucket.level.saturating_sub(parts(wanted));
            }
        }
        Ok(())
    }

    pub(crate) fn levels(&self) -> Levels {
        let state = |bucket: &Option<Bucket>| bucket.as_ref().map(Bucket::state);
        Levels {
            requests: state(&self.requests),
            tokens: state(&self.tokens),
            input_tokens: state(&self.input_tokens),
            output_tokens: state(&self.output_tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_lets_its_allowance_through_and_no_more() {
        let limits = Limits { requests: Some(60), burst_seconds: 1, ..Limits::default() };
        let mut account = Account::new(&limits, 0);
        let take = Take { input_tokens: 1, output_tokens: 1 };
        let passed = (0..60_000).filter(|now_ms| account.take(take, *now_ms).is_ok()).count();
        assert!((60..=61).contains(&passed), "{passed}");
    }

    #[test]
    fn a_refused_request_takes_nothing_and_is_told_when_it_may() {
        let limits = Limits { requests: Some(600), output_tokens: Some(60), ..Limits::default() };
        let mut account = Account::new(&limits, 0);
        let take = Take { input_tokens: 0, output_tokens: 40 };
        assert_eq!(account.take(take, 0), Ok(()));
        assert_eq!(account.take(take, 0), Err(20_000));
        assert_eq!(account.levels().requests.map(|level| level.remaining), Some(599));
        assert_eq!(account.take(take, 19_999), Err(1));
        assert_eq!(account.take(take, 20_000), Ok(()));
    }
}
