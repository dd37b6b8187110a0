//! [`Ledger`]: never a dollar over the cap, over all executors of a run. The truth is an append-only log in the run's store:
//! `<folder><seq>.json`, written by put-if-absent, so that the store puts all writers in one order. An entry takes a lease or
//! gives the unused rest of one back, and only who has read the whole log can append to it; so what is out never exceeds the
//! cap, whoever is killed and whatever is lost, and no Redis takes part. Within a lease, reserving and settling are local.
//!
//! A killed executor's lease counts as spent: nobody can know what was not. A run's cap may change while it goes on: that is
//! an entry, too ([`set_cap`]), so that all executors see it in one order with their leases. The log is of amounts; they are nano-dollars
//! here, and whatever else has a cap (rows or tokens of a day) can be counted in another folder.

mod account;
mod deposit;
mod entry;
mod recent;
mod reservation;
#[cfg(test)]
mod simulation;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use ulid::Ulid;

use crate::planted::{self, Bug};
use crate::store::{self, Put, Store};
use crate::{Error, Result, layout};
use account::{Account, Need, Step};
pub use deposit::SetAside;
pub use entry::{Change, Entry};
pub use reservation::Reservation;
use reservation::Waiting;

/// How long a ledger waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Others are waited for while the log changes, and for so long after its last change.
    pub patience: Duration,
    /// How often an executor that has enough looks whether others have not.
    pub look_every: Duration,
    /// Wait between two looks of one that waits; doubles up to [`Pace::wait_max`].
    pub wait_min: Duration,
    /// Longest wait between two looks.
    pub wait_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(60),
            look_every: Duration::from_secs(2),
            wait_min: Duration::from_millis(100),
            wait_max: Duration::from_secs(2),
        }
    }
}

/// One executor's way to the ledger of a run.
#[derive(Debug)]
pub struct Ledger {
    store: Arc<dyn Store>,
    folder: String,
    executor: String,
    /// While the log says nothing else.
    cap: u64,
    pace: Pace,
    started: Instant,
    account: Mutex<Account>,
    log: tokio::sync::Mutex<Log>,
    /// Something was settled.
    settled: Notify,
    looked: Mutex<Instant>,
}

/// What this executor knows of the log.
#[derive(Debug)]
struct Log {
    standing: Entry,
    /// An entry whose write was not answered yet: until its place in the log is known to be taken, by it or by another, no
    /// other entry is written.
    pending: Option<Entry>,
    /// When what is out was last seen to change.
    changed: Instant,
    /// How long it took to get the last lease.
    took: Duration,
}

/// The answer to [`Ledger::reserve`].
#[derive(Debug)]
pub enum Reserve {
    /// It may be spent.
    Granted(Reservation),
    /// It would exceed the cap, and nobody gives back any more.
    CapReached {
        /// What is left below the cap: less than was asked for.
        left: u64,
    },
}

