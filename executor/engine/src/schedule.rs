//! Continuous batching as a decision: which rows and which beginnings of rows run now, and which of their tokens. Pure: it
//! counts tokens and pages and neither sees a token nor touches a page. A row is admitted when the pages it is expected to
//! need are free; one that outgrows them gets more, or waits once more where nothing it holds can be in anybody's way.
//!
//! Nobody waits for ever. Rows wait in the order of the tree of their beginnings, so that when no row runs, all pages that
//! are taken belong to beginnings of the next row; and no row is let in line whose beginnings and own pages do not fit
//! together (`Scheduler::new` demands it). Rows that are put back hang on the first beginning alone, and stand last.

use std::collections::VecDeque;

use crate::attention::BLOCK;

/// What a row may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// Tokens it begins with, those of its beginning included.
    pub(crate) tokens: usize,
    /// Pages of its own that it is expected to hold.
    pub(crate) pages: usize,
    /// The beginning it continues.
    pub(crate) after: usize,
}

/// What a beginning that rows share takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shared {
    /// Its length, its parent's included.
    pub(crate) tokens: usize,
    /// Pages of its own.
    pub(crate) pages: usize,
    /// The beginning it continues; `None` for the first.
    pub(crate) parent: Option<usize>,
}

/// Pages of its own of something with `tokens` tokens that continues `before` tokens of something else. Whole pages are
/// shared; one that both write into is not.
pub(crate) fn pages_needed(tokens: usize, before: usize) -> usize {
    tokens.div_ceil(BLOCK).saturating_sub(before / BLOCK)
}

/// Bounds of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Tokens in a step's batch.
    pub(crate) tokens: usize,
    /// Rows that run at the same time.
    pub(crate) rows: usize,
}

/// What tokens belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A beginning that rows share.
    Node(usize),
    /// A row.
    Row(usize),
}

/// Tokens to compute in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) work: Work,
    /// First token.
    pub(crate) from: usize,
    /// One past the last.
    pub(crate) to: usize,
    /// Whether the last token so far is among them: a row's logits are wanted then.
    pub(crate) completes: bool,
}

/// What becomes of a step for which memory did not suffice.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Relief {
    /// Beginnings that are not in use any more: their pages are to be given back, as those of the rows below.
    pub(crate) closed: Vec<usize>,
    /// Rows that were admitted on the strength of a beginning that is not computed after all, and stand first in line.
    pub(crate) undone: Vec<usize>,
    /// Rows that were put back, as by [`Scheduler::put_back`].
    pub(crate) put_back: Vec<usize>,
    /// The row that does not fit even alone, if it has come to that. It is no longer waiting or running.
    pub(crate) failed: Option<usize>,
}

#[derive(Debug)]
struct Node {
    need: Shared,
    /// Tokens computed.
    done: usize,
    /// Whether it holds its pages.
    open: bool,
    /// Rows below it that have not ended.
    rows: usize,
}

#[derive(Debug)]
struct Running {
    row: usize,
    done: usize,
    need: Need,
}

/// Rows waiting and running.
#[derive(Debug)]
pub(crate) struct Scheduler {
    nodes: Vec<Node>,
    waiting: VecDeque<(usize, Need)>,
    running: Vec<Running>,
    /// Where the running row was that was last looked for: they are looked for in their order, most of the time.
    last: usize,
    pages_free: usize,
    limits: Limits,
}

impl Scheduler {
    /// `nodes` each after its parent; the first holds its pages already, and `computed` of its tokens are. `rows` in the
    /// order of the tree; of none may its own pages and those of its beginnings be more than `pages` together.
    pub(crate) fn new(
        nodes: &[Shared],
        computed: usize,
        rows: impl IntoIterator<Item = (usize, Need)>,
        pages: usize,
        limits: Limits,
    ) -> Self {
        let nodes = nodes.iter().enumerate().map(|(index, need)| {
            let done = if index == 0 { computed } else { 0 };
            Node { need: *need, done, open: index == 0, rows: 0 }
        });
        let mut this = Self {
            nodes: nodes.collect(),
            waiting: rows.into_iter().collect(),
            running: Vec::new(),
            last: 0,
            pages_free: pages,
            limits,
        };
        let below: Vec<usize> = this.waiting.iter().map(|(_, need)| need.after).collect();
        for node in below {
            this.enter(node);
        }
        this
    }

