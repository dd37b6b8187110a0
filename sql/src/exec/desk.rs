//! The desk of one kind of question: finds out whether a row's values were asked before, and collects those that were not.
//! Its memory is bounded; beyond the bound it forgets nothing but learns nothing new.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::hash::{BuildHasherDefault, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, BooleanArray, StringArray};
use rowmill_jobs::infer::{Request, Values};
use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

/// A value of more bytes is not sent to a model.
pub(super) const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// What remembered questions and answers of a shard may take.
const MEMORY_MAX: usize = 32 * 1024 * 1024;
/// Questions for which there is room from the start: growing a table moves all that is in it.
const ROOM: usize = 128 * 1024;
/// An entry of the table of questions: key, place, load factor.
const ENTRY_BYTES: usize = 64;

/// Where a row's answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// No answer: a value is NULL, or the row is not to be asked.
    Nothing,
    /// No answer: a value is too large.
    TooLarge,
    /// The `index`-th answer of a window.
    At { window: u32, index: u32 },
}

/// The desk.
#[derive(Debug)]
pub(super) struct Desk {
    seed: u64,
    /// Questions whose answers are kept for the whole shard.
    kept: HashMap<u128, (u32, u32), BuildHasherDefault<Folded>>,
    /// Questions of this window, when no more can be kept.
    fleeting: HashMap<u128, u32, BuildHasherDefault<Folded>>,
    /// Bytes of kept answers; the side that receives them adds to it.
    pub(super) kept_bytes: Arc<AtomicUsize>,
    window: u32,
    keeps: bool,
    requests: Vec<Request>,
    /// Bytes of text in `requests`.
    pub(super) text_bytes: usize,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self {
            // Rows come from strangers: an unknown seed keeps them from making two values look the same.
            seed: RandomState::new().hash_one(0u8),
            kept: HashMap::with_capacity_and_hasher(ROOM, BuildHasherDefault::default()),
            fleeting: HashMap::default(),
            kept_bytes: Arc::default(),
            window: 0,
            keeps: true,
            requests: Vec::new(),
            text_bytes: 0,
        }
    }

    /// Starts a window.
    pub(super) fn open(&mut self, window: u32) {
        self.window = window;
        self.keeps = self.kept.len() * ENTRY_BYTES + self.kept_bytes.load(Ordering::Relaxed) < MEMORY_MAX;
        self.fleeting.clear();
        self.text_bytes = 0;
    }

    /// Ends the window: its new requests, and whether their answers are to be kept.
    pub(super) fn close(&mut self) -> (Vec<Request>, bool) {
        (std::mem::take(&mut self.requests), self.keeps)
    }

    /// New requests so far.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Appends to `places` where the answer of each of these rows will be. `values` has the rows' values by position; rows where
    /// `only` is not true are not asked. In three passes: a table of this size is not in the processor's cache, and lookups
    /// that follow each other closely wait for memory together.
    pub(super) fn place(
        &mut self,
        values: &[&StringArray],
        rows: Range<usize>,
        only: Option<&BooleanArray>,
        places: &mut Vec<Place>,
    ) {
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let place =
                if only.is_some_and(|only| !only.value(row)) { Some(Place::Nothing) } else { unasked(values, row) };
            if place.is_none() {
                keys.push((places.len(), row, self.key(values, row)));
            }
            places.push(place.unwrap_or(Place::Nothing));
        }
        let mut fresh = Vec::with_capacity(keys.len());
        for (at, row, key) in keys {
            let next = u32::try_from(self.requests.len() + fresh.len()).unwrap_or(u32::MAX);
            let (window, index) = self.find(key, next);
            if (window, index) == (self.window, next) {
                fresh.push(row);
            }
            places[at] = Place::At { window, index };
        }
        for row in fresh {
            let values: Values = values.iter().map(|value| value.value(row).to_owned()).collect();
            self.text_bytes += values.iter().map(String::len).sum::<usize>();
            self.requests.push(Request { values });
        }
    }

    /// Where the answer to a question is; the next of this window if it is new.
    fn find(&mut self, key: u128, next: u32) -> (u32, u32) {
        if self.keeps {
            return *self.kept.entry(key).or_insert((self.window, next));
        }
        match self.kept.get(&key) {
            Some(known) => *known,
            None => (self.window, *self.fleeting.entry(key).or_insert(next)),
        }
    }

    fn key(&self, values: &[&StringArray], row: usize) -> u128 {
        if let [value] = values {
            return xxh3_128_with_seed(value.value(row).as_bytes(), self.seed);
        }
        let mut hash = Xxh3::with_seed(self.seed);
        for value in values {
            let value = value.value(row);
            hash.update(&(value.len() as u64).to_le_bytes());
            hash.update(value.as_bytes());
        }
        hash.digest128()
    }
}

