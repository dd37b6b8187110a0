//! Money, in one process: what a run costs is what the provider bills, and a cap holds until it is raised.

use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::config::Faults;

use super::elsewhere::{Elsewhere, Providers, ROWS, provider};

/// Dollars of a million tokens: so much that every request counts.
pub const PRICES: &str = "[prices.\"away/gpt-4o-mini\"]\ninput = \"100\"\noutput = \"400\"\n";
pub const MODEL: &str = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini'";
/// One call a row.
pub const TOPICS: &str = "SELECT id, ai_classify(text, ['billing', 'bug']) AS topic FROM rows";

/// Dollars that the provider bills, by its own record.
pub fn billed(providers: &Providers) -> f64 {
    let bill = providers.simulator.journal().bill(Provider::Openai);
    bill.input_tokens as f64 * 100e-6 + bill.output_tokens as f64 * 400e-6
}

#[test]
fn a_cap_is_never_exceeded_and_raising_it_goes_on() {
    let providers = Providers::start(Faults::default());
    let config = format!("{}{PRICES}", provider(&providers, "openai", Provider::Openai));
    let free = Elsewhere::new(MODEL, "", TOPICS);
    let whole = free.config(&config).say("run").ok().summary()["cost_usd"].as_f64().expect("a cost");
    assert!(whole > 0.0 && (whole - billed(&providers)).abs() < 1e-9, "{whole} is not what was billed");

    // About half of what it costs.
    let cap = format!("max_cost_usd = {:.4}", whole / 2.0);
    let capped = Elsewhere::new(MODEL, &format!(", {cap}"), TOPICS);
    capped.config(&config);
    let before = billed(&providers);
    let said = capped.say("run");
    assert_eq!((said.code, said.summary()["status"].as_str()), (Some(3), Some("incomplete")), "{said:?}");
    assert!(said.stderr.contains("max_cost_usd is reached"), "{}", said.stderr);
    let paid = billed(&providers) - before;
    assert!(paid <= whole / 2.0, "{paid} USD were billed of {}", whole / 2.0);

    capped.rewrite(&cap, &format!("max_cost_usd = {:.4}", whole * 4.0));
    let summary = capped.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
}
