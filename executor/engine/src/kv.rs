//! The paged KV cache: pages of [`BLOCK`] tokens with reference counts, shared copy-on-write between rows.
//! Bounded: a page beyond the limit is not given. Decides nothing about which row runs when.

#[cfg(test)]
mod tests;

use half::bf16;
use rayon::prelude::*;

use crate::attention::{BLOCK, Blocks, Heads, TileBlocks};
use crate::kernels::simd;

/// Names a page.
pub(crate) type PageId = usize;

/// Which pages are used, by how many rows each. Holds no floats.
#[derive(Debug)]
pub(crate) struct PageLedger {
    references: Vec<u32>,
    free: Vec<PageId>,
    pages_max: usize,
}

impl PageLedger {
    pub(crate) fn new(pages_max: usize) -> Self {
        Self { references: Vec::new(), free: Vec::new(), pages_max }
    }

    /// Pages that can still be taken.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.pages_max - self.references.len()
    }

    /// Takes a page for one row.
    pub(crate) fn take(&mut self) -> Option<PageId> {
        let page = match self.free.pop() {
            Some(page) => page,
            None if self.references.len() < self.pages_max => {
                self.references.push(0);
                self.references.len() - 1
            }
            None => return None,
        };
        self.references[page] = 1;
        Some(page)
    }

    /// One more row refers to the page.
    pub(crate) fn share(&mut self, page: PageId) {
        self.references[page] += 1;
    }

    /// One row less refers to the page.
    pub(crate) fn release(&mut self, page: PageId) {
        self.references[page] = self.references[page].saturating_sub(1);
        if self.references[page] == 0 {
            self.free.push(page);
        }
    }
}

/// A token of the batch whose keys and values go into a slot of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvWrite {
    pub(crate) token: usize,
    pub(crate) page: PageId,
    pub(crate) slot: usize,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvForm {
    /// `f32`.
    Floats,
    /// `bf16`, in the order of tile instructions.
    Tiles,
    /// None are kept: a page holds its tokens' ids, from which the compatible path computes them again.
    Ids,
    /// A device keeps them, in `bf16`; here is only which page belongs to whom, and which is to be copied.
    #[cfg(any(test, feature = "cuda"))]
    Device,
}

/// The pages' numbers: each page is `[layers, block]`.
#[derive(Debug)]
pub(crate) struct KvCache {
    heads: Heads,
    layers: usize,
    ledger: PageLedger,
    pages: Pages,
}

#[derive(Debug)]
enum Pages {
    Floats(Vec<Box<[f32]>>),
    Tiles(Vec<Box<[bf16]>>),
    Ids(Vec<Box<[u32]>>),
    /// Copies that the device has not made yet: from, to.
    #[cfg(any(test, feature = "cuda"))]
    Device(Vec<(PageId, PageId)>),
}

impl KvCache {
    /// Of a cache of ids, which has no heads.
    pub(crate) const ID_HEADS: Heads = Heads { heads: 1, kv_heads: 1, head_dim: 1, value_dim: 1 };

    /// A cache of at most `pages_max` pages of `f32`.
    #[cfg(test)]
    pub(crate) fn new(heads: Heads, layers: usize, pages_max: usize) -> Self {
        Self::of(heads, layers, KvForm::Floats, pages_max)
    }

    /// A cache of at most `pages_max` pages; memory is taken as pages are.
    pub(crate) fn of(heads: Heads, layers: usize, form: KvForm, pages_max: usize) -> Self {
        let pages = match form {
            KvForm::Floats => Pages::Floats(Vec::new()),
            KvForm::Tiles => Pages::Tiles(Vec::new()),
            KvForm::Ids => Pages::Ids(Vec::new()),
            #[cfg(any(test, feature = "cuda"))]
            KvForm::Device => Pages::Device(Vec::new()),
        };
        Self { heads, layers, ledger: PageLedger::new(pages_max), pages }
    }

    /// A cache whose one layer serves all layers, each overwriting the one before: for batches of whole rows, which are
    /// never continued.
    pub(crate) fn of_one_layer(heads: Heads, form: KvForm, pages_max: usize) -> Self {
        Self::of(heads, 1, form, pages_max)
    }

