//! Packing: tokens of many rows in one batch without padding, with positions, cumulative lengths and page tables.
//! Pure bookkeeping; it computes nothing and allocates no pages.

use std::collections::HashMap;
use std::ops::Range;

use crate::attention::BLOCK;
use crate::kv::{KvWrite, PageId};

/// A packed batch for a decoder. `T` tokens of `R` rows.
#[derive(Debug, Default)]
pub(crate) struct Pack {
    /// Token ids, `[T]`.
    pub(crate) ids: Vec<u32>,
    /// Position ids, `[T]`.
    pub(crate) positions: Vec<usize>,
    /// Cumulative lengths, `[R + 1]`.
    pub(crate) starts: Vec<usize>,
    /// Tokens of each row that the cache already holds, `[R]`.
    pub(crate) before: Vec<usize>,
    /// Page tables, `[R]`, each long enough for the row with its new tokens.
    pub(crate) tables: Vec<Vec<PageId>>,
    /// Where keys and values go; a token may go to several pages.
    pub(crate) writes: Vec<KvWrite>,
    /// Tokens of the batch whose hidden state is asked for, ascending.
    pub(crate) wanted: Vec<usize>,
    /// Tokens whose ids nobody here knows yet (0 stands for them), each with the place among the wanted ones of the batch before
    /// whose choice it is.
    pub(crate) follows: Vec<(usize, usize)>,
    /// Runs of `writes` by the page they go to, until they are put in order.
    written: HashMap<PageId, Vec<Range<usize>>>,
}

impl Pack {
    pub(crate) fn new() -> Self {
        Self { starts: vec![0], ..Self::default() }
    }

    /// Tokens in the batch.
    pub(crate) fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Adds a row's next tokens. `before` of the row are in the cache.
    pub(crate) fn push(&mut self, ids: &[u32], before: usize, table: &[PageId]) {
        let first = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.positions.extend(before..before + ids.len());
        let mut from = before;
        while from < before + ids.len() {
            let (page, to) = (table[from / BLOCK], (before + ids.len()).min((from / BLOCK + 1) * BLOCK));
            let token = |position: usize| first + position - before;
            self.write(page, (from..to).map(|position| (token(position), position % BLOCK)));
            from = to;
        }
        self.starts.push(self.ids.len());
        self.before.push(before);
        self.tables.push(table.to_vec());
    }

    /// Adds the one token that follows a row's, whatever the batch before chose at this place among its wanted tokens.
    pub(crate) fn follow(&mut self, place: usize, before: usize, table: &[PageId]) {
        self.follows.push((self.ids.len(), place));
        self.push(&[0], before, table);
    }

    /// Asks for the hidden state of the last token that was added.
    pub(crate) fn want_last(&mut self) {
        self.wanted.extend(self.ids.len().checked_sub(1));
    }

    /// Adds writes of tokens to slots of a page.
    fn write(&mut self, page: PageId, tokens: impl IntoIterator<Item = (usize, usize)>) {
        let from = self.writes.len();
        self.writes.extend(tokens.into_iter().map(|(token, slot)| KvWrite { token, page, slot }));
        self.written.entry(page).or_default().push(from..self.writes.len());
    }

    /// Repeats this batch's writes to the first `slots` slots of page `from` in page `to`: so a row that continues
    /// another one there, in this very batch, finds the other's tokens in its own copy of the page.
    pub(crate) fn mirror(&mut self, from: PageId, slots: usize, to: PageId) {
        let written = self.written.get(&from).into_iter().flatten().flat_map(|run| &self.writes[run.clone()]);
        let copies = written.filter(|write| write.slot < slots).map(|write| (write.token, write.slot));
        let copies: Vec<(usize, usize)> = copies.collect();
        if !copies.is_empty() {
            self.write(to, copies);
        }
    }

    /// Brings `writes` into the order of pages, as the cache wants them.
    pub(crate) fn finish(&mut self) {
        self.writes.sort_unstable_by_key(|write| (write.page, write.slot));
        self.written.clear();
    }
}

/// Cuts rows of these lengths, longest first, into batches of at most `tokens_max` tokens (a longer row is alone).
/// Returns indices into `lengths`; rows of similar length are together.
pub(crate) fn batches(lengths: &[usize], tokens_max: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = usize::MAX;
    for row in order {
        if tokens.saturating_add(lengths[row]) > tokens_max {
            batches.push(Vec::new());
            tokens = 0;
        }
        tokens += lengths[row];
        if let Some(batch) = batches.last_mut() {
            batch.push(row);
        }
    }
    batches
}

/// The longest common prefix of all `rows`, in tokens, shorter than each of them by at least one.
pub(crate) fn common_prefix(rows: &[&[u32]]) -> usize {
    let Some((first, rest)) = rows.split_first() else { return 0 };
    let mut common = first.len().saturating_sub(1);
    for row in rest {
        let equal = first.iter().zip(row.iter()).take_while(|(a, b)| a == b).count();
        common = common.min(equal).min(row.len().saturating_sub(1));
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_the_budget_and_every_row() {
        let lengths = [5, 100, 7, 7, 1, 0];
        let cut = batches(&lengths, 14);
        assert_eq!(cut, vec![vec![1], vec![2, 3], vec![0, 4, 5]]);
        assert!(batches(&[], 14).is_empty());
    }

    #[test]
    fn the_common_prefix_leaves_each_row_a_token() {
        assert_eq!(common_prefix(&[&[1, 2, 3, 4], &[1, 2, 9, 4]]), 2);
        assert_eq!(common_prefix(&[&[1, 2, 3], &[1, 2]]), 1);
        assert_eq!(common_prefix(&[&[1, 2, 3], &[1, 2, 3]]), 2);
        assert_eq!(common_prefix(&[]), 0);
    }

    #[test]
    fn a_row_that_continues_another_gets_the_shared_pages_tail() {
        let mut pack = Pack::new();
        pack.push(&[1, 2, 3, 4], 30, &[7, 8]);
        pack.want_last();
        pack.mirror(8, 2, 9);
        pack.push(&[5], 34, &[7, 9]);
        // And a third that continues the second, and so the first.
        pack.mirror(9, 3, 10);
        pack.push(&[6], 35, &[7, 10]);
        pack.want_last();
        pack.finish();
        let on = |page| pack.writes.iter().filter(|w| w.page == page).map(|w| (w.token, w.slot)).collect::<Vec<_>>();
        assert_eq!(on(9), [(2, 0), (3, 1), (4, 2)]);
        assert_eq!(on(10), [(2, 0), (3, 1), (4, 2), (5, 3)]);
        assert_eq!(pack.starts, [0, 4, 5, 6]);
        assert_eq!(pack.wanted, [3, 5]);
    }
}
