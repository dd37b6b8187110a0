//! [`Budget`]: everything that bounds what may be sent under a permit: the job's cap, and what the operator's rule allows a
//! run and a day. Each bound is a ledger that all executors share; all of them must grant a request before it is sent.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::Utc;
use rowmill_jobs::spend::{Ledger, Pace, Reservation, Reserve, SetAside};
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Kind, Result, layout, money};

use crate::policy::config::Amounts;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Rows that leave.
    Rows,
    /// Tokens, prompt and output together.
    Tokens,
    /// Nano-dollars.
    Money,
}

impl Unit {
    /// The word for it in names of ledgers.
    fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Tokens => "tokens",
            Self::Money => "usd",
        }
    }

    fn show(self, amount: u64) -> String {
        match self {
            Self::Money => format!("{} USD", money::show(amount)),
            Self::Rows | Self::Tokens => format!("{amount} {}", self.as_str()),
        }
    }

    fn of(self, amount: Amount) -> u64 {
        match self {
            Self::Rows => amount.rows,
            Self::Tokens => amount.tokens,
            Self::Money => amount.nano_usd,
        }
    }

    fn limits(amounts: &Amounts) -> impl Iterator<Item = (Self, u64)> {
        let money = amounts.usd.map(|usd| usd.nano_usd);
        let named = [(Self::Rows, amounts.rows), (Self::Tokens, amounts.tokens), (Self::Money, money)];
        named.into_iter().filter_map(|(unit, limit)| Some((unit, limit?)))
    }
}

/// What a request takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Rows that leave with it for the first time.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Nano-dollars.
    pub nano_usd: u64,
}

/// All bounds of a permit.
#[derive(Debug, Default)]
pub struct Budget {
    bounds: Vec<Bound>,
}

#[derive(Debug)]
struct Bound {
    /// What the user or the operator calls it.
    name: String,
    unit: Unit,
    ledger: Counted,
}

#[derive(Debug)]
enum Counted {
    /// In one ledger for good.
    Run(Arc<Ledger>),
    /// In one for each day (UTC).
    Days(Daily),
}

#[derive(Debug)]
struct Daily {
    store: Arc<dyn Store>,
    rule: String,
    unit: Unit,
    limit: u64,
    executor: String,
    today: Mutex<Option<(String, Arc<Ledger>)>>,
}

impl Daily {
    fn ledger(&self) -> Arc<Ledger> {
        let day = Utc::now().date_naive().to_string();
        let mut today = self.today.lock().unwrap_or_else(PoisonError::into_inner);
        match &*today {
            Some((known, ledger)) if *known == day => Arc::clone(ledger),
            _ => {
                let folder = layout::spend_of_day(&day, &self.rule, self.unit.as_str());
                let store = Arc::clone(&self.store);
                let ledger = Ledger::new(store, folder, self.executor.clone(), self.limit, Pace::default());
                *today = Some((day, Arc::clone(&ledger)));
                ledger
            }
        }
    }
}

/// Whose requests are counted, and where.
#[derive(Debug, Clone, Copy)]
pub struct Books<'a> {
    /// The run's output; nothing a run can be bounded by without one.
    pub run: Option<(&'a Arc<dyn Store>, &'a str)>,
    /// The operator's, over all runs.
    pub days: Option<&'a Arc<dyn Store>>,
    /// This process, by a name that none had before.
    pub executor: &'a str,
}

impl Budget {
    /// A budget without bounds.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the job's own cap.
    #[must_use]
    pub fn with_cap(mut self, ledger: &Arc<Ledger>) -> Self {
        let ledger = Counted::Run(Arc::clone(ledger));
        self.bounds.push(Bound { name: "max_cost_usd".into(), unit: Unit::Money, ledger });
        self
    }

