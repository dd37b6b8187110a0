//! What to do next with one batch: [`BatchMachine`] takes facts and returns [`Action`]s. Pure: no store, no network, no
//! clock of its own.
//!
//! The rule that keeps a batch from being created twice: a creation is sent only under a permission (an `intent`) that
//! this very process was the one to record, and at most one under each. A permission whose outcome is not known is
//! followed by looking: the provider's list is asked for our name until it shows the batch, or until the time in which
//! the creation could still arrive has passed. Only then is a further permission recorded. A creation begins within one
//! call's time of its permission and ends within another, so it has arrived before that: [`Patience::settle_ms`] is
//! longer than both, and what it is longer by is how much clocks may differ.
//!
//! A batch that is not wanted any more is cancelled, and its end waited for: rows that were under way are computed, paid and
//! among its results all the same. A provider that does not end it in [`Patience::cancel_ms`], or says nothing for so long,
//! is waited for no longer. One that does not know a batch which it has just created may know it a little later.

use super::api::{Listed, Status};
use super::record::Steps;

/// How much clocks may differ, in milliseconds.
const CLOCKS_DIFFER_MS: i64 = 5 * 60_000;

/// How long things are waited for, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest time that any call may take. The transport must hold it.
    pub call_ms: i64,
    /// Time after a permission from which a creation that a list does not show was not done; above twice `call_ms`. What
    /// was created so long ago is known to all of the provider's machines; and who was permitted to do something does it no
    /// more.
    pub settle_ms: i64,
    /// Shortest time between two looks at a batch.
    pub poll_least_ms: i64,
    /// Longest time between two looks at a batch.
    pub poll_most_ms: i64,
    /// Rounds in all: a row that got no answer is sent again in the next one.
    pub rounds_max: u32,
    /// Longest time that the end of a batch is waited for which is not wanted any more.
    pub cancel_ms: i64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            call_ms: 5 * 60_000,
            settle_ms: 15 * 60_000,
            poll_least_ms: 30_000,
            poll_most_ms: 10 * 60_000,
            rounds_max: 3,
            // OpenAI says up to 10 minutes.
            cancel_ms: 15 * 60_000,
        }
    }
}

impl Patience {
    /// Time until the next look at something that began so long ago: a quarter of its age, within the bounds.
    pub fn interval_ms(&self, age_ms: i64) -> i64 {
        (age_ms / 4).clamp(self.poll_least_ms, self.poll_most_ms)
    }

    /// Time until the next try after so many that came to nothing.
    fn pause_ms(&self, tries: usize) -> i64 {
        let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
        self.poll_least_ms.saturating_mul(1 << doublings).min(self.poll_most_ms)
    }
}

/// What looking for a batch at the provider showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is there, under this name.
    Batch(String),
    /// It is not there.
    Nothing,
    /// One is there that may be ours and cannot be told yet.
    Perhaps,
}

/// What is known of one batch.
#[derive(Debug, Clone)]
pub struct BatchMachine {
    patience: Patience,
    needs_upload: bool,
    /// Since when no more is wanted, if so.
    stopped_ms: Option<i64>,
    not_before_ms: i64,
    steps: Steps,
    /// The permission that this process recorded in this visit and has not used.
    ours: Option<u32>,
    found: Option<Found>,
    status: Option<Status>,
    /// The provider did not know it, in this visit.
    is_missing: bool,
    cancel_sent: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Record the permission with this number.
    Intend(u32),
    /// Send the input, under this permission; record the file's name.
    Upload(u32),
    /// Send the creation, with this file if there is one; record what came of it. The permission is used up.
    Create {
        /// The permission.
        intent: u32,
        /// The provider's name for the input.
        file: Option<String>,
    },
    /// Give this permission up: it is too old for a creation to arrive before others believe that there is none, or no more
    /// is wanted.
    GiveUp(u32),
    /// Look for the batch at the provider: created after the permission with this number was given.
    Find(u32),
    /// Record that this is the batch.
    Adopt(String),
    /// Ask how the batch is.
    Poll(String),
    /// Ask the provider to end the batch.
    Cancel(String),
    /// Fetch the results of a batch that has ended, and record every row's end.
    Fetch(String),
    /// Nothing was sent and nothing shall be: record so for every row.
    Forgo,
    /// The batch has not ended, and is waited for no longer: record so for every row.
    Abandon,
    /// The provider knows the batch no more: record so for every row.
    Lose,
    /// Nothing to do before this time.
    Wait(i64),
    /// Every row's end is recorded.
    Finished,
}

