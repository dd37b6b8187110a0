//! Each target's requests, byte for byte as they were written by hand.

use rowmill_managed::Target;
use serde_json::json;

use crate::bed::{Fixture, body, first_call};

#[test]
fn every_target_is_asked_in_its_own_language() {
    let fixtures = Fixture::all();
    let mut kinds = 0;
    for fixture in &fixtures {
        for (task, expected) in &fixture.requests {
            let question = fixture.question(task);
            let values: &[&str] = if task == "embed" { &["first", "second"] } else { &["the text"] };
            let call = first_call(&question, values);
            let sent = json!({"path": call.path, "body": body(&call)});
            assert_eq!(sent, *expected, "{} {task}", fixture.name);
            assert_eq!(sent["body"].to_string(), expected["body"].to_string(), "{} {task}: order", fixture.name);
            assert!(call.estimate.input_tokens > 0 && call.estimate.nano_usd_max == 0);
            kinds += 1;
        }
        let tasks: Vec<&str> = fixture.requests.keys().map(String::as_str).collect();
        println!("{:28} {:45} {}", fixture.name, fixture.model, tasks.join(", "));
    }
    assert!(kinds > 90, "{kinds}");
    for provider in Target::providers().unwrap() {
        assert!(fixtures.iter().any(|fixture| fixture.provider == provider), "no request of {provider} was written");
    }
}

#[test]
fn what_a_target_has_not_is_refused_before_anything_is_sent() {
    for fixture in Fixture::all() {
        let target = fixture.target();
        for task in ["completion", "embed"] {
            let has = if task == "embed" { target.embed_rows_max > 0 } else { !target.chat_path.is_empty() };
            let made = rowmill_managed::Question::new(&target, &std::sync::Arc::new(crate::bed::task(task)));
            assert_eq!(made.is_ok(), has, "{} {task}", fixture.name);
            assert!(made.is_ok() || !made.unwrap_err().retryable());
        }
    }
}
