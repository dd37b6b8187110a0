//! What left, against the specification: every request of OpenAI's dialect that a job sent, online or as a line of a
//! batch's file, and every creation of a batch must be one that OpenAI takes. What a provider has beyond that is named
//! here; anything else is a defect. No test stands here.

use std::sync::LazyLock;

use jsonschema::Validator;
use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::journal::Entry;
use serde_json::{Value, json};

use super::elsewhere::Providers;
use crate::support::repository;

static CHAT: LazyLock<Validator> = LazyLock::new(|| validator("chat-completion-request"));
static EMBEDDINGS: LazyLock<Validator> = LazyLock::new(|| validator("embedding-request"));
static BATCH: LazyLock<Validator> = LazyLock::new(|| validator("batch-request"));
static LINE: LazyLock<Validator> = LazyLock::new(|| validator("batch-line"));

fn validator(name: &str) -> Validator {
    let file = repository().join(format!("executor/managed/tests/fixtures/openai-spec/{name}.json"));
    let schema: Value = serde_json::from_slice(&std::fs::read(file).expect("a schema")).expect("JSON");
    jsonschema::options().offline().build(&schema).expect("a schema")
}

/// Fields of a provider that OpenAI does not have, or has in another form.
fn extensions(provider: Provider) -> &'static [&'static str] {
    match provider {
        Provider::Deepseek => &["thinking"],
        Provider::Mistral => &["random_seed"],
        Provider::Openrouter => &["provider"],
        Provider::Tgi => &["response_format"],
        Provider::LlamaServer => &["grammar"],
        _ => &[],
    }
}

/// Checks what came in, and returns how many of the requests, lines of files among them, were of OpenAI's dialect.
pub fn check(entries: &[Entry]) -> usize {
    entries.iter().filter(|entry| entry.method == "POST").map(check_entry).sum()
}

/// The same for all that one provider was asked.
pub fn asked(providers: &Providers, of: Provider) -> u64 {
    let entries = providers.simulator.journal().entries();
    entries.iter().filter(|entry| entry.provider == of && entry.method == "POST").map(check_entry).sum::<usize>() as u64
}

fn check_entry(entry: &Entry) -> usize {
    let body = || entry.body.as_ref().expect("a body that was kept");
    let parsed = || serde_json::from_slice(body()).expect("JSON");
    match &entry.path {
        path if path.ends_with("/chat/completions") => check_question(entry, &CHAT, parsed()),
        path if path.ends_with("/embeddings") => check_question(entry, &EMBEDDINGS, parsed()),
        path if path.ends_with("/files") || path.ends_with("/files/upload") => {
            lines(body()).map(|line| check_line(entry, line)).sum()
        }
        path if path.ends_with("/batches") && !path.ends_with("/messages/batches") => check_creation(entry, parsed()),
        _ => 0,
    }
}

/// The lines of a file that was uploaded as a form: the form's own lines are no objects.
fn lines(body: &[u8]) -> impl Iterator<Item = Value> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{"));
    lines.map(|line| serde_json::from_slice(line).expect("JSON"))
}

fn check_line(entry: &Entry, mut line: Value) -> usize {
    if entry.provider == Provider::Mistral {
        // It is told once what all lines ask, and how.
        let url = if line["body"].get("messages").is_some() { "/v1/chat/completions" } else { "/v1/embeddings" };
        (line["method"], line["url"]) = (json!("POST"), json!(url));
    }
    assert_valid(entry, &LINE, &line);
    let validator = if line["url"] == "/v1/embeddings" { &EMBEDDINGS } else { &CHAT };
    check_question(entry, validator, line["body"].take())
}

fn check_creation(entry: &Entry, mut body: Value) -> usize {
    if entry.provider == Provider::Together {
        // Its batches take a day, and say so to nobody.
        body["completion_window"] = json!("24h");
    }
    assert_valid(entry, &BATCH, &body);
    1
}

fn check_question(entry: &Entry, validator: &Validator, mut body: Value) -> usize {
    let fields = body.as_object_mut().expect("an object");
    extensions(entry.provider).iter().for_each(|name| drop(fields.shift_remove(*name)));
    assert_valid(entry, validator, &body);
    1
}

fn assert_valid(entry: &Entry, validator: &Validator, body: &Value) {
    let errors: Vec<String> =
        validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{:?} {}: {errors:?}", entry.provider, entry.path);
}
