//! Runs rows to their ends: packs, computes and reads one step after another. What a step consists of, who gets pages and
//! who waits is [`Scheduler`]'s decision; this folder does what it says and keeps the page tables.
//!
//! On a device a step is begun before the one before it is read: rows that write go on from ids that only the device knows yet, and
//! the device never waits for the host. A row that turns out to have ended has then computed one token for nothing, whatever came
//! of which nobody reads; its pages may be another's at once, because the device does one thing after another.

mod packing;

use rayon::prelude::*;
use rowmill_jobs::{Error, Result};

use crate::attention::BLOCK;
use crate::guide::Guide;
use crate::kv::{KvCache, PageId};
use crate::line::{Demand, Line};
#[cfg(test)]
use crate::pack::Pack;
use crate::prefixes::Prefixes;
use crate::prompt::Prompter;
use crate::row::{Ask, End, Row, advance, numeric, out_of_memory};
use crate::schedule::{Relief, Scheduler, Slice, Work, pages_needed};
use crate::writer::{Answer, Asked, Begun, Writer};

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
    /// Whether a step is begun before the one before it is read.
    pub(crate) ahead: bool,
    #[cfg(test)]
    pub(crate) observer: &'a mut Observer,
}

/// Sees the steps of a test, and makes them fail.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Has the processor's steps begun before the ones before them are read, as a device's are.
    pub(crate) ahead: bool,
    /// Tokens computed, those of failed steps not among them.
    pub(crate) computed: usize,
    pub(crate) steps: usize,
    pub(crate) failed_steps: usize,
    /// Tokens whose ids were still to be read when their step was begun.
    pub(crate) followed: usize,
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

/// A step that was begun, and what was asked of it.
struct UnderWay {
    asked: Asked,
    /// Rows whose last token so far is in it, in the order of what it gives.
    completed: Vec<Completed>,
}

