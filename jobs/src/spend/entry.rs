//! The ledger's record: an append-only log in the store, ordered by it. Each [`Entry`] carries the whole standing after it,
//! so that the last one tells all; those before it are there to be looked at. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One change of the ledger, and how it stands after it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its place in the log, from 1; part of its name.
    pub seq: u64,
    /// Tells two writers' entries apart that are otherwise the same.
    pub id: String,
    /// Who wrote it.
    pub executor: String,
    /// What the writer took.
    pub leased: u64,
    /// What the writer gave back.
    pub returned: u64,
    /// What is out after it: everything leased that was not given back, spent or not. Never more than the cap.
    pub out: u64,
    /// What each executor had of its leases and had not spent, when it last wrote. One that is not named had nothing.
    pub held: BTreeMap<String, u64>,
    /// Who waits for how much.
    pub wanted: BTreeMap<String, u64>,
    /// The most that may be out from here on; without it, what the run was planned with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u64>,
}

/// What an executor changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// It takes this.
    pub leased: u64,
    /// It gives this back.
    pub returned: u64,
    /// It has this after the change and has not spent it.
    pub held: u64,
    /// It waits for this; 0 if for nothing.
    pub wanted: u64,
}

impl Entry {
    /// The entry that follows `self` (the empty one, if the log is empty) when `executor` makes a change.
    pub fn then(&self, id: String, executor: &str, change: Change) -> Entry {
        let mut next = Entry {
            seq: self.seq + 1,
            id,
            executor: executor.to_owned(),
            leased: change.leased,
            returned: change.returned,
            out: (self.out + change.leased).saturating_sub(change.returned),
            held: self.held.clone(),
            wanted: self.wanted.clone(),
            cap: self.cap,
        };
        set(&mut next.held, executor, change.held);
        set(&mut next.wanted, executor, change.wanted);
        next
    }

    /// The entry that follows `self` when `who`, who has no lease, changes the cap.
    pub fn capped(&self, id: String, who: &str, cap: u64) -> Entry {
        Entry { cap: Some(cap), ..self.then(id, who, Change::default()) }
    }

    /// What was spent for certain: what is out and nobody says to have still.
    pub fn spent_at_least(&self) -> u64 {
        self.out.saturating_sub(self.held.values().fold(0, |sum: u64, held| sum.saturating_add(*held)))
    }

    /// What others than `executor` had when they last wrote.
    pub fn held_by_others(&self, executor: &str) -> u64 {
        let others = self.held.iter().filter(|(name, _)| *name != executor);
        others.fold(0, |sum, (_, held)| sum.saturating_add(*held))
    }

    /// Whether somebody else waits for more than `remaining`: then whoever can should give back.
    pub fn others_lack(&self, executor: &str, remaining: u64) -> bool {
        self.wanted.iter().any(|(name, wanted)| name != executor && *wanted > remaining)
    }
}

fn set(amounts: &mut BTreeMap<String, u64>, executor: &str, amount: u64) {
    if amount == 0 {
        amounts.remove(executor);
    } else {
        amounts.insert(executor.to_owned(), amount);
    }
}
