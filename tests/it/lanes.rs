//! The lanes `flex` and `batch` through the user's boundary: a job file and real processes, against providers that are
//! simulated on this machine. Every row ends once and is paid once, whoever is killed while a batch is under way, and both
//! lanes cost what the provider asks for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use rowmill_provider_simulator::config::{Batches, Faults, Keep};
use rowmill_provider_simulator::journal::Entry;
use rowmill_provider_simulator::{Config, Provider};
use serde_json::Value;

use crate::buckets::bucket;
use crate::managed::elsewhere::{Elsewhere, Providers, ROWS, SELECT, holds, provider};
use crate::managed::specification;
use crate::support::{Said, integers, read_table, say, strings};

/// Shards of a job: 20 rows each.
pub const SHARDS: u64 = 3;
/// A model's name on Bedrock.
pub const CLAUDE_THERE: &str = "anthropic.claude-sonnet-4-5-20250929-v1:0";
/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Simulators that keep what they are sent.
pub fn seen() -> Config {
    Config { keep_bodies: Keep::Everything, ..Config::default() }
}

/// Batches that are done at once.
pub fn quick() -> Batches {
    Batches { validating_ms: 0, row_ms: 1, finalizing_ms: 0, ..Batches::default() }
}

/// The operator's word on batches: allowed, and looked at every second.
pub const BATCHES: &str = "[providers.away.facts]\nasserted_by = \"test\"\nbatch_allowed = true\nbatch_retention = 30\n\
                       [providers.away.batches]\nlook_seconds_min = 1\nlook_seconds_max = 1\n";

/// A provider whose batches are allowed, and online calls, too, unless `lanes` says otherwise.
pub fn in_batches(providers: &Providers, kind: &str, simulated: Provider, lanes: &str) -> String {
    let folder = if kind == "bedrock" { bucket(providers, 1) } else { String::new() };
    format!("{}{lanes}{BATCHES}{folder}", provider(providers, kind, simulated))
}

/// Batches that a provider created.
pub fn created(providers: &Providers, of: Provider) -> u64 {
    let ends = ["/batches", "/batch/jobs", ":batchGenerateContent", ":asyncBatchEmbedContent", "/model-invocation-job"];
    let is_creation = |entry: &&Entry| {
        entry.provider == of
            && entry.method == "POST"
            && entry.status == Some(200)
            && ends.iter().any(|end| entry.path.ends_with(end))
    };
    providers.simulator.journal().entries().iter().filter(is_creation).count() as u64
}

/// Requests that asked a model online.
pub fn online(providers: &Providers, of: Provider) -> u64 {
    let ends = ["/chat/completions", "/messages", ":generateContent", "/embeddings", ":batchEmbedContents", "/invoke"];
    let entries = providers.simulator.journal().entries();
    let asks = |entry: &&Entry| entry.provider == of && ends.iter().any(|end| entry.path.ends_with(end));
    entries.iter().filter(asks).count() as u64
}

/// `rowmill run job.sql --json` with the operator's configuration.
fn command(job: &Elsewhere) -> Command {
    job.command(&["run", job.job.path().to_str().expect("UTF-8"), "--json"])
}

