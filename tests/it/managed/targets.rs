//! The table of targets: every kind of provider, asked by jobs in its own dialect for a text, JSON of a schema, a label and a
//! vector, while it fails in its own words; and what it says to who has no key, or no money, or asks what its filter refuses.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use arrow::array::{Array, FixedSizeListArray, RecordBatch};
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use rowmill_jobs::spec::PROVIDER_KINDS;
use rowmill_provider_simulator::config::Faults;
use rowmill_provider_simulator::{Config, Provider};
use serde_json::json;

use super::elsewhere::{AWS_KEY_ID, AWS_SECRET, Elsewhere, KEY, Providers, ROWS, SECRET, allowed, contains, holds};
use super::specification;
use crate::support::{Said, integers, read_table, row_errors, say, strings};

/// Targets that are asked at the same time: most of it is waiting.
const AT_ONCE: usize = 4;
/// The access token that Vertex's credentials are exchanged for.
const TOKEN: &str = "ya29.canary-9b8c-token";
const LABELS: [&str; 3] = ["billing", "bug", "other"];
const SELECT: &str = "SELECT id, ai_classify(text, ['billing', 'bug', 'other']) AS topic, \
                      ai_extract(text, 'product STRING, severity INT') AS facts, ai_complete(text) AS answer FROM rows";
const ANSWERS: &str = "SELECT id, ai_complete(text) AS answer FROM rows";
const VECTORS: &str = "SELECT id, ai_embed(text) AS vector FROM rows";