    /// Which part of a page is a layer's.
    fn place(&self, layer: usize) -> usize {
        layer.min(self.layers - 1)
    }

    /// Bytes of one page.
    pub(crate) fn page_bytes(heads: Heads, layers: usize, form: KvForm) -> usize {
        layers
            * match form {
                KvForm::Floats => heads.block_floats() * size_of::<f32>(),
                KvForm::Tiles => heads.block_numbers() * size_of::<bf16>(),
                KvForm::Ids => BLOCK * size_of::<u32>(),
                #[cfg(any(test, feature = "cuda"))]
                KvForm::Device => heads.kv_heads * BLOCK * (heads.head_dim + heads.value_dim) * size_of::<bf16>(),
            }
    }

    /// Pages that can still be taken.
    pub(crate) fn available(&self) -> usize {
        self.ledger.available()
    }

    /// Makes `table` long enough for `tokens` tokens. `None`: the cache is full, and nothing was taken.
    pub(crate) fn grow(&mut self, table: &mut Vec<PageId>, tokens: usize) -> Option<()> {
        let needed = tokens.div_ceil(BLOCK).saturating_sub(table.len());
        if needed > self.available() {
            return None;
        }
        for _ in 0..needed {
            table.push(self.take()?);
        }
        Some(())
    }

    fn take(&mut self) -> Option<PageId> {
        let page = self.ledger.take()?;
        match &mut self.pages {
            Pages::Floats(pages) => empty(pages, page, self.heads.block_floats() * self.layers, 0.0),
            Pages::Tiles(pages) => empty(pages, page, self.heads.block_numbers() * self.layers, bf16::ZERO),
            Pages::Ids(pages) => empty(pages, page, BLOCK, 0),
            // Its kernels read no slot that no token was written to.
            #[cfg(any(test, feature = "cuda"))]
            Pages::Device(_) => {}
        }
        Some(page)
    }

    /// A table of a new row that begins with the first `tokens` tokens of `table`. Whole pages are shared; a last page
    /// that is not full is copied, because both rows will write into it. `None`: the cache is full.
    pub(crate) fn fork(&mut self, table: &[PageId], tokens: usize) -> Option<Vec<PageId>> {
        let whole = tokens / BLOCK;
        let partial = !tokens.is_multiple_of(BLOCK);
        if partial && self.available() == 0 {
            return None;
        }
        let mut fork: Vec<PageId> = table[..whole].to_vec();
        for page in &fork {
            self.ledger.share(*page);
        }
        if partial {
            let copy = self.take()?;
            match &mut self.pages {
                Pages::Floats(pages) => pages[copy] = pages[table[whole]].clone(),
                Pages::Tiles(pages) => {
                    pages[copy] = pages[table[whole]].clone();
                    for block in pages[copy].chunks_exact_mut(self.heads.block_numbers()) {
                        self.heads.clear_tiles(block, tokens % BLOCK);
                    }
                }
                Pages::Ids(pages) => pages[copy] = pages[table[whole]].clone(),
                #[cfg(any(test, feature = "cuda"))]
                Pages::Device(copies) => copies.push((table[whole], copy)),
            }
            fork.push(copy);
        }
        Some(fork)
    }

    /// Gives a row's pages back.
    pub(crate) fn release(&mut self, table: &mut Vec<PageId>) {
        for page in table.drain(..) {
            self.ledger.release(page);
        }
    }

    /// Writes keys (`[tokens, kv_heads * head_dim]`) and values (`[tokens, kv_heads * value_dim]`) of one layer, `writes`
    /// sorted by page. A cache of ids keeps none.
    pub(crate) fn write(&mut self, layer: usize, keys: &[f32], values: &[f32], writes: &[KvWrite]) {
        let heads = self.heads;
        let (width, value_width) = (heads.kv_heads * heads.head_dim, heads.kv_heads * heads.value_dim);
        let place = self.place(layer);
        let of = |write: &KvWrite| {
            let keys = &keys[write.token * width..(write.token + 1) * width];
            (keys, &values[write.token * value_width..(write.token + 1) * value_width])
        };
        match &mut self.pages {
            Pages::Floats(pages) => {
                let numbers = heads.block_floats();
                runs(pages, writes).into_par_iter().for_each(|(page, run)| {
                    let block = &mut page[place * numbers..(place + 1) * numbers];
                    run.iter().for_each(|write| heads.write(block, write.slot, of(write).0, of(write).1));
                });
            }
            Pages::Tiles(pages) => {
                let numbers = heads.block_numbers();
                runs(pages, writes).into_par_iter().for_each(|(page, run)| {
                    let block = &mut page[place * numbers..(place + 1) * numbers];
                    simd(
                        #[inline(always)]
                        || run.iter().for_each(|write| heads.write_tiles(block, None, write.slot, of(write).into())),
                    );
                });
            }
            Pages::Ids(_) => {}
            #[cfg(any(test, feature = "cuda"))]
            Pages::Device(_) => {}
        }
    }