impl Ledger {
    /// The ledger in a folder of a store (it ends in `/`), as the executor of this name uses it: no two processes may share a
    /// name, nor one after another. Does no I/O.
    pub fn new(store: Arc<dyn Store>, folder: String, executor: String, cap: u64, pace: Pace) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            store,
            folder,
            executor,
            cap,
            pace,
            started: now,
            account: Mutex::default(),
            log: tokio::sync::Mutex::new(Log {
                standing: Entry::default(),
                pending: None,
                changed: now,
                took: Duration::ZERO,
            }),
            settled: Notify::new(),
            looked: Mutex::new(now),
        })
    }

    /// A run's ledger of nano-dollars.
    pub fn of_run(store: Arc<dyn Store>, run_key: &str, executor: &str, nano_usd_max: u64) -> Arc<Self> {
        Self::new(store, layout::spend(run_key), executor.to_owned(), nano_usd_max, Pace::default())
    }

    /// A run's ledger of nano-dollars; `None` if neither the run's plan (`planned`) nor the ledger's log has a cap.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn if_capped(
        store: &Arc<dyn Store>,
        run_key: &str,
        executor: &str,
        planned: Option<u64>,
    ) -> Result<Option<Arc<Self>>> {
        let cap = match planned {
            Some(cap) => Some(cap),
            None => last(store.as_ref(), &layout::spend(run_key)).await?.and_then(|entry| entry.cap),
        };
        Ok(cap.map(|cap| Self::of_run(Arc::clone(store), run_key, executor, cap)))
    }

    /// Reserves what a request can cost at most, or waits until it can be had or certainly cannot.
    ///
    /// # Errors
    /// The store does not answer. Nothing is reserved then.
    pub async fn reserve(self: &Arc<Self>, amount: u64) -> Result<Reserve> {
        if let Some(reservation) = self.reserve_here(amount) {
            if self.is_time_to_look() {
                self.make_room(amount).await;
            }
            return Ok(Reserve::Granted(reservation));
        }
        let _waiting = Waiting::of(self, amount);
        let mut log = self.log.lock().await;
        self.catch_up(&mut log).await?;
        let mut wait = self.pace.wait_min;
        let began = Instant::now();
        loop {
            let settled = self.settled.notified();
            match self.next(&log, amount) {
                Step::Reserve => return Ok(Reserve::Granted(self.reservation(amount))),
                Step::Append(change) => {
                    self.append(&mut log, change).await?;
                    log.took = began.elapsed();
                }
                Step::Stop { left } => return Ok(Reserve::CapReached { left }),
                Step::Wait => {
                    tokio::select! {
                        () = settled => {}
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(self.pace.wait_max),
                    }
                    self.catch_up(&mut log).await?;
                }
            }
        }
    }

    /// Gives back everything that is not reserved. To be called whenever an executor has nothing to send for a while, and
    /// before it ends; it may go on afterwards.
    ///
    /// # Errors
    /// The store does not answer. What was not given back counts as spent.
    pub async fn give_back(&self) -> Result<()> {
        let mut log = self.log.lock().await;
        self.catch_up(&mut log).await?;
        loop {
            let change = {
                let mut account = self.account();
                let change = account::give_back(&account, 0);
                if account::says(&log.standing, &self.executor, change) {
                    return Ok(());
                }
                account.leased -= change.returned;
                change
            };
            self.append(&mut log, change).await?;
        }
    }

    /// What this executor spent.
    pub fn spent(&self) -> u64 {
        self.account().spent
    }

    /// What to do next. What a step reserves or gives back is taken from the account at once, under one lock.
    fn next(&self, log: &Log, amount: u64) -> Step {
        let mut account = self.account();
        let nobody_moves = log.changed.elapsed() >= self.pace.patience;
        let cap = self.cap(log);
        let soon = account.recent.of_a_lease(self.started.elapsed(), log.took);
        let need = Need { standing: &log.standing, executor: &self.executor, cap, amount, soon, nobody_moves };
        let step = account::step(&account, &need);
        match step {
            Step::Reserve => account.reserved += amount,
            Step::Append(change) => account.leased -= change.returned,
            Step::Wait | Step::Stop { .. } => {}
        }
        step
    }

    /// The most that may be out, as the log stands.
    fn cap(&self, log: &Log) -> u64 {
        log.standing.cap.unwrap_or(self.cap)
    }

    /// Reserves from what was leased before.
    fn reserve_here(self: &Arc<Self>, amount: u64) -> Option<Reservation> {
        let mut account = self.account();
        if account.available() < amount {
            return None;
        }
        account.reserved += amount;
        drop(account);
        Some(self.reservation(amount))
    }

    fn reservation(self: &Arc<Self>, amount: u64) -> Reservation {
        Reservation::new(self, amount)
    }

    /// Gives back what others wait for. It is a favour: if the store does not answer, it is done another time.
    async fn make_room(&self, keep: u64) {
        let Ok(mut log) = self.log.try_lock() else { return };
        if let Err(error) = self.catch_up(&mut log).await {
            tracing::debug!(%error, "cannot look at the spend ledger");
            return;
        }
        let change = {
            let mut account = self.account();
            let change = account::make_room(&account, &log.standing, &self.executor, self.cap(&log), keep);
            account.leased -= change.map_or(0, |change| change.returned);
            change
        };
        if let Some(change) = change
            && let Err(error) = self.append(&mut log, change).await
        {
            tracing::debug!(%error, "cannot give back to the spend ledger now");
        }
    }

    fn is_time_to_look(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = looked.elapsed() >= self.pace.look_every;
        if is_time {
            *looked = Instant::now();
        }
        is_time
    }

    /// Adds an entry, if no other writer is faster; either way, `log` is up to date afterwards.
    async fn append(&self, log: &mut Log, change: Change) -> Result<()> {
        let id = Ulid::generate().to_string().to_lowercase();
        log.pending = Some(log.standing.then(id, &self.executor, change));
        self.resolve(log).await
    }

    /// Finds out who has the place in the log that the pending entry is for. Its write can be repeated: it has that name and
    /// no other, so it is there once or not at all.
    async fn resolve(&self, log: &mut Log) -> Result<()> {
        let Some(entry) = log.pending.clone() else { return Ok(()) };
        let name = self.name(entry.seq);
        let found = match store::create_json(self.store.as_ref(), &name, &entry).await? {
            Put::Created => entry.clone(),
            // By another, or by ourselves when the answer was lost.
            Put::Exists => self.read(entry.seq).await?.ok_or_else(|| vanished(&name))?,
        };
        let is_ours = found.id == entry.id || planted::is(Bug::ForeignLease);
        log.pending = None;
        log.adopt(found);
        {
            let mut account = self.account();
            account.leased += if is_ours { entry.leased } else { entry.returned };
        }
        if is_ours { Ok(()) } else { self.read_on(log).await }
    }

    /// Reads what the log has that is not known yet.
    async fn catch_up(&self, log: &mut Log) -> Result<()> {
        self.resolve(log).await?;
        self.read_on(log).await
    }

    async fn read_on(&self, log: &mut Log) -> Result<()> {
        if log.standing.seq > 0 {
            match self.read(log.standing.seq + 1).await? {
                None => return Ok(()),
                Some(entry) => log.adopt(entry),
            }
        }
        // Far behind, perhaps: the last entry tells all.
        if let Some(entry) = last(self.store.as_ref(), &self.folder).await?
            && entry.seq > log.standing.seq
        {
            log.adopt(entry);
        }
        Ok(())
    }

    async fn read(&self, seq: u64) -> Result<Option<Entry>> {
        store::get_json(self.store.as_ref(), &self.name(seq)).await
    }

    fn name(&self, seq: u64) -> String {
        layout::spend_entry(&self.folder, seq)
    }

    fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, reserved: u64, spent: u64) {
        let mut account = self.account();
        account.reserved = account.reserved.saturating_sub(reserved);
        account.spent = account.spent.saturating_add(spent);
        account.recent.add(self.started.elapsed(), spent);
        drop(account);
        self.settled.notify_waiters();
    }
}