    /// Decides the next step, and takes it for done; [`Scheduler::undo`] says that it was not. Empty when no row is left.
    pub(crate) fn step(&mut self) -> Vec<Slice> {
        let mut left = self.limits.tokens;
        let mut slices = Vec::new();
        // Rows that write come first, so that a long prompt does not hold them up.
        for writes in [true, false] {
            for row in &mut self.running {
                if (row.need.tokens - row.done <= BLOCK) == writes {
                    take(Work::Row(row.row), &mut row.done, row.need.tokens, &mut left, &mut slices);
                }
            }
        }
        while left > 0 && self.running.len() < self.limits.rows {
            let Some((_, need)) = self.waiting.front().copied() else { break };
            // What this very step computes of a beginning is there in time for the rows below it, because every layer
            // writes the keys of the whole batch before it reads any.
            if !self.begin(need.after, &mut left, &mut slices) || left == 0 || need.pages > self.pages_free {
                break;
            }
            if let Some((row, need)) = self.waiting.pop_front() {
                self.pages_free -= need.pages;
                let mut running = Running { row, done: self.nodes[need.after].need.tokens, need };
                debug_assert!(need.tokens > running.done, "row {row} has nothing to compute, and would never end");
                take(Work::Row(row), &mut running.done, need.tokens, &mut left, &mut slices);
                self.running.push(running);
            }
        }
        slices
    }

    /// Goes on with a beginning and those before it. Returns whether all of it is computed, or will be in this step.
    fn begin(&mut self, node: usize, left: &mut usize, slices: &mut Vec<Slice>) -> bool {
        let mut path: Vec<usize> = self.path(node).collect();
        path.reverse();
        for index in path {
            let start = self.nodes[index].need.parent.map_or(0, |parent| self.nodes[parent].need.tokens);
            let node = &mut self.nodes[index];
            if !node.open {
                if node.need.pages > self.pages_free {
                    return false;
                }
                self.pages_free -= node.need.pages;
                node.open = true;
                node.done = start;
            }
            take(Work::Node(index), &mut node.done, node.need.tokens, left, slices);
            if node.done < node.need.tokens {
                return false;
            }
        }
        true
    }

