//! Batches that go through the operator's bucket, for which a folder of this machine stands: what the operator must say, and
//! rows that are too few for a batch.

use rowmill_provider_simulator::{Config, Provider};

use crate::lanes::{BATCHES, CLAUDE_THERE, audited, created, online, quick, seen};
use crate::managed::elsewhere::{Elsewhere, Providers, ROWS, provider};

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
