//! A packed batch as a device reads it: tables of `u32` behind each other in one block of memory, so that one copy carries a
//! step over; and the tiles of queries that attention's blocks take. Computes nothing and knows no sizes of a model but how many
//! heads share a key.

use std::ops::Range;

use crate::attention::BLOCK;
use crate::kv::PageId;
use crate::pack::Pack;

/// Queries in a tile of attention's kernel for prompts, those of heads that share a key among them.
const PROMPT_QUERIES: usize = 64;
/// The same in the kernel for rows that grow by a token or a few.
const STEP_QUERIES: usize = 16;

/// A table of a [`Step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// Token ids, `[tokens]`.
    Ids,
    /// Each token's place in its row, `[tokens]`.
    Positions,
    /// Where keys and values go, `[writes, 2]`: token, and slot of all slots of all pages.
    Writes,
    /// `[rows, 4]`: first token, tokens, tokens before, place of the row's first page in the pages.
    Rows,
    /// Tiles of the kernel for prompts, `[tiles, 2]`: row, its first token in the tile.
    PromptTiles,
    /// Tiles of the kernel for short steps, likewise.
    StepTiles,
    /// Tokens whose hidden state is asked for, `[wanted]`.
    Wanted,
    /// The rows' pages, behind each other: last, so that all else stands still from step to step while rows grow.
    Pages,
}

const SECTIONS: usize = Section::Pages as usize + 1;

/// A step's tables.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// All tables.
    pub(crate) words: Vec<u32>,
    /// Where each ends.
    ends: [usize; SECTIONS],
}

impl Step {
    /// The tables of a decoder's batch. `group`: heads that share a key.
    pub(crate) fn of(pack: &Pack, group: usize) -> Self {
        Self::filled(pack, group, 0, 0)
    }

    /// The same of a batch whose rows have one token each, filled up to `rows_min` rows: all such steps are alike, but for what
    /// the tables say. The rows that fill it write and read nothing but `spare`, a page of nobody's.
    pub(crate) fn filled(pack: &Pack, group: usize, rows_min: usize, spare: PageId) -> Self {
        let (tokens, more) = (pack.tokens(), rows_min.saturating_sub(pack.tables.len()));
        let mut writes: Vec<usize> =
            pack.writes.iter().flat_map(|write| [write.token, write.page * BLOCK + write.slot]).collect();
        let mut rows = Vec::with_capacity(4 * pack.tables.len());
        let mut pages = Vec::new();
        for ((span, before), table) in pack.starts.windows(2).zip(&pack.before).zip(&pack.tables) {
            let tokens = span[1] - span[0];
            rows.extend([span[0], tokens, *before, pages.len()]);
            pages.extend_from_slice(&table[..(before + tokens).div_ceil(BLOCK).min(table.len())]);
        }
        let (mut ids, mut positions) =
            (pack.ids.iter().map(|id| *id as usize).collect::<Vec<_>>(), pack.positions.clone());
        let mut wanted = pack.wanted.clone();
        for token in tokens..tokens + more {
            ids.push(0);
            positions.push(0);
            writes.extend([token, spare * BLOCK]);
            rows.extend([token, 1, 0, pages.len()]);
            wanted.push(token);
        }
        pages.extend((more > 0).then_some(spare));
        let [prompts, steps] = tiles(&rows, group);
        Self::from_tables([ids, positions, writes, rows, prompts, steps, wanted, pages])
    }

    fn from_tables(tables: [Vec<usize>; SECTIONS]) -> Self {
        let mut step = Self { words: Vec::with_capacity(tables.iter().map(Vec::len).sum()), ends: [0; SECTIONS] };
        for (table, end) in tables.iter().zip(&mut step.ends) {
            step.words.extend(table.iter().map(|number| *number as u32));
            *end = step.words.len();
        }
        step
    }

    /// Where a table is in [`Step::words`].
    pub(crate) fn place(&self, section: Section) -> Range<usize> {
        let section = section as usize;
        section.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[section]
    }

    /// Numbers in a table.
    pub(crate) fn len(&self, section: Section) -> usize {
        self.place(section).len()
    }
}

/// The tables of whole texts, none of them empty, whose keys stand nowhere but in the batch itself.
pub(crate) fn texts(rows: &[&[u32]]) -> Step {
    let (mut ids, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        spans.extend([ids.len(), row.len(), 0, 0]);
        ids.extend(row.iter().map(|id| *id as usize));
        positions.extend(0..row.len());
    }
    let [prompts, steps] = tiles(&spans, 1);
    Step::from_tables([ids, positions, Vec::new(), spans, prompts, steps, Vec::new(), Vec::new()])
}

/// Rows of so many states behind each other, as [`Section::Rows`] has them.
pub(crate) fn spans(lengths: &[usize]) -> Vec<u32> {
    let mut first = 0;
    let span = |length: &usize| {
        first += *length as u32;
        [first - *length as u32, *length as u32, 0, 0]
    };
    lengths.iter().flat_map(span).collect()
}

