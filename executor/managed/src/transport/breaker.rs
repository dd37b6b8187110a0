//! A circuit breaker for an account: after repeated failures nothing is sent for a while, then one call tries whether it
//! works again. Deciding is pure; the layer asks and tells.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_openai::middleware::HttpRequestFactory;
use tokio::time::Instant;

use super::stack::{Answer, Failed, Layered};
use crate::call::{CallError, Class};

/// Failures in a row that open it.
const IN_A_ROW: usize = 5;
/// Latest calls that are looked at; more than half of them failed opens it, too.
const LATEST: usize = 20;
/// First and longest time it stays open. It doubles with each try that fails.
const OPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What is known of an account's health.
#[derive(Debug)]
struct Circuit {
    state: State,
    /// Of the latest calls, whether each failed.
    latest: VecDeque<bool>,
    in_a_row: usize,
    open_for: Duration,
    /// How often it opened or closed: a call that was sent before says nothing about after.
    turns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Duration },
    Trying,
}

/// Whether a call may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Admitted { turn: u64 },
    Refused { wait: Duration },
}

impl Circuit {
    fn new() -> Self {
        Self { state: State::Closed, latest: VecDeque::new(), in_a_row: 0, open_for: OPEN.0, turns: 0 }
    }

    fn admit(&mut self, now: Duration) -> Admission {
        match self.state {
            State::Closed => Admission::Admitted { turn: self.turns },
            State::Open { until } if until <= now => {
                self.state = State::Trying;
                self.turns += 1;
                Admission::Admitted { turn: self.turns }
            }
            State::Open { until } => Admission::Refused { wait: until - now },
            State::Trying => Admission::Refused { wait: OPEN.0 },
        }
    }

    fn ended(&mut self, turn: u64, well: bool, now: Duration) {
        if turn != self.turns {
            return;
        }
        if self.state == State::Trying {
            if well {
                *self = Self { turns: self.turns + 1, ..Self::new() };
            } else {
                self.open(now);
            }
            return;
        }
        self.in_a_row = if well { 0 } else { self.in_a_row + 1 };
        self.latest.push_back(!well);
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
        let failed = self.latest.iter().filter(|failed| **failed).count();
        if self.in_a_row >= IN_A_ROW || (self.latest.len() == LATEST && failed * 2 > LATEST) {
            self.open(now);
        }
    }

    fn open(&mut self, now: Duration) {
        self.state = State::Open { until: now + self.open_for };
        self.open_for = (self.open_for * 2).min(OPEN.1);
        self.latest.clear();
        self.in_a_row = 0;
        self.turns += 1;
    }

    /// The call that was to try was given up: another may.
    fn abandoned(&mut self, turn: u64, now: Duration) {
        if turn == self.turns && self.state == State::Trying {
            self.state = State::Open { until: now };
        }
    }
}

/// Holds calls back while the account's provider fails.
#[derive(Debug, Clone)]
pub(super) struct Breaker<S> {
    inner: S,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    circuit: Mutex<Circuit>,
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Circuit, Duration) -> T) -> T {
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut circuit, self.started.elapsed())
    }
}

/// A call that was admitted; tells if it is given up.
struct UnderWay {
    shared: Arc<Shared>,
    turn: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // After an end was told this changes nothing.
        self.shared.with(|circuit, now| circuit.abandoned(self.turn, now));
    }
}

impl<S> Breaker<S> {
    pub(super) fn new(inner: S) -> Self {
        let shared = Shared { started: Instant::now(), circuit: Mutex::new(Circuit::new()) };
        Self { inner, shared: Arc::new(shared) }
    }
}

impl<S: Layered> Layered for Breaker<S> {
    async fn call(&self, request: HttpRequestFactory) -> Result<Answer, Box<Failed>> {
        let turn = match self.shared.with(Circuit::admit) {
            Admission::Admitted { turn } => turn,
            Admission::Refused { wait } => return Err(Failed::unsent(held_back(wait))),
        };
        let under_way = UnderWay { shared: Arc::clone(&self.shared), turn };
        let result = self.inner.call(request).await;
        if result.as_ref().is_err_and(|failed| failed.error.class == Class::Stopped) {
            // We kept it ourselves: that says nothing of the provider, and whoever tries has not tried.
            return result;
        }
        // Refusals of a request say nothing against the provider.
        let bad = |class| matches!(class, Class::Transient | Class::Throttled);
        let well = !result.as_ref().is_err_and(|failed| bad(failed.error.class));
        under_way.shared.with(|circuit, now| circuit.ended(turn, well, now));
        result
    }
}

fn held_back(wait: Duration) -> CallError {
    CallError {
        class: Class::Throttled,
        status: None,
        code: None,
        message: "the provider failed repeatedly and is left alone for a while".to_owned(),
        retry_after: Some(wait),
        request_id: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn end_all(circuit: &mut Circuit, outcomes: &[bool], now: Duration) {
        for well in outcomes {
            let Admission::Admitted { turn } = circuit.admit(now) else { panic!("held back") };
            circuit.ended(turn, *well, now);
        }
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_one_call_tries() {
        let mut circuit = Circuit::new();
        end_all(&mut circuit, &[false, false, false, false, true, false, false, false, false], at(0));
        assert_eq!(circuit.state, State::Closed);
        end_all(&mut circuit, &[false], at(0));
        assert_eq!(circuit.admit(at(0)), Admission::Refused { wait: at(1) });
        let Admission::Admitted { turn } = circuit.admit(at(1)) else { panic!("nobody tries") };
        assert!(matches!(circuit.admit(at(1)), Admission::Refused { .. }), "one alone tries");
        circuit.ended(turn, false, at(2));
        assert_eq!(circuit.admit(at(2)), Admission::Refused { wait: at(2) }, "twice as long");
        end_all(&mut circuit, &[true], at(4));
        assert_eq!(circuit.state, State::Closed);
        assert_eq!(circuit.open_for, OPEN.0);
    }

    #[test]
    fn more_than_half_of_twenty_open_it() {
        let mut circuit = Circuit::new();
        let half: Vec<bool> = (0..20).map(|index| index % 2 == 0).collect();
        end_all(&mut circuit, &half, at(0));
        assert_eq!(circuit.state, State::Closed, "half is not more than half");
        end_all(&mut circuit, &[false], at(0));
        assert_eq!(circuit.state, State::Open { until: at(1) });
    }

    #[test]
    fn late_answers_of_before_change_nothing_and_a_try_that_is_given_up_is_passed_on() {
        let mut circuit = Circuit::new();
        let Admission::Admitted { turn: early } = circuit.admit(at(0)) else { panic!() };
        end_all(&mut circuit, &[false; 5], at(0));
        circuit.ended(early, true, at(0));
        assert!(matches!(circuit.admit(at(0)), Admission::Refused { .. }));
        let Admission::Admitted { turn } = circuit.admit(at(5)) else { panic!() };
        circuit.abandoned(turn, at(5));
        assert!(matches!(circuit.admit(at(5)), Admission::Admitted { .. }));
    }

    #[test]
    fn it_never_stays_open_for_longer_than_a_minute() {
        let mut circuit = Circuit::new();
        end_all(&mut circuit, &[false; 5], at(0));
        for hour in 1..20 {
            let now = at(hour * 3_600);
            end_all(&mut circuit, &[false], now);
            let Admission::Refused { wait } = circuit.admit(now) else { panic!() };
            assert!(wait <= OPEN.1);
        }
    }
}