/// Records of a run's batches with this name.
pub fn records(job: &Elsewhere, name: &str) -> Vec<PathBuf> {
    fn look(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                look(&entry.path(), name, found);
            } else if entry.file_name().to_str() == Some(name) {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    look(&job.job.output(), name, &mut found);
    found
}

/// What all audits of a job, whose processes ended by themselves, say: sums of the intents' rows, and of the endings' cost in
/// nano-dollars.
pub fn audited(job: &Elsewhere) -> (u64, u64) {
    let folder = job.audit();
    let report = say(&["audit", "verify", folder.to_str().expect("UTF-8"), "--json"]).ok().summary();
    assert_eq!(report["status"], "whole", "{report}");
    let files = report["files"].as_array().expect("files");
    assert!(!files.is_empty() && files.iter().all(|file| file["closed"] == true), "{report}");
    assert!(files.iter().all(|file| file["without_ending"] == 0), "{report}");
    let (mut rows, mut nano_usd) = (0, 0);
    for run in std::fs::read_dir(&folder).expect("audits").flatten() {
        for file in std::fs::read_dir(run.path()).expect("a run's audits").flatten() {
            for line in std::fs::read_to_string(file.path()).expect("text").lines() {
                let said = &serde_json::from_str::<Value>(line).expect("JSON")["said"];
                rows += said["intent"]["rows"].as_u64().unwrap_or(0);
                nano_usd += said["ending"]["nano_usd"].as_u64().unwrap_or(0);
            }
        }
    }
    (rows, nano_usd)
}

/// Audits of a job: one for each process.
fn audits(job: &Elsewhere) -> usize {
    let runs = std::fs::read_dir(job.audit()).expect("audits").flatten();
    runs.map(|run| std::fs::read_dir(run.path()).expect("a run's audits").count()).sum()
}

pub fn cost(summary: &Value) -> f64 {
    summary["cost_usd"].as_f64().expect("a cost")
}

#[test]
fn each_provider_with_a_batch_interface_computes_a_job_in_batches() {
    let kinds = [
        ("openai", Provider::Openai, "gpt-4o-mini"),
        ("azure", Provider::Azure, "gpt-4o-mini"),
        ("anthropic", Provider::Anthropic, "claude-haiku-4-5"),
        ("gemini", Provider::Gemini, "gemini-2.0-flash"),
        ("groq", Provider::Groq, "llama-3.3-70b-versatile"),
        ("mistral", Provider::Mistral, "mistral-small-latest"),
        ("together", Provider::Together, "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("bedrock", Provider::Bedrock, CLAUDE_THERE),
    ];
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    println!("| provider | asked for | rows | errors | batches | answers paid | online | audit | of OpenAI's form |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for (kind, simulated, name) in kinds {
        let model = format!("engine = '{kind}', provider = 'away', name = '{name}', lane = 'batch'");
        let away = Elsewhere::new(&model, "", SELECT);
        away.config(&in_batches(&providers, kind, simulated, ""));
        let said = Said::of(command(&away).args(["--slots", "3"])).ok();
        let summary = said.summary();
        assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}: {said:?}");
        let table = read_table(summary["published"].as_str().expect("a folder").as_ref());
        assert_eq!(integers(&table, "id"), (0..ROWS).collect::<Vec<_>>(), "{kind}");
        assert!(strings(&table, "answer").iter().all(Option::is_some), "{kind}");
        let (batches, asked) = (created(&providers, simulated), online(&providers, simulated));
        let paid = providers.simulator.journal().paid_answers(simulated);
        // One a shard and call; each row of each call paid once; none online.
        assert_eq!((batches, paid, asked), (3 * SHARDS, (3 * ROWS as u64, 0), 0), "{kind}");
        assert_eq!(audited(&away).0, 3 * ROWS as u64, "{kind}: rows that the audit says have left");
        assert_eq!(holds(&away.audit(), "text of row", Path::new("")), None, "{kind}");
        // Each row of each call is a line of a file; Mistral's batches are created in its own way.
        let form = match kind {
            "anthropic" | "gemini" | "bedrock" => 0,
            "mistral" => paid.0,
            _ => paid.0 + batches,
        };
        assert_eq!(specification::asked(&providers, simulated), form, "{kind}");
        println!("| {kind} | labels, JSON, text | {ROWS} | 0 | {batches} | {} | {asked} | whole | {form} |", paid.0);
    }
}

#[test]
fn vectors_come_in_batches_where_a_provider_has_them() {
    let kinds = [
        ("openai", Provider::Openai, "text-embedding-3-small", 1536),
        ("gemini", Provider::Gemini, "gemini-embedding-001", 768),
        ("mistral", Provider::Mistral, "mistral-embed", 16),
    ];
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    println!("| provider | lane | asked for | rows | errors | batches |\n|---|---|---|---|---|---|");
    for (kind, simulated, name, dimensions) in kinds {
        let away = |lane: &str| {
            let model = format!(
                "engine = '{kind}', provider = 'away', name = '{name}', dimensions = {dimensions}, lane = '{lane}'"
            );
            let away = Elsewhere::new(&model, "", "SELECT id, ai_embed(text) AS vector FROM rows");
            let said = away.config(&in_batches(&providers, kind, simulated, "")).say("run").ok();
            let summary = said.summary();
            assert_eq!(
                (summary["rows"].as_i64(), summary["errors"].as_u64()),
                (Some(ROWS), Some(0)),
                "{kind}: {said:?}"
            );
            let table = read_table(summary["published"].as_str().expect("a folder").as_ref());
            table.iter().map(|batch| batch.column_by_name("vector").expect("vectors").clone()).collect::<Vec<_>>()
        };
        let in_batches = away("batch");
        let batches = created(&providers, simulated);
        assert_eq!((batches, online(&providers, simulated)), (SHARDS, 0), "{kind}");
        assert_eq!(specification::asked(&providers, simulated) > 0, kind != "gemini");
        assert!(in_batches == away("online"), "{kind}: other vectors than online");
        println!("| {kind} | batch | vectors | {ROWS} | 0 | {batches} |");
    }
}

#[test]
fn a_shard_of_thousands_of_rows_is_one_batch_or_as_many_as_the_operator_says() {
    let providers = Providers::with(Config { batches: Batches { row_ms: 0, ..quick() }, ..seen() });
    let rows: i64 = 3_000;
    let model = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini', lane = 'batch'";
    for (rows_max, batches) in [("", 1), ("rows_max = 1000\n", 3)] {
        let away = Elsewhere::new(model, "", "SELECT id, ai_complete(text) AS answer FROM rows");
        away.job.with_rows("a", 0, rows);
        let text = std::fs::read_to_string(away.job.path()).expect("the job file");
        std::fs::write(away.job.path(), text.replace("shard_rows = 20", "shard_rows = 5000")).expect("written");
        away.config(&format!("{}{rows_max}", in_batches(&providers, "openai", Provider::Openai, "")));
        let before = created(&providers, Provider::Openai);
        let summary = away.say("run").ok().summary();
        assert_eq!((summary["rows"].as_i64(), summary["parts"].as_i64()), (Some(rows), Some(1)), "{summary}");
        assert_eq!(created(&providers, Provider::Openai) - before, batches, "{rows_max}");
    }
}

#[test]
fn personal_data_is_replaced_before_it_leaves_though_the_query_put_it_together() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let select = "SELECT id, ai_complete('please write to bob' || id || '@' || text) AS answer FROM rows";
    for (kind, simulated, name, lane) in [
        ("openai", Provider::Openai, "gpt-4o-mini", "online"),
        ("openai", Provider::Openai, "gpt-4o-mini", "batch"),
        ("gemini", Provider::Gemini, "gemini-3.5-flash", "batch"),
    ] {
        let model = format!("engine = '{kind}', provider = 'away', name = '{name}', lane = '{lane}'");
        let away = Elsewhere::new(&model, "", select);
        let texts: Vec<String> = (0..ROWS).map(|_| "example.com, please".to_owned()).collect();
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
        away.job.with_file("a", vec![("id", ids), ("text", Arc::new(StringArray::from(texts)))]);
        let rule = "redact = true\n";
        let redaction = "[redaction]\nkey = \"env:ROWMILL_TEST_KEY\"\n";
        away.config(&format!("{}{redaction}", in_batches(&providers, kind, simulated, rule)));
        let summary = away.say("run").ok().summary();
        assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}: {summary}");
        let journal = providers.simulator.journal();
        assert!(journal.contains("<EMAIL_") && !journal.contains("@example.com"), "{kind}, {lane}: an address left");
    }
}

