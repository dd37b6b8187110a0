//! Several executors with one provider's account: together they keep to its limits, lose no row whatever goes wrong, and
//! what they must not tell is found nowhere: not in Redis, logs, plans, parts or audits.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, Int64Array, StringArray};
use rowmill_provider_simulator::config::{Faults, Limits};
use rowmill_provider_simulator::{Config, Provider};
use serde_json::Value;

use super::elsewhere::{Elsewhere, KEY, Providers, SECRET, allowed, contains, holds};
use super::fleet::Fleet;
use super::money::{MODEL, TOPICS};
use crate::servers::LOOK_EVERY;
use crate::support::{integers, read_table, strings};

const EXECUTORS: usize = 4;
/// Requests and tokens a minute that the account may use.
const REQUESTS: u64 = 600;
const TOKENS: u64 = 100_000;
/// Seconds of its allowance that an account may use at once.
const BURST_SECONDS: u64 = 10;

/// A table of ids, and of texts that take so many bytes of their own.
fn table(rows: i64, bytes: usize) -> Vec<(&'static str, ArrayRef)> {
    let ids: Vec<i64> = (0..rows).collect();
    let texts: Vec<String> =
        ids.iter().map(|id| format!("text of row {id} {}", "and so on ".repeat(bytes / 10))).collect();
    vec![("id", Arc::new(Int64Array::from(ids))), ("text", Arc::new(StringArray::from(texts)))]
}

/// All files below a folder, with their bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path.display().to_string(), bytes));
        }
    }
    found
}

#[test]
fn four_executors_share_the_limits_of_an_account_and_use_them() {
    // What is saved up, and a minute's worth: so long that beginning and end weigh little.
    const ROWS: i64 = 700;
    // What one executor saves up passes at once, what four would save up does not.
    let limits =
        Limits { requests: Some(REQUESTS), tokens: Some(TOKENS), burst_seconds: BURST_SECONDS, ..Limits::default() };
    let providers = Providers::with(Config { limits, ..Config::default() });
    // Of the tokens a minute, nine tenths are needed at the full rate of requests: both limits matter.
    let away = Elsewhere::over(table(ROWS, 450), MODEL, ", shard_rows = 10", TOPICS);
    let own = format!(
        "{SECRET}\n[providers.away.limits]\nrequests_per_minute = {REQUESTS}\ninput_tokens_per_minute = {TOKENS}\n"
    );
    away.config(&allowed("openai", &providers.simulator.base(Provider::Openai), &own));
    let fleet = Fleet::new(away);
    let executors = fleet.executors(EXECUTORS);
    let summary = fleet.submit().wait().ok().summary();
    fleet.drain(executors);
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
    let entries = providers.simulator.journal().entries();
    let throttled = entries.iter().filter(|entry| entry.status == Some(429)).count();
    let seconds = (entries.last().expect("requests").at_ms - entries[0].at_ms) as f64 / 1_000.0;
    // A full bucket, and what came in since.
    let allowance = (REQUESTS as f64 / 60.0) * (BURST_SECONDS as f64 + seconds);
    let used = (entries.len() - throttled) as f64 / allowance;
    let bill = providers.simulator.journal().bill(Provider::Openai);
    let tokens =
        (bill.input_tokens + bill.output_tokens) as f64 / (TOKENS as f64 / 60.0 * (BURST_SECONDS as f64 + seconds));
    println!(
        "{} requests in {seconds:.1} s, {throttled} throttled, {used:.3} of the requests' allowance used, {tokens:.3} of the tokens'",
        entries.len()
    );
    assert!(throttled * 100 < entries.len(), "{throttled} of {} requests were throttled", entries.len());
    assert!(used >= 0.95, "only {used:.3} of the allowance was used");
    let starts = files(&fleet.away.job.output()).into_iter().filter(|(name, _)| name.contains("/_attempts/"));
    let who =
        |(_, bytes): (String, Vec<u8>)| serde_json::from_slice::<Value>(&bytes).expect("JSON")["executor"].to_string();
    assert_eq!(starts.map(who).collect::<BTreeSet<_>>().len(), EXECUTORS, "not all of them took part");
}

/// A text in each row's prompt: allowed at the provider alone.
const IN_TEXT: &str = "canary-5b1e-in-text";
/// In a column that is published and not sent: allowed in parts alone.
const IN_NOTE: &str = "canary-77aa-in-note";
/// In a column that is never sent and not published: allowed nowhere.
const IN_SECRET: &str = "canary-c0de-in-secret";

