//! [`Promises`]: what must hold in every state of the store, whatever happened before, and what processes may say when they
//! end. These are the invariants of the protocol's model (design.md 4), seen from outside: from what readers can see and
//! what people were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::plan::Plan;
use rowmill_jobs::publish::{Claim, Manifest, Published, RunOutcome};
use rowmill_jobs::{Error, Kind, layout};
use rowmill_scheduler::Resolved;
use rowmill_sql::{FooterRead, read_part_metadata};

use super::objects::Objects;

/// The logical date of all runs.
pub const DATE: &str = "2026-11-20";

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// Readers saw a run, and then one that it had replaced, or none.
    WentBack,
    /// Readers see a run that did not end in success.
    VisibleWithoutSuccess,
    /// Readers see a run of which somebody was told that it is cancelled.
    VisibleThoughCancelled,
    /// A part of a published run is gone.
    PartLost,
    /// A part of a published run is not the one that was published.
    PartChanged,
    /// A published run has parts that its manifest does not name, or not each shard once.
    PartsDiffer,
    /// The marker of success stands without success.
    MarkerWithoutSuccess,
    /// Somebody was told something that is not so.
    ToldWrong,
    /// Something failed in a way that nothing here explains.
    WrongError,
    /// A run does not come to its end.
    Stuck,
    /// A process panicked.
    Panicked,
}

/// A broken promise, and what was seen.
pub type Broken = (Breach, String);

/// Records by name, each read once for each version.
#[derive(Debug)]
struct Records<T> {
    read: fn(&[u8]) -> serde_json::Result<T>,
    known: BTreeMap<String, (u64, Option<Arc<T>>)>,
}

impl<T> Records<T> {
    fn new(read: fn(&[u8]) -> serde_json::Result<T>) -> Self {
        Self { read, known: BTreeMap::new() }
    }

    fn read(&mut self, objects: &Objects, name: &str) -> Option<Arc<T>> {
        let version = objects.version(name);
        if version == 0 {
            return None;
        }
        let known = self.known.entry(name.into()).or_insert((0, None));
        if known.0 != version {
            let record = objects.get(name).and_then(|bytes| (self.read)(&bytes).ok());
            *known = (version, record.map(Arc::new));
        }
        known.1.clone()
    }
}

/// What was seen and told until now.
#[derive(Debug)]
pub struct Promises {
    /// How long a replaced run stays whole; `None` where nothing is ever deleted.
    grace_ms: Option<i64>,
    /// The highest claim whose run readers saw.
    seen: u64,
    told_cancelled: BTreeSet<String>,
    told_published: BTreeSet<String>,
    claims: Records<Claim>,
    published: Records<Published>,
    outcomes: Records<RunOutcome>,
}

impl Promises {
    /// Nothing was seen or told yet. Replaced runs stay whole for `grace`, for ever if there is none.
    pub fn new(grace: Option<Duration>) -> Self {
        Self {
            grace_ms: grace.map(|grace| grace.as_millis() as i64),
            seen: 0,
            told_cancelled: BTreeSet::new(),
            told_published: BTreeSet::new(),
            claims: Records::new(|bytes| serde_json::from_slice(bytes)),
            published: Records::new(|bytes| serde_json::from_slice(bytes)),
            outcomes: Records::new(|bytes| serde_json::from_slice(bytes)),
        }
    }

    /// Looks at the store as a reader with eyes everywhere would.
    pub fn look(&mut self, objects: &Objects) -> Result<(), Broken> {
        let mut visible = Vec::new();
        for object in objects.list(&layout::publications(Some(DATE))) {
            let Some(published) = self.published.read(objects, &object.name) else { continue };
            let manifest = self.visible(objects, &published)?;
            visible.push((object.modified_ms, manifest));
        }
        let top = visible.last().map(|(_, manifest)| manifest.run_key.clone());
        self.sees(objects, top.as_deref())?;
        for (index, (_, manifest)) in visible.iter().enumerate() {
            let replaced_ms = visible[index + 1..].iter().map(|(modified_ms, _)| *modified_ms).min();
            let may_be_gone =
                self.grace_ms.zip(replaced_ms).is_some_and(|(grace, since)| objects.now_ms() - since > grace);
            if !may_be_gone {
                whole(objects, manifest)?;
            }
        }
        Ok(())
    }