#[test]
fn batches_and_flex_cost_half_of_what_online_costs() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let run = |lane: &str| {
        let model = format!("engine = 'openai', provider = 'away', name = 'gpt-5.4-mini', lane = '{lane}'");
        let away = Elsewhere::new(&model, "", SELECT);
        let summary = away.config(&in_batches(&providers, "openai", Provider::Openai, "")).say("run").ok().summary();
        assert_eq!(summary["errors"].as_u64(), Some(0), "{lane}: {summary}");
        let (_, nano_usd) = audited(&away);
        assert!((cost(&summary) - nano_usd as f64 / 1e9).abs() < 1e-9, "{lane}: the audit says {nano_usd}: {summary}");
        cost(&summary)
    };
    let (online, flex, batch) = (run("online"), run("flex"), run("batch"));
    println!("online {online} USD, flex {flex} USD, batch {batch} USD");
    // Each row's cost is rounded up to a nano-dollar.
    for cheap in [flex, batch] {
        assert!(online > 0.0 && (cheap / online - 0.5).abs() < 0.001, "{cheap} of {online}");
    }
}

#[test]
fn flex_says_so_in_every_request_and_is_patient_where_there_is_no_room() {
    let kinds = [
        ("openai", Provider::Openai, "gpt-5.4-mini", "flex"),
        ("gemini", Provider::Gemini, "gemini-3.5-flash", "FLEX"),
        ("groq", Provider::Groq, "openai/gpt-oss-120b", "flex"),
    ];
    let faults = Faults { no_room: 0.2, ..Faults::default() };
    let providers = Providers::with(Config { faults, ..seen() });
    println!("| provider | lane | rows | errors | requests | no room |\n|---|---|---|---|---|---|");
    for (kind, simulated, name, tier) in kinds {
        let model = format!("engine = '{kind}', provider = 'away', name = '{name}', lane = 'flex'");
        let away = Elsewhere::new(&model, "", "SELECT id, ai_complete(text) AS answer FROM rows");
        let summary = away.config(&provider(&providers, kind, simulated)).say("run").ok().summary();
        assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}: {summary}");
        let entries = providers.simulator.journal().entries();
        let asked: Vec<&Entry> = entries.iter().filter(|entry| entry.provider == simulated).collect();
        for entry in &asked {
            let body: Value = serde_json::from_slice(entry.body.as_ref().expect("a body")).expect("JSON");
            assert_eq!(body["service_tier"], tier, "{kind}");
        }
        let refused = asked.iter().filter(|entry| entry.status != Some(200)).count();
        assert!(refused > 0, "{kind}: there was always room");
        println!("| {kind} | flex | {ROWS} | 0 | {} | {refused} |", asked.len());
    }
}

