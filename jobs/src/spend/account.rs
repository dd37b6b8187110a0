//! One executor's side of the ledger, and what it does next: lease, give back, wait or stop. Pure: the store, the clock
//! and the other executors are told to it.

use super::entry::{Change, Entry};
use super::recent::Recent;

/// A lease for more than one request takes at most this share of what is left: leases get smaller towards the cap, so that
/// no executor sits on what another could use.
const LEASE_SHARE: u64 = 32;

/// What an executor has leased and what became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Leased and not given back.
    pub leased: u64,
    /// Settled.
    pub spent: u64,
    /// Reserved for requests in flight.
    pub reserved: u64,
    /// Asked for by requests that wait for it.
    pub waiting: u64,
    /// Settled lately.
    pub recent: Recent,
}

impl Account {
    /// What can be reserved without asking anybody.
    pub(super) fn available(&self) -> u64 {
        self.leased.saturating_sub(self.spent.saturating_add(self.reserved))
    }

    /// What is missing to reserve `need`. More than `need` if requests took more than was reserved for them.
    fn short(&self, need: u64) -> u64 {
        self.spent.saturating_add(self.reserved).saturating_add(need).saturating_sub(self.leased)
    }

    /// Leased and not spent.
    pub(super) fn held(&self) -> u64 {
        self.leased.saturating_sub(self.spent)
    }
}

/// What is known when an executor needs more than it has.
#[derive(Debug)]
pub(super) struct Need<'a> {
    /// The log's last entry.
    pub standing: &'a Entry,
    /// Name of this executor.
    pub executor: &'a str,
    /// The most that may be out.
    pub cap: u64,
    /// What is to be reserved; part of what is [waiting](Account::waiting).
    pub amount: u64,
    /// Spent in as long as a lease should last. A killed executor's lease is lost, so it takes no more than it is about to
    /// use.
    pub soon: u64,
    /// Whether the log has not changed for so long that nobody is waited for.
    pub nobody_moves: bool,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is enough.
    Reserve,
    /// Add this to the log, then look again.
    Append(Change),
    /// Wait: others may give back, or requests in flight may take less than was reserved.
    Wait,
    /// It cannot be had.
    Stop {
        /// What is left below the cap and with this executor.
        left: u64,
    },
}

/// Decides what an executor does that needs something.
pub(super) fn step(account: &Account, need: &Need<'_>) -> Step {
    if account.available() >= need.amount {
        return Step::Reserve;
    }
    let short = account.short(need.amount);
    let remaining = need.cap.saturating_sub(need.standing.out);
    if short <= remaining {
        let lacking = need.standing.others_lack(need.executor, remaining);
        let wished = account.short(account.waiting.max(need.amount)).saturating_add(need.soon);
        let leased = if lacking { short } else { short.max(wished.min(remaining / LEASE_SHARE)) };
        return Step::Append(Change { leased, returned: 0, held: account.held().saturating_add(leased), wanted: 0 });
    }
    let others = need.standing.held_by_others(need.executor);
    // All that could ever come together: what is left, what others had at most, and what this executor has not spent.
    let possible = remaining.saturating_add(others).saturating_add(account.held());
    if possible < need.amount || (others == 0 && account.reserved == 0) || need.nobody_moves {
        return stop(account, need, remaining);
    }
    let waiting = give_back(account, need.amount);
    if says(need.standing, need.executor, waiting) { Step::Wait } else { Step::Append(waiting) }
}

/// Stops, after it gave back what it has and took its wish from the log.
fn stop(account: &Account, need: &Need<'_>, remaining: u64) -> Step {
    let left = give_back(account, 0);
    if says(need.standing, need.executor, left) { Step::Stop { left: remaining } } else { Step::Append(left) }
}

/// The change that gives back everything that is free.
pub(super) fn give_back(account: &Account, wanted: u64) -> Change {
    let returned = account.available();
    Change { leased: 0, returned, held: account.held().saturating_sub(returned), wanted }
}

