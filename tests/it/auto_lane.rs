//! `lane = 'auto'` through the user's boundary: half the price for what comes in time, the full price for the rest, every row
//! once and paid once, whoever is killed; against providers that are simulated on this machine.

use std::path::Path;
use std::process::Child;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use rowmill_provider_simulator::config::Batches;
use rowmill_provider_simulator::{Config, Provider};
use serde_json::Value;

use crate::lanes::{
    BATCHES, CLAUDE_THERE, SHARDS, audited, cost, created, in_batches, kill, ledger_out, online, quick, records, seen,
    start, wait_for,
};
use crate::managed::elsewhere::{Elsewhere, Providers, ROWS, SELECT, holds};
use crate::spill::{COMPLETE, Spilling};
use crate::support::{Said, integers, read_table, strings};

/// Answers of a whole job.
const ANSWERS: u64 = 3 * ROWS as u64;
/// A deadline that leaves time for everything.
const FAR: &str = "2999-01-01T06:00:00Z";
/// Time until a deadline that leaves time for a part: 9 s are kept for what goes online, 5 s for batches to end.
const SOON: TimeDelta = TimeDelta::seconds(45);

/// A provider whose batches, of 20 rows, take longer than [`SOON`].
fn slow() -> Batches {
    Batches { row_ms: 4_000, finalizing_ms: 1_000, ..quick() }
}

/// A job of a model that chooses its lane.
fn choosing(kind: &str, name: &str, deadline: &str) -> Elsewhere {
    let model = format!("engine = '{kind}', provider = 'away', name = '{name}', lane = 'auto'");
    Elsewhere::new(&model, &format!(", max_cost_usd = 50, deadline = '{deadline}'"), SELECT)
}

/// The operator's word: batches may be used, are ended within 5 s, and the account takes 100 requests a second. A rule lets
/// every row of each call leave once.
fn config(providers: &Providers, kind: &str, simulated: Provider, rule: &str) -> String {
    let rule = format!("per_run = {{ rows = {ANSWERS} }}\n{rule}");
    let batches = in_batches(providers, kind, simulated, &rule);
    format!("{batches}cancel_seconds_max = 5\n[providers.away.limits]\nrequests_per_minute = 6000\n")
}

fn soon() -> DateTime<Utc> {
    Utc::now() + SOON
}

fn rfc3339(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Every row is there, was paid once, and what was paid is what the summary, the audit and the ledger say. Returns the
/// summary.
fn check(away: &Elsewhere, said: Said, providers: &Providers, simulated: Provider) -> Value {
    let said = said.ok();
    let summary = said.summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{said:?}");
    let table = read_table(summary["published"].as_str().expect("a folder").as_ref());
    assert_eq!(integers(&table, "id"), (0..ROWS).collect::<Vec<_>>());
    assert!(strings(&table, "answer").iter().all(Option::is_some), "a row has no answer");
    let paid = providers.simulator.journal().paid_answers(simulated);
    assert_eq!(paid, (ANSWERS, 0), "{simulated:?}: answers that were paid, and those of them that were before");
    let nano_usd = (cost(&summary) * 1e9).round();
    let out = ledger_out(away);
    assert!((out - nano_usd).abs() < 1.0, "{simulated:?}: {out} is out, {nano_usd} was spent");
    summary
}

/// Cancellations that a provider was sent.
fn cancelled(providers: &Providers, simulated: Provider) -> usize {
    let entries = providers.simulator.journal().entries();
    entries
        .iter()
        .filter(|entry| entry.provider == simulated && ["cancel", "stop"].iter().any(|end| entry.path.ends_with(end)))
        .count()
}

fn finish(process: Child) -> Said {
    Said::at_end(process)
}

#[test]
fn what_comes_in_time_costs_half_and_nothing_goes_online() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let run = |options: &str, deadline: &str| {
        let model = format!("engine = 'openai', provider = 'away', name = 'gpt-5.4-mini'{options}");
        let away = Elsewhere::new(&model, deadline, SELECT);
        away.config(&config(&providers, "openai", Provider::Openai, ""));
        cost(&away.say("run").ok().summary())
    };
    let full = run("", "");
    let asked = online(&providers, Provider::Openai);
    let half = run(", lane = 'auto'", &format!(", deadline = '{FAR}'"));
    assert!((half / full - 0.5).abs() < 0.001, "{half} of {full}");
    assert_eq!((online(&providers, Provider::Openai), created(&providers, Provider::Openai)), (asked, 3 * SHARDS));
    println!("online {full} USD, auto {half} USD");
}