#[test]
fn rows_that_expire_go_again_refused_ones_are_typed_and_wrong_forms_are_asked_again_online() {
    let batches = Batches {
        stalled: 0.4,
        row_error: 0.1,
        row_refused: 0.1,
        row_lost: 0.05,
        row_invalid: 0.2,
        duplicate_line: 0.2,
        window_ms: 10_000,
        ..quick()
    };
    let providers = Providers::with(Config { batches, clock_speed: 10, seed: 11, ..seen() });
    let select = "SELECT id, ai_extract(text, 'product STRING, severity INT') AS facts FROM rows";
    let model = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini', lane = 'batch'";
    let run = |lanes: &str| {
        let away = Elsewhere::new(model, ", max_error_ratio = 0.6", select);
        let config = format!("{}rounds_max = 20\n", in_batches(&providers, "openai", Provider::Openai, lanes));
        let summary = away.config(&config).say("run").ok().summary();
        assert_eq!(summary["rows"].as_i64(), Some(ROWS), "{summary}");
        let table = read_table(summary["published"].as_str().expect("a folder").as_ref());
        let mut codes: BTreeMap<String, usize> = BTreeMap::new();
        for error in crate::support::row_errors(&table) {
            *codes.entry(error).or_default() += 1;
        }
        codes
    };
    let codes = run("");
    let asked_online = online(&providers, Provider::Openai);
    assert!(codes.keys().eq(["provider"]), "{codes:?}");
    assert!(codes["provider"] < ROWS as usize / 2 && asked_online > 0, "{codes:?}, {asked_online} online");
    assert!(created(&providers, Provider::Openai) > SHARDS, "nothing was sent again");
    // Where the policy knows no online lane, what is wrong stays wrong, and is the row's error.
    let codes = run("lanes = [\"batch\"]\n");
    assert_eq!(online(&providers, Provider::Openai), asked_online, "something went online that may not");
    assert!(codes.keys().eq(["invalid_output", "provider"]), "{codes:?}");
}