impl Log {
    /// That somebody waits, too, is no reason to wait longer.
    fn adopt(&mut self, entry: Entry) {
        if entry.out != self.standing.out {
            self.changed = Instant::now();
        }
        self.standing = entry;
    }
}

/// How a ledger stands: its last entry. `None` if nothing was ever leased.
///
/// # Errors
/// The store does not answer, or the entry is not ours.
pub async fn last(store: &dyn Store, folder: &str) -> Result<Option<Entry>> {
    let names = store.list(folder).await?;
    let Some(newest) = names.last() else { return Ok(None) };
    store::get_json(store, &newest.name).await
}

/// Changes the most that may be out, for all who use the ledger in a folder (it ends in `/`) from now on. What is leased
/// already stays so. `who` names the process and has no lease.
///
/// # Errors
/// The store does not answer.
pub async fn set_cap(store: &dyn Store, folder: &str, who: &str, cap: u64) -> Result<()> {
    loop {
        let standing = last(store, folder).await?.unwrap_or_default();
        if standing.cap == Some(cap) {
            return Ok(());
        }
        let entry = standing.capped(Ulid::generate().to_string().to_lowercase(), who, cap);
        // If the place is taken, by another or by this very write whose answer was lost, the log tells.
        if store::create_json(store, &layout::spend_entry(folder, entry.seq), &entry).await? == Put::Created {
            return Ok(());
        }
    }
}

fn vanished(name: &str) -> Error {
    Error::internal("an entry of the spend ledger is there and cannot be read").with("object", name)
}