/// What became of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// The records, as they are now. Forgets what they do not tell, but for what this visit saw at the provider.
    Steps(Steps),
    /// This process recorded the permission.
    Permitted(u32),
    /// A creation was sent under our permission, or the permission was given up.
    Used,
    /// What looking showed.
    Found(Found),
    /// How the batch is.
    Status(Status),
    /// The provider knows no such batch.
    Missing,
    /// The provider was asked to end it.
    CancelSent,
    /// Since this time, no more is wanted.
    Stopped(i64),
}

impl BatchMachine {
    /// What is known from the records alone. Nothing is created before `not_before_ms`.
    pub fn new(patience: Patience, needs_upload: NeedsUpload, not_before_ms: i64, steps: Steps) -> Self {
        Self {
            patience,
            needs_upload: needs_upload == NeedsUpload::Yes,
            stopped_ms: None,
            not_before_ms,
            steps,
            ours: None,
            found: None,
            status: None,
            is_missing: false,
            cancel_sent: false,
        }
    }

    /// Takes a fact in.
    pub fn learn(&mut self, fact: Fact) {
        match fact {
            Fact::Steps(steps) => self.steps = steps,
            Fact::Permitted(number) => self.ours = Some(number),
            Fact::Used => self.ours = None,
            Fact::Found(found) => self.found = Some(found),
            Fact::Status(status) => self.status = Some(status),
            Fact::Missing => self.is_missing = true,
            Fact::CancelSent => self.cancel_sent = true,
            Fact::Stopped(at_ms) => self.stopped_ms = Some(at_ms),
        }
    }

    /// What a batch that was created under this permission looks like in a list.
    pub(crate) fn sought(&self, number: u32) -> Option<Sought> {
        let (intent, _) = self.steps.intents.get((number as usize).checked_sub(1)?)?;
        let first = self.steps.intents.first().map_or(intent.at_ms, |(first, _)| first.at_ms);
        Some(Sought {
            file: self.steps.uploaded.as_ref().map(|(_, uploaded)| uploaded.file.clone()),
            rows: intent.rows,
            from_ms: first - CLOCKS_DIFFER_MS,
            to_ms: intent.at_ms + self.patience.settle_ms + CLOCKS_DIFFER_MS,
        })
    }

    /// Whether no more is wanted.
    pub fn has_stopped(&self) -> bool {
        self.stopped_ms.is_some()
    }

    /// When the batch was created, by its record.
    pub(crate) fn created_ms(&self) -> Option<i64> {
        self.steps.created.as_ref().map(|created| created.at_ms)
    }

    /// How the batch was when it was last looked at, in this visit.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    /// What to do at this time.
    pub fn next(&self, now_ms: i64) -> Action {
        if self.steps.has_results {
            return Action::Finished;
        }
        match &self.steps.created {
            Some(created) => self.follow(&created.remote, created.at_ms, now_ms),
            None => self.make(now_ms),
        }
    }

    /// The batch is there.
    fn follow(&self, remote: &str, created_ms: i64, now_ms: i64) -> Action {
        match &self.status {
            None if self.is_missing => {
                let settled_ms = created_ms + self.patience.settle_ms;
                let next_ms = now_ms + self.patience.interval_ms(now_ms - created_ms);
                if now_ms < settled_ms { self.wait(next_ms.min(settled_ms), now_ms) } else { Action::Lose }
            }
            None => Action::Poll(remote.to_owned()),
            Some(status) if status.has_ended() => Action::Fetch(remote.to_owned()),
            Some(status) => match self.stopped_ms {
                None => Action::Wait(now_ms + self.patience.interval_ms(now_ms - created_ms)),
                Some(_) if !status.is_ending() && !self.cancel_sent => Action::Cancel(remote.to_owned()),
                Some(stopped_ms) => self.wait(now_ms + self.patience.interval_ms(now_ms - stopped_ms), now_ms),
            },
        }
    }

