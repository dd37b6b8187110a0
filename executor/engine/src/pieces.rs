//! Ids of pieces that came before. Words come again and again; a tokenizer works them out anew each time, at a hundred times the
//! cost of looking them up. [`Pieces`] cuts a text where that changes no id ([`Cuts`]), asks the tokenizer for pieces it has not
//! met, and takes the others from a table that all threads share. It works out no id itself, and has nothing to say of
//! tokenizers whose texts cannot be cut.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rowmill_jobs::{Error, Result};
use tokenizers::{Encoding, Tokenizer};

use crate::added::{Added, Part};
use crate::cuts::Cuts;

/// Longest piece that is kept, in bytes: longer ones seldom come again.
const BYTES_MAX: usize = 23;
/// Most ids of a piece that is kept.
const IDS_MAX: usize = 4;
/// Slots of a table, 6 MiB, of which half are used.
const SLOTS: usize = 1 << 17;
/// Slots that are looked at for a piece.
const PROBES: usize = 8;
/// Bits for pieces that came once: 256 KiB, of which an eighth is used, so that few pieces find the bit of another one.
const ONCE_BITS: usize = 1 << 21;
/// Bytes of pieces that are not known which the tokenizer is asked for at once, at most: the end of a long text may not be wanted.
const BYTES_AT_ONCE: usize = 1024;

/// A tokenizer's texts, cut into pieces, and the pieces' ids.
#[derive(Debug)]
pub(crate) struct Pieces {
    cuts: Cuts,
    added: Added,
    known: RwLock<Arc<Known>>,
}