/// What a holder gives back when it sees that others wait: all but what it needs itself now.
pub(super) fn make_room(account: &Account, standing: &Entry, executor: &str, cap: u64, keep: u64) -> Option<Change> {
    let remaining = cap.saturating_sub(standing.out);
    let returned = account.available().saturating_sub(keep);
    let change = Change { leased: 0, returned, held: account.held().saturating_sub(returned), wanted: 0 };
    (returned > 0 && standing.others_lack(executor, remaining)).then_some(change)
}

/// Whether the log tells of this executor what the change would: then it need not be written.
pub(super) fn says(standing: &Entry, executor: &str, change: Change) -> bool {
    let of = |amounts: &std::collections::BTreeMap<String, u64>| amounts.get(executor).copied().unwrap_or(0);
    change.leased == 0
        && change.returned == 0
        && of(&standing.held) == change.held
        && of(&standing.wanted) == change.wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need<'a>(standing: &'a Entry, amount: u64) -> Need<'a> {
        Need { standing, executor: "me", cap: 1_000, amount, soon: 0, nobody_moves: false }
    }

    fn standing(out: u64, held: &[(&str, u64)]) -> Entry {
        Entry { out, held: held.iter().map(|(name, held)| ((*name).to_owned(), *held)).collect(), ..Entry::default() }
    }

    #[test]
    fn leases_shrink_with_what_is_left_but_not_below_the_need() {
        let busy = Account { waiting: 20, ..Account::default() };
        let leased = |account: Account, out, amount, soon| {
            let log = standing(out, &[]);
            match step(&account, &Need { soon, ..need(&log, amount) }) {
                Step::Append(change) => change.leased,
                other => panic!("{other:?}"),
            }
        };
        // What one request needs, what all that wait do, and what it is about to use.
        assert_eq!(leased(Account::default(), 0, 1, 0), 1);
        assert_eq!(leased(busy, 0, 1, 0), 20);
        assert_eq!(leased(busy, 0, 1, 7), 27);
        assert_eq!(leased(busy, 0, 1, u64::MAX), 31);
        assert_eq!(leased(busy, 900, 1, 7), 3);
        assert_eq!(leased(busy, 900, 50, 7), 50);
        assert_eq!(leased(busy, 950, 50, 7), 50);
    }

    #[test]
    fn what_cannot_be_had_is_refused_at_once_and_what_may_come_is_waited_for() {
        let full = standing(1_000, &[]);
        assert_eq!(step(&Account::default(), &need(&full, 1)), Step::Stop { left: 0 });
        let others = standing(1_000, &[("other", 20)]);
        let asks = Change { wanted: 20, ..Change::default() };
        assert_eq!(step(&Account::default(), &need(&others, 20)), Step::Append(asks));
        assert_eq!(step(&Account::default(), &need(&others, 21)), Step::Stop { left: 0 });
        let mut asked = others.clone();
        asked.wanted.insert("me".into(), 20);
        assert_eq!(step(&Account::default(), &need(&asked, 20)), Step::Wait);
        let patient = Need { nobody_moves: true, ..need(&asked, 20) };
        assert_eq!(step(&Account::default(), &patient), Step::Append(Change::default()));
    }

    #[test]
    fn who_waits_gives_back_first() {
        let account = Account { leased: 30, spent: 10, reserved: 5, ..Account::default() };
        let log = standing(1_000, &[("me", 20), ("other", 500)]);
        let Step::Append(change) = step(&account, &need(&log, 40)) else { panic!("no entry") };
        assert_eq!(change, Change { leased: 0, returned: 15, held: 5, wanted: 40 });
    }

    #[test]
    fn what_was_overspent_is_leased_before_anything_else() {
        let account = Account { leased: 10, spent: 14, ..Account::default() };
        let log = standing(900, &[]);
        let Step::Append(change) = step(&account, &need(&log, 40)) else { panic!("no entry") };
        assert_eq!(change.leased, 44);
    }
}
