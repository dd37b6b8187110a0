//! Rows of a model that writes while it is measured: their pages, and the steps of each kind of work. Takes no time itself.

use rowmill_jobs::{Error, Result};

use super::{Ids, Load, Turn};
use crate::attention::BLOCK;
use crate::kv::{KvCache, PageId};
use crate::pack::Pack;
use crate::writer::{Asked, Head, Writer};

/// Rows of a model that writes, with their pages.
pub(super) struct Running<'a> {
    writer: &'a mut Writer,
    cache: KvCache,
    prompts: Vec<Vec<u32>>,
    tables: Vec<Vec<PageId>>,
    /// The next row to prefill, and its first token.
    next: (usize, usize),
    output_tokens: usize,
    shared_tokens: usize,
    /// The first of the rows that are written at this time.
    writing: usize,
    written: usize,
    /// What was asked of the last step, where the next one is begun before it is read.
    asked: Option<Asked>,
}

impl<'a> Running<'a> {
    pub(super) fn new(writer: &'a mut Writer, rows: usize, (load, room): (&Load, usize), ids: Ids) -> Result<Self> {
        let pages =
            rows * (load.prompt_tokens + load.output_tokens).div_ceil(BLOCK) + load.shared_tokens.div_ceil(BLOCK);
        let room = writer.pages_max(room);
        if pages > room {
            return Err(Error::invalid(format!(
                "{rows} rows need {pages} pages of KV cache; there is room for {room}"
            ))
            .hint("ask for fewer rows or tokens"));
        }
        let mut running = Self {
            cache: writer.cache(pages),
            writer,
            prompts: (0..rows).map(|row| ids.row(row, load.prompt_tokens)).collect(),
            tables: vec![Vec::new(); rows],
            next: (0, 0),
            output_tokens: load.output_tokens,
            shared_tokens: load.shared_tokens,
            writing: 0,
            written: 0,
            asked: None,
        };
        // Pages that come up again are written over; fresh ones would all be the system's one page of zeros until then.
        for table in &mut running.tables {
            running.cache.grow(table, load.prompt_tokens + load.output_tokens).ok_or_else(full)?;
        }
        running.give_back();
        Ok(running)
    }

    /// Does a step, or waits for all.
    pub(super) fn turn(&mut self, turn: Turn, step: impl FnOnce(&mut Self) -> Result<usize>) -> Result<usize> {
        match turn {
            Turn::Step => step(self),
            Turn::Wait => self.wait().map(|()| 0),
        }
    }

    /// As many prompt tokens as a job's step has, from where the last step ended. Returns how many.
    pub(super) fn prefill_step(&mut self) -> Result<usize> {
        let mut pack = Pack::new();
        let limits = self.writer.limits();
        while pack.tokens() < limits.tokens && pack.tables.len() < limits.rows && self.next.0 < self.prompts.len() {
            let (row, from) = self.next;
            let prompt = &self.prompts[row];
            let to = prompt.len().min(from + limits.tokens - pack.tokens());
            self.cache.grow(&mut self.tables[row], to).ok_or_else(full)?;
            pack.push(&prompt[from..to], from, &self.tables[row]);
            if to == prompt.len() {
                pack.want_last();
            }
            self.next = if to == prompt.len() { (row + 1, 0) } else { (row, to) };
        }
        self.forward(&mut pack)?;
        if self.next.0 == self.prompts.len() {
            self.next = (0, 0);
            self.give_back();
        }
        Ok(pack.tokens())
    }

    /// One more token for each row. The prompts' keys and values are zeros: what they are costs nothing. Of a model that holds
    /// one row at a time, one more token for one of them, whose prompt it reads with the first.
    pub(super) fn decode_step(&mut self) -> Result<usize> {
        let mut pack = Pack::new();
        let to = self.prompts.len().min(self.writing + self.writer.limits().rows);
        for row in self.writing..to {
            let (prompt, table) = (&self.prompts[row], &mut self.tables[row]);
            let before = prompt.len() + self.written;
            self.cache.grow(table, before + 1).ok_or_else(full)?;
            pack.push(&prompt[self.written % prompt.len()..][..1], before, table);
            pack.want_last();
        }
        self.forward(&mut pack)?;
        // At its end, an answer is written again over itself.
        self.written = (self.written + 1) % self.output_tokens;
        if self.written == 0 {
            self.writing = if to == self.prompts.len() { 0 } else { to };
        }
        Ok(pack.tokens())
    }

    /// The pages of the first `tokens` tokens of the first prompt, which are computed here, and what gives the logits of four
    /// labels.
    pub(super) fn share(&mut self, tokens: usize) -> Result<(Vec<PageId>, Head)> {
        let mut shared = Vec::new();
        let step = self.writer.limits().tokens;
        for from in (0..tokens).step_by(step) {
            let (mut pack, to) = (Pack::new(), tokens.min(from + step));
            self.cache.grow(&mut shared, to).ok_or_else(full)?;
            pack.push(&self.prompts[0][from..to], from, &shared);
            self.forward(&mut pack)?;
        }
        let head = self.writer.head(&[0, 1, 2, 3])?;
        Ok((shared, head))
    }

    /// As many rows as a job's step has, each with what follows the tokens that all share. Returns the tokens of whole
    /// prompts: those that are shared are each row's, too.
    pub(super) fn choice_step(&mut self, shared: &[PageId], head: &Head) -> Result<usize> {
        let (limits, tokens) = (self.writer.limits(), self.prompts[0].len());
        // What the last page of the shared tokens has room for is each row's own.
        let from = self.shared_tokens;
        let mut pack = Pack::new();
        let (first, mut rows) = (self.next.0, 0);
        while first + rows < self.prompts.len() && rows < limits.rows {
            if rows > 0 && pack.tokens() + tokens - from > limits.tokens {
                break;
            }
            let row = first + rows;
            self.tables[row] = self.cache.fork(shared, from).ok_or_else(full)?;
            self.cache.grow(&mut self.tables[row], tokens).ok_or_else(full)?;
            pack.push(&self.prompts[row][from..], from, &self.tables[row]);
            pack.want_last();
            rows += 1;
        }
        self.compute(&mut pack, head)?;
        self.next.0 = if first + rows == self.prompts.len() { 0 } else { first + rows };
        self.give_back();
        Ok(rows * tokens)
    }

    /// A step, up to what a row that writes is given: on a processor that begins with the logits, on a device they stay there.
    fn forward(&mut self, pack: &mut Pack) -> Result<()> {
        self.compute(pack, &Head::Whole)
    }

    /// A step as a job's: where it can be, it is begun before the one before it is read.
    fn compute(&mut self, pack: &mut Pack, head: &Head) -> Result<()> {
        pack.finish();
        if !self.writer.runs_ahead() {
            return self.writer.logits(pack, &mut self.cache, head).map(drop);
        }
        let begun = self.writer.begin(pack, &mut self.cache)?;
        self.wait()?;
        self.asked = Some(match head {
            Head::Whole => self.writer.ask_choices(begun, &mut pack.wanted.iter().map(|_| None).collect::<Vec<_>>())?,
            Head::Rows(_) | Head::Tokens(_) => self.writer.ask_logits(begun, head)?,
        });
        Ok(())
    }

    /// Reads what was asked for.
    fn wait(&mut self) -> Result<()> {
        self.asked.take().map_or(Ok(()), |asked| self.writer.answer(asked).map(drop))
    }

    fn give_back(&mut self) {
        for table in &mut self.tables {
            self.cache.release(table);
        }
    }
}

fn full() -> Error {
    Error::internal("the KV cache is full although its pages were counted")
}
