//! Bugs that the simulation plants to show that it would find them: each breaks one rule of the commit protocol, the ones
//! of the protocol's model. They exist in debug builds only and are off unless a test turns one on; a release build has
//! none of them.

use std::cell::RefCell;

use bytes::Bytes;

/// A rule of the commit protocol, broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A part is written over another attempt's.
    OverwriteParts,
    /// Garbage collection deletes parts without a tombstone before.
    NoTombstone,
    /// Success and cancellation have different names.
    TwoOutcomes,
    /// Publishing moves one pointer instead of adding a numbered record.
    MutablePointer,
    /// A failed write is cleaned up.
    DeleteOnError,
    /// Whatever stands where an entry of the spend ledger was to be written is taken for it.
    ForeignLease,
}

/// Does to a store what no `Store` can: overwrites an object, or deletes it (`None`).
pub type Sabotage = Box<dyn Fn(&str, Option<Bytes>)>;

thread_local! {
    static PLANTED: RefCell<Option<(Bug, Sabotage)>> = const { RefCell::new(None) };
}

/// Plants a bug in this thread, or none. Without effect in release builds.
pub fn plant(bug: Option<(Bug, Sabotage)>) {
    PLANTED.set(bug);
}

/// Whether a bug is planted in this thread.
#[inline]
pub fn is(bug: Bug) -> bool {
    cfg!(debug_assertions)
        && PLANTED.with_borrow(|planted| planted.as_ref().is_some_and(|(planted, _)| *planted == bug))
}

/// Overwrites an object, or deletes it, as the planted bug would.
pub fn sabotage(name: &str, content: Option<Bytes>) {
    PLANTED.with_borrow(|planted| {
        if let Some((_, sabotage)) = planted {
            sabotage(name, content);
        }
    });
}
