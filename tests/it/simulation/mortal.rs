//! [`mortal`]: a process that is killed. Killing it means that its future is dropped where it waits, so that it dies at any
//! await it has and cleans nothing up.

use std::pin::Pin;
use std::task::{Context, Poll};

struct Mortal<F> {
    process: Option<Pin<Box<F>>>,
    polls_left: u64,
}

/// Lets a process live for so many polls. `None` if it is killed before it ends by itself.
pub fn mortal<F: Future>(process: F, polls: u64) -> impl Future<Output = Option<F::Output>> {
    Mortal { process: Some(Box::pin(process)), polls_left: polls }
}

impl<F: Future> Future for Mortal<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            self.process = None;
        }
        self.polls_left = self.polls_left.saturating_sub(1);
        match &mut self.process {
            Some(process) => process.as_mut().poll(context).map(Some),
            None => Poll::Ready(None),
        }
    }
}