/// A row whose last token so far is in a step.
#[derive(Debug, Clone, Copy)]
struct Completed {
    row: usize,
    /// The tokens that it has computed then.
    to: usize,
    /// As [`Row::begun`] was.
    begun: usize,
    /// Whether the scheduler counts the token that follows already.
    counted: bool,
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
        let mut under_way: Option<UnderWay> = None;
        loop {
            let slices = scheduler.step();
            if slices.is_empty() {
                // What is under way may leave more to do.
                match under_way.take() {
                    Some(step) => self.finish(step, scheduler)?,
                    None => return Ok(true),
                }
                continue;
            }
            if stopped() {
                scheduler.undo(&slices);
                return Ok(false);
            }
            match self.step(&slices, under_way.take(), scheduler) {
                Ok(step) if self.ahead => under_way = Some(step),
                Ok(step) => self.finish(step, scheduler)?,
                Err(Failure::Memory) => {
                    let relief = scheduler.relieve(&slices);
                    self.relieve(relief);
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
    }

    /// Begins a step, finishes the one `before` it while a device computes, and asks for what is wanted.
    fn step(
        &mut self,
        slices: &[Slice],
        before: Option<UnderWay>,
        scheduler: &mut Scheduler,
    ) -> Result<UnderWay, Failure> {
        let begun = self.begin(slices, before.as_ref().map(|step| &step.asked));
        for fork in &mut self.forks {
            self.cache.release(fork);
        }
        self.forks.clear();
        let mut completed = self.completed(slices);
        // Whatever became of this one, that one is whole. If it cannot be read, less of this one does not help.
        if let Some(before) = before {
            self.finish(before, scheduler).map_err(Failure::Other)?;
        }
        let asked = self.ask(begun?, &completed)?;
        self.go_on(&mut completed, scheduler);
        Ok(UnderWay { asked, completed })
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

    /// Packs a step and begins it. `before`: what was asked of the step before it, if that is still to be read.
    fn begin(&mut self, slices: &[Slice], before: Option<&Asked>) -> Result<Begun, Failure> {
        let pack = self.pack(slices, before)?;
        #[cfg(test)]
        self.observe(&pack)?;
        Ok(self.writer.begin(&pack, self.cache)?)
    }

    /// Rows whose last token so far is in a step. Each is told its place among them.
    fn completed(&mut self, slices: &[Slice]) -> Vec<Completed> {
        let mut completed = Vec::with_capacity(slices.len());
        for slice in slices.iter().filter(|slice| slice.completes) {
            if let Work::Row(row) = slice.work {
                self.rows[row].place = completed.len();
                completed.push(Completed { row, to: slice.to, begun: self.rows[row].begun, counted: false });
            }
        }
        completed
    }

    /// Whether what a step gives for a row is still to be known: the row may have ended, have got more tokens or have been put back
    /// since the step was begun.
    fn is_open(&self, completed: &Completed) -> bool {
        let row = &self.rows[completed.row];
        row.end.is_none() && row.begun == completed.begun && row.ids.len() == completed.to
    }

    /// Asks for what is wanted of a step that was begun.
    fn ask(&mut self, begun: Begun, completed: &[Completed]) -> Result<Asked, Failure> {
        let open: Vec<bool> = completed.iter().map(|completed| self.is_open(completed)).collect();
        let asked = match self.ask {
            Ask::Labels { head, .. } => self.writer.ask_logits(begun, head),
            Ask::Text { .. } => {
                let mut all: Vec<Option<&mut Guide>> = self.rows.iter_mut().map(|row| row.guide.as_mut()).collect();
                let guides = completed.iter().zip(open).map(|(completed, open)| all[completed.row].take_if(|_| open));
                self.writer.ask_choices(begun, &mut guides.collect::<Vec<_>>())
            }
        };
        Ok(asked?)
    }

    /// Lets rows go on from the token that a step is going to choose for them, where nothing is known to keep them from it.
    fn go_on(&self, completed: &mut [Completed], scheduler: &mut Scheduler) {
        if !self.ahead || matches!(self.ask, Ask::Labels { .. }) {
            return;
        }
        for completed in completed {
            let row = &self.rows[completed.row];
            let next = completed.to + 1;
            // With the last one that it may have, a row ends.
            completed.counted =
                self.is_open(completed) && next < row.limit(self.ask, self.prompter.context) && next <= row.reserved;
            if completed.counted {
                scheduler.append(completed.row, 1);
            }
        }
    }

    /// Reads a step when it is computed, and tells the scheduler what came of its rows.
    fn finish(&mut self, step: UnderWay, scheduler: &mut Scheduler) -> Result<()> {
        let answer = self.writer.answer(step.asked)?;
        let open: Vec<bool> = step.completed.iter().map(|completed| self.is_open(completed)).collect();
        self.read(&step.completed, &open, &answer);
        let open = step.completed.iter().zip(open).filter_map(|(completed, open)| open.then_some(completed));
        for completed in open {
            self.settle(*completed, scheduler);
        }
        Ok(())
    }

    /// Reads what a step gave: labels are scored, texts get their next tokens.
    fn read(&mut self, completed: &[Completed], open: &[bool], answer: &Answer) {
        match (self.ask, answer) {
            (Ask::Labels { trie, head }, Answer::Logits(logits)) => {
                let outputs = self.writer.outputs(head);
                let logits = logits.chunks_exact(trie.branches.len() * outputs);
                for ((completed, _), logits) in completed.iter().zip(open).zip(logits).filter(|((_, open), _)| **open) {
                    let branches: Vec<&[f32]> = logits.chunks_exact(outputs).collect();
                    let end = trie.scores(&branches).map_or_else(numeric, End::Scored);
                    self.rows[completed.row].end = Some(end);
                }
            }
            (ask @ Ask::Text { .. }, Answer::Choices(choices)) => {
                let (context, ends) = (self.prompter.context, &self.prompter.ends);
                let mut chosen = vec![None; self.rows.len()];
                for ((completed, open), choice) in completed.iter().zip(open).zip(choices) {
                    chosen[completed.row] = open.then_some(*choice);
                }
                self.rows.par_iter_mut().zip(chosen).for_each(|(row, choice)| {
                    if let Some(choice) = choice {
                        let limit = row.limit(ask, context);
                        advance(row, choice, limit, ends);
                    }
                });
            }
            (Ask::Text { .. }, Answer::Logits(_)) | (Ask::Labels { .. }, Answer::Choices(_)) => {}
        }
    }

    /// Tells the scheduler what came of a row that a step completed.
    fn settle(&mut self, completed: Completed, scheduler: &mut Scheduler) {
        let row = &mut self.rows[completed.row];
        let closed = if row.end.is_some() {
            self.cache.release(&mut row.table);
            scheduler.finish(completed.row)
        } else {
            scheduler.append(completed.row, row.ids.len() - completed.to - usize::from(completed.counted));
            if row.ids.len() <= row.reserved {
                return;
            }
            self.enlarge(completed.row, scheduler)
        };
        self.close(closed);
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
        row.put_back();
        scheduler.put_back(index, more)
    }

    /// Does what the scheduler decided after a step that memory did not suffice for.
    fn relieve(&mut self, relief: Relief) {
        self.close(relief.closed);
        for row in relief.undone {
            self.cache.release(&mut self.rows[row].table);
            self.rows[row].begun += 1;
        }
        for row in relief.put_back {
            self.cache.release(&mut self.rows[row].table);
            self.rows[row].put_back();
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

fn no_room(tokens: usize, room: usize) -> End {
    out_of_memory(format!("the row needs {tokens} tokens of KV cache; there is room for {room}"))
}

#[cfg(test)]
impl Drive<'_> {
    /// Shows a test a step that is about to begin, and fails where it says so.
    fn observe(&mut self, pack: &Pack) -> Result<(), Failure> {
        if self.observer.refuses.is_some_and(|refuses| refuses(pack)) {
            self.observer.failed_steps += 1;
            return Err(Error::internal("a step failed")
                .caused_by(std::io::Error::other("CUDA_ERROR_OUT_OF_MEMORY"))
                .into());
        }
        if self.observer.breaks_at.is_some_and(|step| self.observer.steps + 1 >= step) {
            return Err(crate::lost::device_error("a step failed", "CUDA_ERROR_ILLEGAL_ADDRESS").into());
        }
        if let Some(breaks) = self.observer.breaks_its_lexer {
            let running = self.rows.iter_mut().filter(|row| row.end.is_none() && breaks(&row.ids[..row.prompt]));
            running.filter_map(|row| row.guide.as_mut()).for_each(Guide::fail);
        }
        self.observer.computed += pack.tokens();
        self.observer.steps += 1;
        Ok(())
    }
}
