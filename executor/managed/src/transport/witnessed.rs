//! The layer that asks before an attempt leaves: within the limiter and the breaker, so that what waits for its turn holds no
//! money and what is held back is not on record, and within the retries, so that each attempt is on record and paid for.

use async_openai::middleware::HttpRequestFactory;

use super::stack::{Answer, Facts, Failed, Layered, error};
use crate::call::Class;

/// Asks the call's witness, if it has one.
#[derive(Debug, Clone)]
pub(super) struct Witnessed<S> {
    pub(super) inner: S,
}

impl<S: Layered> Layered for Witnessed<S> {
    async fn call(&self, request: HttpRequestFactory) -> Result<Answer, Box<Failed>> {
        let facts = Facts::of_this_call();
        let Some(witness) = &facts.witness else { return self.inner.call(request).await };
        if !witness.leaving().await {
            return Err(Failed::unsent(error(Class::Stopped, "whoever has to be asked did not let it leave")));
        }
        facts.begin();
        let answered = self.inner.call(request).await;
        facts.end();
        if let Err(failed) = &answered {
            witness.unanswered(&failed.error, failed.left).await;
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use rowmill_jobs::allowance::LocalAllowance;
    use tokio::time::Instant;

    use super::super::stub::{Act, Stub, json};
    use super::super::{Authentication, Place, Transport, TransportOptions};
    use crate::call::{Call, CallError, Class, Estimate, Left, Witness};

    /// A witness that notes what it is told, and lets so many attempts leave.
    #[derive(Debug, Default)]
    struct Notes {
        told: Mutex<Vec<String>>,
        lets: usize,
    }

    impl Notes {
        fn told(&self) -> Vec<String> {
            self.told.lock().unwrap().clone()
        }
    }

    #[async_trait]
    impl Witness for Notes {
        async fn leaving(&self) -> bool {
            let mut told = self.told.lock().unwrap();
            told.push("leaving".to_owned());
            told.iter().filter(|said| *said == "leaving").count() <= self.lets
        }

        async fn unanswered(&self, error: &CallError, left: Left) {
            self.told.lock().unwrap().push(format!("{:?}, {left:?} left", error.class));
        }
    }

    fn transport(stub: &Stub, attempts_max: u32) -> Transport {
        let allowance = Arc::new(LocalAllowance::new(&[]).unwrap());
        let mut options = TransportOptions::new(&stub.url, Authentication::None, allowance);
        options.place = Place::Own;
        options.retry.attempts_max = attempts_max;
        options.retry.throttled_max = Duration::from_millis(500);
        options.retry.backoff = (Duration::from_millis(1), Duration::from_millis(2));
        Transport::new(options).unwrap()
    }

    async fn send(transport: &Transport, witness: &Arc<Notes>, time: Duration) -> Option<Class> {
        let call = Call {
            path: "/chat/completions".into(),
            body: Some(Bytes::from_static(b"{}")),
            estimate: Estimate::default(),
        };
        let witness = Arc::clone(witness) as Arc<dyn Witness>;
        transport.send_by(call, Instant::now() + time, Some(witness)).await.err().map(|error| error.class)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn an_attempt_that_the_deadline_drops_is_told() {
        let stub = Stub::start(vec![Act::Hang]).await;
        let witness = Arc::new(Notes { lets: 1, ..Notes::default() });
        let class = send(&transport(&stub, 1), &witness, Duration::from_millis(200)).await;
        assert_eq!(class, Some(Class::Transient));
        assert_eq!(witness.told(), ["leaving", "Transient, Something left"]);
    }

    #[tokio::test]
    async fn what_the_breaker_holds_back_is_not_witnessed() {
        let stub = Stub::start(vec![json(500, "", "")]).await;
        let (transport, witness) = (transport(&stub, 100), Arc::new(Notes { lets: 100, ..Notes::default() }));
        assert_eq!(send(&transport, &witness, LONG).await, Some(Class::Throttled), "the breaker is not open");
        assert_eq!((stub.got().len(), witness.told().len()), (5, 10), "{:?}", witness.told());
    }

    #[tokio::test]
    async fn a_try_that_the_witness_keeps_does_not_close_the_breaker() {
        let stub = Stub::start(vec![json(500, "", "")]).await;
        let (transport, lenient) = (transport(&stub, 100), Arc::new(Notes { lets: 100, ..Notes::default() }));
        assert_eq!(send(&transport, &lenient, LONG).await, Some(Class::Throttled), "the breaker is not open");
        // It stays open for a second; then the one that tries is kept, and another tries at once.
        let strict = Arc::new(Notes::default());
        while send(&transport, &strict, LONG).await != Some(Class::Stopped) {}
        assert_eq!(stub.got().len(), 5);
        // A breaker that had closed would let five of them through.
        assert_eq!(send(&transport, &lenient, LONG).await, Some(Class::Throttled));
        assert_eq!((stub.got().len(), strict.told().len()), (6, 1));
    }
}
