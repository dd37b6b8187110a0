//! What left, against the specification: every request of OpenAI's dialect that a job sent must be one that OpenAI's own
//! request types take. What a provider has beyond them is named here; anything else is a defect. No test stands here.

use std::sync::LazyLock;

use jsonschema::Validator;
use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::journal::Entry;
use serde_json::Value;

use crate::support::repository;

static CHAT: LazyLock<Validator> = LazyLock::new(|| validator("chat-completion-request"));
static EMBEDDINGS: LazyLock<Validator> = LazyLock::new(|| validator("embedding-request"));

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

/// Checks what came in, and returns how many of the requests were of OpenAI's dialect.
pub fn check(entries: &[Entry]) -> usize {
    let mut checked = 0;
    for entry in entries {
        let validator = match &entry.path {
            path if path.ends_with("/chat/completions") => &CHAT,
            path if path.ends_with("/embeddings") => &EMBEDDINGS,
            _ => continue,
        };
        let mut body: Value = serde_json::from_slice(entry.body.as_ref().expect("a body that was kept")).expect("JSON");
        let fields = body.as_object_mut().expect("an object");
        extensions(entry.provider).iter().for_each(|name| drop(fields.shift_remove(*name)));
        let errors: Vec<String> =
            validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{:?} {}: {errors:?}", entry.provider, entry.path);
        checked += 1;
    }
    checked
}