    /// With what a rule allows.
    ///
    /// # Errors
    /// It bounds what leaves in a day, and there is no place to count that.
    pub fn with_rule(mut self, rule: &str, per_run: &Amounts, per_day: &Amounts, books: Books<'_>) -> Result<Self> {
        for (unit, limit) in Unit::limits(per_run) {
            let Some((store, run_key)) = books.run else { continue };
            let folder = layout::spend_of_rule(run_key, rule, unit.as_str());
            let ledger = Ledger::new(Arc::clone(store), folder, books.executor.to_owned(), limit, Pace::default());
            self.bounds.push(Bound { name: format!("per_run of rule {rule:?}"), unit, ledger: Counted::Run(ledger) });
        }
        for (unit, limit) in Unit::limits(per_day) {
            let store = books.days.ok_or_else(|| {
                Error::invalid(format!(
                    "rule {rule:?} bounds what leaves in a day, and nothing says where that is counted"
                ))
                .hint("name a folder that all executors can write to: ledger = \"s3://…/\" in [egress] of rowmill.toml")
            })?;
            let ledger = Counted::Days(Daily {
                store: Arc::clone(store),
                rule: rule.to_owned(),
                unit,
                limit,
                executor: books.executor.to_owned(),
                today: Mutex::default(),
            });
            self.bounds.push(Bound { name: format!("per_day of rule {rule:?}"), unit, ledger });
        }
        Ok(self)
    }

    /// Whether money is bounded: then prices must be known.
    pub fn bounds_money(&self) -> bool {
        self.bounds.iter().any(|bound| bound.unit == Unit::Money)
    }

    /// Reserves the most that a request can take.
    ///
    /// # Errors
    /// A bound is reached ([`Kind::Incomplete`]), or a ledger's store does not answer. Nothing is reserved then.
    pub async fn reserve(&self, most: Amount) -> Result<Unsent> {
        let mut unsent = Unsent(Vec::with_capacity(self.bounds.len()));
        for bound in &self.bounds {
            let amount = bound.unit.of(most);
            if amount == 0 {
                continue;
            }
            let ledger = bound.ledger.now();
            match ledger.reserve(amount).await? {
                Reserve::Granted(reservation) => unsent.0.push((bound.unit, reservation)),
                Reserve::CapReached { left } => return Err(bound.reached(left, amount)),
            }
        }
        Ok(unsent)
    }

    /// Sets aside the most that a batch can take, under its name, unless that was done already: it outlives this process, and
    /// another one releases it.
    ///
    /// # Errors
    /// As [`Budget::reserve`].
    pub(crate) async fn set_aside(&self, name: &str, most: Amount) -> Result<()> {
        for (index, bound) in self.bounds.iter().enumerate() {
            let amount = bound.unit.of(most);
            if amount == 0 {
                continue;
            }
            let refused = match bound.ledger.now().set_aside(name, amount).await {
                Ok(SetAside::Done) => continue,
                Ok(SetAside::CapReached { left }) => bound.reached(left, amount),
                Err(error) => error,
            };
            for before in self.bounds.iter().take(index) {
                // What cannot be given back now is found when the batch is tried again.
                let _ = before.ledger.now().release(name, 0).await;
            }
            return Err(refused);
        }
        Ok(())
    }

    /// Ends what was set aside under a batch's name: it took this, the rest is free again. What was set aside on another day
    /// stays counted in that day, whole.
    ///
    /// # Errors
    /// A ledger's store does not answer; what was not given back counts as taken.
    pub(crate) async fn release(&self, name: &str, took: Amount) -> Result<()> {
        for bound in &self.bounds {
            bound.ledger.now().release(name, bound.unit.of(took)).await?;
        }
        Ok(())
    }

    /// Gives back what is not reserved.
    ///
    /// # Errors
    /// A ledger's store does not answer; what was not given back counts as spent.
    pub async fn give_back(&self) -> Result<()> {
        for bound in &self.bounds {
            bound.ledger.now().give_back().await?;
        }
        Ok(())
    }
}

impl Counted {
    fn now(&self) -> Arc<Ledger> {
        match self {
            Self::Run(ledger) => Arc::clone(ledger),
            Self::Days(daily) => daily.ledger(),
        }
    }
}

