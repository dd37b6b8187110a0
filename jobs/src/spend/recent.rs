//! [`Recent`]: what was spent in the last moments, as a measure of what the next ones will take, and so of what a lease
//! should hold. Pure; whoever counts says what time it is.

use std::time::Duration;

/// Length of a window. A lease lasts about as long, since what is not used of it is lost with an executor that is killed.
const WINDOW: Duration = Duration::from_millis(250);
/// A lease lasts at least so many times as long as it took to get: where the store is slow, or many executors are at its log,
/// they ask more seldom for more.
const WORTH: u32 = 20;

/// What was spent in the window that goes on, and in the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Recent {
    window: u128,
    before: u64,
    now: u64,
}

impl Recent {
    /// `amount` was spent at this time, which is no earlier than any before.
    pub(super) fn add(&mut self, time: Duration, amount: u64) {
        *self = self.at(time);
        self.now = self.now.saturating_add(amount);
    }

    /// What will be spent in as long as a lease should last that takes `took` to get, if it goes on as in the last windows.
    pub(super) fn of_a_lease(&self, time: Duration, took: Duration) -> u64 {
        let lasts = (took * WORTH).max(WINDOW);
        let spent = u128::from(self.of_a_window(time));
        u64::try_from(spent * lasts.as_millis() / WINDOW.as_millis()).unwrap_or(u64::MAX)
    }

    /// What a window takes, at this time: the more of the last two.
    fn of_a_window(&self, time: Duration) -> u64 {
        let current = self.at(time);
        current.now.max(current.before)
    }

    fn at(self, time: Duration) -> Self {
        let window = time.as_millis() / WINDOW.as_millis();
        match window.saturating_sub(self.window) {
            0 => self,
            1 => Self { window, before: self.now, now: 0 },
            _ => Self { window, before: 0, now: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spent_two_windows_ago_is_forgotten() {
        let mut recent = Recent::default();
        let at = |quarter: u32| WINDOW * quarter;
        assert_eq!(recent.of_a_window(at(9)), 0);
        recent.add(at(9), 5);
        recent.add(at(9) + WINDOW / 2, 6);
        assert_eq!(recent.of_a_window(at(9) + WINDOW / 2), 11);
        recent.add(at(10), 3);
        assert_eq!((recent.of_a_window(at(10)), recent.of_a_window(at(11)), recent.of_a_window(at(12))), (11, 3, 0));
        recent.add(at(40), u64::MAX);
        recent.add(at(40), 1);
        assert_eq!(recent.of_a_window(at(40)), u64::MAX);
        assert_eq!(recent.of_a_lease(at(40), WINDOW), u64::MAX);
    }

    #[test]
    fn a_lease_lasts_longer_where_it_is_hard_to_get() {
        let mut recent = Recent::default();
        recent.add(Duration::ZERO, 8);
        let of_a_lease = |took| recent.of_a_lease(Duration::ZERO, took);
        assert_eq!((of_a_lease(Duration::ZERO), of_a_lease(WINDOW / WORTH), of_a_lease(WINDOW)), (8, 8, 160));
    }
}
