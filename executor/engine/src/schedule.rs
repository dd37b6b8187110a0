//! Continuous batching as a decision: which rows run now, and which of their tokens. Pure: it counts tokens and pages and
//! neither sees a token nor touches a page. Rows are admitted while pages for their worst case are free, so a running row
//! never has to be put back; a finished row's pages admit the next at once.

use std::collections::VecDeque;

use crate::attention::BLOCK;

/// What a row may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// Tokens it begins with, the shared prefix included.
    pub(crate) tokens: usize,
    /// Pages of its own it may come to hold.
    pub(crate) pages: usize,
    /// A row admitted before it, and how many tokens both begin with.
    pub(crate) like: Option<(usize, usize)>,
}

/// Pages of its own that a row of at most `tokens_max` tokens may hold, `shared` of which are a shared prefix.
pub(crate) fn pages_needed(tokens_max: usize, shared: usize) -> usize {
    tokens_max.div_ceil(BLOCK) - shared / BLOCK
}

/// Bounds of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Tokens in a step's batch.
    pub(crate) tokens: usize,
    /// Rows that run at the same time.
    pub(crate) rows: usize,
}

/// Tokens of one row to compute in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) row: usize,
    /// First token.
    pub(crate) from: usize,
    /// One past the last.
    pub(crate) to: usize,
    /// Whether the row's last token so far is among them: then its logits are wanted.
    pub(crate) completes: bool,
}

#[derive(Debug)]
struct Running {
    row: usize,
    done: usize,
    tokens: usize,
    pages: usize,
}

/// Rows waiting and running.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<(usize, Need)>,
    running: Vec<Running>,
    shared: usize,
    pages_free: usize,
    limits: Limits,
}

impl Scheduler {
    /// `rows` in the order they are to be admitted; every one of them begins with `shared` tokens that are computed. No
    /// row may need more than `pages`.
    pub(crate) fn new(
        rows: impl IntoIterator<Item = (usize, Need)>,
        shared: usize,
        pages: usize,
        limits: Limits,
    ) -> Self {
        Self { waiting: rows.into_iter().collect(), running: Vec::new(), shared, pages_free: pages, limits }
    }

    /// Where a new row begins: after what it has in common with a row that runs and has computed it, else after the
    /// prefix all rows share. In the step that computes the other row's tokens they are there in time, because every
    /// layer writes the keys of the whole batch before it reads any.
    fn start(&self, need: Need) -> usize {
        let common = need.like.and_then(|(other, common)| {
            self.running.iter().any(|running| running.row == other && running.done >= common).then_some(common)
        });
        common.unwrap_or(0).max(self.shared)
    }

    /// Decides the next step, and takes it for done. Empty when no row is left.
    pub(crate) fn step(&mut self) -> Vec<Slice> {
        let mut left = self.limits.tokens;
        let mut slices = Vec::new();
        // Rows that write come first, so that a long prompt does not hold them up.
        for writes in [true, false] {
            for row in &mut self.running {
                if (row.tokens - row.done <= BLOCK) == writes {
                    take(row, &mut left, &mut slices);
                }
            }
        }
        while left > 0 && self.running.len() < self.limits.rows {
            let Some((_, need)) = self.waiting.front() else { break };
            if need.pages > self.pages_free {
                break;
            }
            if let Some((row, need)) = self.waiting.pop_front() {
                self.pages_free -= need.pages;
                let mut row = Running { row, done: self.start(need), tokens: need.tokens, pages: need.pages };
                take(&mut row, &mut left, &mut slices);
                self.running.push(row);
            }
        }
        slices
    }

    /// A running row has `tokens` more tokens.
    pub(crate) fn append(&mut self, row: usize, tokens: usize) {
        if let Some(row) = self.running.iter_mut().find(|running| running.row == row) {
            row.tokens += tokens;
        }
    }

    /// A running row is finished: its pages are free.
    pub(crate) fn finish(&mut self, row: usize) {
        if let Some(at) = self.running.iter().position(|running| running.row == row) {
            self.pages_free += self.running.remove(at).pages;
        }
    }
}

fn take(row: &mut Running, left: &mut usize, slices: &mut Vec<Slice>) {
    let to = row.tokens.min(row.done + *left);
    if to > row.done {
        slices.push(Slice { row: row.row, from: row.done, to, completes: to == row.tokens });
        *left -= to - row.done;
        row.done = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(row: usize, from: usize, to: usize, completes: bool) -> Slice {
        Slice { row, from, to, completes }
    }

    fn need(tokens: usize, pages: usize) -> Need {
        Need { tokens, pages, like: None }
    }

    #[test]
    fn a_row_begins_where_a_running_one_like_it_has_been() {
        let like = |tokens, like| Need { tokens, pages: 1, like: Some(like) };
        let rows = [(4, need(60, 2)), (2, like(60, (4, 40))), (9, like(60, (2, 55)))];
        let mut scheduler = Scheduler::new(rows, 10, 9, Limits { tokens: 75, rows: 8 });
        let first = [slice(4, 10, 60, true), slice(2, 40, 60, true), slice(9, 55, 60, true)];
        assert_eq!(scheduler.step(), first);
        let rows = [(4, need(60, 2)), (2, like(60, (4, 40)))];
        let mut scheduler = Scheduler::new(rows, 10, 9, Limits { tokens: 50, rows: 8 });
        assert_eq!(scheduler.step(), [slice(4, 10, 60, true)]);
        scheduler.finish(4);
        assert_eq!(scheduler.step(), [slice(2, 10, 60, true)], "the row it is like is gone");
    }

    #[test]
    fn long_prompts_are_cut_and_writers_go_first() {
        let rows = [(0, need(10, 1)), (1, need(100, 4))];
        let mut scheduler = Scheduler::new(rows, 0, 10, Limits { tokens: 50, rows: 8 });
        assert_eq!(scheduler.step(), [slice(0, 0, 10, true), slice(1, 0, 40, false)]);
        scheduler.append(0, 1);
        assert_eq!(scheduler.step(), [slice(0, 10, 11, true), slice(1, 40, 89, false)]);
        scheduler.finish(0);
        assert_eq!(scheduler.step(), [slice(1, 89, 100, true)]);
        scheduler.finish(1);
        assert!(scheduler.step().is_empty());
    }

    #[test]
    fn rows_wait_for_pages_and_for_a_place() {
        let rows = (0..3).map(|row| (row, need(40, 2)));
        let mut scheduler = Scheduler::new(rows, 32, 3, Limits { tokens: 100, rows: 8 });
        assert_eq!(scheduler.step(), [slice(0, 32, 40, true)]);
        assert!(scheduler.step().is_empty(), "row 0 has nothing to do until it is given a token");
        scheduler.finish(0);
        assert_eq!(scheduler.step(), [slice(1, 32, 40, true)]);
        let rows = (0..3).map(|row| (row, need(4, 1)));
        let mut scheduler = Scheduler::new(rows, 0, 30, Limits { tokens: 100, rows: 2 });
        assert_eq!(scheduler.step().len(), 2);
    }

    #[test]
    fn pages_of_a_shared_prefix_are_not_needed_again() {
        assert_eq!(pages_needed(70, 0), 3);
        assert_eq!(pages_needed(70, 64), 1);
        assert_eq!(pages_needed(70, 63), 2);
    }
}
