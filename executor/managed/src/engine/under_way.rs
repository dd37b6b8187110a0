//! Work that is paid for: it goes on to its end when its caller goes away, and when other work beside it fails; what has not
//! begun then does not begin. What it came to is kept by the work itself.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rowmill_jobs::{Error, Kind, Result};

use crate::on_behalf::{OnBehalf, Unwanted, Wanted};

/// Does work for a shard, and goes on when the caller goes away: whoever ends the attempt waits for it with
/// [`OnBehalf::quiet`].
pub(super) async fn to_its_end<T, W>(who: &Arc<OnBehalf>, work: impl FnOnce(Unwanted) -> W) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
{
    let wanted = Wanted::default();
    let work = work(wanted.unwanted());
    let under_way = who.enter().await;
    let working = tokio::spawn(async move {
        let _under_way = under_way;
        work.await
    });
    working.await.map_err(|_| Error::internal("a defect of Rowmill ended a call to a provider"))?
}

/// What pieces of some work came to.
#[derive(Debug)]
pub(super) struct Done<T> {
    /// What is done, in any order, each with its index.
    pub pieces: Vec<(usize, T)>,
    /// Why the rest is not.
    pub stopped: Option<Error>,
}

impl<T> Done<T> {
    /// What all pieces came to, in their order.
    ///
    /// # Errors
    /// Why some are not done.
    pub(super) fn whole(mut self) -> Result<Vec<T>> {
        if let Some(error) = self.stopped {
            return Err(error);
        }
        self.pieces.sort_unstable_by_key(|(index, _)| *index);
        Ok(self.pieces.into_iter().map(|(_, piece)| piece).collect())
    }
}

/// Does all pieces of some work, so many at once. After the first error nothing new is begun; what was is waited for.
pub(super) async fn all<T>(
    pieces: impl IntoIterator<Item = impl Future<Output = Result<T>>>,
    at_once: usize,
    nobody_waits: &Unwanted,
) -> Done<T> {
    let mut waiting = pieces.into_iter().enumerate();
    let (mut under_way, mut done, mut failed) = (FuturesUnordered::new(), Vec::new(), None);
    loop {
        while under_way.len() < at_once.max(1) && !nobody_waits.is_set() {
            let Some((index, piece)) = waiting.next() else { break };
            under_way.push(async move { (index, piece.await) });
        }
        match under_way.next().await {
            None => break,
            Some((index, Ok(piece))) => done.push((index, piece)),
            Some((_, Err(error))) => {
                // Those that end because of it come later: the first is the reason.
                failed.get_or_insert(error);
                nobody_waits.set();
            }
        }
    }
    Done { pieces: done, stopped: failed.or_else(|| waiting.next().map(|_| unwanted())) }
}

/// A row would be asked for nobody.
pub(super) fn unwanted() -> Error {
    Error::new(Kind::Temporary, "the attempt ended before a row was asked")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_an_error_nothing_begins_and_what_did_is_waited_for() {
        let (begun, ended) = (AtomicU32::new(0), AtomicU32::new(0));
        let piece = |index: u32| {
            let (begun, ended) = (&begun, &ended);
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(if index == 1 { 1 } else { 5 })).await;
                ended.fetch_add(1, Ordering::Relaxed);
                if index == 1 { Err(Error::invalid("the first")) } else { Ok(index) }
            }
        };
        let wanted = Wanted::default();
        let failed = all((0..9).map(piece), 3, &wanted.unwanted()).await;
        assert_eq!(failed.stopped.map(|error| error.to_string()).as_deref(), Some("the first"));
        assert_eq!(failed.pieces.len(), 2, "what was done is lost");
        assert_eq!((begun.swap(0, Ordering::Relaxed), ended.load(Ordering::Relaxed)), (3, 3));
        let wanted = Wanted::default();
        let done = all((2..9).map(piece), 3, &wanted.unwanted()).await.whole().unwrap();
        assert_eq!(done, (2..9).collect::<Vec<_>>());
    }
}
