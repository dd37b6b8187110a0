//! [`exact`]: whether a published output is what was promised: every row of the table once, with its own answer, in exactly
//! the parts that the manifest names; one plan, one outcome, one claim, one publication. It reads S3 itself, and believes no
//! process.

use std::collections::BTreeMap;

use rowmill_jobs::publish::{Manifest, PartEntry, RunOutcome};

use super::bucket::{Bucket, Object};
use super::processes::{Cluster, DATE, OUTPUT};
use crate::support::{integers, read_table, strings};

/// What was found of a run that is as it should be.
#[derive(Debug)]
pub struct Facts {
    pub run_key: String,
    pub parts: usize,
    /// Attempts at shards that were begun.
    pub attempts: usize,
    pub batches: Vec<arrow::array::RecordBatch>,
}

/// Checks the output of a job whose table has the ids `0..rows`; `answer` is what a row should have.
pub fn exact(bucket: &Bucket, rows: i64, answer: impl Fn(i64) -> Option<String>) -> Result<Facts, String> {
    let objects = bucket.list(OUTPUT);
    let only = |what: &str, wanted: &dyn Fn(&str) -> bool| match &objects
        .iter()
        .filter(|object| wanted(&object.key))
        .collect::<Vec<_>>()[..]
    {
        [one] => Ok(one.key.clone()),
        found => Err(format!("{} instead of one {what}: {found:?}", found.len())),
    };
    let plan = only("plan", &|key| key.ends_with("/_plan.json"))?;
    only("outcome", &|key| key.contains("_outcome"))?;
    only("marker", &|key| key.contains("_SUCCESS"))?;
    only("claim", &|key| key.starts_with(&format!("{OUTPUT}_claims/")))?;
    let publication = only("publication", &|key| key.starts_with(&format!("{OUTPUT}_published/")))?;
    equal("the publication's name", &publication, &format!("{OUTPUT}_published/{DATE}/000001.json"))?;
    let published = bucket.json(&publication).ok_or("no publication")?;
    let run_key = published["run_key"].as_str().ok_or("no run_key")?.to_owned();
    equal("the plan's name", &plan, &format!("{OUTPUT}run={run_key}/_plan.json"))?;
    let manifest = manifest(bucket, &run_key)?;
    let prefix = format!("{OUTPUT}run={run_key}/part-");
    let parts: Vec<&Object> = objects.iter().filter(|object| object.key.contains("/part-")).collect();
    manifest_is_listing(&manifest, &parts)?;
    let shards = bucket.json(&plan).ok_or("no plan")?["shards"].as_array().ok_or("no shards")?.len();
    equal("the number of parts", &parts.len(), &shards)?;
    equal("the manifest's rows", &manifest.rows, &u64::try_from(rows).map_err(|error| error.to_string())?)?;

    let folder = tempfile::tempdir().expect("a temporary folder");
    for part in &parts {
        let name = part.key.strip_prefix(&prefix).ok_or_else(|| format!("{} is of no run", part.key))?;
        let content = bucket.get(&part.key).ok_or_else(|| format!("{} is gone", part.key))?;
        std::fs::write(folder.path().join(name), content).expect("the part is written");
    }
    let batches = read_table(folder.path());
    let ids = integers(&batches, "id");
    let mut seen: BTreeMap<i64, u32> = BTreeMap::new();
    ids.iter().for_each(|id| *seen.entry(*id).or_default() += 1);
    if let Some((id, times)) = seen.iter().find(|(id, times)| **times != 1 || !(0..rows).contains(*id)) {
        return Err(format!("row {id} is there {times} times"));
    }
    equal("the number of rows", &ids.len(), &usize::try_from(rows).map_err(|error| error.to_string())?)?;
    for (id, found) in ids.iter().zip(strings(&batches, "answer")) {
        equal(&format!("the answer of row {id}"), &found, &answer(*id))?;
    }
    let attempts = objects.iter().filter(|object| object.key.contains("/_attempts/")).count();
    Ok(Facts { run_key, parts: parts.len(), attempts, batches })
}

/// Checks a job over the table of [`Cluster::with_rows`].
pub fn echoed(cluster: &Cluster, rows: i64) -> Facts {
    exact(&cluster.bucket(), rows, |id| Some(format!("text of row {id}")))
        .unwrap_or_else(|violation| panic!("{violation}\n{}", cluster.last_words()))
}

/// The manifest of a run that succeeded.
pub fn manifest(bucket: &Bucket, run_key: &str) -> Result<Manifest, String> {
    let outcome = bucket.json(&format!("{OUTPUT}run={run_key}/_outcome.json")).ok_or("no outcome")?;
    match serde_json::from_value(outcome) {
        Ok(RunOutcome::Success { manifest }) => Ok(manifest),
        Ok(RunOutcome::Cancelled { .. }) => Err("a cancelled run is published".to_owned()),
        Err(error) => Err(format!("the outcome cannot be read: {error}")),
    }
}

/// Checks that the parts that exist are those of the manifest, byte for byte as far as names, sizes and entity tags tell.
pub fn manifest_is_listing(manifest: &Manifest, listed: &[&Object]) -> Result<(), String> {
    let entry = |part: &PartEntry| {
        let etag = part.etag.as_deref().unwrap_or_default().trim_matches('"').to_owned();
        (format!("{OUTPUT}{}", part.name), part.bytes, etag)
    };
    let mut named: Vec<_> = manifest.parts.iter().map(entry).collect();
    named.sort();
    let listed: Vec<_> = listed.iter().map(|part| (part.key.clone(), part.bytes, part.etag.clone())).collect();
    let missing: Vec<_> = named.iter().filter(|part| !listed.contains(part)).collect();
    let unnamed: Vec<_> = listed.iter().filter(|part| !named.contains(part)).collect();
    if !missing.is_empty() || !unnamed.is_empty() || named.len() != listed.len() {
        return Err(format!("the manifest is not what exists: it names {missing:?}, the store has {unnamed:?}"));
    }
    Ok(())
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:?}, not {expected:?}")) }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let cluster = Cluster::new("", ", shard_rows = 20", 0).with_rows(60);
    let _executor = cluster.executor(&[]);
    cluster.submit().wait().ok();
    let bucket = cluster.bucket();
    let answer = |id| Some(format!("text of row {id}"));
    let facts = exact(&bucket, 60, answer).expect("as it should be");
    let part = |shard| format!("{OUTPUT}run={}/part-{shard:05}.parquet", facts.run_key);
    let content = bucket.get(&part(1)).expect("a part");
    let refuses = |what: &str| {
        let violation = exact(&bucket, 60, answer).expect_err(what);
        assert!(violation.contains(what), "{what}: {violation}");
    };
    assert!(exact(&bucket, 61, answer).is_err() && exact(&bucket, 59, answer).is_err());
    assert!(exact(&bucket, 60, |id| answer(id % 59)).expect_err("a wrong answer").contains("row 59"));
    // Another attempt's part in place of the one that was published.
    bucket.put(&part(1), &bucket.get(&part(2)).expect("a part"));
    refuses("part-00001");
    bucket.put(&part(1), &content);
    exact(&bucket, 60, answer).expect("as it was");
    bucket.put(&part(3), &content);
    refuses("part-00003");
}