    /// Readers see this run.
    fn sees(&mut self, objects: &Objects, run_key: Option<&str>) -> Result<(), Broken> {
        let claim = run_key.and_then(|run_key| self.claim(objects, run_key)).unwrap_or(0);
        if claim < self.seen {
            let what = format!("readers saw the run of claim {} and now that of claim {claim}", self.seen);
            return Err((Breach::WentBack, what));
        }
        self.seen = claim;
        Ok(())
    }

    /// The number of a run's claim.
    fn claim(&mut self, objects: &Objects, run_key: &str) -> Option<u64> {
        objects.list(&layout::claims(DATE)).into_iter().find_map(|object| {
            let claim = self.claims.read(objects, &object.name)?;
            (claim.run_key == run_key).then(|| layout::date_and_seq(&object.name))?.map(|(_, seq)| seq)
        })
    }

    /// The manifest of a run that readers can see.
    fn visible(&mut self, objects: &Objects, published: &Published) -> Result<Manifest, Broken> {
        let run_key = &published.run_key;
        if self.told_cancelled.contains(run_key) {
            return Err((Breach::VisibleThoughCancelled, format!("run {run_key}")));
        }
        let name = layout::outcome(run_key);
        let outcome = self.outcomes.read(objects, &name);
        let etag = objects.info(&name).and_then(|object| object.etag);
        match outcome.as_deref() {
            Some(RunOutcome::Success { manifest }) if etag == published.outcome_etag => Ok(manifest.clone()),
            outcome => Err((Breach::VisibleWithoutSuccess, format!("run {run_key} with {etag:?} {outcome:?}"))),
        }
    }

    /// A marker of success was made.
    pub fn marked(&mut self, objects: &Objects, run_key: &str) -> Result<(), Broken> {
        match self.outcomes.read(objects, &layout::outcome(run_key)).as_deref() {
            Some(RunOutcome::Success { .. }) => Ok(()),
            outcome => Err((Breach::MarkerWithoutSuccess, format!("run {run_key} with {outcome:?}"))),
        }
    }

    /// The highest claim whose run readers could see until now.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// A reader, who could see the run of claim `before` when it began to look, was told what is published.
    pub fn resolved(&mut self, objects: &Objects, before: u64, resolved: Option<&Resolved>) -> Result<(), Broken> {
        self.look(objects)?;
        let told = resolved.map_or(0, |resolved| resolved.seq);
        if !(before..=self.seen).contains(&told) {
            let what = format!("a reader got the run of claim {told}, not one from {before} to {}", self.seen);
            return Err((Breach::ToldWrong, what));
        }
        let Some(resolved) = resolved else { return Ok(()) };
        let run_key = &resolved.manifest.run_key;
        match self.outcomes.read(objects, &layout::outcome(run_key)).as_deref() {
            Some(RunOutcome::Success { manifest }) if *manifest == resolved.manifest => Ok(()),
            outcome => Err((Breach::ToldWrong, format!("a reader got {:?} of {outcome:?}", resolved.manifest))),
        }
    }

    /// A scheduler was told that its run is published.
    pub fn told_published(&mut self, objects: &Objects, told: &Manifest) -> Result<(), Broken> {
        match self.outcomes.read(objects, &layout::outcome(&told.run_key)).as_deref() {
            Some(RunOutcome::Success { manifest }) if manifest == told => {}
            outcome => {
                return Err((Breach::ToldWrong, format!("published as {told:?}, but the outcome is {outcome:?}")));
            }
        }
        self.told_published.insert(told.run_key.clone());
        if self.claim(objects, &told.run_key).is_none_or(|claim| claim > self.seen) {
            let what = format!("run {} is said to be published and no reader sees it", told.run_key);
            return Err((Breach::ToldWrong, what));
        }
        Ok(())
    }

    /// Somebody was told that a run cannot be cancelled, since it is published or just being so.
    pub fn told_too_late(&mut self, objects: &Objects, run_key: &str) -> Result<(), Broken> {
        match self.outcomes.read(objects, &layout::outcome(run_key)).as_deref() {
            Some(RunOutcome::Success { .. }) => Ok(()),
            outcome => Err((Breach::ToldWrong, format!("too late to cancel run {run_key} with {outcome:?}"))),
        }
    }

    /// Somebody was told that a run is cancelled. What readers may see then is looked at whenever there is more to see.
    pub fn told_cancelled(&mut self, objects: &Objects, run_key: &str) -> Result<(), Broken> {
        self.told_cancelled.insert(run_key.into());
        self.look(objects)
    }