    /// Copies of pages that a device has to make before the next step, in this order.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn copies(&self) -> &[(PageId, PageId)] {
        match &self.pages {
            Pages::Device(copies) => copies,
            _ => &[],
        }
    }

    /// The device has made them. Where it could not, they stay to be made: rows count on their pages.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn copies_made(&mut self) {
        if let Pages::Device(copies) = &mut self.pages {
            copies.clear();
        }
    }

    /// The same for copies that are made at once.
    #[cfg(test)]
    pub(crate) fn take_copies(&mut self) -> Vec<(PageId, PageId)> {
        let copies = self.copies().to_vec();
        self.copies_made();
        copies
    }

    /// Writes token ids, `[tokens]`. A cache of keys and values keeps none.
    pub(crate) fn write_ids(&mut self, ids: &[u32], writes: &[KvWrite]) {
        if let Pages::Ids(pages) = &mut self.pages {
            writes.iter().for_each(|write| pages[write.page][write.slot] = ids[write.token]);
        }
    }

    /// The ids of the first `tokens` tokens; of a cache of keys and values none.
    pub(crate) fn ids(&self, table: &[PageId], tokens: usize) -> Vec<u32> {
        let Pages::Ids(pages) = &self.pages else { return Vec::new() };
        table.iter().flat_map(|page| &pages[*page][..]).copied().take(tokens).collect()
    }

    /// One layer's part of the first `tokens` tokens' pages. A cache of ids has none.
    pub(crate) fn blocks(&self, layer: usize, table: &[PageId], tokens: usize) -> Blocks<'_> {
        let layer = self.place(layer);
        let table = &table[..tokens.div_ceil(BLOCK)];
        match &self.pages {
            Pages::Floats(pages) => {
                let part = layer * self.heads.block_floats()..(layer + 1) * self.heads.block_floats();
                Blocks::Floats(table.iter().map(|page| &pages[*page][part.clone()]).collect())
            }
            Pages::Tiles(pages) => {
                let part = layer * self.heads.block_numbers()..(layer + 1) * self.heads.block_numbers();
                let high = table.iter().map(|page| &pages[*page][part.clone()]).collect();
                Blocks::Tiles(TileBlocks { high, low: None })
            }
            Pages::Ids(_) => Blocks::Floats(Vec::new()),
            #[cfg(any(test, feature = "cuda"))]
            Pages::Device(_) => Blocks::Floats(Vec::new()),
        }
    }
}

/// Makes a page that is taken all zero: what an earlier row left there could be NaN, which would reach this row even with
/// a weight of 0.
fn empty<T: Copy>(pages: &mut Vec<Box<[T]>>, page: PageId, numbers: usize, zero: T) {
    match pages.get_mut(page) {
        Some(page) => page.fill(zero),
        None => pages.push(vec![zero; numbers].into()),
    }
}

/// Runs of writes to one page, beside the pages themselves, so that each page is one task's alone.
fn runs<'a, T>(pages: &'a mut [Box<[T]>], writes: &'a [KvWrite]) -> Vec<(&'a mut [T], &'a [KvWrite])> {
    let mut runs = Vec::new();
    let mut pages = pages.iter_mut().enumerate();
    for run in writes.chunk_by(|a, b| a.page == b.page) {
        if let Some((_, page)) = pages.find(|(id, _)| Some(*id) == run.first().map(|write| write.page)) {
            runs.push((&mut **page, run));
        }
    }
    runs
}