#[test]
fn whatever_goes_wrong_no_row_is_lost_and_nothing_is_told_where_it_must_not_be() {
    const ROWS: i64 = 400;
    let often = 0.02;
    let faults = Faults {
        throttled: often,
        server_error: often,
        overloaded_html: often,
        silent: 0.01,
        cut_body: often,
        error_in_ok: often,
        refused: often,
        truncated: often,
        invalid_output: often,
        ..Faults::default()
    };
    let providers = Providers::start(faults);
    let fleet = Fleet::new(away(ROWS, &providers));
    let executors = fleet.executors(EXECUTORS);
    let (said, dumps) = watch(&fleet);
    fleet.drain(executors);
    let summary = said.ok().summary();
    // Every row once, with JSON or an error that says why.
    let rows = read_table(Path::new(summary["published"].as_str().expect("a folder")));
    assert_eq!(integers(&rows, "id"), (0..ROWS).collect::<Vec<_>>());
    let without =
        |name: &str| rows.iter().map(|batch| batch.column_by_name(name).expect(name).null_count()).sum::<usize>();
    let errors = summary["errors"].as_u64().expect("errors") as usize;
    println!("{} requests for {ROWS} rows, {errors} rows with an error of their own", providers.requests());
    assert_eq!((without("facts"), without("_errors")), (errors, ROWS as usize - errors));
    assert!((1..ROWS as usize / 20).contains(&errors), "{errors} rows have an error");
    assert!(providers.requests() > ROWS as u64, "nothing failed");
    told_where_it_may_be(&providers, &fleet, &dumps, summary["run_key"].as_str().expect("a key"));
    // Parts are packed: they are searched as tables.
    assert!(strings(&rows, "note").iter().flatten().all(|note| note.contains(IN_NOTE)));
    let shown = format!("{rows:?}");
    assert!([IN_TEXT, IN_SECRET, KEY].iter().all(|canary| !shown.contains(canary)));
}

/// A job of one call a row, over a table with canaries in three columns.
fn away(rows: i64, providers: &Providers) -> Elsewhere {
    let column = |canary: &str| -> ArrayRef {
        Arc::new((0..rows).map(|id| Some(format!("{canary} {id}"))).collect::<StringArray>())
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..rows))),
        ("text", column(IN_TEXT)),
        ("note", column(IN_NOTE)),
        ("secret", column(IN_SECRET)),
    ];
    let select =
        "SELECT id, note, ai_extract(text, 'product STRING, severity INT') AS facts FROM rows WHERE secret <> ''";
    let options = ", shard_rows = 20, never_send = 'secret, note', max_error_ratio = 0.2";
    let away = Elsewhere::over(columns, MODEL, options, select);
    // The simulator's silence is for ever.
    let own = format!("{SECRET}\n[providers.away.timeouts]\nidle_seconds = 2\n");
    away.config(&allowed("openai", &providers.simulator.base(Provider::Openai), &own));
    away
}

/// Runs to the end, and takes note of what Redis holds meanwhile.
fn watch(fleet: &Fleet) -> (crate::support::Said, Vec<Vec<u8>>) {
    let mut scheduler = fleet.submit();
    let (mut dumps, mut due) = (Vec::new(), Instant::now());
    while scheduler.ended().is_none() {
        if Instant::now() >= due {
            dumps.push(fleet.redis.dump());
            due = Instant::now() + Duration::from_millis(200);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    dumps.push(fleet.redis.dump());
    (scheduler.wait(), dumps)
}

/// Canaries are found where they may be, and nowhere else.
fn told_where_it_may_be(providers: &Providers, fleet: &Fleet, dumps: &[Vec<u8>], run_key: &str) {
    let home = fleet.away.job.folder.path();
    let mut kept = files(home);
    kept.retain(|(name, _)| !Path::new(name).starts_with(home.join("rows")));
    let log = files(&fleet.logs()).into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<u8>>();
    // What is searched is what was meant.
    assert!(dumps.iter().any(|dump| contains(dump, run_key)), "Redis never held the run's shards");
    assert!(contains(&log, "DEBUG") && contains(&log, "shard computed"), "logs say little");
    assert!(holds(&fleet.away.audit(), "gpt-4o-mini", Path::new("")).is_some(), "nothing was audited");
    assert!(files(&fleet.away.job.output()).iter().any(|(name, _)| name.contains("/_audit/")), "no audit was copied");
    for canary in [KEY, IN_TEXT, IN_NOTE, IN_SECRET] {
        assert!(!dumps.iter().any(|dump| contains(dump, canary)), "{canary} is in Redis");
        assert!(!contains(&log, canary), "{canary} is in a log");
        // Plan, parts' bytes, audits and their copies, records of attempts, scratch: all but the table itself.
        let is_part = |name: &str| name.contains("/part-") && canary == IN_NOTE;
        let mut found = kept.iter().filter(|(name, bytes)| contains(bytes, canary) && !is_part(name));
        assert_eq!(found.next().map(|(name, _)| name), None, "{canary}");
        assert_eq!(providers.simulator.journal().contains(canary), canary == IN_TEXT, "{canary} at the provider");
    }
}