    /// What to do when the provider did not do what it was asked, and is asked again at `until_ms`.
    pub fn after_error(&self, until_ms: i64, now_ms: i64) -> Action {
        let is_unsent =
            self.steps.created.is_none() && self.steps.intents.last().is_none_or(|(_, void)| void.is_some());
        if is_unsent { Action::Wait(until_ms) } else { self.wait(until_ms, now_ms) }
    }

    /// Waits for what the provider does, or for its answer, unless no more is wanted for too long already.
    fn wait(&self, until_ms: i64, now_ms: i64) -> Action {
        match self.stopped_ms.map(|stopped_ms| stopped_ms + self.patience.cancel_ms) {
            None => Action::Wait(until_ms),
            Some(last_ms) if now_ms >= last_ms => Action::Abandon,
            Some(last_ms) => Action::Wait(until_ms.min(last_ms)),
        }
    }

    /// The batch is not there, as far as the records tell.
    fn make(&self, now_ms: i64) -> Action {
        let count = u32::try_from(self.steps.intents.len()).unwrap_or(u32::MAX);
        let Some((intent, void)) = self.steps.intents.last() else { return self.intend(1, self.not_before_ms, now_ms) };
        if let Some(void) = void {
            let pause_ms = self.patience.pause_ms(self.steps.intents.len());
            return self.intend(count + 1, void.at_ms + pause_ms, now_ms);
        }
        if self.ours == Some(count) {
            let is_late = now_ms > intent.at_ms + self.patience.call_ms;
            return if is_late || self.stopped_ms.is_some() {
                Action::GiveUp(count)
            } else {
                self.use_permission(count)
            };
        }
        let settled_ms = intent.at_ms + self.patience.settle_ms;
        match &self.found {
            None => Action::Find(count),
            Some(Found::Batch(remote)) => Action::Adopt(remote.clone()),
            Some(Found::Perhaps) => self.wait(now_ms + self.patience.interval_ms(now_ms - intent.at_ms), now_ms),
            Some(Found::Nothing) if now_ms < settled_ms => {
                self.wait(settled_ms.min(now_ms + self.patience.interval_ms(now_ms - intent.at_ms)), now_ms)
            }
            Some(Found::Nothing) => self.intend(count + 1, now_ms, now_ms),
        }
    }

    fn intend(&self, number: u32, not_before_ms: i64, now_ms: i64) -> Action {
        match self.stopped_ms {
            Some(_) => Action::Forgo,
            None if now_ms < not_before_ms => Action::Wait(not_before_ms),
            None => Action::Intend(number),
        }
    }

    fn use_permission(&self, number: u32) -> Action {
        if !self.needs_upload {
            return Action::Create { intent: number, file: None };
        }
        match &self.steps.uploaded {
            Some((_, uploaded)) => Action::Create { intent: number, file: Some(uploaded.file.clone()) },
            None => Action::Upload(number),
        }
    }
}

/// What a batch looks like in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sought {
    file: Option<String>,
    rows: u64,
    from_ms: i64,
    to_ms: i64,
}

impl Sought {
    /// Whether this is the batch: it has our name, or was made of our file.
    pub(crate) fn is_named(&self, name: &str, listed: &Listed) -> bool {
        listed.name.as_deref() == Some(name) || (self.file.is_some() && listed.file == self.file)
    }

    /// Whether this may be the batch, where the provider keeps neither names nor files.
    pub(crate) fn may_be(&self, listed: &Listed) -> bool {
        let in_time = listed.created_ms.is_none_or(|at_ms| (self.from_ms..=self.to_ms).contains(&at_ms));
        listed.rows == Some(self.rows) && in_time
    }

    /// Whether a batch is older than ours can be.
    pub(crate) fn is_before(&self, listed: &Listed) -> bool {
        listed.created_ms.is_some_and(|at_ms| at_ms < self.from_ms)
    }
}

/// Whether a provider takes its input as a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeedsUpload {
    /// As a file that is sent before.
    Yes,
    /// In the creation's body.
    No,
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