/// Tiles of the two kernels, of rows `[_, 4]`. Long rows come first: a block that begins late should be a short one.
fn tiles(rows: &[usize], group: usize) -> [Vec<usize>; 2] {
    let mut order: Vec<usize> = (0..rows.len() / 4).collect();
    order.sort_by_key(|row| std::cmp::Reverse(rows[4 * row + 1] + rows[4 * row + 2]));
    let mut tiles = [Vec::new(), Vec::new()];
    for row in order {
        let tokens = rows[4 * row + 1];
        let short = tokens * group <= STEP_QUERIES;
        let together = if short { STEP_QUERIES } else { PROMPT_QUERIES } / group.max(1);
        // The last tokens see most, so their tiles take longest.
        for first in (0..tokens).step_by(together.max(1)).rev() {
            tiles[usize::from(short)].extend([row, first]);
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(step: &Step, section: Section) -> Vec<u32> {
        step.words[step.place(section)].to_vec()
    }

    #[test]
    fn a_batch_becomes_tables_behind_each_other() {
        let mut pack = Pack::new();
        pack.push(&[5, 6, 7], 30, &[2, 9, 4]);
        pack.want_last();
        pack.mirror(9, 1, 8);
        pack.push(&[8], 33, &[2, 8]);
        pack.want_last();
        pack.finish();
        let step = Step::of(&pack, 4);
        assert_eq!(table(&step, Section::Ids), [5, 6, 7, 8]);
        assert_eq!(table(&step, Section::Positions), [30, 31, 32, 33]);
        // In the order of pages: 2 (slots 30 and 31), 8 (a copy of what page 9 has, then the second row's own) and 9.
        assert_eq!(table(&step, Section::Writes), [0, 94, 1, 95, 2, 256, 3, 257, 2, 288]);
        assert_eq!(table(&step, Section::Rows), [0, 3, 30, 0, 3, 1, 33, 2]);
        assert_eq!(table(&step, Section::Pages), [2, 9, 2, 8], "no page beyond a row's tokens");
        assert_eq!(table(&step, Section::Wanted), [2, 3]);
        assert_eq!(step.len(Section::PromptTiles), 0);
        assert_eq!(table(&step, Section::StepTiles), [1, 0, 0, 0], "the longer row is first");
    }

    #[test]
    fn steps_of_as_many_filled_rows_differ_in_numbers_only() {
        let step_of = |lengths: &[usize]| {
            let mut pack = Pack::new();
            for (row, before) in lengths.iter().enumerate() {
                let pages: Vec<usize> = (0..=before / BLOCK).map(|page| 10 * row + page).collect();
                pack.push(&[5], *before, &pages);
                pack.want_last();
            }
            pack.finish();
            (Step::filled(&pack, 4, 4, 99), pack)
        };
        let ((three, pack), (four, _)) = (step_of(&[40, 3, 64]), step_of(&[1, 200, 31, 32]));
        let sections = [
            Section::Ids,
            Section::Positions,
            Section::Writes,
            Section::Rows,
            Section::PromptTiles,
            Section::StepTiles,
            Section::Wanted,
        ];
        for section in sections {
            assert_eq!(three.place(section), four.place(section), "{section:?}");
        }
        assert_eq!(three.place(Section::Pages).start, four.place(Section::Pages).start);
        assert_eq!(table(&three, Section::Ids), [5, 5, 5, 0]);
        assert_eq!(table(&three, Section::Positions), [40, 3, 64, 0]);
        assert_eq!(table(&three, Section::Writes), [0, 32 + 8, 1, 320 + 3, 2, 22 * 32, 3, 99 * 32]);
        assert_eq!(
            table(&three, Section::Rows)[12..],
            [3, 1, 0, 6],
            "a row of one token, on the page behind all others"
        );
        assert_eq!(table(&three, Section::Pages), [0, 1, 10, 20, 21, 22, 99]);
        assert_eq!(table(&three, Section::Wanted), [0, 1, 2, 3]);
        assert_eq!(table(&three, Section::StepTiles).len(), 8);
        assert_eq!(Step::of(&pack, 4), Step::filled(&pack, 4, 3, 99), "what is full is not filled");
    }

    #[test]
    fn every_query_is_in_one_tile_of_the_kernel_that_suits_its_row() {
        let lengths = [1, 3, 4, 5, 40, 64, 65, 200];
        for group in [1, 3, 4, 7, 8, 16] {
            let mut pack = Pack::new();
            for tokens in lengths {
                let pages: Vec<usize> = (0..tokens / BLOCK + 1).collect();
                pack.push(&vec![0; tokens], 0, &pages);
                pack.want_last();
            }
            let step = Step::of(&pack, group);
            let mut seen: Vec<Vec<bool>> = lengths.iter().map(|tokens| vec![false; *tokens]).collect();
            for (section, queries) in [(Section::PromptTiles, 64), (Section::StepTiles, 16)] {
                for tile in table(&step, section).chunks_exact(2) {
                    let (row, first) = (tile[0] as usize, tile[1] as usize);
                    assert_eq!(lengths[row] * group <= 16, section == Section::StepTiles, "{group} {row}");
                    let end = lengths[row].min(first + queries / group);
                    for (token, seen) in seen[row][first..end].iter_mut().enumerate() {
                        assert!(!std::mem::replace(seen, true), "{group} {row} {first} + {token} is in two tiles");
                    }
                }
            }
            assert!(seen.iter().flatten().all(|seen| *seen), "{group}");
        }
    }

    #[test]
    fn states_of_rows_stand_behind_each_other() {
        assert_eq!(spans(&[3, 1, 7]), [0, 3, 0, 0, 3, 1, 0, 0, 4, 7, 0, 0]);
    }

    #[test]
    fn texts_have_no_pages() {
        let step = texts(&[&[7, 8, 9], &[1; 70]]);
        assert_eq!(table(&step, Section::Rows), [0, 3, 0, 0, 3, 70, 0, 0]);
        assert_eq!(table(&step, Section::Positions)[..4], [0, 1, 2, 0]);
        assert_eq!(table(&step, Section::PromptTiles), [1, 64, 1, 0]);
        assert_eq!(table(&step, Section::StepTiles), [0, 0]);
        assert_eq!((step.len(Section::Writes), step.len(Section::Pages), step.len(Section::Wanted)), (0, 0, 0));
    }
}
