//! A cap on money over many processes, against what the provider bills: it is never exceeded, whoever is killed; less than one
//! request's worst cost is left of it, but for what nobody can know to be unpaid; and raising it reaches executors at work.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::config::Faults;
use serde_json::Value;

use super::elsewhere::{Elsewhere, Providers, SECRET, allowed};
use super::fleet::Fleet;
use super::money::{MODEL, PRICES, TOPICS, billed};
use crate::cluster::processes::Process;
use crate::servers::wait_until;
use crate::support::{integers, read_table};

const EXECUTORS: usize = 8;
/// Rows, and the cap as a job says it: what half of the rows cost, nearly, with 40 tokens of a prompt and 4 of an answer each.
type Size = (i64, f64, &'static str);
const SMALL: Size = (800, 2.0, "max_cost_usd = 2");
const LARGE: Size = (3_200, 8.0, "max_cost_usd = 8");
/// More than all rows cost, twice.
const HIGHER: &str = "max_cost_usd = 80";

/// A provider that takes its time, so that many requests are under way whenever something happens, and whose answers are cut
/// as often as this: whoever asks again pays again.
fn slow(cut_body: f64) -> Providers {
    Providers::start(Faults { cut_body, slow: 1.0 - cut_body, slow_ms: 100, ..Faults::default() })
}

/// A job with the cap, and executors for it that have at most so many requests under way at once.
fn fleet(providers: &Providers, at_once: u32, (rows, _, cap): Size) -> Fleet {
    let ids: Vec<i64> = (0..rows).collect();
    let texts: Vec<String> = ids.iter().map(|id| format!("text of row {id:04}")).collect();
    let columns: Vec<(&str, ArrayRef)> =
        vec![("id", Arc::new(Int64Array::from(ids))), ("text", Arc::new(StringArray::from(texts)))];
    let away = Elsewhere::over(columns, MODEL, &format!(", shard_rows = 20, {cap}"), TOPICS);
    let own = format!("{SECRET}\n[providers.away.limits]\nconcurrency = {at_once}\n");
    let allowed = allowed("openai", &providers.simulator.base(Provider::Openai), &own);
    away.config(&format!("{allowed}{PRICES}"));
    Fleet::new(away)
}

/// The most that a request can have been reserved for: no tokenizer makes more tokens of a body than it has bytes, a chat
/// template and JSON's own words come on top, and an answer is a label.
fn worst_request(providers: &Providers) -> f64 {
    let longest = providers.simulator.journal().entries().iter().map(|entry| entry.bytes).max().expect("requests");
    (longest + 256) as f64 * 100e-6 + ("billing".len() + 24) as f64 * 400e-6
}

/// That a scheduler ended because the cap was reached.
fn reached(mut scheduler: Process) {
    let said = scheduler.wait();
    assert_eq!((said.code, said.summary()["status"].as_str()), (Some(3), Some("incomplete")), "{said:?}");
    assert!(said.stderr.contains("max_cost_usd is reached"), "{}", said.stderr);
}

/// That a run went on to its end once the cap was raised.
fn goes_on(fleet: &Fleet, (rows, _, cap): Size) -> Value {
    fleet.away.rewrite(cap, HIGHER);
    let summary = fleet.submit().wait().ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(rows), Some(0)), "{summary}");
    let published = read_table(Path::new(summary["published"].as_str().expect("a folder")));
    assert_eq!(integers(&published, "id"), (0..rows).collect::<Vec<_>>());
    summary
}

#[test]
fn eight_executors_use_up_a_cap_to_the_last_request_and_go_on_when_it_is_raised() {
    let providers = slow(0.0);
    let cap = SMALL.1;
    let fleet = fleet(&providers, 16, SMALL);
    let executors = fleet.executors(EXECUTORS);
    reached(fleet.submit());
    // What others have in hand may still be paid for.
    fleet.wait_for_the_queue();
    let (spent, worst) = (billed(&providers), worst_request(&providers));
    println!("{spent:.4} USD of {cap} were billed; a request costs {worst:.4} USD at most");
    assert!(spent <= cap, "{spent} USD were billed of {cap}");
    assert!(cap - spent <= worst, "{spent} USD of {cap} were used, and a request costs {worst} at most");

    // Executors that work on something else in between open the run again.
    let other = Elsewhere::new("engine = 'openai', provider = 'away', name = 'gpt-4o'", "", TOPICS);
    fleet.submit_job(&other).wait().ok();
    let before = billed(&providers);
    let summary = goes_on(&fleet, SMALL);
    println!("{:.4} USD more once the cap was raised", billed(&providers) - before);
    assert!(billed(&providers) <= 80.0 && summary["cost_usd"].as_f64() > Some(cap), "{summary}");
    fleet.drain(executors);
}

#[test]
fn executors_that_are_killed_with_requests_under_way_cost_no_more_than_the_cap() {
    let providers = slow(0.01);
    const AT_ONCE: u32 = 2;
    let cap = LARGE.1;
    let fleet = fleet(&providers, AT_ONCE, LARGE);
    let mut executors = fleet.executors(EXECUTORS);
    let mut scheduler = fleet.submit();
    let mut kills = 0;
    for share in [0.1, 0.25, 0.4] {
        wait_until("money is spent", || billed(&providers) >= share * cap || scheduler.ended().is_some());
        // Whoever is at work has requests under way: they take a tenth of a second each.
        for executor in executors.iter_mut().take(2) {
            executor.kill();
            kills += 1;
        }
        executors.drain(..2);
        executors.extend(fleet.executors(2));
    }
    reached(scheduler);
    fleet.wait_for_the_queue();
    let (spent, bill, worst) =
        (billed(&providers), providers.simulator.journal().bill(Provider::Openai), worst_request(&providers));
    // Whoever asks for what may have been computed pays its worst cost: what the dead had under way and at hand for the next
    // request, and answers that were cut off.
    let unknown = f64::from(kills * (AT_ONCE + 1)) + bill.cut as f64;
    println!(
        "{spent:.4} USD of {cap} were billed for {} answers, {} of them cut off, and {kills} executors were killed; a request \
         costs {worst:.4} USD at most",
        bill.answers, bill.cut
    );
    assert!(spent <= cap, "{spent} USD were billed of {cap}");
    assert!(cap - spent <= worst * (1.0 + unknown), "{spent} USD of {cap} were used, {unknown} requests are unknown");
    goes_on(&fleet, LARGE);
    fleet.drain(executors);
}
