//! Claims on logical dates: which run owns a date, and in which order reruns superseded each other. The sequence number
//! is the fencing token: readers take the highest published one, so a late publisher of an older run changes nothing.

use rowmill_jobs::publish::Claim;
use rowmill_jobs::store::{self, Put, Store};
use rowmill_jobs::{Error, Result, layout};

/// What a run does if its date belongs to another run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supersede {
    /// Refuse.
    Never,
    /// Take the next sequence number: the user asked for a rerun.
    Yes,
}

/// The sequence number of this run on this date: the one it holds already, or a new one.
///
/// # Errors
/// The date belongs to another run and `supersede` does not allow taking it over.
pub async fn claim(store: &dyn Store, logical_date: &str, run_key: &str, supersede: Supersede) -> Result<u64> {
    loop {
        let seq = match turn(store, logical_date, run_key, supersede).await? {
            Turn::Held(seq) => return Ok(seq),
            Turn::Free(seq) => seq,
        };
        let name = layout::claim(logical_date, seq);
        if store::create_json(store, &name, &Claim { run_key: run_key.into() }).await? == Put::Created {
            return Ok(seq);
        }
    }
}

/// Refuses what [`claim`] would refuse as things are now, and claims nothing.
///
/// # Errors
/// Those of [`claim`].
pub(crate) async fn check_claim(
    store: &dyn Store,
    logical_date: &str,
    run_key: &str,
    supersede: Supersede,
) -> Result<()> {
    turn(store, logical_date, run_key, supersede).await.map(drop)
}

/// What a run may do on a date.
enum Turn {
    /// It has this sequence number.
    Held(u64),
    /// It may try to get this one.
    Free(u64),
}

async fn turn(store: &dyn Store, logical_date: &str, run_key: &str, supersede: Supersede) -> Result<Turn> {
    let claims = held(store, logical_date).await?;
    if let Some((seq, _)) = claims.iter().find(|(_, holder)| holder == run_key) {
        return Ok(Turn::Held(*seq));
    }
    match claims.last() {
        None => Ok(Turn::Free(1)),
        Some((seq, _)) if supersede == Supersede::Yes => Ok(Turn::Free(seq + 1)),
        Some((_, holder)) => Err(Error::invalid(format!("{logical_date} already belongs to run {holder}"))
            .with("output", store.url())
            .with("this run", run_key)
            .hint("the job file or its parameters changed since; to replace that run's result for this date, add --rerun ID (any word; the same word joins the same rerun)")),
    }
}

/// The sequence number a run holds on a date, if it holds one.
///
/// # Errors
/// The store does not answer.
pub async fn sequence(store: &dyn Store, logical_date: &str, run_key: &str) -> Result<Option<u64>> {
    let claims = held(store, logical_date).await?;
    Ok(claims.into_iter().find(|(_, holder)| holder == run_key).map(|(seq, _)| seq))
}

/// The runs that hold a claim, on any date.
///
/// # Errors
/// The store does not answer.
pub async fn holders(store: &dyn Store) -> Result<Vec<String>> {
    let mut runs = Vec::new();
    for object in store.list(layout::CLAIMS).await? {
        if let Some(claim) = store::get_json::<Claim>(store, &object.name).await? {
            runs.push(claim.run_key);
        }
    }
    Ok(runs)
}

/// All claims on a date as `(seq, run_key)`, by seq.
async fn held(store: &dyn Store, logical_date: &str) -> Result<Vec<(u64, String)>> {
    let mut claims = Vec::new();
    for object in store.list(&layout::claims(logical_date)).await? {
        let Some((_, seq)) = layout::date_and_seq(&object.name) else { continue };
        if let Some(claim) = store::get_json::<Claim>(store, &object.name).await? {
            claims.push((seq, claim.run_key));
        }
    }
    claims.sort();
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowmill_jobs::store::local::LocalStore;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_date_has_one_owner_until_a_rerun_supersedes_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().into());
        let claimed = |run, supersede| claim(&store, "2026-11-20", run, supersede);
        assert_eq!(claimed("a", Supersede::Never).await.unwrap(), 1);
        assert_eq!(claimed("a", Supersede::Never).await.unwrap(), 1);
        assert!(claimed("b", Supersede::Never).await.unwrap_err().report().contains("--rerun"));
        assert_eq!(claimed("b", Supersede::Yes).await.unwrap(), 2);
        assert_eq!(claimed("a", Supersede::Yes).await.unwrap(), 1);
        assert_eq!(sequence(&store, "2026-11-20", "b").await.unwrap(), Some(2));
        assert_eq!(sequence(&store, "2026-11-21", "b").await.unwrap(), None);
    }

    #[tokio::test]
    async fn racing_reruns_get_different_numbers_and_racing_twins_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(folder.path().into()));
        let racers = (0..32).map(|racer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let run = format!("run-{}", racer % 8);
                let seq = claim(store.as_ref(), "2026-11-20", &run, Supersede::Yes).await.unwrap();
                (run, seq)
            })
        });
        let mut won: Vec<_> = futures::future::join_all(racers).await.into_iter().map(Result::unwrap).collect();
        won.sort();
        won.dedup();
        let mut sequences: Vec<u64> = won.iter().map(|(_, seq)| *seq).collect();
        sequences.sort_unstable();
        assert_eq!((won.len(), sequences), (8, (1..=8).collect::<Vec<_>>()));
    }
}