impl Pieces {
    /// What is known of a tokenizer at first: nothing but how to cut. `None` if it must see each text whole.
    ///
    /// # Errors
    /// The tokenizer failed.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(cuts) = Cuts::of(tokenizer) else { return Ok(None) };
        let Some(added) = Added::of(tokenizer)? else { return Ok(None) };
        let pieces = Self { cuts, added, known: RwLock::new(Arc::new(Known::new())) };
        Ok(pieces.agree_with(tokenizer)?.then_some(pieces))
    }

    /// Whether an added token is in a text.
    pub(crate) fn has_added(&self, text: &str) -> bool {
        self.added.is_in(text)
    }

    /// Adds the ids of a text, its added tokens recognised. `false`: it must be seen whole, nothing was added.
    ///
    /// # Errors
    /// The tokenizer failed.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, text: &str, ids: &mut Vec<u32>) -> Result<bool> {
        let Some(parts) = self.added.parts(text) else { return Ok(false) };
        for part in parts {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => self.encode_beginning(tokenizer, text, usize::MAX, ids)?,
            }
        }
        Ok(true)
    }

    /// Adds ids of a text that has no added token, at least until there are `ids_max` of them in all.
    ///
    /// # Errors
    /// The tokenizer failed.
    pub(crate) fn encode_beginning(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        ids_max: usize,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let known = self.known();
        // Up to `done` the ids are there; from there to `rest`, the tokenizer is still to be asked.
        let (mut done, mut rest) = (0, text);
        while !rest.is_empty() && ids.len() < ids_max {
            let at = text.len() - rest.len();
            let piece;
            (piece, rest) = self.cuts.first(rest);
            let found = known.find(piece);
            if matches!(found, Found::Unknown) && at - done < BYTES_AT_ONCE {
                continue;
            }
            if done < at {
                ids.extend_from_slice(ask(tokenizer, &text[done..at])?.get_ids());
            }
            match found {
                Found::Here(entry) => ids.extend_from_slice(entry.ids()),
                Found::Again(key, slot) => {
                    let encoding = ask(tokenizer, piece)?;
                    ids.extend_from_slice(encoding.get_ids());
                    known.keep(slot, key, encoding.get_ids());
                }
                Found::Unknown => ids.extend_from_slice(ask(tokenizer, piece)?.get_ids()),
            }
            done = text.len() - rest.len();
        }
        if done < text.len() && ids.len() < ids_max {
            ids.extend_from_slice(ask(tokenizer, &text[done..])?.get_ids());
        }
        if known.is_full() {
            self.forget(&known);
        }
        Ok(())
    }

    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a new table, unless somebody has: what comes often is soon in it again, what came once is not.
    fn forget(&self, known: &Arc<Known>) {
        let mut current = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, known) {
            *current = Arc::new(Known::new());
        }
    }

    /// Whether texts with everything in them that is odd have the same ids in pieces as whole.
    fn agree_with(&self, tokenizer: &Tokenizer) -> Result<bool> {
        // The tokenizer is asked for pieces the second time, which are known the third time.
        for text in ODD.iter().cycle().take(3 * ODD.len()) {
            let whole = ask(tokenizer, text)?;
            let mut ids = Vec::new();
            if self.encode(tokenizer, text, &mut ids)? && ids != whole.get_ids() {
                tracing::warn!("the tokenizer's texts cannot be cut as its steps say; prompts take longer to make");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

const ODD: [&str; 4] = [
    "It's 3.14 o'clock, isn't it?  We'LL see: x=y+1; foo_bar(\"1,234.50\")...\n\n\t- [x] done\r\n\r\n  and a lot of       room\n ",
    "caf\u{e9} na\u{ef}ve cafe\u{301} \u{301}x >\u{338} \u{201c}quoted\u{201d} \u{2014} \u{1f600}\u{1f3fd} \u{a0}nb\u{a0}sp \u{3000}wide \u{130}stanbul \u{fb01}n",
    "\u{4f60}\u{597d}, \u{4e16}\u{754c}! \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{e2a}\u{e27}\u{e31} \u{645}\u{631}\u{62d}\u{628}\u{627} \u{d55c}\u{ae00} 12345 \u{661}\u{662} \u{bd}",
    " a\u{0}b \u{b}c\u{c}d \u{200b}e \u{ad}f \u{feff}g \u{85}h\u{2028}i .a..b,c;d'e 'F ''g ~!@#$%^&*()_+-={}|[]\\:\"<>?,./`",
];

fn ask(tokenizer: &Tokenizer, text: &str) -> Result<Encoding> {
    tokenizer.encode_fast(text, false).map_err(|e| Error::internal("the tokenizer failed").caused_by(e))
}

/// A piece's bytes, zeros behind them, and their number.
type Key = [u8; BYTES_MAX + 1];

/// A table of pieces that came twice; of those with too many ids, that they have. It only grows; a slot is written once and read
/// without a lock by whoever comes by.
#[derive(Debug)]
struct Known {
    slots: Box<[OnceLock<Entry>]>,
    filled: AtomicUsize,
    /// Pieces that came once, by what was mixed of them: half of a text's words never come again.
    once: Box<[AtomicU64]>,
    marked: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    ids: [u32; IDS_MAX],
    /// How many there are; more than [`IDS_MAX`] are not kept.
    count: u8,
}

impl Entry {
    fn ids(&self) -> &[u32] {
        &self.ids[..usize::from(self.count)]
    }
}

/// What is known of a piece.
enum Found<'a> {
    Here(&'a Entry),
    /// It came before, and may go there.
    Again(Key, &'a OnceLock<Entry>),
    /// It did not come before, is too long, has too many ids, or has no room.
    Unknown,
}

impl Known {
    fn new() -> Self {
        Self {
            slots: (0..SLOTS + PROBES).map(|_| OnceLock::new()).collect(),
            filled: AtomicUsize::new(0),
            once: (0..ONCE_BITS / 64).map(|_| AtomicU64::new(0)).collect(),
            marked: AtomicUsize::new(0),
        }
    }

    #[inline]
    fn find(&self, piece: &str) -> Found<'_> {
        let Some(key) = key(piece) else { return Found::Unknown };
        let mixed = mixed(&key);
        let first = (mixed >> (64 - SLOTS.trailing_zeros())) as usize;
        for slot in &self.slots[first..first + PROBES] {
            match slot.get() {
                // One with too many ids is asked for with what is around it.
                Some(entry) if entry.key == key && usize::from(entry.count) > IDS_MAX => return Found::Unknown,
                Some(entry) if entry.key == key => return Found::Here(entry),
                Some(_) => {}
                None if self.came_before(mixed) => return Found::Again(key, slot),
                None => return Found::Unknown,
            }
        }
        Found::Unknown
    }

    /// Whether a piece came before, by what was mixed of it: from now on it did.
    fn came_before(&self, mixed: u64) -> bool {
        let at = (mixed >> 24) as usize % ONCE_BITS;
        let (word, bit) = (&self.once[at / 64], 1 << (at % 64));
        if word.load(Ordering::Relaxed) & bit != 0 {
            return true;
        }
        word.fetch_or(bit, Ordering::Relaxed);
        if self.marked.fetch_add(1, Ordering::Relaxed) > ONCE_BITS / 8 {
            self.once.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            self.marked.store(0, Ordering::Relaxed);
        }
        false
    }

    fn keep(&self, slot: &OnceLock<Entry>, key: Key, ids: &[u32]) {
        let count = u8::try_from(ids.len()).unwrap_or(u8::MAX);
        let mut entry = Entry { key, ids: [0; IDS_MAX], count };
        for (kept, id) in entry.ids.iter_mut().zip(ids) {
            *kept = *id;
        }
        // Another thread may have been faster, with this piece or another one.
        if slot.set(entry).is_ok() {
            self.filled.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_full(&self) -> bool {
        self.filled.load(Ordering::Relaxed) > SLOTS / 2
    }
}

#[inline]
fn key(piece: &str) -> Option<Key> {
    let mut key = [0; BYTES_MAX + 1];
    key.get_mut(..piece.len()).filter(|_| piece.len() <= BYTES_MAX)?.copy_from_slice(piece.as_bytes());
    key[BYTES_MAX] = piece.len() as u8;
    Some(key)
}

/// A number for a key, alike for few. Pieces that are chosen to have the same cost what the tokenizer costs, no more.
#[inline]
fn mixed(key: &Key) -> u64 {
    const SPREAD: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9];
    let (words, _) = key.as_chunks::<8>();
    let mixed = words
        .iter()
        .zip(SPREAD)
        .fold(0u64, |mixed, (word, spread)| (mixed.rotate_left(29) ^ u64::from_le_bytes(*word)).wrapping_mul(spread));
    (mixed ^ (mixed >> 29)).wrapping_mul(SPREAD[0])
}
