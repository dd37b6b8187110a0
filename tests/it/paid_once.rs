//! Answers that were paid for: a run that goes on where another ended, however that was, pays for none of them again, and
//! neither does one whose provider goes away.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rowmill_provider_simulator::config::Faults;
use rowmill_provider_simulator::{Config, Provider};

use crate::managed::elsewhere::Providers;
use crate::spill::{COMPLETE, Spilling, chain, table};
use crate::support::{Said, integers};

const FOUR_AT_ONCE: &str = "[providers.away.limits]\nconcurrency = 4\n[[egress.allow]]";
/// So much that a few requests reach a cap.
const PRICES: &str = "[prices.\"away/gpt-4o-mini\"]\ninput = \"100\"\noutput = \"400\"\n[audit]";

/// Providers that take this long for an answer.
fn slow(slow_ms: u64) -> Faults {
    Faults { slow: 1.0, slow_ms, ..Faults::default() }
}

/// `rowmill run` of the job.
fn start(spilling: &Spilling, more: &[&str]) -> Child {
    let mut command = spilling.command("run");
    command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

/// Waits until that many requests have come.
fn wait_for(process: &mut Child, providers: &Providers, requests: u64) {
    let started = Instant::now();
    while providers.requests() < requests {
        assert!(started.elapsed() < Duration::from_secs(120), "{} requests", providers.requests());
        assert!(process.try_wait().expect("a process").is_none(), "it ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks a process to end, as supervisors do, and waits until it has.
fn terminate(process: Child) -> Said {
    // The shell's own `kill`, which every machine has.
    let sent = Command::new("sh").args(["-c", &format!("kill -TERM {}", process.id())]).status().expect("a shell");
    assert!(sent.success());
    Said::at_end(process)
}

#[test]
fn a_run_that_was_killed_half_way_pays_for_nothing_twice() {
    const ROWS: u64 = 2_000;
    // Providers take their time; what is under way, or was answered within the last moment, is lost.
    let faults = Faults { slow: 1.0, slow_ms: 20, ..Faults::default() };
    let options = "shard_rows = 1000, spill_to = 'away', spill_when = 'always'";
    let spilling = Spilling::at(Providers::start(faults), "engine = 'echo'", options, COMPLETE);
    spilling.configure("[[egress.allow]]", FOUR_AT_ONCE);
    spilling.job.with_rows("a", 0, ROWS as i64);
    let mut process = start(&spilling, &[]);
    wait_for(&mut process, &spilling.providers, ROWS / 2);
    process.kill().expect("it can be killed");
    process.wait().expect("it ended");
    let before = spilling.providers.requests();
    assert!((ROWS / 2..ROWS * 3 / 4).contains(&before), "{before} requests before the kill");
    let rows = spilling.published();
    assert_eq!(integers(&rows, "id").len() as u64, ROWS);
    let requests = spilling.providers.requests();
    println!("{requests} requests for {ROWS} rows, {before} of them before the kill");
    assert!((ROWS..=ROWS + ROWS / 100).contains(&requests), "{requests} requests for {ROWS} rows");
}

#[test]
fn answers_of_a_run_that_stopped_at_its_cap_are_kept() {
    const ROWS: u64 = 200;
    let providers = Providers::with(Config::default());
    let options = "spill_to = 'away', spill_when = 'always', max_cost_usd = 0.5";
    let select = "SELECT id, ai_complete(text, max_tokens => 64) AS answer FROM rows";
    let spilling = Spilling::at(providers, "engine = 'echo'", options, select);
    spilling.configure("[audit]", PRICES);
    spilling.job.with_rows("a", 0, ROWS as i64);
    let said = spilling.say("run");
    assert_eq!(said.code, Some(3), "{said:?}");
    let before = spilling.providers.requests();
    assert!((1..ROWS).contains(&before), "{before} requests until the cap");
    spilling.edit("max_cost_usd = 0.5", "max_cost_usd = 1000");
    let rows = spilling.published();
    assert_eq!(integers(&rows, "id").len() as u64, ROWS);
    assert_eq!(spilling.providers.requests(), ROWS, "{before} of them before the cap: an answer was paid for twice");
}

#[test]
fn a_run_that_is_told_to_stop_keeps_what_was_under_way_in_all_its_slots() {
    const ROWS: u64 = 200;
    let options = "shard_rows = 20, spill_to = 'away', spill_when = 'always'";
    let spilling = Spilling::at(Providers::start(slow(500)), "engine = 'echo'", options, COMPLETE);
    spilling.job.with_rows("a", 0, ROWS as i64);
    let mut process = start(&spilling, &["--slots", "3"]);
    // Three shards of twenty rows each.
    wait_for(&mut process, &spilling.providers, 50);
    let said = terminate(process);
    assert_eq!(said.code, Some(75), "{said:?}");
    assert!(said.stderr.contains("SIGTERM"), "{}", said.stderr);
    let before = spilling.providers.requests();
    assert!((50..=60).contains(&before), "{before} requests before it was told to stop, and what was on its way then");
    assert_eq!(integers(&spilling.published(), "id").len() as u64, ROWS);
    assert_eq!(spilling.providers.requests(), ROWS, "{before} of them before the stop: an answer was paid for twice");
}

#[test]
fn a_cap_that_one_slot_reaches_costs_the_others_no_answer() {
    let options = "shard_rows = 20, spill_to = 'away', spill_when = 'always', max_cost_usd = 8";
    let select = "SELECT id, ai_complete(text, max_tokens => 64) AS answer FROM rows";
    let spilling = Spilling::at(Providers::start(slow(1_000)), "engine = 'echo'", options, select);
    spilling.configure("[audit]", PRICES);
    // Three shards. What a row of the last may cost is more than the cap, so its slot stops at once, while the others wait for
    // answers.
    let text = |row: usize| format!("text of row {row} {}", "and more ".repeat(if row < 40 { 0 } else { 10_000 }));
    table(&spilling.job, &(0..60).map(text).collect::<Vec<_>>());
    let said = Said::at_end(start(&spilling, &["--slots", "3"]));
    assert_eq!(said.code, Some(3), "{said:?}");
    let before = spilling.providers.requests();
    assert!((1..=40).contains(&before), "{before} requests until the cap");
    spilling.edit("max_cost_usd = 8", "max_cost_usd = 1000");
    assert_eq!(integers(&spilling.published(), "id"), (0..60).collect::<Vec<_>>());
    assert_eq!(spilling.providers.requests(), 60, "{before} of them before the cap: an answer was paid for twice");
}

#[test]
fn when_a_provider_goes_away_the_next_one_is_asked_for_the_rest_only() {
    const ROWS: u64 = 400;
    let (away, second) = (Providers::start(slow(20)), Providers::start(Faults::default()));
    let spilling = chain(away.simulator.address(), &second, "shard_rows = 1000");
    spilling.job.with_rows("a", 0, ROWS as i64);
    let mut process = start(&spilling, &[]);
    wait_for(&mut process, &away, ROWS / 2);
    let gone = away.stop();
    let said = Said::at_end(process).ok();
    assert_eq!(said.summary()["errors"], 0, "{said:?}");
    let answered = gone.journal().bill(Provider::Openai).answers;
    assert!((ROWS / 2 - 1..ROWS).contains(&answered), "{answered} answers before it went away");
    // An answer may have been on its way when it went.
    let asked = second.requests();
    assert!((ROWS - answered..=ROWS - answered + 1).contains(&asked), "{asked} asked again, {answered} were answered");
}

#[test]
fn answers_of_the_second_provider_stand_when_the_first_is_back() {
    const ROWS: u64 = 200;
    let second = Providers::start(slow(100));
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let spilling = chain(address, &second, "shard_rows = 1000");
    spilling.configure("[[egress.allow]]", "[providers.second.limits]\nconcurrency = 4\n[[egress.allow]]");
    spilling.job.with_rows("a", 0, ROWS as i64);
    let mut process = start(&spilling, &[]);
    wait_for(&mut process, &second, ROWS / 2);
    assert_eq!(terminate(process).code, Some(75));
    let before = second.requests();
    assert!((ROWS / 2..ROWS).contains(&before), "{before} requests before the stop");
    let back = Providers::on(TcpListener::bind(address).expect("the port is still free"), Config::default());
    assert_eq!(integers(&spilling.published(), "id").len() as u64, ROWS);
    assert_eq!((second.requests(), back.requests()), (before, ROWS - before), "an answer was paid for twice");
}

#[test]
fn a_provider_that_is_away_is_not_asked_again_for_each_portion() {
    let second = Providers::start(Faults::default());
    // It takes connections, and says nothing.
    let away = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let spilling = chain(away.local_addr().expect("an address"), &second, "shard_rows = 50");
    spilling.job.with_rows("a", 0, 200);
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    std::thread::spawn(move || {
        for _ in away.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let said = Said::at_end(start(&spilling, &["--slots", "1"])).ok();
    assert_eq!((said.summary()["errors"].as_u64(), second.requests()), (Some(0), 200));
    let tries = tries.load(Ordering::SeqCst);
    assert!((1..=8).contains(&tries), "{tries} connections for four shards: five are what one call tries");
}
