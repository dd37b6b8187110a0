//! aimock, a server of other authors that speaks the dialects of several providers: what the simulator's author may have
//! misread, they need not have.

use std::process::{Child, Command, Stdio};

use arrow::array::Array;
use serde_json::json;

use super::elsewhere::{Elsewhere, ROWS, SECRET, allowed};
use crate::servers::{end, free_port, text, wait_until};
use crate::support::{integers, read_table, strings};

/// A running aimock. It ends when this is dropped.
struct Aimock {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Aimock {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

impl Aimock {
    /// With an answer for each of our prompts, whatever the dialect that brings it.
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let answers = [
            ("Which category fits the text best?", r#"{"label":"bug"}"#),
            ("Extract these fields from the text as JSON.", r#"{"product":"Atlas","severity":2}"#),
            ("text of row", "An answer."),
        ];
        let fixtures =
            answers.map(|(part, content)| json!({"match": {"userMessage": part}, "response": {"content": content}}));
        let (fixtures_file, config_file) = (folder.path().join("fixtures.json"), folder.path().join("aimock.json"));
        std::fs::write(&fixtures_file, json!({"fixtures": fixtures}).to_string()).expect("fixtures are written");
        let config = json!({"llm": {"fixtures": text(&fixtures_file), "strict": true, "logLevel": "silent"}});
        std::fs::write(&config_file, config.to_string()).expect("a configuration is written");
        let program = std::env::var("ROWMILL_TEST_AIMOCK").expect("infra/test --aimock names aimock's program");
        let port = free_port();
        let mut command = Command::new("node");
        command.args([&program, "--config", text(&config_file), "--port", &port.to_string()]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("node starts");
        let aimock = Self { process, port, _folder: folder };
        wait_until("aimock listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        aimock
    }

    fn base(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

#[test]
fn a_server_of_other_authors_is_asked_in_its_dialects() {
    let select = "SELECT id, ai_classify(text, ['billing', 'bug', 'other']) AS topic, \
                  ai_extract(text, 'product STRING, severity INT') AS facts, ai_complete(text) AS answer FROM rows";
    let targets = [
        ("openai", "gpt-4o-mini", "/v1", SECRET),
        ("azure", "gpt-4o-mini", "/v1", SECRET),
        ("anthropic", "claude-haiku-4-5", "", SECRET),
        ("bedrock", "anthropic.claude-haiku-4-5-20251001-v1:0", "", "region = \"us-east-1\""),
        ("gemini", "gemini-2.0-flash", "/v1beta", SECRET),
        ("openai-compatible", "anything", "/v1", SECRET),
    ];
    let aimock = Aimock::start();
    println!("| target | rows | labels | JSON | texts |\n|---|---|---|---|---|");
    for (kind, name, path, opened_with) in targets {
        let away = Elsewhere::new(&format!("engine = '{kind}', provider = 'away', name = '{name}'"), "", select);
        let said = away.config(&allowed(kind, &aimock.base(path), opened_with)).say("run").ok();
        let summary = said.summary();
        assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}: {said:?}");
        let rows = read_table(summary["published"].as_str().expect("a folder").as_ref());
        assert_eq!(integers(&rows, "id"), (0..ROWS).collect::<Vec<_>>(), "{kind}");
        let is = |column: &str, wanted: &str| {
            strings(&rows, column).iter().filter(|text| text.as_deref() == Some(wanted)).count()
        };
        let facts: usize = rows
            .iter()
            .map(|batch| batch.column_by_name("facts").expect("facts"))
            .map(|facts| facts.len() - facts.null_count())
            .sum();
        let found = (is("topic", "bug"), facts, is("answer", "An answer."));
        println!("| {kind} | {ROWS} | {} | {} | {} |", found.0, found.1, found.2);
        let all = ROWS as usize;
        assert_eq!(found, (all, all, all), "{kind}");
    }
}

#[test]
fn a_server_of_other_authors_makes_vectors() {
    let aimock = Aimock::start();
    let model = "engine = 'openai', provider = 'away', name = 'text-embedding-3-small', dimensions = 1536";
    let away = Elsewhere::new(model, "", "SELECT id, ai_embed(text) AS vector FROM rows");
    let summary = away.config(&allowed("openai", &aimock.base("/v1"), SECRET)).say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
}