/// A kind of provider, who plays it, and its models.
#[derive(Debug, Clone, Copy)]
struct Target {
    kind: &'static str,
    played_by: Provider,
    /// Writes texts; `None` where none does.
    writer: Option<&'static str>,
    /// Makes vectors of this length.
    embedder: Option<(&'static str, u32)>,
}

const fn target(
    kind: &'static str,
    played_by: Provider,
    writer: &'static str,
    embedder: Option<(&'static str, u32)>,
) -> Target {
    Target { kind, played_by, writer: Some(writer), embedder }
}

/// Lengths of vectors are those that were asked for where they can be, and the simulator's own elsewhere.
const TARGETS: [Target; 18] = [
    target("openai", Provider::Openai, "gpt-4o-mini", Some(("text-embedding-3-small", 1536))),
    target("azure", Provider::Azure, "tickets-gpt-4o-mini", Some(("text-embedding-3-small", 256))),
    target("anthropic", Provider::Anthropic, "claude-haiku-4-5", None),
    target("bedrock", Provider::Bedrock, "anthropic.claude-sonnet-4-5-20250929-v1:0", None),
    target("vertex", Provider::Vertex, "claude-sonnet-4-5@20250929", None),
    target("gemini", Provider::Gemini, "gemini-2.0-flash", Some(("gemini-embedding-001", 768))),
    target("groq", Provider::Groq, "llama-3.3-70b-versatile", None),
    target("deepseek", Provider::Deepseek, "deepseek-chat", None),
    target("mistral", Provider::Mistral, "mistral-small-latest", Some(("mistral-embed", 16))),
    target(
        "together",
        Provider::Together,
        "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        Some(("BAAI/bge-base-en-v1.5", 16)),
    ),
    target(
        "fireworks",
        Provider::Fireworks,
        "accounts/fireworks/models/llama-v3p1-8b-instruct",
        Some(("nomic-embed", 64)),
    ),
    target("openrouter", Provider::Openrouter, "openai/gpt-4o-mini", None),
    target("vllm", Provider::Vllm, "qwen3", Some(("bge", 16))),
    target("llama-server", Provider::LlamaServer, "qwen3", Some(("bge", 16))),
    target("ollama", Provider::Ollama, "qwen3", Some(("bge", 16))),
    target("tgi", Provider::Tgi, "tgi", None),
    Target { kind: "tei", played_by: Provider::Tei, writer: None, embedder: Some(("bge", 16)) },
    target("openai-compatible", Provider::Openai, "house", Some(("house-embedder", 16))),
];

impl Target {
    /// The options of CREATE MODEL for one that writes.
    fn writer(&self, name: &str) -> String {
        format!("engine = '{}', provider = 'away', name = '{name}'", self.kind)
    }

    /// And for one that makes vectors.
    fn embedder(&self, (name, length): (&str, u32)) -> String {
        format!("{}, dimensions = {length}", self.writer(name))
    }

    /// A job for one of its models, which is allowed to go to `providers`.
    fn job(&self, providers: &Providers, model: &str, options: &str, select: &str) -> Elsewhere {
        let away = Elsewhere::new(model, options, select);
        let base = providers.simulator.base(self.played_by);
        let (base, opened_with) = match self.played_by {
            Provider::Bedrock => (base, "region = \"eu-central-1\"".to_owned()),
            Provider::Vertex => {
                let file = away.job.folder.path().join("service account.json");
                std::fs::write(&file, service_account(&providers.simulator.token_url())).expect("credentials");
                let region = "region = \"europe-west1\"\nproject = \"p-1\"";
                (
                    format!("{base}/projects/p-1/locations/europe-west1"),
                    format!("secret = \"file:{}\"\n{region}", file.display()),
                )
            }
            _ => (base, SECRET.to_owned()),
        };
        away.config(&allowed(self.kind, &base, &opened_with));
        away
    }

    /// The shortest job that it can be asked: one call a row.
    fn short_job(&self, providers: &Providers, options: &str) -> Elsewhere {
        match (self.writer, self.embedder) {
            (Some(writer), _) => self.job(providers, &self.writer(writer), options, ANSWERS),
            (None, Some(embedder)) => self.job(providers, &self.embedder(embedder), options, VECTORS),
            (None, None) => panic!("{} does nothing", self.kind),
        }
    }
}

/// A file of Google's: who asks for tokens, and the key that says so.
fn service_account(token_url: &str) -> String {
    // RSA keys take a while to make, so all tests share one.
    static RSA: LazyLock<String> =
        LazyLock::new(|| KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key").serialize_pem());
    json!({
        "type": "service_account", "client_email": "rowmill@p-1.iam.gserviceaccount.com", "private_key": *RSA,
        "private_key_id": "k1", "token_uri": token_url,
    })
    .to_string()
}

/// One row of the table.
#[derive(Debug, Default)]
struct Found {
    answers: usize,
    objects: usize,
    labels: usize,
    vectors: usize,
    requests: usize,
    throttled: usize,
    failed: usize,
    of_openais_form: usize,
    without_key: String,
    without_money: String,
    filtered: String,
}

/// Asks a target for all it has, while a quarter of its answers go wrong.
fn ask(target: &Target) -> Found {
    let often = 0.05;
    let faults = Faults {
        throttled: often,
        server_error: often,
        overloaded_html: often,
        cut_body: often,
        error_in_ok: often,
        ..Faults::default()
    };
    let keys = [("team", KEY), ("aws", AWS_KEY_ID), ("vertex", TOKEN)].map(|(name, key)| (name.into(), key.into()));
    let providers = Providers::with(Config { faults, keys: keys.into(), ..Config::default() });
    let mut found = Found::default();
    if let Some(writer) = target.writer {
        let rows = published(target, &target.job(&providers, &target.writer(writer), "", SELECT));
        let facts = |batch: &RecordBatch| {
            let column = batch.column_by_name("facts").expect("facts");
            column.len() - column.null_count()
        };
        found.answers = strings(&rows, "answer").iter().flatten().count();
        found.objects = rows.iter().map(facts).sum();
        found.labels =
            strings(&rows, "topic").iter().flatten().filter(|label| LABELS.contains(&label.as_str())).count();
    }
    if let Some(embedder) = target.embedder {
        let rows = published(target, &target.job(&providers, &target.embedder(embedder), "", VECTORS));
        found.vectors = rows.iter().map(|batch| vectors_of(batch, embedder.1)).sum();
    }
    let entries = providers.simulator.journal().entries();
    let with = |wanted: &dyn Fn(u16) -> bool| entries.iter().filter(|entry| entry.status.is_some_and(wanted)).count();
    (found.requests, found.throttled) = (entries.len(), with(&|status| status == 429));
    found.failed = with(&|status| status >= 500 || status == 424);
    assert!(entries.iter().all(|entry| entry.key_name.is_some()), "{}: a request had no key", target.kind);
    found.of_openais_form = specification::check(&entries);
    found.without_key = locked_out(target);
    found.without_money = broke(target);
    found.filtered = filtered(target);
    found
}

/// The rows of a job that ends well, though its provider fails: every row once, none with an error, all of it on record.
fn published(target: &Target, away: &Elsewhere) -> Vec<RecordBatch> {
    let said = away.say("run");
    let summary = said.summary();
    assert_eq!(
        (said.code, summary["rows"].as_i64(), summary["errors"].as_u64()),
        (Some(0), Some(ROWS), Some(0)),
        "{}: {said:?}, {:?}",
        target.kind,
        errors_of(away)
    );
    let rows = read_table(Path::new(summary["published"].as_str().expect("a folder")));
    assert_eq!(integers(&rows, "id"), (0..ROWS).collect::<Vec<_>>(), "{}", target.kind);
    let (audit, home) = (away.audit(), away.job.folder.path());
    let verified = say(&["audit", "verify", audit.to_str().expect("UTF-8"), "--json"]).ok().summary();
    assert_eq!(verified["status"], "whole", "{}", target.kind);
    // Keys are nowhere: not in what was said, the plan, parts, audits, nor in their copies.
    for secret in [KEY, AWS_SECRET, TOKEN] {
        assert!(!format!("{said:?}").contains(secret), "{}: {secret}", target.kind);
        assert_eq!(holds(home, secret, Path::new("")), None, "{}: {secret}", target.kind);
    }
    // Row content is in parts only.
    assert_eq!(holds(&audit, "text of row", Path::new("")), None, "{}", target.kind);
    assert!(!said.stderr.contains("text of row"), "{}", target.kind);
    rows
}

/// The errors of all rows of a job's runs, published or not.
fn errors_of(away: &Elsewhere) -> Vec<String> {
    let parts = away.job.parts();
    let runs: BTreeSet<&Path> = parts.iter().filter_map(|part| part.parent()).collect();
    runs.into_iter().flat_map(|run| row_errors(&read_table(run))).collect()
}

/// Vectors of this length.
fn vectors_of(batch: &RecordBatch, length: u32) -> usize {
    let column = batch.column_by_name("vector").expect("vectors");
    let vectors = column.as_any().downcast_ref::<FixedSizeListArray>().expect("vectors of one length");
    assert_eq!(u32::try_from(vectors.value_length()), Ok(length));
    vectors.len() - vectors.null_count()
}

/// What a run says that cannot go on, in the place of `hint`.
fn ended_by(target: &Target, providers: &Providers, hint: &str) -> String {
    let away = target.short_job(providers, "");
    let said: Said = away.say("run");
    assert_eq!(said.code, Some(1), "{}: {said:?}", target.kind);
    assert!(said.stderr.contains(hint), "{}, {hint}: {}", target.kind, said.stderr);
    assert!(!contains(said.stderr.as_bytes(), KEY), "{}", target.kind);
    let entries = providers.simulator.journal().entries();
    let statuses = entries.iter().filter_map(|entry| entry.status);
    statuses.last().map_or("-".to_owned(), |status| status.to_string())
}

/// A key that the provider does not know ends the run, with a hint; returns the status it came with.
fn locked_out(target: &Target) -> String {
    let keys = [("other".to_owned(), "sk-of-somebody-else".to_owned())].into();
    let providers = Providers::with(Config { keys, ..Config::default() });
    ended_by(target, &providers, "check the key")
}

/// An account without money ends the run, and is not asked again and again.
fn broke(target: &Target) -> String {
    let providers = Providers::start(Faults { billing: 1.0, ..Faults::default() });
    let status = ended_by(target, &providers, "no money left");
    assert!(providers.requests() <= ROWS as u64, "{}: {} requests", target.kind, providers.requests());
    status
}

/// A filter's refusal is the row's own error.
fn filtered(target: &Target) -> String {
    if target.writer.is_none() {
        return "-".to_owned();
    }
    let providers = Providers::start(Faults { refused: 1.0, ..Faults::default() });
    let away = target.short_job(&providers, ", max_error_ratio = 1");
    let summary = away.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_i64()), (Some(ROWS), Some(ROWS)), "{}", target.kind);
    let rows = read_table(Path::new(summary["published"].as_str().expect("a folder")));
    assert!(strings(&rows, "answer").iter().all(Option::is_none), "{}", target.kind);
    let errors: Vec<String> = rows.iter().map(|batch| format!("{:?}", batch.column_by_name("_errors"))).collect();
    let word = ["filtered", "refused"].into_iter().find(|word| errors.iter().all(|errors| errors.contains(word)));
    word.unwrap_or_else(|| panic!("{}: {errors:?}", target.kind)).to_owned()
}

#[test]
fn every_kind_of_provider_is_asked_for_all_it_has_and_fails_in_its_own_words() {
    assert_eq!(TARGETS.map(|target| target.kind), PROVIDER_KINDS);
    let waiting: Mutex<VecDeque<usize>> = Mutex::new((0..TARGETS.len()).collect());
    let found: Mutex<Vec<(usize, Found)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(index) = { waiting.lock().expect("the list").pop_front() } {
                    let row = ask(&TARGETS[index]);
                    found.lock().expect("the table").push((index, row));
                }
            });
        }
    });
    let mut found = found.into_inner().expect("the table");
    found.sort_by_key(|(index, _)| *index);
    println!(
        "| target | texts | JSON | labels | vectors | requests | of OpenAI's form | 429 | 5xx | wrong key | no money | filter |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for (index, row) in &found {
        let (target, all) = (&TARGETS[*index], ROWS as usize);
        let shown = |count: usize| if count == 0 { "-".to_owned() } else { count.to_string() };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            target.kind,
            shown(row.answers),
            shown(row.objects),
            shown(row.labels),
            shown(row.vectors),
            row.requests,
            shown(row.of_openais_form),
            row.throttled,
            row.failed,
            row.without_key,
            row.without_money,
            row.filtered,
        );
        let has_own_dialect = matches!(target.kind, "anthropic" | "bedrock" | "vertex" | "gemini");
        assert_eq!(row.of_openais_form, if has_own_dialect { 0 } else { row.requests }, "{}", target.kind);
        let written = if target.writer.is_some() { all } else { 0 };
        assert_eq!((row.answers, row.objects, row.labels), (written, written, written), "{}", target.kind);
        assert_eq!(row.vectors, if target.embedder.is_some() { all } else { 0 }, "{}", target.kind);
        if target.writer.is_some() {
            assert!(row.throttled + row.failed > 0, "{} never failed", target.kind);
        }
    }
    assert_eq!(found.len(), PROVIDER_KINDS.len());
}
