//! Tasks, targets from the fixtures, and replies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::infer::{Piece, Request, Task, TaskKind, TextFormat};
use rowmill_managed::call::{Call, Reply};
use rowmill_managed::{Conversation, Overrides, Question, Target};
use serde::Deserialize;
use serde_json::{Value, json};

/// One file of `tests/fixtures/requests`.
#[derive(Debug, Deserialize)]
pub(crate) struct Fixture {
    #[serde(skip)]
    pub(crate) name: String,
    pub(crate) provider: String,
    pub(crate) model: String,
    pub(crate) overrides: Overrides,
    /// Path and body of a call for each kind of task that the target has.
    pub(crate) requests: BTreeMap<String, Value>,
}

impl Fixture {
    pub(crate) fn all() -> Vec<Fixture> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/requests");
        let mut all: Vec<Fixture> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let text = std::fs::read_to_string(&path).unwrap();
                let fixture: Fixture =
                    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                Fixture { name: path.file_stem().unwrap().to_string_lossy().into_owned(), ..fixture }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(!all.is_empty());
        all
    }

    pub(crate) fn target(&self) -> Arc<Target> {
        Arc::new(Target::resolve(&self.provider, &self.model, &self.overrides).unwrap())
    }

    pub(crate) fn question(&self, task: &str) -> Arc<Question> {
        Question::new(&self.target(), &Arc::new(self::task(task)))
            .unwrap_or_else(|e| panic!("{}: {}", self.name, e.report()))
    }
}

/// The tasks that the fixtures are about.
pub(crate) fn task(name: &str) -> Task {
    let (start, system, kind) = match name {
        "completion" => {
            ("Summarise: ", Some("Be brief."), TaskKind::Complete { tokens_max: 200, format: TextFormat::Free })
        }
        "schema" => {
            let format = TextFormat::Json { schema: schema() };
            ("Find: ", None, TaskKind::Complete { tokens_max: 300, format })
        }
        "choose" => {
            let labels = vec!["billing".to_owned(), "bug".to_owned()];
            ("Which?\n", None, TaskKind::Choose { labels, calibrate: false })
        }
        "pattern" => {
            let format = TextFormat::Pattern { pattern: "[A-Z]{2}".to_owned() };
            ("Code of: ", None, TaskKind::Complete { tokens_max: 50, format })
        }
        "embed" => ("passage: ", None, TaskKind::Embed),
        other => panic!("no task {other}"),
    };
    let template = vec![Piece::Text(start.to_owned()), Piece::Value(0)];
    let (model, system, input) = ("m".to_owned(), system.map(str::to_owned), vec![Piece::Value(0)]);
    Task { model, kind, system, template, input }
}

pub(crate) fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"product": {"type": ["string", "null"]}, "severity": {"type": ["integer", "null"]}},
        "required": ["product", "severity"],
        "additionalProperties": false,
    })
}

pub(crate) fn row(value: &str) -> Request {
    Request { values: [value.to_owned()].into_iter().collect() }
}

/// The first call of a talk about rows with these values.
pub(crate) fn first_call(question: &Arc<Question>, values: &[&str]) -> Call {
    let rows: Vec<Request> = values.iter().map(|value| row(value)).collect();
    Conversation::start(question, &rows).unwrap().call(&question.estimates())
}

pub(crate) fn body(call: &Call) -> Value {
    serde_json::from_slice(call.body.as_ref().unwrap()).unwrap()
}

pub(crate) fn reply(body: impl Into<String>) -> Reply {
    Reply { body: body.into().into(), request_id: None, first_byte: Duration::ZERO }
}
