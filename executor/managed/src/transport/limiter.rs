//! The layer that keeps to the limits: a call gets one of the places for calls under way, then takes what it is expected to
//! need, and afterwards settles what it used. However a call ends, dropped in the middle included, it settles once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_openai::middleware::HttpRequestFactory;
use rowmill_jobs::allowance::{Allowance, Charge, Concurrency, Finished, Grant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use super::stack::{Answer, Facts, Failed, Layered, error};
use crate::call::{CallError, Class, Estimate, Left};

/// Limits of an account, as the calls of a transport share them.
#[derive(Debug)]
struct Gate {
    allowance: Arc<dyn Allowance>,
    /// Longest a call waits for the limits.
    wait_max: Duration,
    started: Instant,
    places: Arc<Semaphore>,
    learned: Mutex<Learned>,
}

#[derive(Debug)]
struct Learned {
    concurrency: Concurrency,
    /// Places there are, taken or free.
    places: usize,
    /// Places that are to go as soon as they are free.
    surplus: usize,
}

impl Gate {
    fn with<T>(&self, work: impl FnOnce(&mut Learned) -> T) -> T {
        work(&mut self.learned.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a place, in order.
    async fn place(self: &Arc<Self>) -> Result<Place, Box<Failed>> {
        let closed = |_| Failed::unsent(error(Class::Stopped, "the transport is closed"));
        let permit = Arc::clone(&self.places).acquire_owned().await.map_err(closed)?;
        Ok(Place { gate: Arc::clone(self), permit: Some(permit) })
    }

    /// Takes from the allowance and waits as it says.
    async fn reserve(self: &Arc<Self>, charge: Charge) -> Result<(Reservation, Duration), Box<Failed>> {
        let wait = match self.allowance.reserve(charge, self.wait_max).await {
            Grant::After(wait) => wait,
            Grant::Refused(wait) => return Err(Failed::unsent(used_up(wait))),
        };
        let reservation = Reservation { gate: Arc::clone(self), reserved: charge, used: Charge::default() };
        let asked = Instant::now();
        if !wait.is_zero() {
            sleep(wait).await;
        }
        // Somebody else may have been told to wait meanwhile.
        loop {
            let paused = self.allowance.paused();
            if paused.is_zero() {
                break;
            }
            if paused > self.wait_max {
                return Err(Failed::unsent(used_up(paused)));
            }
            sleep(paused).await;
        }
        let waited = if wait.is_zero() { Duration::ZERO } else { asked.elapsed() };
        Ok((reservation, waited))
    }

    /// Learns from how a call ended.
    fn learn(&self, work: impl FnOnce(&mut Concurrency, usize, Duration)) {
        let free = self.places.available_permits();
        let more = self.with(|learned| {
            let under_way = learned.places.saturating_sub(free);
            work(&mut learned.concurrency, under_way, self.started.elapsed());
            let (wanted, kept) = (learned.concurrency.limit(), learned.places - learned.surplus);
            let more = wanted.saturating_sub(kept);
            // Places that were to go may stay.
            let stay = more.min(learned.surplus);
            learned.surplus = learned.surplus - stay + kept.saturating_sub(wanted);
            learned.places += more - stay;
            if learned.surplus > 0 {
                // Free ones go at once, the others when their calls end.
                let gone = self.places.forget_permits(learned.surplus);
                learned.surplus -= gone;
                learned.places -= gone;
            }
            more - stay
        });
        if more > 0 {
            self.places.add_permits(more);
        }
    }
}

/// One of the places for calls under way.
struct Place {
    gate: Arc<Gate>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let goes = self.gate.with(|learned| {
            let goes = learned.surplus > 0;
            learned.surplus -= usize::from(goes);
            learned.places -= usize::from(goes);
            goes
        });
        if let Some(permit) = self.permit.take().filter(|_| goes) {
            permit.forget();
        }
    }
}

/// What a call took; settles when it is dropped.
struct Reservation {
    gate: Arc<Gate>,
    reserved: Charge,
    used: Charge,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.gate.allowance.settle(self.reserved, self.used);
    }
}

fn used_up(wait: Duration) -> CallError {
    let mut error = error(Class::Throttled, "the provider's limits are used up");
    error.retry_after = Some(wait);
    error
}

fn charge(estimate: Estimate) -> Charge {
    Charge { requests: 1, input_tokens: estimate.input_tokens, output_tokens: estimate.output_tokens }
}

/// What a call that failed is taken to have used: nothing if it was not sent; a request if it was refused; all of it if
/// nobody knows.
fn used_by(failed: &Failed, reserved: Charge) -> Charge {
    match (failed.left, failed.error.status) {
        (Left::Nothing, _) => Charge::default(),
        (Left::Something, Some(status)) if status >= 400 => Charge { requests: 1, ..Charge::default() },
        (Left::Something, _) => reserved,
    }
}

/// The layer.
#[derive(Debug, Clone)]
pub(super) struct Limiter<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Limiter<S> {
    pub(super) fn new(inner: S, allowance: Arc<dyn Allowance>, concurrency_max: usize, wait_max: Duration) -> Self {
        let concurrency = Concurrency::new(concurrency_max);
        let places = concurrency.limit();
        let gate = Gate {
            allowance,
            wait_max,
            started: Instant::now(),
            places: Arc::new(Semaphore::new(places)),
            learned: Mutex::new(Learned { concurrency, places, surplus: 0 }),
        };
        Self { inner, gate: Arc::new(gate) }
    }
}

impl<S: Layered> Layered for Limiter<S> {
    async fn call(&self, request: HttpRequestFactory) -> Result<Answer, Box<Failed>> {
        let gate = &self.gate;
        let charge = charge(Facts::of_this_call().estimate);
        let _place = gate.place().await?;
        let (mut reservation, waited) = gate.reserve(charge).await?;
        let sent_at = gate.started.elapsed();
        // From here on the provider may have counted it, even if nobody waits for the answer.
        reservation.used = charge;
        let result = self.inner.call(request).await;
        reservation.used = match &result {
            Ok(answer) => answer.used.unwrap_or(charge),
            Err(failed) => used_by(failed, charge),
        };
        // Settled first: the provider's count, which comes next, has it included.
        drop(reservation);
        match &result {
            Ok(answer) => {
                gate.allowance.correct(&answer.seen);
                gate.learn(|concurrency, under_way, _| concurrency.succeeded(Finished { under_way, waited }));
            }
            Err(failed) => {
                gate.allowance.correct(&failed.seen);
                if failed.error.class == Class::Throttled && failed.left == Left::Something {
                    if let Some(wait) = failed.error.retry_after {
                        gate.allowance.pause(wait);
                    }
                    gate.learn(|concurrency, _, now| concurrency.throttled(sent_at, now));
                }
            }
        }
        result
    }
}
