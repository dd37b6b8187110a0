//! Batches that go through the operator's bucket, for which a folder of this machine stands: what the operator must say, and
//! rows that are too few for a batch.

use std::path::Path;

use rowmill_provider_simulator::journal::Entry;
use rowmill_provider_simulator::{Config, Provider};

use crate::lanes::{BATCHES, CLAUDE_THERE, SHARDS, audited, created, in_batches, online, quick, seen};
use crate::managed::elsewhere::{Elsewhere, Providers, ROWS, contains, holds, provider};

/// The folder that Bedrock's batches go through, and the account's quota.
pub fn bucket(providers: &Providers, rows_min: usize) -> String {
    let folder = providers.bucket.path().display();
    format!(
        "s3_uri = \"file://{folder}\"\nrole_arn = \"arn:aws:iam::123456789012:role/batches\"\nrows_min = {rows_min}\n"
    )
}

#[test]
fn rows_too_few_for_a_batch_go_online_or_the_run_says_what_to_do() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let model = format!("engine = 'bedrock', provider = 'away', name = '{CLAUDE_THERE}', lane = 'batch'");
    let provided = |lanes: &str| format!("{}{lanes}{BATCHES}", provider(&providers, "bedrock", Provider::Bedrock));
    let away = Elsewhere::new(&model, "", "SELECT id, ai_complete(text) AS answer FROM rows");
    // No folder is named: refused by the plan already.
    away.config(&provided(""));
    for command in ["plan", "run"] {
        let said = away.say(command);
        assert_eq!(said.code, Some(1), "{command}: {said:?}");
        assert!(said.stderr.contains("s3_uri and role_arn"), "{command}: {}", said.stderr);
    }
    // 20 rows a shard are too few, and may go nowhere else.
    away.config(&format!("{}{}", provided("lanes = [\"batch\"]\n"), bucket(&providers, 21)));
    let said = away.say("run");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("takes 21 rows or more in a batch"), "{}", said.stderr);
    assert!(said.stderr.contains("make shards larger"), "{}", said.stderr);
    assert_eq!(providers.requests(), 0, "something was sent");
    // Then the policy permits the online lane, too.
    away.config(&format!("{}{}", provided(""), bucket(&providers, 21)));
    let summary = away.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
    let asked = (created(&providers, Provider::Bedrock), online(&providers, Provider::Bedrock));
    assert_eq!(asked, (0, ROWS as u64));
    assert_eq!(audited(&away).0, ROWS as u64, "rows that the audit says have left");
}

#[test]
fn what_goes_into_the_bucket_is_on_record_as_going_there_and_stays_there() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let model = format!("engine = 'bedrock', provider = 'away', name = '{CLAUDE_THERE}', lane = 'batch'");
    let away = Elsewhere::new(&model, "", "SELECT id, ai_complete(text) AS answer FROM rows");
    away.config(&in_batches(&providers, "bedrock", Provider::Bedrock, ""));
    let summary = away.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
    let folder = format!("file://{}/", providers.bucket.path().display());
    assert!(holds(&away.audit(), &folder, Path::new("")).is_some(), "the audit does not say where rows went");
    let entries = providers.simulator.journal().entries();
    let sent = |entry: &Entry| contains(entry.body.as_deref().unwrap_or_default(), "text of row");
    assert!(!entries.iter().any(sent), "rows went past the bucket");
    for suffix in [".jsonl", ".jsonl.out"] {
        assert_eq!(files(providers.bucket.path(), suffix), SHARDS as usize, "{suffix}");
    }
}

/// Files below a folder whose names end so.
fn files(folder: &Path, suffix: &str) -> usize {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let count = |path: std::path::PathBuf| match path.is_dir() {
        true => files(&path, suffix),
        false => usize::from(path.to_str().expect("UTF-8").ends_with(suffix)),
    };
    entries.map(count).sum()
}