#[test]
fn killed_while_batches_are_under_way_the_same_command_finds_them_and_pays_nothing_twice() {
    let batches = Batches { validating_ms: 0, row_ms: 180_000, finalizing_ms: 0, ..Batches::default() };
    for (kind, simulated, name, kills) in [
        // So often that its shards are then computed in processes of their own.
        ("openai", Provider::Openai, "gpt-4o-mini", 4),
        ("anthropic", Provider::Anthropic, "claude-haiku-4-5", 2),
        ("gemini", Provider::Gemini, "gemini-3.5-flash", 2),
        ("bedrock", Provider::Bedrock, CLAUDE_THERE, 2),
    ] {
        let providers = Providers::with(Config { batches: batches.clone(), ..seen() });
        let model = format!("engine = '{kind}', provider = 'away', name = '{name}', lane = 'batch'");
        let away = Elsewhere::new(&model, ", max_cost_usd = 50", SELECT);
        away.config(&in_batches(&providers, kind, simulated, ""));
        let chunks = 3 * SHARDS;
        let is_under_way = || records(&away, "created.json").len() as u64 == chunks;
        let mut first = start(&away);
        wait_for(&mut first, "all batches are under way", is_under_way);
        kill(first);
        // Those that follow come as far as looking.
        for _ in 1..kills {
            let requests = providers.requests();
            let mut next = start(&away);
            wait_for(&mut next, "the batches are looked at", || providers.requests() >= requests + chunks);
            kill(next);
        }
        assert_eq!(created(&providers, simulated), chunks, "{kind}: batches after {kills} kills");
        assert_eq!(providers.simulator.journal().paid_answers(simulated), (0, 0), "{kind}: none has ended yet");

        providers.simulator.time().advance(Duration::from_secs(2 * 3_600));
        let summary = Said::at_end(start(&away)).ok().summary();
        assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}: {summary}");
        let paid = providers.simulator.journal().paid_answers(simulated);
        assert_eq!((created(&providers, simulated), paid), (chunks, (3 * ROWS as u64, 0)), "{kind}");
        assert_eq!(records(&away, "settled.json").len() as u64, chunks, "{kind}");
        // Each process has an audit of its own: one for each command, and one for each shard that is computed apart.
        let audits = audits(&away);
        let apart = if kills > 3 { SHARDS as usize } else { 0 };
        assert!(audits >= kills + 1 + apart, "{kind}: {audits} audits of {} commands", kills + 1);
        // What was set aside by the dead was given back but for what the batches took.
        let out = ledger_out(&away);
        let nano_usd = (cost(&summary) * 1e9).round();
        assert!((out - nano_usd).abs() < 1.0, "{kind}: {out} is out, {nano_usd} was spent");
        println!("{kind}: killed {kills} times, {chunks} batches, {} answers paid, {nano_usd} nano-dollars", paid.0);
    }
}

#[test]
fn two_processes_with_one_run_share_its_batches() {
    let batches = Batches { validating_ms: 0, row_ms: 200, finalizing_ms: 0, ..Batches::default() };
    for (kind, simulated, name) in [
        ("openai", Provider::Openai, "gpt-4o-mini"),
        ("anthropic", Provider::Anthropic, "claude-haiku-4-5"),
        ("mistral", Provider::Mistral, "mistral-small-latest"),
        ("bedrock", Provider::Bedrock, CLAUDE_THERE),
    ] {
        let providers = Providers::with(Config { batches: batches.clone(), ..seen() });
        let model = format!("engine = '{kind}', provider = 'away', name = '{name}', lane = 'batch'");
        let away = Elsewhere::new(&model, ", max_cost_usd = 50", SELECT);
        away.config(&in_batches(&providers, kind, simulated, ""));
        let both = [start(&away), start(&away)];
        let mut nano_usd = 0.0;
        for process in both {
            let summary = Said::at_end(process).ok().summary();
            assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}");
            nano_usd = (cost(&summary) * 1e9).round();
        }
        let paid = providers.simulator.journal().paid_answers(simulated);
        assert_eq!((created(&providers, simulated), paid), (3 * SHARDS, (3 * ROWS as u64, 0)), "{kind}");
        let out = ledger_out(&away);
        assert!((out - nano_usd).abs() < 1.0, "{kind}: {out} is out, {nano_usd} was spent");
    }
}

