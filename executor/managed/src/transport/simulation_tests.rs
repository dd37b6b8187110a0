//! Several executors against a simulated provider that counts for itself, on a paused clock: minutes pass at once. Shows
//! what the layers make of the limits together; each of them is tested in its own file.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_openai::middleware::HttpRequestFactory;
use bytes::Bytes;
use rowmill_jobs::allowance::{Allowance, Charge, Firmness, Limit, LocalAllowance, Resource, Seen};
use tokio::time::{Instant, sleep};

use super::breaker::Breaker;
use super::limiter::Limiter;
use super::retry::{Retry, RetryPolicy};
use super::stack::{Answer, Facts, Failed, Layered, error};
use crate::call::{Class, Estimate, Left};

const MINUTE: Duration = Duration::from_secs(60);

/// A provider with token buckets of a minute's worth, which says in headers what is left.
#[derive(Debug, Clone)]
struct Provider {
    state: Arc<Mutex<Counted>>,
    calls_per_minute: f64,
    tokens_per_minute: f64,
    latency: Duration,
    at_once_max: usize,
}

#[derive(Debug)]
struct Counted {
    calls: f64,
    tokens: f64,
    at: Instant,
    answered: usize,
    throttled: usize,
    at_once: usize,
}

impl Provider {
    fn new(calls_per_minute: f64, tokens_per_minute: f64, latency: Duration) -> Self {
        let counted = Counted {
            calls: calls_per_minute,
            tokens: tokens_per_minute,
            at: Instant::now(),
            answered: 0,
            throttled: 0,
            at_once: 0,
        };
        Self {
            state: Arc::new(Mutex::new(counted)),
            calls_per_minute,
            tokens_per_minute,
            latency,
            at_once_max: usize::MAX,
        }
    }

    /// Counts a call; what the headers say, and whether it is let through.
    fn count(&self, tokens: f64) -> (Vec<Seen>, bool) {
        let mut state = self.state.lock().unwrap();
        let minutes = state.at.elapsed().as_secs_f64() / 60.0;
        state.at = Instant::now();
        state.calls = (state.calls + minutes * self.calls_per_minute).min(self.calls_per_minute);
        state.tokens = (state.tokens + minutes * self.tokens_per_minute).min(self.tokens_per_minute);
        let through = state.calls >= 1.0 && state.tokens >= tokens && state.at_once < self.at_once_max;
        if through {
            state.calls -= 1.0;
            state.tokens -= tokens;
            state.at_once += 1;
        } else {
            state.throttled += 1;
        }
        let seen = |resource, limit: f64, left: f64| Seen {
            resource,
            window: MINUTE,
            limit: Some(limit as u64),
            remaining: Some(left as u64),
            reset: None,
        };
        let calls = seen(Resource::Requests, self.calls_per_minute, state.calls);
        (vec![calls, seen(Resource::Tokens, self.tokens_per_minute, state.tokens)], through)
    }
}

impl Layered for Provider {
    async fn call(&self, _: HttpRequestFactory) -> Result<Answer, Box<Failed>> {
        let used = Charge { requests: 1, input_tokens: 90, output_tokens: 20 };
        let (seen, through) = self.count(110.0);
        if !through {
            sleep(Duration::from_millis(50)).await;
            let mut error = error(Class::Throttled, "429");
            error.status = Some(429);
            return Err(Box::new(Failed { error, seen, left: Left::Something }));
        }
        sleep(self.latency.mul_f64(0.5 + fastrand::f64())).await;
        let mut state = self.state.lock().unwrap();
        state.answered += 1;
        state.at_once -= 1;
        Ok(Answer { body: Bytes::new(), request_id: None, first_byte: Duration::ZERO, seen, used: Some(used) })
    }
}

/// Executors that send for a while; the provider's count afterwards: answered and throttled.
async fn run(provider: &Provider, allowance: Arc<dyn Allowance>, executors: usize, time: Duration) -> (usize, usize) {
    let mut workers = Vec::new();
    for _ in 0..executors {
        let policy = RetryPolicy::default();
        let inner = Limiter::new(Breaker::new(provider.clone()), Arc::clone(&allowance), 256, policy.wait_max);
        let stack = Retry { inner, policy };
        workers.extend((0..100).map(|_| tokio::spawn(work(stack.clone()))));
    }
    sleep(time).await;
    let counted = {
        let state = provider.state.lock().unwrap();
        (state.answered, state.throttled)
    };
    for worker in workers {
        worker.abort();
        assert!(worker.await.unwrap_err().is_cancelled(), "a call was lost");
    }
    counted
}

async fn work(stack: impl Layered) {
    let unmade = || HttpRequestFactory::new(|| async { unreachable!("the provider is simulated") });
    loop {
        let estimate = Estimate { input_tokens: 100, output_tokens: 40, nano_usd_max: 0 };
        let facts = Facts::new(estimate, Instant::now() + MINUTE * 60, None);
        if let Err(failed) = facts.run(stack.call(unmade())).await {
            panic!("a call was lost: {:?}", failed.error);
        }
    }
}

fn allowance(firmness: Firmness, calls: u64, tokens: u64) -> Arc<dyn Allowance> {
    let limit = |resource, amount| Limit { resource, amount, window: MINUTE, firmness };
    let limits = [limit(Resource::Requests, calls), limit(Resource::Tokens, tokens)];
    Arc::new(LocalAllowance::new(&limits).unwrap())
}

/// `allowed` is what the provider had to give: a minute's worth in the beginning, and what refilled.
fn check((answered, throttled): (usize, usize), allowed: f64) {
    let share = answered as f64 / allowed;
    assert!(share >= 0.95, "{answered} answered, {share:.3} of what was allowed");
    let storm = throttled as f64 / (answered + throttled) as f64;
    assert!(storm < 0.01, "{throttled} throttled of {answered}");
}

#[tokio::test(start_paused = true)]
async fn requests_are_used_to_the_full_and_nobody_is_throttled() {
    let provider = Provider::new(600.0, 1e9, Duration::from_secs(3));
    let counted = run(&provider, allowance(Firmness::Firm, 600, 1_000_000_000), 4, MINUTE * 10).await;
    check(counted, 6_600.0);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_used_to_the_full_though_estimates_are_too_high() {
    let provider = Provider::new(1e6, 100_000.0, Duration::from_secs(3));
    let counted = run(&provider, allowance(Firmness::Firm, 1_000_000, 100_000), 4, MINUTE * 10).await;
    check(counted, 1_100_000.0 / 110.0);
}

#[tokio::test(start_paused = true)]
async fn limits_that_are_guessed_wrongly_are_learned() {
    for guess in [60, 60_000] {
        let provider = Provider::new(600.0, 100_000.0, Duration::from_secs(3));
        let counted = run(&provider, allowance(Firmness::Learned, guess, 1_000_000), 4, MINUTE * 10).await;
        check(counted, 6_600.0);
    }
}

/// A server of one's own with forty slots, which it tells nobody of. A call takes 3 s: 13.3 a second at most.
#[tokio::test(start_paused = true)]
async fn how_many_at_once_is_learned() {
    let provider = Provider { at_once_max: 40, ..Provider::new(1e9, 1e12, Duration::from_secs(3)) };
    let allowance = Arc::new(LocalAllowance::new(&[]).unwrap());
    let (answered, throttled) = run(&provider, allowance, 1, MINUTE * 10).await;
    assert!(answered >= 6_000, "{answered} of 8,000");
    assert!(throttled * 33 < answered, "{throttled} throttled of {answered}");
}
