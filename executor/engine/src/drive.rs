//! Runs rows to their ends: packs, computes and reads one step after another. What a step consists of, who gets pages and
//! who waits is [`Scheduler`]'s decision; this file does what it says and keeps the page tables.

use rayon::prelude::*;
use rowmill_jobs::{Error, Result};

use crate::attention::BLOCK;
use crate::guide::Guide;
use crate::kv::{KvCache, PageId};
use crate::line::{Demand, Line};
use crate::pack::Pack;
use crate::prefixes::Prefixes;
use crate::prompt::Prompter;
use crate::row::{Ask, Choice, End, Row, advance, numeric, out_of_memory};
use crate::schedule::{Relief, Scheduler, Slice, Work, pages_needed};
use crate::writer::Writer;

/// A beginning that rows share, with its pages while it is in use.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) tokens: usize,
    pub(crate) parent: Option<usize>,
    /// A row that begins with it.
    pub(crate) row: usize,
    pub(crate) table: Vec<PageId>,
}

/// Rows on their way, and what computes them.
pub(crate) struct Drive<'a> {
    pub(crate) writer: &'a mut Writer,
    pub(crate) prompter: &'a Prompter,
    pub(crate) cache: &'a mut KvCache,
    pub(crate) ask: &'a Ask,
    pub(crate) rows: Vec<Row>,
    /// The first is the one that outlives the run.
    pub(crate) beginnings: Vec<Beginning>,
    /// Pages of label branches, for one step.
    pub(crate) forks: Vec<Vec<PageId>>,
    /// Pages that its rows have between them.
    pub(crate) pages: usize,
    #[cfg(test)]
    pub(crate) observer: &'a mut Observer,
}

/// Sees the steps of a test, and makes them fail.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Tokens computed, those of failed steps not among them.
    pub(crate) computed: usize,
    pub(crate) steps: usize,
    pub(crate) failed_steps: usize,
    /// Whether a step is too much for the memory.
    pub(crate) refuses: Option<fn(&Pack) -> bool>,
    /// The step, counted from the first one ever, at which the device breaks, as all do from then on.
    pub(crate) breaks_at: Option<usize>,
    /// The rows, by their prompts, whose text is too much for their lexer.
    pub(crate) breaks_its_lexer: Option<fn(&[u32]) -> bool>,
    /// Whether it panics when it is let go, as libraries do whose device failed.
    pub(crate) panics_at_its_end: bool,
}

#[cfg(test)]
impl Drop for Observer {
    fn drop(&mut self) {
        assert!(!self.panics_at_its_end, "the library refuses");
    }
}

/// What a step gave for each row that it completed, in the slices' order.
enum Computed {
    /// Logits of the labels' tokens at every branch.
    Logits(Vec<f32>),
    /// What follows.
    Choices(Vec<Choice>),
}

/// Why a step was not computed.
enum Failure {
    /// Memory did not suffice: less of it may work.
    Memory,
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if is_out_of_memory(&error) { Self::Memory } else { Self::Other(error) }
    }
}

/// Whether an error, or what caused it, is that memory ran out: a device's driver says so in words.
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source()).any(|error| {
        let text = error.to_string().to_ascii_lowercase();
        ["out of memory", "out_of_memory", "cublas_status_alloc_failed"].iter().any(|words| text.contains(words))
    })
}

