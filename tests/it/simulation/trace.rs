//! [`Trace`]: what happened last in a seed, for whoever has to understand why it failed.

use std::collections::VecDeque;
use std::fmt;

/// Length of an attempt's name.
const ULID: usize = 26;

/// The last events.
#[derive(Debug)]
pub struct Trace {
    events: VecDeque<Event>,
    room: usize,
}

#[derive(Debug)]
struct Event {
    at_ms: i64,
    node: &'static str,
    what: &'static str,
    subject: String,
}

impl Trace {
    /// Keeps the last `room` events.
    pub fn new(room: usize) -> Self {
        Self { events: VecDeque::with_capacity(room.min(1_000)), room }
    }

    /// Something happened.
    pub fn note(&mut self, at_ms: i64, node: &'static str, what: &'static str, subject: &str) {
        self.events.push_back(Event { at_ms, node, what, subject: subject.into() });
        if self.events.len() > self.room {
            self.events.pop_front();
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Event { at_ms, node, what, subject } in &self.events {
            writeln!(f, "{:>8.3} s  {node:<3} {what} {subject}", *at_ms as f64 / 1_000.0)?;
        }
        Ok(())
    }
}

/// A trace with attempts' names made alike: they differ between two runs of one seed, and nothing else does.
pub fn without_names(trace: &str) -> String {
    let is_name = |word: &str| word.len() == ULID && word.starts_with('0');
    trace
        .split(|c: char| !c.is_ascii_alphanumeric())
        .map(|word| if is_name(word) { "-" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}
