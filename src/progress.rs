//! Shows how far a run is: a live line on a terminal, a plain line now and then elsewhere. Words for people only;
//! programs read `--json`.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use rowmill_jobs::plan::Plan;
use rowmill_jobs::progress::Counters;

use crate::output::tell;

/// Between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between updates of the live line.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// A display that updates itself until [`Progress::finish`] or drop.
#[derive(Debug)]
pub(crate) struct Progress {
    watched: Arc<Watched>,
    task: tokio::task::JoinHandle<()>,
    bar: Option<ProgressBar>,
}

#[derive(Debug)]
struct Watched {
    counters: Arc<Counters>,
    started: Instant,
    parts: usize,
    rows: u64,
    rows_per_part: u64,
    committed: AtomicUsize,
    rows_before: AtomicU64,
}

impl Progress {
    /// Starts showing a run.
    pub(crate) fn start(plan: &Plan, counters: Arc<Counters>) -> Self {
        let (parts, rows) = (plan.shards.len(), plan.rows());
        let watched = Arc::new(Watched {
            counters,
            started: Instant::now(),
            parts,
            rows,
            rows_per_part: rows / parts.max(1) as u64,
            committed: AtomicUsize::new(0),
            rows_before: AtomicU64::new(u64::MAX),
        });
        let bar = live_line(Some(rows), "{bar:24} {pos}/{len} rows  {msg}");
        let task = tokio::spawn(update(Arc::clone(&watched), bar.clone()));
        Self { watched, task, bar }
    }

    /// Tells how many parts exist. The first time: how many existed before this process began.
    pub(crate) fn committed(&self, parts: usize) {
        self.watched.committed.store(parts, Relaxed);
        let before = parts as u64 * self.watched.rows_per_part;
        let _ = self.watched.rows_before.compare_exchange(u64::MAX, before, Relaxed, Relaxed);
    }

    /// Ends the display.
    pub(crate) fn finish(&self) {
        self.task.abort();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Shows how far a run is that other processes compute: by its parts alone.
#[derive(Debug)]
pub(crate) struct Watcher {
    bar: Option<ProgressBar>,
    total: usize,
    shown: std::sync::Mutex<(usize, Instant)>,
}

impl Watcher {
    /// Starts showing a run.
    pub(crate) fn start(plan: &Plan) -> Self {
        let total = plan.shards.len();
        let bar = live_line(Some(total as u64), "{bar:24} {pos}/{len} parts  {per_sec}  ETA {eta}");
        Self { bar, total, shown: std::sync::Mutex::new((0, Instant::now())) }
    }

    /// Tells how many parts exist.
    pub(crate) fn committed(&self, parts: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(parts as u64);
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shown.0 != parts && shown.1.elapsed() >= LINE_EVERY {
            tell(&format!("parts {parts}/{}", self.total));
            *shown = (parts, Instant::now());
        }
    }

    /// Ends the display.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line that is drawn again and again, and goes when it is dropped. `None` where nobody would see that: standard error
/// is no terminal.
pub(crate) fn live_line(length: Option<u64>, template: &'static str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_finish(ProgressFinish::AndClear);
    // If a template were ever wrong, the default style would do.
    Some(match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    })
}

async fn update(watched: Arc<Watched>, bar: Option<ProgressBar>) {
    let every = if bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
    loop {
        tokio::time::sleep(every).await;
        let (done, text) = watched.describe();
        match &bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(text);
            }
            None => tell(&format!("{done}/{} rows  {text}", watched.rows)),
        }
    }
}

impl Watched {
    /// Rows done, and rate, time left, parts and errors in words.
    fn describe(&self) -> (u64, String) {
        let now = self.counters.snapshot();
        let before = self.rows_before.load(Relaxed);
        let before = if before == u64::MAX { 0 } else { before };
        let done_here = now.rows_done();
        let done = (before + done_here).min(self.rows);
        let rate = done_here as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let left = if rate > 0.0 { duration((self.rows - done) as f64 / rate) } else { "?".into() };
        let parts = format!("parts {}/{}", self.committed.load(Relaxed), self.parts);
        (done, format!("{rate:.0} rows/s  ETA {left}  {parts}  errors {}", now.row_errors))
    }
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    let seconds = seconds.min(1e9) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_read_naturally() {
        assert_eq!([3.0, 61.0, 7260.0].map(super::duration), ["3s", "1m01s", "2h01m"]);
    }
}