#[test]
fn batches_that_are_too_slow_are_cancelled_and_only_the_rest_goes_online() {
    let kinds = [
        ("openai", Provider::Openai, "gpt-4o-mini"),
        ("anthropic", Provider::Anthropic, "claude-haiku-4-5"),
        ("mistral", Provider::Mistral, "mistral-small-latest"),
        ("bedrock", Provider::Bedrock, CLAUDE_THERE),
    ];
    let providers = Providers::with(Config { batches: slow(), ..seen() });
    let begin = |(kind, simulated, name): (&'static str, Provider, &str)| {
        let deadline = soon();
        let away = choosing(kind, name, &rfc3339(deadline));
        away.config(&config(&providers, kind, simulated, ""));
        let process = start(&away);
        (kind, simulated, deadline, away, process)
    };
    // All wait at the same time.
    let begun: Vec<_> = kinds.into_iter().map(begin).collect();
    println!("| provider | answers | of batches | online | cost, USD |\n|---|---|---|---|---|");
    for (kind, simulated, deadline, away, process) in begun {
        let summary = check(&away, finish(process), &providers, simulated);
        let asked = online(&providers, simulated);
        assert_eq!(created(&providers, simulated), 3 * SHARDS, "{kind}: batches");
        assert!(cancelled(&providers, simulated) as u64 >= 3 * SHARDS, "{kind}: not all were cancelled");
        // Something of each batch came in time, and nothing of it was asked again.
        assert!((1..ANSWERS - 3 * SHARDS).contains(&asked), "{kind}: {asked} online");
        let entries = providers.simulator.journal().entries();
        let last_ms = entries.iter().filter(|entry| entry.provider == simulated).map(|entry| entry.at_ms).max();
        assert!(last_ms.is_some_and(|last_ms| last_ms <= deadline.timestamp_millis()), "{kind}: after the deadline");
        let (_, nano_usd) = audited(&away);
        assert!((cost(&summary) - nano_usd as f64 / 1e9).abs() < 1e-9, "{kind}: the audit says {nano_usd}: {summary}");
        for lane in ["batch", "online"] {
            let line = format!("\"lane\":\"{lane}\"");
            assert!(holds(&away.audit(), &line, Path::new("")).is_some(), "{kind}: the audit names no {lane} request");
        }
        println!("| {kind} | {ANSWERS} | {} | {asked} | {} |", ANSWERS - asked, cost(&summary));
    }
}

#[test]
fn killed_while_it_gives_batches_up_the_same_command_pays_nothing_twice() {
    let simulated = Provider::Openai;
    let providers = Providers::with(Config { batches: slow(), ..seen() });
    let away = choosing("openai", "gpt-4o-mini", &rfc3339(soon()));
    away.config(&config(&providers, "openai", simulated, ""));
    let chunks = 3 * SHARDS as usize;
    let mut first = start(&away);
    wait_for(&mut first, "all batches are under way", || records(&away, "created.json").len() == chunks);
    kill(first);
    // The first thing that is recorded is that there is no next round.
    let mut second = start(&away);
    wait_for(&mut second, "batches are given up", || !records(&away, "round-01.json").is_empty());
    kill(second);
    check(&away, finish(start(&away)), &providers, simulated);
    assert_eq!((created(&providers, simulated), records(&away, "settled.json").len()), (3 * SHARDS, chunks));
}

#[test]
fn a_run_goes_on_in_the_lane_that_it_began_in() {
    let simulated = Provider::Openai;
    let providers = Providers::with(Config { batches: Batches { row_ms: 200, ..quick() }, ..seen() });
    let away = choosing("openai", "gpt-4o-mini", FAR);
    let usual = config(&providers, "openai", simulated, "");
    away.config(&usual);
    let mut first = start(&away);
    wait_for(&mut first, "all batches are under way", || records(&away, "created.json").len() == 3 * SHARDS as usize);
    kill(first);
    // Batches are not permitted any more: nothing is asked in another lane, where they would not be found.
    away.config(&config(&providers, "openai", simulated, "lanes = [\"online\"]\n"));
    let said = away.say("run");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("the run began in lane batch, which is not permitted any more"), "{}", said.stderr);
    // They cost as much as online now, where they would not be chosen.
    let same =
        "[prices.\"away/gpt-4o-mini\"]\ninput = \"1\"\noutput = \"4\"\nbatch = { input = \"1\", output = \"4\" }\n";
    away.config(&format!("{usual}{same}"));
    check(&away, away.say("run"), &providers, simulated);
    assert_eq!((created(&providers, simulated), online(&providers, simulated)), (3 * SHARDS, 0));
}