    /// A beginning and those that it continues, the longest first.
    fn path(&self, node: usize) -> impl Iterator<Item = usize> + use<'_> {
        std::iter::successors(Some(node), |node| self.nodes[*node].need.parent)
    }

    /// Whether all tokens of a beginning are computed.
    pub(crate) fn is_computed(&self, node: usize) -> bool {
        self.nodes[node].done == self.nodes[node].need.tokens
    }

    fn enter(&mut self, node: usize) {
        for index in self.path(node).collect::<Vec<_>>() {
            self.nodes[index].rows += 1;
        }
    }

    /// One row less is below a beginning; those that no row needs any more are closed and returned. The first one stays:
    /// its pages are not the scheduler's.
    fn leave(&mut self, node: usize) -> Vec<usize> {
        let path: Vec<usize> = self.path(node).collect();
        let mut closed = Vec::new();
        for index in path {
            let node = &mut self.nodes[index];
            node.rows -= 1;
            if node.rows == 0 && node.open && index > 0 {
                node.open = false;
                self.pages_free += node.need.pages;
                closed.push(index);
            }
        }
        closed
    }

    fn remove(&mut self, row: usize) -> Option<Running> {
        let at = self.place(row)?;
        Some(self.running.remove(at))
    }

    /// Where a row is among the running ones.
    fn place(&mut self, row: usize) -> Option<usize> {
        let last = self.last.min(self.running.len());
        let at = (last..self.running.len()).chain(0..last).find(|at| self.running[*at].row == row)?;
        self.last = at;
        Some(at)
    }

    /// A running row has `tokens` more tokens.
    pub(crate) fn append(&mut self, row: usize, tokens: usize) {
        if let Some(at) = self.place(row) {
            self.running[at].need.tokens += tokens;
        }
    }

    /// Gives a running row so many more pages, if they are free.
    pub(crate) fn extend(&mut self, row: usize, pages: usize) -> bool {
        match self.place(row) {
            Some(at) if pages <= self.pages_free => {
                self.running[at].need.pages += pages;
                self.pages_free -= pages;
                true
            }
            _ => false,
        }
    }

    /// A running row is finished: its pages are free. Returns the beginnings that no other row needs.
    pub(crate) fn finish(&mut self, row: usize) -> Vec<usize> {
        let Some(running) = self.remove(row) else { return Vec::new() };
        self.pages_free += running.need.pages;
        self.leave(running.need.after)
    }

    /// A running row gives its pages back and waits until it can have so many more, after all others. Returns the
    /// beginnings that no other row needs.
    pub(crate) fn put_back(&mut self, row: usize, pages_more: usize) -> Vec<usize> {
        let Some(Running { need, .. }) = self.remove(row) else { return Vec::new() };
        self.pages_free += need.pages;
        // What it shared with rows that will have ended by then it now holds alone.
        let whole = |node: usize| self.nodes[node].need.tokens / BLOCK;
        let pages = need.pages + pages_more + whole(need.after) - whole(0);
        self.enter(0);
        self.waiting.push_back((row, Need { pages, after: 0, ..need }));
        self.leave(need.after)
    }

    /// A step could not be computed for want of memory: nothing of it is done. From now on half as many rows run at a time,
    /// and half as many tokens; a row that is too much alone, and with a page of tokens at a time, has failed. Rows that have ended
    /// since the step was decided count for nothing: without any other in it, there is nothing to compute less of.
    pub(crate) fn relieve(&mut self, slices: &[Slice]) -> Relief {
        let mut relief = Relief::default();
        let is_open = |work| match work {
            Work::Node(node) => self.nodes[node].open,
            Work::Row(row) => self.running.iter().any(|running| running.row == row),
        };
        let slices: Vec<Slice> = slices.iter().filter(|slice| is_open(slice.work)).copied().collect();
        if slices.is_empty() {
            return relief;
        }
        self.undo(&slices);
        let rows = self.running.len();
        self.unbegin(&mut relief);
        let tokens: usize = slices.iter().map(|slice| slice.to - slice.from).sum();
        let smallest = tokens <= BLOCK && (slices.len() == 1 || self.limits.rows == 1);
        self.limits.tokens = (tokens / 2).max(BLOCK).min(self.limits.tokens);
        self.limits.rows = rows.div_ceil(2).clamp(1, self.limits.rows);
        if self.running.len() > 1 {
            let beyond = self.running.iter().skip(self.limits.rows).map(|running| running.row);
            for row in beyond.collect::<Vec<_>>() {
                relief.put_back.push(row);
                relief.closed.extend(self.put_back(row, 0));
            }
        } else if smallest {
            // A row that runs may wait for its token meanwhile. What no row that runs is in was begun for the next one.
            let runs = self.running.first().map(|running| running.row);
            let closed = match runs.filter(|row| slices.iter().any(|slice| slice.work == Work::Row(*row))) {
                Some(row) => {
                    relief.failed = Some(row);
                    self.finish(row)
                }
                None => self.waiting.pop_front().map_or_else(Vec::new, |(row, need)| {
                    relief.failed = Some(row);
                    self.leave(need.after)
                }),
            };
            relief.closed.extend(closed);
        }
        relief
    }

    /// The last step was not computed: none of its tokens is. What was admitted on the strength of it stays: either nothing
    /// more is asked, or [`Scheduler::relieve`] takes it back.
    pub(crate) fn undo(&mut self, slices: &[Slice]) {
        for slice in slices {
            match slice.work {
                Work::Node(node) => self.nodes[node].done = slice.from,
                Work::Row(row) => {
                    if let Some(at) = self.place(row) {
                        self.running[at].done = slice.from;
                    }
                }
            }
        }
    }

    fn is_ready(&self, node: usize) -> bool {
        self.nodes[node].open && self.is_computed(node)
    }

    /// Takes back what was begun on the strength of beginnings that are not computed after all.
    fn unbegin(&mut self, relief: &mut Relief) {
        for index in 1..self.nodes.len() {
            let parent = self.nodes[index].need.parent.unwrap_or(0);
            if self.nodes[index].open && !self.is_ready(parent) {
                self.nodes[index].open = false;
                self.pages_free += self.nodes[index].need.pages;
                relief.closed.push(index);
            }
        }
        let mut at = self.running.len();
        while at > 0 {
            at -= 1;
            if !self.is_ready(self.running[at].need.after) {
                let Running { row, need, .. } = self.running.remove(at);
                self.pages_free += need.pages;
                self.waiting.push_front((row, need));
                relief.undone.push(row);
            }
        }
    }
}

fn take(work: Work, done: &mut usize, tokens: usize, left: &mut usize, slices: &mut Vec<Slice>) {
    let to = tokens.min(*done + *left);
    if to > *done {
        slices.push(Slice { work, from: *done, to, completes: to == tokens });
        *left -= to - *done;
        *done = to;
    }
}