#[test]
fn a_cap_holds_batches_back_before_they_are_created_and_raising_it_goes_on() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let prices = "[prices.\"away/gpt-4o-mini\"]\ninput = \"100\"\noutput = \"400\"\n";
    let model = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini', lane = 'batch'";
    let select = "SELECT id, ai_classify(text, ['billing', 'bug']) AS topic FROM rows";
    let config = format!("{}{prices}", in_batches(&providers, "openai", Provider::Openai, ""));
    // Less than what one batch of 20 rows can cost at most.
    let capped = Elsewhere::new(model, ", max_cost_usd = 0.01", select);
    capped.config(&config);
    let said = capped.say("run");
    assert_eq!((said.code, said.summary()["status"].as_str()), (Some(3), Some("incomplete")), "{said:?}");
    assert!(said.stderr.contains("max_cost_usd is reached"), "{}", said.stderr);
    assert_eq!(providers.requests(), 0, "something was sent over the cap");
    let path = capped.job.path();
    let text = std::fs::read_to_string(&path).expect("the job file");
    std::fs::write(&path, text.replace("max_cost_usd = 0.01", "max_cost_usd = 100")).expect("written");
    let summary = capped.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
}

#[test]
fn a_lane_that_is_not_allowed_sends_nothing() {
    let providers = Providers::with(seen());
    let openai = provider(&providers, "openai", Provider::Openai);
    let facts = "[providers.away.facts]\nasserted_by = \"test\"\nbatch_allowed = true\n";
    let cases = [
        ("batch", openai.clone(), "batch_allowed"),
        ("batch", format!("{openai}lanes = [\"online\"]\n{facts}"), "lane"),
        ("flex", format!("{openai}lanes = [\"online\", \"batch\"]\n{facts}"), "lane"),
        ("batch", format!("{openai}require = {{ retention = \"zero\" }}\n{facts}"), "stored"),
    ];
    for (lane, config, word) in cases {
        let model = format!("engine = 'openai', provider = 'away', name = 'gpt-4o-mini', lane = '{lane}'");
        let away = Elsewhere::new(&model, "", SELECT);
        away.config(&config);
        for command in ["plan", "run", "preview"] {
            let said = away.say(command);
            assert_eq!(said.code, Some(1), "{lane}, {command}: {said:?}");
            assert!(said.stderr.contains(word) && said.stderr.contains("hint:"), "{lane}, {command}: {}", said.stderr);
        }
    }
    assert_eq!(providers.requests(), 0, "something was sent");
}

#[test]
fn a_preview_does_not_wait_for_batches_and_sends_nothing_though_a_run_may() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let away = Elsewhere::new("engine = 'openai', provider = 'away', name = 'gpt-4o-mini', lane = 'batch'", "", SELECT);
    away.config(&in_batches(&providers, "openai", Provider::Openai, ""));
    let said = away.say("preview");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("a preview does not wait for batches"), "{}", said.stderr);
    assert!(said.stderr.contains("hint: write lane = 'online' for the preview"), "{}", said.stderr);
    assert_eq!(providers.requests(), 0, "something was sent");
    // The same job with the same configuration: nothing but the preview was refused.
    let summary = away.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
    assert_eq!(created(&providers, Provider::Openai), 3 * SHARDS);
}

pub fn start(job: &Elsewhere) -> Child {
    command(job)
        .args(["--slots", "3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the product starts")
}

/// Waits for a condition while a process lives.
pub fn wait_for(process: &mut Child, what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        if process.try_wait().expect("a process").is_some() {
            let mut said = String::new();
            let stderr = process.stderr.as_mut().expect("it is read here");
            std::io::Read::read_to_string(stderr, &mut said).expect("text");
            panic!("it ended before {what}: {said}");
        }
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `kill -9`.
pub fn kill(mut process: Child) {
    process.kill().expect("it can be killed");
    process.wait().expect("it ended");
}

/// What is out by the last entry of the run's ledger, in nano-dollars.
pub fn ledger_out(job: &Elsewhere) -> f64 {
    let run = std::fs::read_dir(job.job.output()).expect("an output").flatten();
    let run = run.map(|entry| entry.path()).find(|path| path.join("_spend").is_dir()).expect("a ledger");
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(run.join("_spend")).expect("entries").flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let last = std::fs::read(entries.last().expect("an entry")).expect("an entry");
    serde_json::from_slice::<Value>(&last).expect("JSON")["out"].as_f64().expect("an amount")
}