    /// A scheduler ended with an error. Returns whether it is over: no later try of the same can end otherwise.
    pub fn told_error(&mut self, objects: &Objects, run_key: &str, error: &Error) -> Result<bool, Broken> {
        let outcome = self.outcomes.read(objects, &layout::outcome(run_key));
        let cancelled = matches!(outcome.as_deref(), Some(RunOutcome::Cancelled { .. }));
        let claim = self.claim(objects, run_key);
        let others = !objects.list(&layout::claims(DATE)).is_empty();
        let garbage = self.grace_ms.is_some() && (cancelled || claim.is_some_and(|claim| claim < self.seen));
        match error.kind() {
            Kind::Temporary => Ok(false),
            Kind::Cancelled if cancelled => self.told_cancelled(objects, run_key).map(|()| true),
            // The date belongs to another run.
            Kind::Invalid if claim.is_none() && others => Ok(true),
            // Parts of a cancelled or replaced run were deleted while its scheduler looked at them.
            Kind::Invalid | Kind::Incomplete if garbage => Ok(false),
            _ => Err((Breach::WrongError, format!("{}; outcome {outcome:?}", error.report()))),
        }
    }

    /// What must hold at last, when every process has ended and all trouble is over.
    pub fn at_last(&mut self, objects: &Objects, runs: &BTreeSet<String>) -> Result<(), Broken> {
        self.look(objects)?;
        for run_key in runs {
            let outcome = self.outcomes.read(objects, &layout::outcome(run_key));
            match outcome.as_deref() {
                Some(RunOutcome::Success { manifest }) if self.told_published.contains(run_key) => {
                    exactly_once(objects, manifest)?;
                }
                Some(RunOutcome::Cancelled { .. }) if !self.told_published.contains(run_key) => {}
                None if self.claim(objects, run_key).is_none() => {}
                outcome => return Err((Breach::Stuck, format!("run {run_key} ended as {outcome:?}"))),
            }
        }
        Ok(())
    }
}

/// Whether a published run's folder holds exactly the parts of its manifest.
fn whole(objects: &Objects, manifest: &Manifest) -> Result<(), Broken> {
    for part in &manifest.parts {
        match objects.info(&part.name) {
            None => return Err((Breach::PartLost, part.name.clone())),
            Some(object) if object.etag != part.etag => {
                return Err((Breach::PartChanged, format!("{}: {:?} is now {:?}", part.name, part.etag, object.etag)));
            }
            Some(_) => {}
        }
    }
    let stored = objects.list(&layout::parts(&manifest.run_key));
    if stored.len() == manifest.parts.len() {
        return Ok(());
    }
    Err((
        Breach::PartsDiffer,
        format!("run {}: {} parts, {} in the manifest", manifest.run_key, stored.len(), manifest.parts.len()),
    ))
}

/// Whether a manifest has each shard of the stored plan once, and says of each part what the part says of itself.
fn exactly_once(objects: &Objects, manifest: &Manifest) -> Result<(), Broken> {
    let differ = |what: String| (Breach::PartsDiffer, format!("run {}: {what}", manifest.run_key));
    let plan =
        objects.get(&layout::plan(&manifest.run_key)).and_then(|bytes| serde_json::from_slice::<Plan>(&bytes).ok());
    let plan = plan.ok_or_else(|| differ("no plan".into()))?;
    let shards: Vec<Option<u32>> =
        manifest.parts.iter().map(|part| layout::shard_of_part(&plan.run_key, &part.name)).collect();
    if shards != plan.shards.iter().map(|shard| Some(shard.index)).collect::<Vec<_>>() || manifest.rows != plan.rows() {
        return Err(differ(format!("shards {shards:?} of {}, {} rows", plan.shards.len(), manifest.rows)));
    }
    for part in &manifest.parts {
        // A replaced run's parts are collected; a zombie's PUT may come after that.
        if objects.info(&part.name).is_none_or(|object| object.etag != part.etag) {
            continue;
        }
        let bytes = objects.get(&part.name).unwrap_or_default();
        let total = bytes.len() as u64;
        let Ok(FooterRead::Found(pairs)) = read_part_metadata(bytes, total) else {
            return Err(differ(format!("{} cannot be read", part.name)));
        };
        let says = pairs.get(rowmill_jobs::part::METADATA_KEY);
        if !says.is_some_and(|says| says.contains(&part.attempt)) {
            return Err(differ(format!("{} is not of attempt {}: {says:?}", part.name, part.attempt)));
        }
    }
    Ok(())
}