impl Drive<'_> {
    /// Steps until all rows have ended. `computed` tokens of the first beginning are in the cache already. Returns whether
    /// all have ended (and it was not stopped before), and whether the first beginning is computed: after an error nothing is,
    /// because a device may tell of a step's failure when it is asked for the next.
    pub(crate) fn run(&mut self, computed: usize, stopped: &(dyn Fn() -> bool + Sync)) -> (Result<bool>, bool) {
        let mut scheduler = self.schedule(computed);
        let done = self.steps(&mut scheduler, stopped);
        let whole = done.is_ok() && scheduler.is_computed(0);
        for row in &mut self.rows {
            self.cache.release(&mut row.table);
        }
        for beginning in &mut self.beginnings[1..] {
            self.cache.release(&mut beginning.table);
        }
        (done, whole)
    }

    fn steps(&mut self, scheduler: &mut Scheduler, stopped: &(dyn Fn() -> bool + Sync)) -> Result<bool> {
        loop {
            let slices = scheduler.step();
            if slices.is_empty() {
                return Ok(true);
            }
            if stopped() {
                scheduler.undo(&slices);
                return Ok(false);
            }
            let computed = self.compute(&slices);
            for fork in &mut self.forks {
                self.cache.release(fork);
            }
            self.forks.clear();
            match computed {
                Ok(computed) => {
                    self.read(&slices, &computed);
                    self.settle(&slices, scheduler);
                }
                Err(Failure::Memory) => {
                    let relief = scheduler.relieve(&slices);
                    self.relieve(relief);
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
    }

    /// Orders the rows, finds what they share and reserves their first pages. A row that cannot have them ends here.
    fn schedule(&mut self, computed: usize) -> Scheduler {
        let prompts: Vec<&[u32]> = self.rows.iter().map(|row| &row.ids[..row.prompt]).collect();
        let prefixes = Prefixes::of(&prompts, self.beginnings[0].tokens);
        let (room, context, extra_pages) = (self.room(), self.prompter.context, self.ask.extra_pages());
        let mut demands = Vec::with_capacity(self.rows.len());
        for row in &mut self.rows {
            row.reserved = row.reservation(self.ask, context, room);
            demands.push(Demand { tokens: row.ids.len(), reserved: row.reserved, extra_pages });
        }
        let mut line = Line::of(&prefixes, &demands, self.pages);
        // Some have ended before they began.
        line.rows.retain(|(index, _)| self.rows[*index].end.is_none());
        for (index, need) in &line.rows {
            self.rows[*index].after = need.after;
        }
        for index in line.refused {
            let tokens = self.rows[index].reserved + extra_pages * BLOCK;
            self.rows[index].end.get_or_insert_with(|| no_room(tokens, room));
        }
        self.beginnings.extend(prefixes.nodes[1..].iter().map(|node| Beginning {
            tokens: node.tokens,
            parent: node.parent,
            row: node.row,
            table: Vec::new(),
        }));
        Scheduler::new(&line.nodes, computed, line.rows, self.pages, self.writer.limits())
    }

    /// Tokens that one row can have, alone with the first beginning.
    fn room(&self) -> usize {
        (self.pages + self.beginnings[0].tokens / BLOCK) * BLOCK
    }

    /// Packs a step, runs it, and returns what is wanted of it.
    fn compute(&mut self, slices: &[Slice]) -> Result<Computed, Failure> {
        let pack = self.pack(slices)?;
        #[cfg(test)]
        if self.observer.refuses.is_some_and(|refuses| refuses(&pack)) {
            self.observer.failed_steps += 1;
            return Err(Error::internal("a step failed")
                .caused_by(std::io::Error::other("CUDA_ERROR_OUT_OF_MEMORY"))
                .into());
        }
        #[cfg(test)]
        if self.observer.breaks_at.is_some_and(|step| self.observer.steps + 1 >= step) {
            return Err(crate::lost::device_error("a step failed", "CUDA_ERROR_ILLEGAL_ADDRESS").into());
        }
        #[cfg(test)]
        if let Some(breaks) = self.observer.breaks_its_lexer {
            let running = self.rows.iter_mut().filter(|row| row.end.is_none() && breaks(&row.ids[..row.prompt]));
            running.filter_map(|row| row.guide.as_mut()).for_each(Guide::fail);
        }
        let computed = match self.ask {
            Ask::Labels { head, .. } => Computed::Logits(self.writer.logits(&pack, self.cache, head)?),
            Ask::Text { .. } => {
                let mut guides = guides(&mut self.rows, slices);
                Computed::Choices(self.writer.choose(&pack, self.cache, &mut guides)?)
            }
        };
        #[cfg(test)]
        {
            self.observer.computed += pack.tokens();
            self.observer.steps += 1;
        }
        Ok(computed)
    }

    fn pack(&mut self, slices: &[Slice]) -> Result<Pack, Failure> {
        let mut pack = Pack::new();
        for slice in slices {
            match slice.work {
                Work::Node(index) => {
                    let (parents, rest) = self.beginnings.split_at_mut(index);
                    let Some(beginning) = rest.first_mut() else { continue };
                    if beginning.table.is_empty()
                        && let Some(parent) = beginning.parent
                    {
                        beginning.table = fork(self.cache, &mut pack, &parents[parent].table, slice.from)?;
                    }
                    self.cache.grow(&mut beginning.table, slice.to).ok_or(Failure::Memory)?;
                    let ids = &self.rows[beginning.row].ids[slice.from..slice.to];
                    pack.push(ids, slice.from, &beginning.table);
                }
                Work::Row(index) => self.pack_row(&mut pack, index, slice)?,
            }
        }
        pack.finish();
        Ok(pack)
    }

    fn pack_row(&mut self, pack: &mut Pack, index: usize, slice: &Slice) -> Result<(), Failure> {
        let row = &mut self.rows[index];
        if row.table.is_empty() {
            row.table = fork(self.cache, pack, &self.beginnings[row.after].table, slice.from)?;
            // What was shared the first time counts; a row that was put back reads its own tokens again.
            row.cached = row.cached.max(slice.from);
        }
        self.cache.grow(&mut row.table, slice.to).ok_or(Failure::Memory)?;
        pack.push(&row.ids[slice.from..slice.to], slice.from, &row.table);
        if slice.completes {
            pack.want_last();
        }
        let Ask::Labels { trie, .. } = self.ask else { return Ok(()) };
        for branch in trie.branches[1..].iter().filter(|_| slice.completes) {
            let suffix = &branch.path[trie.branches[0].path.len()..];
            self.forks.push(fork(self.cache, pack, &row.table, slice.to)?);
            if let Some(table) = self.forks.last_mut() {
                self.cache.grow(table, slice.to + suffix.len()).ok_or(Failure::Memory)?;
                pack.push(suffix, slice.to, table);
                pack.want_last();
            }
        }
        Ok(())
    }

    /// Reads what a step gave: labels are scored, texts get their next tokens.
    fn read(&mut self, slices: &[Slice], computed: &Computed) {
        match (self.ask, computed) {
            (Ask::Labels { trie, head }, Computed::Logits(logits)) => {
                let completing = completed(slices).map(|(row, _)| row);
                let outputs = self.writer.outputs(head);
                for (row, logits) in completing.zip(logits.chunks_exact(trie.branches.len() * outputs)) {
                    let branches: Vec<&[f32]> = logits.chunks_exact(outputs).collect();
                    self.rows[row].end = Some(trie.scores(&branches).map_or_else(numeric, End::Scored));
                }
            }
            (ask, Computed::Choices(choices)) => {
                let (context, ends) = (self.prompter.context, &self.prompter.ends);
                let mut chosen = vec![None; self.rows.len()];
                for ((row, _), choice) in completed(slices).zip(choices) {
                    chosen[row] = Some(*choice);
                }
                self.rows.par_iter_mut().zip(chosen).for_each(|(row, choice)| {
                    if let Some(choice) = choice {
                        let limit = row.limit(ask, context);
                        advance(row, choice, limit, ends);
                    }
                });
            }
            (Ask::Text { .. }, Computed::Logits(_)) => {}
        }
    }

    /// Tells the scheduler what came of the rows that a step completed.
    fn settle(&mut self, slices: &[Slice], scheduler: &mut Scheduler) {
        for (index, to) in completed(slices) {
            let row = &mut self.rows[index];
            let closed = if row.end.is_some() {
                self.cache.release(&mut row.table);
                scheduler.finish(index)
            } else {
                scheduler.append(index, row.ids.len() - to);
                if row.ids.len() <= row.reserved {
                    continue;
                }
                self.enlarge(index, scheduler)
            };
            self.close(closed);
        }
    }

    /// A row has outgrown its reservation: it gets a larger one, or is put back until there is room for it.
    fn enlarge(&mut self, index: usize, scheduler: &mut Scheduler) -> Vec<usize> {
        let room = self.room();
        let row = &mut self.rows[index];
        let reserved = row.reservation(self.ask, self.prompter.context, room);
        if reserved > room {
            row.end = Some(no_room(reserved, room));
            self.cache.release(&mut row.table);
            return scheduler.finish(index);
        }
        let more = pages_needed(reserved, 0) - pages_needed(row.reserved, 0);
        row.reserved = reserved;
        if scheduler.extend(index, more) {
            return Vec::new();
        }
        self.cache.release(&mut row.table);
        row.after = 0;
        scheduler.put_back(index, more)
    }

    /// Does what the scheduler decided after a step that memory did not suffice for.
    fn relieve(&mut self, relief: Relief) {
        self.close(relief.closed);
        for row in relief.undone {
            self.cache.release(&mut self.rows[row].table);
        }
        for row in relief.put_back {
            self.cache.release(&mut self.rows[row].table);
            self.rows[row].after = 0;
        }
        if let Some(index) = relief.failed {
            let row = &mut self.rows[index];
            self.cache.release(&mut row.table);
            row.end = Some(out_of_memory("memory does not suffice for this row alone"));
        }
    }

    fn close(&mut self, nodes: Vec<usize>) {
        for node in nodes {
            self.cache.release(&mut self.beginnings[node].table);
        }
    }
}

/// The grammars of the rows that a step completes, in the slices' order.
fn guides<'a>(rows: &'a mut [Row], slices: &[Slice]) -> Vec<Option<&'a mut Guide>> {
    let mut all: Vec<Option<&mut Guide>> = rows.iter_mut().map(|row| row.guide.as_mut()).collect();
    completed(slices).map(|(row, _)| all[row].take()).collect()
}

/// Rows whose last token is in the step, and where it ends.
fn completed(slices: &[Slice]) -> impl Iterator<Item = (usize, usize)> {
    slices.iter().filter(|slice| slice.completes).filter_map(|slice| match slice.work {
        Work::Row(row) => Some((row, slice.to)),
        Work::Node(_) => None,
    })
}

/// A table that begins with the first `tokens` tokens of `table`, those among them that this very batch computes.
fn fork(cache: &mut KvCache, pack: &mut Pack, table: &[PageId], tokens: usize) -> Result<Vec<PageId>, Failure> {
    let fork = cache.fork(table, tokens).ok_or(Failure::Memory)?;
    if let (Some(from), Some(to)) = (table.get(tokens / BLOCK), fork.get(tokens / BLOCK)) {
        pack.mirror(*from, tokens % BLOCK, *to);
    }
    Ok(fork)
}

fn no_room(tokens: usize, room: usize) -> End {
    out_of_memory(format!("the row needs {tokens} tokens of KV cache; there is room for {room}"))
}
