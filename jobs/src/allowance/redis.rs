//! [`RedisAllowance`]: limits that all executors of a Redis share: one script does everything for a key in one step, by the
//! server's clock; what it grants beyond a call serves the next ones. If Redis does not answer, each executor keeps to its
//! share of the limits and asks again later.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, timeout};
use ulid::Ulid;

use super::exchange::{Answer, Ask};
use super::lease::Lease;
use super::local::LocalAllowance;
use super::{Allowance, Charge, Grant, Limit, Seen, check_limits};
use crate::queue::redis_server::RedisServer;
use crate::{Error, Result};

/// Longest an answer may take before Redis is taken to be away. Calls wait for it.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long Redis is not asked again after it did not answer.
const AWAY: Duration = Duration::from_secs(5);
/// How long settlements are collected before they are told.
const COLLECT: Duration = Duration::from_millis(100);

static EXCHANGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("allowance.lua")));

/// Limits that all executors of a Redis share.
#[derive(Debug, Clone)]
pub struct RedisAllowance {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: Arc<RedisServer>,
    key: String,
    started: Instant,
    state: Mutex<State>,
    /// Also keeps callers in order while Redis is asked.
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
}

#[derive(Debug)]
struct State {
    lease: Lease,
    /// What is used instead while Redis is away, and until when it is not asked.
    alone: Option<(LocalAllowance, Duration)>,
    telling: bool,
}

impl RedisAllowance {
    /// The limits of `key`: a provider's account and group of models, without secrets. Opens no connection yet.
    ///
    /// # Errors
    /// A limit would let no call through, or the key is none.
    pub fn new(server: Arc<RedisServer>, key: &str, limits: &[Limit]) -> Result<Self> {
        check_limits(limits)?;
        if key.is_empty() || key.chars().any(char::is_control) {
            return Err(Error::invalid("the key of an allowance is none"));
        }
        let state = State { lease: Lease::new(Ulid::generate().to_string(), limits), alone: None, telling: false };
        Ok(Self {
            shared: Arc::new(Shared {
                server,
                key: format!("rowmill:allowance:{key}"),
                started: Instant::now(),
                state: Mutex::new(state),
                connection: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Executors that shared the limits when Redis last answered, this one included.
    pub fn shared_by(&self) -> u64 {
        self.shared.with(|state, _| state.lease.members)
    }

    /// Whether Redis answers; if not, this executor keeps to its share of the limits.
    pub fn is_shared(&self) -> bool {
        self.shared.with(|state, _| state.alone.is_none())
    }
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut State, Duration) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut state, self.started.elapsed())
    }

    /// One round trip.
    async fn exchange(&self, ask: &Ask, kept: &mut Option<MultiplexedConnection>) -> Result<Answer> {
        let text = serde_json::to_string(ask).map_err(|error| Error::internal("cannot write JSON").caused_by(error))?;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.server.connect().await?,
        };
        let mut exchange = EXCHANGE.key(&self.key);
        exchange.key(format!("{}:members", self.key)).arg(text);
        let numbers: Vec<f64> = exchange
            .invoke_async(&mut connection)
            .await
            .map_err(|error| self.server.failed("share limits through", error))?;
        *kept = Some(connection);
        Answer::read(&numbers).ok_or_else(|| Error::internal("the script of the limits answers something else"))
    }

    /// Says to Redis what is to be said and takes note of the answer; `None` if Redis is away.
    async fn talk(
        &self,
        charge: Option<(Charge, Duration)>,
        kept: &mut Option<MultiplexedConnection>,
    ) -> Option<Grant> {
        let ask = self.with(|state, _| state.lease.ask(charge));
        let late = || Error::temporary(format!("{} does not answer", self.server.name()));
        let answer = timeout(ANSWER_MAX, self.exchange(&ask, kept)).await.unwrap_or_else(|_| Err(late()));
        match answer {
            Ok(answer) => Some(self.with(|state, now| {
                if state.alone.take().is_some() {
                    tracing::info!(key = self.key, "Redis answers again: the limits are shared again");
                }
                state.lease.answer(charge.map(|(charge, _)| charge), &answer, now)
            })),
            Err(error) => {
                self.with(|state, now| self.leave(state, now, &error));
                None
            }
        }
    }

    /// Goes on without Redis for a while.
    fn leave(&self, state: &mut State, now: Duration, error: &Error) {
        let again_at = now + AWAY;
        if let Some((_, until)) = &mut state.alone {
            *until = again_at;
            return;
        }
        let parts = state.lease.members;
        tracing::warn!(
            key = self.key,
            parts,
            error = %error,
            "Redis does not answer: this executor keeps to its share of the limits"
        );
        let limits: Vec<Limit> = state.lease.limits().map(|limit| limit.divided(parts)).collect();
        let alone = LocalAllowance::checked(&limits);
        alone.pause(state.lease.paused(now));
        state.alone = Some((alone, again_at));
    }

    /// Tells Redis soon, once for all that is noted meanwhile.
    fn tell_soon(self: &Arc<Self>, state: &mut State) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if state.telling {
            return;
        }
        state.telling = true;
        let shared = Arc::clone(self);
        runtime.spawn(async move {
            tokio::time::sleep(COLLECT).await;
            let mut kept = shared.connection.lock().await;
            let away = shared.with(|state, now| {
                state.telling = false;
                state.alone.as_ref().is_some_and(|(_, until)| now < *until)
            });
            if !away {
                shared.talk(None, &mut kept).await;
            }
        });
    }
}

#[async_trait]
impl Allowance for RedisAllowance {
    async fn reserve(&self, charge: Charge, wait_max: Duration) -> Grant {
        let shared = &self.shared;
        let held = |state: &mut State, now| match &state.alone {
            None => state.lease.take(charge, wait_max, now),
            Some(_) => None,
        };
        if let Some(grant) = shared.with(held) {
            return grant;
        }
        let mut kept = shared.connection.lock().await;
        // Whoever was before may have brought enough for this one, too.
        if let Some(grant) = shared.with(held) {
            return grant;
        }
        let away = shared.with(|state, now| state.alone.as_ref().is_some_and(|(_, until)| now < *until));
        if !away && let Some(grant) = shared.talk(Some((charge, wait_max)), &mut kept).await {
            return grant;
        }
        shared.with(|state, _| match &state.alone {
            Some((alone, _)) => alone.reserve_now(charge, wait_max),
            None => Grant::Refused(COLLECT),
        })
    }

    fn settle(&self, reserved: Charge, used: Charge) {
        self.shared.with(|state, _| {
            if let Some((alone, _)) = &state.alone {
                // Redis never counted it, or forgets in time that it did.
                return alone.settle(reserved, used);
            }
            state.lease.settle(reserved, used);
            self.shared.tell_soon(state);
        });
    }

    fn correct(&self, seen: &[Seen]) {
        if seen.is_empty() {
            return;
        }
        self.shared.with(|state, now| {
            if let Some((alone, _)) = &state.alone {
                let parts = state.lease.members;
                alone.correct(&seen.iter().map(|seen| seen.divided(parts)).collect::<Vec<_>>());
            }
            state.lease.correct(seen, now);
            self.shared.tell_soon(state);
        });
    }

    fn pause(&self, time: Duration) {
        self.shared.with(|state, now| {
            if let Some((alone, _)) = &state.alone {
                alone.pause(time);
            }
            state.lease.pause(time, now);
            self.shared.tell_soon(state);
        });
    }

    fn paused(&self) -> Duration {
        self.shared.with(|state, now| state.lease.paused(now))
    }
}
