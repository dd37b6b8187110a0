//! [`Time`]: the simulator's clock. It runs with the machine's, faster, or stands still until it is moved, so that a batch
//! of 24 hours takes a test no time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// A clock that several parties share.
#[derive(Debug, Clone)]
pub struct Time {
    /// Milliseconds since 1970 when the clock was made.
    began_ms: i64,
    began: Instant,
    /// Simulated milliseconds in a real one.
    speed: u32,
    moved_ms: Arc<AtomicI64>,
}

impl Time {
    /// A clock that shows the true time now and runs `speed` times as fast; 0 stands still.
    pub fn new(speed: u32) -> Self {
        let began_ms = chrono::Utc::now().timestamp_millis();
        Self { began_ms, began: Instant::now(), speed, moved_ms: Arc::new(AtomicI64::new(0)) }
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        let ran = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.began_ms + ran.saturating_mul(i64::from(self.speed)) + self.moved_ms.load(Ordering::Relaxed)
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.moved_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// A moment as RFC 3339.
pub(crate) fn rfc3339(at_ms: i64) -> String {
    let at = chrono::DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}
