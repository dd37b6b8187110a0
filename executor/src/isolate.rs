//! Computes a shard that ends every process that tries it. It runs in processes of its own, which may die: halving the
//! shard finds the rows that kill them, and those rows end as row errors like any other. Needs no more from the parent
//! than that it stays alive.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rowmill_jobs::infer::{Engine, Outcome, Request, RowError, RowErrorCode, Task, Usage};
use rowmill_jobs::plan::{Shard, Slice};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::queue::RunRef;
use rowmill_jobs::record::Failure;
use rowmill_jobs::{Error, Result};
use rowmill_sql::PartSummary;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::attempt::{Waiting, Who};
use crate::egress::Egress;
use crate::engines::EngineLimits;
use crate::runs::Runs;
use crate::worker::{Watch, compute_part};

/// Rows of one shard that may end a process; more are no accident of single rows.
const CRASHES_MAX: usize = 64;

/// A shard to be computed in processes of its own.
#[derive(Debug)]
pub(crate) struct Isolated<'a> {
    pub(crate) command: &'a [OsString],
    pub(crate) run: &'a RunRef,
    pub(crate) shard: &'a Shard,
    pub(crate) scratch: &'a Path,
}

/// What such a process is told to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    run: RunRef,
    shard: u32,
    attempt: String,
    stretches: Vec<Stretch>,
    file: PathBuf,
}

/// Consecutive rows of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stretch {
    /// Counted within the shard.
    first_row: u64,
    rows: u64,
    /// Whether they are kept from the models.
    quarantined: bool,
}

/// What such a process says, if it lives to say anything.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Computed { rows: u64, errors: u64, usage: Usage, requests: u64, bytes: u64 },
    Failed(Failure),
}

impl Isolated<'_> {
    /// Computes the shard's part into `file`.
    ///
    /// # Errors
    /// What computing meets other than the end of a process; too many rows that end one.
    pub(crate) async fn compute(&self, attempt: &str, file: &Path) -> Result<PartSummary> {
        tracing::warn!(shard = self.shard.index, "earlier attempts died; computing in a process of its own");
        let whole = vec![Stretch { first_row: 0, rows: self.shard.rows(), quarantined: false }];
        if let Some(summary) = self.order(attempt, whole.clone(), file).await? {
            return Ok(summary);
        }
        let mut crashing = self.crashing_rows(attempt, file).await?;
        crashing.sort_unstable();
        tracing::warn!(shard = self.shard.index, rows = crashing.len(), "rows that end a process were found");
        match self.order(attempt, around(self.shard.rows(), &crashing), file).await? {
            Some(summary) => Ok(summary),
            None => Err(self.hopeless("without the rows that end it alone, computing still ends the process")),
        }
    }

    /// The rows that end a process when computed alone, by halving.
    async fn crashing_rows(&self, attempt: &str, file: &Path) -> Result<Vec<u64>> {
        let (mut crashing, mut suspects) = (Vec::new(), halves(0, self.shard.rows()));
        while let Some((first_row, rows)) = suspects.pop_front() {
            let alone = vec![Stretch { first_row, rows, quarantined: false }];
            if rows == 0 || self.order(attempt, alone, file).await?.is_some() {
                continue;
            }
            if rows > 1 {
                suspects.extend(halves(first_row, rows));
            } else if crashing.len() == CRASHES_MAX {
                return Err(self.hopeless(&format!("more than {CRASHES_MAX} rows end the process")));
            } else {
                crashing.push(first_row);
            }
        }
        Ok(crashing)
    }

    fn hopeless(&self, what: &str) -> Error {
        Error::invalid(format!("a shard cannot be computed: {what}"))
            .with("shard", self.shard.index)
            .hint("look at this machine's memory and at the model: rows alone do not explain it")
    }

    /// Has a process compute stretches of the shard. `None`: the process died.
    async fn order(&self, attempt: &str, stretches: Vec<Stretch>, file: &Path) -> Result<Option<PartSummary>> {
        let order = Order {
            run: self.run.clone(),
            shard: self.shard.index,
            attempt: attempt.into(),
            stretches,
            file: file.to_path_buf(),
        };
        let broken = |error: std::io::Error| Error::temporary("cannot start a process").caused_by(error);
        let path = self.scratch.join(format!("order-{attempt}.json"));
        let text = serde_json::to_vec(&order).map_err(|error| Error::internal("cannot write JSON").caused_by(error))?;
        tokio::fs::write(&path, text).await.map_err(broken)?;
        let (program, args) = self.command.split_first().ok_or_else(|| Error::internal("an empty command"))?;
        let mut command = Command::new(program);
        // The pipe tells the child when we are gone.
        command.args(args).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn().map_err(broken)?;
        let held_open = child.stdin.take();
        let output = child.wait_with_output().await.map_err(broken)?;
        drop(held_open);
        let last = output.stdout.rsplit(|byte| *byte == b'\n').find(|line| !line.is_empty()).unwrap_or_default();
        match serde_json::from_slice(last) {
            Ok(Said::Computed { rows, errors, usage, requests, bytes }) if output.status.success() => {
                Ok(Some(PartSummary { rows, errors, usage, requests, bytes }))
            }
            Ok(Said::Failed(failure)) => Err(failure.to_error()),
            Ok(Said::Computed { .. }) | Err(_) => {
                tracing::warn!(shard = self.shard.index, status = %output.status, "the process died");
                Ok(None)
            }
        }
    }
}

