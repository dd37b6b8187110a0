//! What every [`Allowance`] must do, as one suite that all implementations run. It takes real time, since Redis does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Allowance, Charge, Firmness, Grant, Limit, Resource, Seen};

const PATIENCE: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);
/// What executors may hold beside it.
const LEASED: f64 = 2.0;

fn call(tokens: u64) -> Charge {
    Charge { requests: 1, input_tokens: tokens, output_tokens: 0 }
}

/// Checks an allowance. `make` gives one with full limits.
pub(super) async fn check(make: impl AsyncFn(&[Limit]) -> Arc<dyn Allowance>) -> Result<(), String> {
    rates_are_kept(&*make(&[Limit::per_minute(Resource::Requests, 600)]).await).await?;
    refusals_take_nothing(&*make(&[Limit::per_minute(Resource::Requests, 12)]).await).await?;
    settlements_count(&*make(&[Limit::per_minute(Resource::Tokens, 12_000)]).await).await?;
    headers_count(&*make(&[]).await).await?;
    pauses_hold(&*make(&[]).await).await
}

/// 600 a minute are 50 at once and then 10 a second: never more, and hardly fewer.
async fn rates_are_kept(allowance: &dyn Allowance) -> Result<(), String> {
    let began = Instant::now();
    let mut before = Duration::ZERO;
    for number in 1..=100 {
        let due = match allowance.reserve(call(0), MINUTE).await {
            Grant::After(wait) => began.elapsed() + wait,
            Grant::Refused(wait) => return Err(format!("refused for {wait:?}")),
        };
        let allowed = 50.0 + 10.0 * due.as_secs_f64() + LEASED;
        ensure(f64::from(number) <= allowed, &format!("the {number}th is due after {due:?}"))?;
        ensure(due + Duration::from_millis(200) >= before, "callers are not served in order")?;
        before = due;
    }
    let latest = began.elapsed() + Duration::from_millis(5_500);
    ensure(before <= latest, &format!("the 100th is due after {before:?}, not 5 s"))
}

/// 12 a minute are one at once and then one in 5 s.
async fn refusals_take_nothing(allowance: &dyn Allowance) -> Result<(), String> {
    let first = allowance.reserve(call(0), Duration::ZERO).await;
    ensure(first == Grant::After(Duration::ZERO), &format!("a full allowance grants {first:?}"))?;
    for _ in 0..20 {
        match allowance.reserve(call(0), Duration::from_secs(1)).await {
            Grant::Refused(wait) if wait <= Duration::from_secs(5) => {}
            other => return Err(format!("{other:?} instead of a refusal for at most 5 s")),
        }
    }
    Ok(())
}

/// 12,000 tokens a minute are 1,000 at once.
async fn settlements_count(allowance: &dyn Allowance) -> Result<(), String> {
    let granted = allowance.reserve(call(1_000), Duration::ZERO).await;
    ensure(granted == Grant::After(Duration::ZERO), &format!("a full allowance grants {granted:?}"))?;
    let refused = allowance.reserve(call(900), Duration::ZERO).await;
    ensure(matches!(refused, Grant::Refused(_)), &format!("an empty one grants {refused:?}"))?;
    allowance.settle(call(1_000), call(100));
    eventually("unused tokens are given back", async || {
        allowance.reserve(call(900), Duration::ZERO).await == Grant::After(Duration::ZERO)
    })
    .await?;
    allowance.settle(call(900), call(3_000));
    eventually("tokens used beyond the reserve are charged", async || {
        matches!(allowance.reserve(call(1), Duration::from_secs(3)).await, Grant::Refused(wait) if wait < MINUTE / 4)
    })
    .await
}

async fn headers_count(allowance: &dyn Allowance) -> Result<(), String> {
    let seen = Seen { resource: Resource::Requests, window: MINUTE, limit: Some(60), remaining: Some(0), reset: None };
    allowance.correct(&[seen]);
    eventually("a limit is learned", async || {
        matches!(allowance.reserve(call(0), Duration::ZERO).await, Grant::Refused(wait) if wait <= Duration::from_secs(2))
    })
    .await?;
    allowance.correct(&[Seen { limit: Some(60_000), remaining: Some(60_000), ..seen }]);
    eventually("a limit is raised", async || {
        let mut granted = 0;
        while granted < 200 && allowance.reserve(call(0), Duration::ZERO).await == Grant::After(Duration::ZERO) {
            granted += 1;
        }
        granted == 200
    })
    .await?;
    let firm = Limit { firmness: Firmness::Learned, ..Limit::per_minute(Resource::Requests, 1) };
    ensure(firm.divided(4).amount == 1, "a share of a limit may be none")
}

async fn pauses_hold(allowance: &dyn Allowance) -> Result<(), String> {
    allowance.pause(Duration::from_secs(3));
    ensure(allowance.paused() > Duration::from_secs(1), "a pause is not known at once")?;
    let refused = allowance.reserve(call(0), Duration::from_secs(1)).await;
    ensure(matches!(refused, Grant::Refused(_)), &format!("a pause grants {refused:?}"))?;
    let granted = allowance.reserve(call(0), MINUTE).await;
    ensure(matches!(granted, Grant::After(wait) if wait > Duration::from_secs(1)), &format!("{granted:?} in a pause"))?;
    eventually("a pause ends", async || {
        allowance.paused().is_zero() && allowance.reserve(call(0), Duration::ZERO).await == Grant::After(Duration::ZERO)
    })
    .await
}

/// Waits until a promise holds.
pub(super) async fn eventually(promise: &str, holds: impl AsyncFn() -> bool) -> Result<(), String> {
    let looking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.map_err(|_| format!("broken: {promise}"))
}

fn ensure(holds: bool, promise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("broken: {promise}")) }
}
