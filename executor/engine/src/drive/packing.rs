//! Packing a step: which tokens and which pages the rows and beginnings that the scheduler has chosen bring into it. Computes
//! nothing, and chooses nothing.

use rowmill_jobs::{Error, Result};

use super::{Drive, Failure};
use crate::attention::BLOCK;
use crate::kv::{KvCache, PageId};
use crate::pack::Pack;
use crate::row::{Ask, Choice};
use crate::schedule::{Slice, Work};
use crate::writer::Asked;

impl Drive<'_> {
    /// A step of these slices. `before`: what was asked of the step before it, if that is still to be read.
    pub(super) fn pack(&mut self, slices: &[Slice], before: Option<&Asked>) -> Result<Pack, Failure> {
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
                Work::Row(index) => self.pack_row(&mut pack, index, slice, before)?,
            }
        }
        pack.finish();
        Ok(pack)
    }

    fn pack_row(
        &mut self,
        pack: &mut Pack,
        index: usize,
        slice: &Slice,
        before: Option<&Asked>,
    ) -> Result<(), Failure> {
        let row = &mut self.rows[index];
        if row.table.is_empty() {
            row.table = fork(self.cache, pack, &self.beginnings[row.after].table, slice.from)?;
            // What was shared the first time counts; a row that was put back reads its own tokens again.
            row.cached = row.cached.max(slice.from);
        }
        self.cache.grow(&mut row.table, slice.to).ok_or(Failure::Memory)?;
        match row.ids.get(slice.from..slice.to) {
            Some(ids) => pack.push(ids, slice.from, &row.table),
            None if slice.from == row.ids.len() => {
                #[cfg(test)]
                (self.observer.followed += 1);
                follow(pack, before, row.place, slice.from, &row.table)?;
            }
            None => return Err(Error::internal("a step has tokens of a row that nobody chose").into()),
        }
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
}

/// Adds the token that the step `before` chooses at a place: its id, where that is known here already.
fn follow(
    pack: &mut Pack,
    before: Option<&Asked>,
    place: usize,
    tokens_before: usize,
    table: &[PageId],
) -> Result<(), Error> {
    let Some(before) = before else { return Err(Error::internal("a token follows a step that is over")) };
    match before.known(place) {
        Some(Choice::Token(id)) => pack.push(&[id], tokens_before, table),
        // Its row ends with it: whatever is computed of it is not read.
        Some(Choice::NoneAllowed | Choice::NotFinite) => pack.push(&[0], tokens_before, table),
        None => pack.follow(place, tokens_before, table),
    }
    Ok(())
}

/// A table that begins with the first `tokens` tokens of `table`, those among them that this very batch computes.
fn fork(cache: &mut KvCache, pack: &mut Pack, table: &[PageId], tokens: usize) -> Result<Vec<PageId>, Failure> {
    let fork = cache.fork(table, tokens).ok_or(Failure::Memory)?;
    if let (Some(from), Some(to)) = (table.get(tokens / BLOCK), fork.get(tokens / BLOCK)) {
        pack.mirror(*from, tokens % BLOCK, *to);
    }
    Ok(fork)
}
