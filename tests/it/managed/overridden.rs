//! What is known of a model is overridden: by the operator in `rowmill.toml`, by the job in CREATE MODEL. A job overrides how
//! it is asked, and nothing that the operator decides.

use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::config::Faults;
use serde_json::Value;

use super::elsewhere::{Elsewhere, Providers, ROWS, provider};

const SELECT: &str = "SELECT id, ai_extract(text, 'product STRING') AS facts FROM rows";
const MODEL: &str = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini'";

/// What a job's requests say, with these options of CREATE MODEL and this `[providers.away.target]`.
fn asked(options: &str, target: &str) -> Vec<Value> {
    let providers = Providers::start(Faults::default());
    let job = Elsewhere::new(&format!("{MODEL}{options}"), "", SELECT);
    let config = format!("{}[providers.away.target]\n{target}", provider(&providers, "openai", Provider::Openai));
    let summary = job.config(&config).say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
    let entries = providers.simulator.journal().entries();
    let bodies: Vec<Value> = entries
        .iter()
        .map(|entry| serde_json::from_slice(entry.body.as_ref().expect("a body")).expect("JSON"))
        .collect();
    assert_eq!(bodies.len(), ROWS as usize);
    bodies
}

#[test]
fn a_job_and_the_operator_say_what_a_model_can_do_and_the_job_counts_more() {
    for body in asked("", "") {
        assert_eq!(body["response_format"]["type"], "json_schema", "{body}");
        assert!(body["tools"].is_null() && body["temperature"] == 0 && body["user"].is_null(), "{body}");
    }
    for body in asked(", structured = 'tools, none', temperature = false", "") {
        assert!(body["response_format"].is_null() && body["temperature"].is_null(), "{body}");
        assert_eq!(body["tools"].as_array().map(Vec::len), Some(1), "{body}");
    }
    let target = "structured = [\"json_object\"]\ntemperature = false\nbody = { user = \"nightly\" }\n";
    for body in asked("", target) {
        assert_eq!(body["response_format"]["type"], "json_object", "{body}");
        assert!(body["temperature"].is_null() && body["user"] == "nightly", "{body}");
    }
    for body in asked(", structured = 'tools'", target) {
        assert!(body["response_format"].is_null() && body["tools"].is_array(), "{body}");
        assert!(body["temperature"].is_null() && body["user"] == "nightly", "{body}");
    }
}

#[test]
fn what_decides_where_bytes_go_and_what_they_may_take_is_in_no_job() {
    let providers = Providers::start(Faults::default());
    for option in [
        "base_url = 'https://evil.example'",
        "chat_path = '/x'",
        "auth = 'none'",
        "key_env = 'HOME'",
        "headers = 'x'",
        "body = 'x'",
        "self_hosted = true",
        "holes = 'x'",
        "tokens_field = 'x'",
        "seed_field = 'n'",
        "flex_tier = 'x'",
        "dialect = 'gemini'",
    ] {
        let job = Elsewhere::new(&format!("{MODEL}, {option}"), "", SELECT);
        let said = job.config(&provider(&providers, "openai", Provider::Openai)).say("run");
        let name = option.split(' ').next().expect("a name");
        assert_eq!(said.code, Some(1), "{option}: {said:?}");
        assert!(said.stderr.contains(&format!("CREATE MODEL away has no option `{name}`")), "{}", said.stderr);
        assert!(said.stderr.contains("job.sql:2:"), "{}", said.stderr);
    }
    // What is the operator's is said in one place, and what is wrong with it at its line.
    let job = Elsewhere::new(MODEL, "", SELECT);
    let config = provider(&providers, "openai", Provider::Openai);
    let said = job.config(&format!("{config}[providers.away.target]\nself_hosted = true\n")).say("run");
    let line = config.lines().count() + 2;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains(&format!("rowmill.toml:{line}:1")), "{}", said.stderr);
    assert_eq!(providers.requests(), 0, "something was sent");
}