impl Bound {
    fn reached(&self, left: u64, amount: u64) -> Error {
        let hint = match &self.ledger {
            Counted::Run(_) if self.name == "max_cost_usd" => "raise max_cost_usd and start the same command again",
            Counted::Run(_) => "whoever keeps rowmill.toml can raise it; then start the same command again",
            Counted::Days(_) => "start the same command again tomorrow (UTC)",
        };
        Error::new(Kind::Incomplete, format!("{} is reached", self.name))
            .with("left", self.unit.show(left))
            .with("next request", format!("{} at most", self.unit.show(amount)))
            .hint(format!("finished parts and paid answers are kept; {hint}"))
    }
}

/// What is reserved for a request that has not left. Dropped, none of it counts as taken.
#[derive(Debug)]
pub struct Unsent(Vec<(Unit, Reservation)>);

impl Unsent {
    /// The request may leave now.
    pub fn leaves(mut self) -> Reserved {
        Reserved(std::mem::take(&mut self.0))
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        for (_, reservation) in self.0.drain(..) {
            reservation.settle(0);
        }
    }
}

/// What was reserved for one request that may have left. Dropped without [`Reserved::settle`], all of it counts as taken.
#[derive(Debug)]
pub struct Reserved(Vec<(Unit, Reservation)>);

impl Reserved {
    /// The request has ended and took this.
    pub fn settle(self, took: Amount) {
        for (unit, reservation) in self.0 {
            reservation.settle(unit.of(took));
        }
    }
}

#[cfg(test)]
mod tests {
    use rowmill_jobs::store::local::LocalStore;

    use super::*;
    use crate::policy::Usd;

    fn amounts(rows: Option<u64>, usd: Option<u64>) -> Amounts {
        Amounts { rows, tokens: None, usd: usd.map(|nano_usd| Usd { nano_usd }) }
    }

    fn request(rows: u64, nano_usd: u64) -> Amount {
        Amount { rows, tokens: 10, nano_usd }
    }

    #[tokio::test(start_paused = true)]
    async fn every_bound_must_grant_and_a_refusal_takes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_owned()));
        let books = Books { run: Some((&store, "run")), days: Some(&store), executor: "one" };
        let budget = Budget::new()
            .with_cap(&Ledger::of_run(Arc::clone(&store), "run", "one", 1_000))
            .with_rule("r/ö", &amounts(Some(3), None), &amounts(None, Some(250)), books)
            .unwrap();
        assert!(budget.bounds_money());
        budget.reserve(request(1, 100)).await.unwrap().leaves().settle(request(1, 100));
        budget.reserve(request(1, 100)).await.unwrap().leaves().settle(request(1, 100));
        let day = budget.reserve(request(1, 100)).await.unwrap_err();
        assert_eq!(day.kind(), Kind::Incomplete);
        assert!(day.to_string().contains("per_day of rule \"r/ö\" is reached"), "{day}");
        // The refused request's row was not counted: one is left.
        drop(budget.reserve(request(1, 50)).await.unwrap());
        budget.reserve(request(1, 50)).await.unwrap().leaves().settle(request(1, 0));
        let run = budget.reserve(request(1, 50)).await.unwrap_err();
        assert!(run.to_string().contains("per_run"), "{run}");
        assert!(run.report().contains("0 rows"), "{}", run.report());
    }

    #[tokio::test(start_paused = true)]
    async fn a_day_is_one_for_all_runs() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_owned()));
        for (executor, rows) in [("one", 4), ("two", 1)] {
            let books = Books { run: Some((&store, executor)), days: Some(&store), executor };
            let limit = amounts(Some(5), None);
            let budget = Budget::new().with_rule("r", &Amounts::default(), &limit, books).unwrap();
            for _ in 0..rows {
                budget.reserve(request(1, 0)).await.unwrap().leaves().settle(request(1, 0));
            }
            budget.give_back().await.unwrap();
            let more = budget.reserve(request(2, 0)).await;
            assert!(more.is_err(), "{executor}");
        }
    }

    #[test]
    fn a_day_needs_a_place_to_be_counted() {
        let books = Books { run: None, days: None, executor: "one" };
        let refused = Budget::new().with_rule("r", &Amounts::default(), &amounts(Some(1), None), books).unwrap_err();
        assert!(refused.hint_text().unwrap().contains("ledger ="));
        assert!(Budget::new().with_rule("r", &amounts(Some(1), None), &Amounts::default(), books).is_ok());
    }
}