/// Two halves of `rows` rows from `first_row` on.
fn halves(first_row: u64, rows: u64) -> VecDeque<(u64, u64)> {
    let half = rows / 2;
    [(first_row, half), (first_row + half, rows - half)].into()
}

/// All rows of a shard, in order, those that crash apart.
fn around(rows: u64, crashing: &[u64]) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let mut next = 0;
    for &row in crashing.iter().chain([&rows]) {
        if row > next {
            stretches.push(Stretch { first_row: next, rows: row - next, quarantined: false });
        }
        if row < rows {
            stretches.push(Stretch { first_row: row, rows: 1, quarantined: true });
        }
        next = row + 1;
    }
    stretches
}

/// The slices of rows `first_row..first_row + rows`, counted over all of `slices`.
fn cut(slices: &[Slice], first_row: u64, rows: u64) -> Vec<Slice> {
    let (mut before, end) = (0, first_row + rows);
    let mut found = Vec::new();
    for slice in slices {
        let (from, to) = (first_row.max(before), end.min(before + slice.rows));
        if from < to {
            found.push(Slice { first_row: slice.first_row + (from - before), rows: to - from, ..slice.clone() });
        }
        before += slice.rows;
    }
    found
}

/// Answers nothing: its rows are kept from the models.
#[derive(Debug)]
struct Quarantine;

#[async_trait]
impl Engine for Quarantine {
    async fn infer(&self, _task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let error = || RowError::new(RowErrorCode::Crash, "computing this row ends the process");
        Ok(requests.iter().map(|_| Err(error())).collect())
    }
}

/// The whole life of a process that computes stretches of a shard: reads its order, writes the file, prints what became of
/// it on one line. Returns that line. Ends the process when the parent is gone.
pub async fn obey(order: &Path, patience: Duration, limits: EngineLimits, egress: Arc<Egress>) -> String {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let said = match compute(order, patience, limits, egress).await {
        Ok(summary) => {
            let PartSummary { rows, errors, usage, requests, bytes } = summary;
            Said::Computed { rows, errors, usage, requests, bytes }
        }
        Err(error) => Said::Failed(Failure::new("a process of its own", &error)),
    };
    serde_json::to_string(&said).unwrap_or_default()
}

async fn compute(order: &Path, patience: Duration, limits: EngineLimits, egress: Arc<Egress>) -> Result<PartSummary> {
    let unreadable = || Error::internal("the order cannot be read");
    let text = tokio::fs::read(order).await.map_err(|error| unreadable().caused_by(error))?;
    let order: Order = serde_json::from_slice(&text).map_err(|error| unreadable().caused_by(error))?;
    let who = Who { executor: "a process of its own".into(), patience, waiting: Waiting::default() };
    // What cannot be loaded beside a parent that has it loaded is no fault of the run's.
    let limits = EngineLimits { others_compute: true, ..limits };
    let run = Runs::new(limits, egress).get(&order.run, &who).await?;
    let shard =
        run.plan.shards.get(order.shard as usize).ok_or_else(|| Error::internal("the plan has no such shard"))?;
    let counters = Arc::new(Counters::default());
    let asked = run.engine.at(order.shard, &order.attempt);
    let mut rows = Vec::new();
    for stretch in &order.stretches {
        let slices = cut(&shard.slices, stretch.first_row, stretch.rows);
        let engine: Arc<dyn Engine> = if stretch.quarantined { Arc::new(Quarantine) } else { Arc::clone(&asked) as _ };
        rows.push(run.compiled.run(&slices, engine, Arc::new(Watch(Arc::clone(&counters))))?);
    }
    let computed = compute_part(&run, shard, &asked, rows, &order.file).await;
    asked.settle(run.store.as_ref()).await;
    computed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_cover_every_row_once() {
        for crashing in [&[] as &[u64], &[0], &[9], &[0, 1, 5, 9], &[3, 4]] {
            let stretches = around(10, crashing);
            let rows: Vec<u64> = stretches.iter().flat_map(|s| s.first_row..s.first_row + s.rows).collect();
            assert_eq!(rows, (0..10).collect::<Vec<_>>());
            let apart: Vec<u64> = stretches.iter().filter(|s| s.quarantined).map(|s| s.first_row).collect();
            assert_eq!(apart, crashing);
        }
    }

    #[test]
    fn a_cut_counts_over_all_slices() {
        let slice = |row_group, first_row, rows| Slice { file: 0, row_group, first_row, rows };
        let slices = [slice(0, 10, 5), slice(1, 0, 3)];
        assert_eq!(cut(&slices, 0, 8), slices);
        assert_eq!(cut(&slices, 3, 3), [slice(0, 13, 2), slice(1, 0, 1)]);
        assert_eq!(cut(&slices, 6, 1), [slice(1, 1, 1)]);
        assert_eq!(cut(&slices, 8, 0), []);
    }

    #[test]
    fn halves_of_one_row_are_nothing_and_it() {
        assert_eq!(halves(7, 1), [(7, 0), (7, 1)]);
        assert_eq!(halves(0, 5), [(0, 2), (2, 3)]);
    }
}
