//! Shows how far reading the inputs' footers is, where that takes so long that somebody may wonder: a live line on a
//! terminal, a plain line now and then elsewhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::output::tell;
use crate::progress::live_line;

/// Nothing is shown earlier.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// Between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Between updates of the live line.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// A listener for `rowmill_scheduler::draft`, which calls it with how many footers are read and how many there are. Its
/// display ends when it is dropped.
pub(crate) fn watch() -> impl Fn(usize, usize) + Send + Sync {
    let (started, pace) = (Instant::now(), Pace::default());
    let bar = live_line(None, "reading footers  {bar:24} {pos}/{len} files");
    move |done, found| {
        let every = if bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
        if !pace.is_due(started.elapsed(), every) && (done < found || !pace.has_shown()) {
            return;
        }
        match &bar {
            Some(bar) => {
                bar.set_length(found as u64);
                bar.set_position(done as u64);
                bar.tick();
            }
            None => tell(&format!("reading footers: {done}/{found} files")),
        }
    }
}

/// When to show something next.
#[derive(Debug)]
struct Pace {
    next_ms: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { next_ms: AtomicU64::new(millis(FIRST_AFTER)) }
    }
}

impl Pace {
    /// Whether it is time, so long after the start. Of several threads that ask at once, one is told yes.
    fn is_due(&self, elapsed: Duration, every: Duration) -> bool {
        let (now, next) = (millis(elapsed), self.next_ms.load(Relaxed));
        now >= next && self.next_ms.compare_exchange(next, now + millis(every), Relaxed, Relaxed).is_ok()
    }

    fn has_shown(&self) -> bool {
        self.next_ms.load(Relaxed) != millis(FIRST_AFTER)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_in_the_first_second_and_then_now_and_then() {
        let pace = Pace::default();
        let due = [0, 999, 1000, 1001, 5999, 6000, 6001].map(|ms| pace.is_due(Duration::from_millis(ms), LINE_EVERY));
        assert_eq!(due, [false, false, true, false, false, true, false]);
        assert!(pace.has_shown() && !Pace::default().has_shown());
    }
}