#[test]
fn without_time_or_permission_for_batches_everything_goes_online() {
    let cases = [
        ("the deadline has passed", "2020-01-01T06:00:00Z", ""),
        ("the rule knows no batches", FAR, "lanes = [\"online\"]\n"),
    ];
    for (what, deadline, rule) in cases {
        let providers = Providers::with(Config { batches: quick(), ..seen() });
        let away = choosing("openai", "gpt-4o-mini", deadline);
        away.config(&config(&providers, "openai", Provider::Openai, rule));
        check(&away, away.say("run"), &providers, Provider::Openai);
        let (batches, asked) = (created(&providers, Provider::Openai), online(&providers, Provider::Openai));
        assert_eq!((batches, asked), (0, ANSWERS), "{what}");
    }
}

#[test]
fn where_batches_may_not_be_or_would_lose_what_they_did_flex_is_cheap_too() {
    let cases = [
        ("openai", Provider::Openai, "gpt-5.4-mini", "lanes = [\"online\", \"flex\"]\n", "flex"),
        ("gemini", Provider::Gemini, "gemini-3.5-flash", "", "FLEX"),
    ];
    for (kind, simulated, name, rule, tier) in cases {
        for (deadline, is_flex) in [(FAR.to_owned(), true), (rfc3339(Utc::now() + TimeDelta::hours(2)), false)] {
            let providers = Providers::with(Config { batches: quick(), ..seen() });
            let away = choosing(kind, name, &deadline);
            away.config(&config(&providers, kind, simulated, rule));
            check(&away, away.say("run"), &providers, simulated);
            let entries = providers.simulator.journal().entries();
            let asked = |entry: &&_| -> bool {
                let entry: &rowmill_provider_simulator::journal::Entry = entry;
                let body: Value = serde_json::from_slice(entry.body.as_ref().expect("a body")).expect("JSON");
                body["service_tier"] == tier
            };
            let flex = entries.iter().filter(asked).count() as u64;
            assert_eq!(flex, if is_flex { ANSWERS } else { 0 }, "{kind}, {deadline}");
        }
    }
}

#[test]
fn a_plan_says_which_lane_it_will_be_and_what_both_cost() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    for (deadline, lane) in [(FAR, "batch"), ("2020-01-01T06:00:00Z", "online")] {
        let away = choosing("openai", "gpt-5.4-mini", deadline);
        away.config(&config(&providers, "openai", Provider::Openai, ""));
        let estimate = away.say("plan").ok().summary()["estimate"].clone();
        let auto = &estimate["auto"][0];
        assert_eq!((auto["model"].as_str(), auto["lane"].as_str()), (Some("away"), Some(lane)), "{estimate}");
        assert_eq!(auto["cost_usd"], estimate["cost_usd"][lane], "{estimate}");
        assert_eq!(auto["online_cost_usd"], estimate["cost_usd"]["online"], "{estimate}");
        assert_eq!(auto["online_from"].is_string(), lane == "batch", "{estimate}");
        let path = away.job.path();
        let said = Said::of(&mut away.command(&["plan", path.to_str().expect("UTF-8")]));
        assert!(said.stdout.contains(&format!("model away takes lane {lane}, ")), "{}", said.stdout);
    }
    // A preview waits for nothing.
    let away = choosing("openai", "gpt-4o-mini", FAR);
    away.config(&config(&providers, "openai", Provider::Openai, ""));
    away.say("preview").ok();
    assert_eq!(created(&providers, Provider::Openai), 0);
    assert!(online(&providers, Provider::Openai) > 0);
}

#[test]
fn a_plan_says_what_rows_cost_that_spill_to_a_model_that_chooses_its_lane() {
    let providers = Providers::with(Config { batches: quick(), ..seen() });
    let options = format!("spill_to = 'away', spill_when = 'always', deadline = '{FAR}'");
    let spilling = Spilling::at(providers, "engine = 'echo'", &options, COMPLETE);
    spilling.edit("provider = 'away', ", "provider = 'away', lane = 'auto', ");
    spilling.configure("[[egress.allow]]", &format!("{BATCHES}[[egress.allow]]"));
    spilling.job.with_rows("a", 0, 1_000);
    let estimate = spilling.say("plan").ok().summary()["estimate"].clone();
    let auto = &estimate["auto"][0];
    assert_eq!((auto["model"].as_str(), auto["lane"].as_str()), (Some("away"), Some("batch")), "{estimate}");
    assert!(auto["cost_usd"].as_f64().is_some_and(|cost| cost > 0.0), "{estimate}");
    assert_eq!(auto["cost_usd"], estimate["cost_usd"]["batch"], "{estimate}");
    assert_eq!(auto["online_cost_usd"], estimate["cost_usd"]["online"], "{estimate}");
}