/// Why a row's values are not sent to a model, if they are not.
fn unasked(values: &[&StringArray], row: usize) -> Option<Place> {
    let reason = |value: &&StringArray| match value.is_null(row) {
        true => Some(Place::Nothing),
        false => (value.value_length(row) as usize > VALUE_BYTES_MAX).then_some(Place::TooLarge),
    };
    values.iter().find_map(reason)
}

/// Takes the low half of a key that is a hash already.
#[derive(Debug, Default)]
pub(super) struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
        let low = key as u64;
        self.0 = low;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(desk: &mut Desk, values: &[&StringArray]) -> Vec<Place> {
        let mut places = Vec::new();
        desk.place(values, 0..values[0].len(), None, &mut places);
        places
    }

    #[test]
    fn repeated_values_are_asked_once_across_windows() {
        let mut desk = Desk::new();
        let values = StringArray::from(vec![Some("a"), None, Some("a"), Some("b")]);
        desk.open(1);
        let at = |window, index| Place::At { window, index };
        assert_eq!(place(&mut desk, &[&values]), [at(1, 0), Place::Nothing, at(1, 0), at(1, 1)]);
        assert_eq!(desk.close().0, ["a", "b"].map(|value| Request { values: [value.to_owned()].into() }));
        desk.open(2);
        let values = StringArray::from(vec!["b", "c"]);
        assert_eq!(place(&mut desk, &[&values]), [at(1, 1), at(2, 0)]);
        assert_eq!(desk.len(), 1);
    }

    #[test]
    fn rows_that_are_not_to_be_asked_are_not() {
        let mut desk = Desk::new();
        let (values, only) = (StringArray::from(vec!["a", "b", "a"]), BooleanArray::from(vec![false, true, true]));
        desk.open(1);
        let mut places = vec![Place::TooLarge];
        desk.place(&[&values], 0..3, Some(&only), &mut places);
        let at = |index| Place::At { window: 1, index };
        assert_eq!(places, [Place::TooLarge, Place::Nothing, at(0), at(1)]);
    }

    #[test]
    fn beyond_its_memory_it_only_remembers_within_a_window() {
        let mut desk = Desk::new();
        desk.kept_bytes.store(MEMORY_MAX, Ordering::Relaxed);
        let values = StringArray::from(vec!["a", "a"]);
        desk.open(1);
        assert_eq!(place(&mut desk, &[&values]), [Place::At { window: 1, index: 0 }; 2]);
        assert_eq!(desk.close(), (vec![Request { values: ["a".to_owned()].into() }], false));
        desk.open(2);
        assert_eq!(place(&mut desk, &[&values]), [Place::At { window: 2, index: 0 }; 2]);
    }

    #[test]
    fn values_do_not_run_into_each_other() {
        let mut desk = Desk::new();
        let (a, b) = (StringArray::from(vec!["ab", "a"]), StringArray::from(vec!["c", "bc"]));
        desk.open(1);
        let places = place(&mut desk, &[&a, &b]);
        assert_ne!(places[0], places[1]);
    }

    #[test]
    fn large_values_are_not_sent() {
        let mut desk = Desk::new();
        let values = StringArray::from(vec!["x".repeat(VALUE_BYTES_MAX + 1)]);
        desk.open(1);
        assert_eq!(place(&mut desk, &[&values]), [Place::TooLarge]);
    }
}
