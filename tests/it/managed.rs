//! Models elsewhere, through the user's boundary: a job file, an operator's rowmill.toml, and providers that are simulated
//! on this machine, each in its own dialect. What leaves is what the operator allowed, and is on record; what is not
//! allowed does not leave by a byte; a cap holds.

use std::path::PathBuf;
use std::process::Command;

use rowmill_provider_simulator::config::{Faults, Keep};
use rowmill_provider_simulator::{Config, Provider, Simulator};
use serde_json::Value;

use crate::support::{Job, Said, integers, read_table, rowmill, strings};

/// A key that must be found nowhere but in requests.
pub const CANARY: &str = "canary-7f3a9c-key";
pub const ROWS: i64 = 60;

/// A simulator with the runtime that it lives in.
pub struct Providers {
    pub simulator: Simulator,
    _runtime: tokio::runtime::Runtime,
}

impl Providers {
    pub fn start(faults: Faults) -> Self {
        Self::with(Config { keep_bodies: Keep::Everything, faults, ..Config::default() })
    }

    pub fn with(config: Config) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let simulator = runtime.block_on(Simulator::start(config)).expect("a free port");
        Self { simulator, _runtime: runtime }
    }

    pub fn requests(&self) -> u64 {
        self.simulator.journal().requests()
    }
}

/// A job over table `rows` with `model` = CREATE MODEL's options, and the operator's configuration.
pub struct Elsewhere {
    pub job: Job,
}

impl Elsewhere {
    pub fn new(model: &str, options: &str, select: &str) -> Self {
        let job = Job::new(&format!(
            "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';\n\
             CREATE MODEL away WITH ({model});\n\
             CREATE JOB ask WITH (output = 'out', logical_date = '2026-11-20', key = 'id', model = 'away', shard_rows = 20{options}) AS\n\
             {select};\n"
        ));
        job.with_rows("a", 0, ROWS);
        Self { job }
    }

    pub fn config(&self, text: &str) -> &Self {
        let audit = self.audit();
        let text = format!("{text}\n[audit]\nfolder = \"{}\"\n", audit.display());
        std::fs::write(self.job.folder.path().join("rowmill.toml"), text).expect("the configuration is written");
        self
    }

    pub fn audit(&self) -> PathBuf {
        self.job.folder.path().join("audit")
    }

    /// `rowmill <command> job.sql`, with the configuration if there is one.
    pub fn say(&self, command: &str) -> Said {
        Said::of(self.command(command).output().expect("it runs"))
    }

    /// That command, not yet run.
    pub fn command(&self, command: &str) -> Command {
        let (job, config) = (self.job.path(), self.job.folder.path().join("rowmill.toml"));
        let mut command = rowmill(&[command, job.to_str().expect("UTF-8"), "--json"]);
        command.env("ROWMILL_TEST_KEY", CANARY).env("TMPDIR", self.job.folder.path()).env_remove("ROWMILL_CONFIG");
        if config.exists() {
            command.arg("--config").arg(config);
        }
        command
    }
}

/// A provider that is simulated here, and a rule that lets everything go there.
pub fn provider(providers: &Providers, kind: &str, provider: Provider) -> String {
    let base = providers.simulator.base(provider);
    format!(
        "[providers.away]\nkind = \"{kind}\"\nbase_url = \"{base}\"\nsecret = \"env:ROWMILL_TEST_KEY\"\nmodels = [\"*\"]\n\
         [[egress.allow]]\nname = \"test\"\nproviders = [\"away\"]\ndatasets = [\"*\"]\ncolumns = [\"*\"]\n"
    )
}

pub const SELECT: &str = "SELECT id, ai_classify(text, ['billing', 'bug', 'other'], with_score => true) AS topic, \
                      ai_extract(text, 'product STRING, severity INT') AS facts, ai_complete(text) AS answer FROM rows";

/// Whether any file below a folder holds a text.
pub fn holds(folder: &std::path::Path, text: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            holds(&path, text)
        } else {
            let bytes = std::fs::read(&path).unwrap_or_default();
            bytes.windows(text.len()).any(|window| window == text.as_bytes()).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

#[test]
fn each_provider_answers_a_job_in_its_own_dialect_and_all_that_left_is_on_record() {
    let kinds = [
        ("openai", Provider::Openai, "gpt-4o-mini"),
        ("anthropic", Provider::Anthropic, "claude-haiku-4-5"),
        ("gemini", Provider::Gemini, "gemini-2.0-flash"),
        ("groq", Provider::Groq, "llama-3.3-70b-versatile"),
        ("deepseek", Provider::Deepseek, "deepseek-chat"),
        ("mistral", Provider::Mistral, "mistral-small-latest"),
        ("together", Provider::Together, "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("fireworks", Provider::Fireworks, "accounts/fireworks/models/llama-v3p1-8b-instruct"),
        ("openrouter", Provider::Openrouter, "openai/gpt-4o-mini"),
        ("vllm", Provider::Vllm, "qwen3"),
        ("llama-server", Provider::LlamaServer, "qwen3"),
        ("ollama", Provider::Ollama, "qwen3"),
        ("tgi", Provider::Tgi, "tgi"),
    ];
    let providers = Providers::start(Faults::default());
    println!("| provider | asked for | rows | errors | requests | audit |\n|---|---|---|---|---|---|");
    for (kind, simulated, name) in kinds {
        let before = providers.requests();
        // DeepSeek has no schemas, only instructions, and the simulator does not read.
        let (what, select, calls) = match kind {
            "deepseek" => ("text", "SELECT id, ai_complete(text) AS answer FROM rows", 1),
            _ => ("labels, JSON, text", SELECT, 3),
        };
        let away = Elsewhere::new(&format!("engine = '{kind}', provider = 'away', name = '{name}'"), "", select);
        let said = away.config(&provider(&providers, kind, simulated)).say("run").ok();
        let summary = said.summary();
        assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}: {said:?}");
        let batches = read_table(summary["published"].as_str().expect("a folder").as_ref());
        assert_eq!(integers(&batches, "id"), (0..ROWS).collect::<Vec<_>>(), "{kind}");
        assert!(strings(&batches, "answer").iter().all(Option::is_some), "{kind}");
        let requests = providers.requests() - before;
        assert!(requests >= calls * ROWS as u64, "{kind}: {requests} requests for {ROWS} rows of {calls} calls");
        let audit = away.audit();
        let verified =
            crate::support::say(&["audit", "verify", audit.to_str().expect("UTF-8"), "--json"]).ok().summary();
        assert_eq!(verified["status"], "whole", "{kind}");
        println!("| {kind} | {what} | {ROWS} | 0 | {requests} | whole |");
        // The key is nowhere: not in what was said, the plan, parts, audits, nor in their copies.
        assert!(!format!("{said:?}").contains(CANARY), "{kind}");
        assert_eq!(holds(away.job.folder.path(), CANARY), None, "{kind}");
        // Row content is in parts only.
        assert_eq!(holds(&audit, "text of row"), None, "{kind}");
        assert!(!said.stderr.contains("text of row"), "{kind}");
    }
    assert!(providers.simulator.journal().contains("text of row 59"), "the simulator does not keep what it gets");
}

#[test]
fn vectors_come_from_elsewhere_too() {
    let providers = Providers::start(Faults::default());
    let kinds = [
        ("openai", Provider::Openai, "text-embedding-3-small", 1536),
        ("gemini", Provider::Gemini, "gemini-embedding-001", 768),
        // Its vectors have the length they have: a wrong one is an error, not a cut vector.
        ("vllm", Provider::Vllm, "bge", 16),
    ];
    for (kind, simulated, name, dimensions) in kinds {
        let model = format!("engine = '{kind}', provider = 'away', name = '{name}', dimensions = {dimensions}");
        let away = Elsewhere::new(&model, "", "SELECT id, ai_embed(text) AS vector FROM rows");
        let summary = away.config(&provider(&providers, kind, simulated)).say("run").ok().summary();
        assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{kind}: {summary}");
    }
}

#[test]
fn a_provider_that_often_fails_costs_no_row() {
    let faults = Faults { throttled: 0.05, server_error: 0.05, cut_body: 0.05, error_in_ok: 0.05, ..Faults::default() };
    let providers = Providers::start(faults);
    let away = Elsewhere::new("engine = 'openai', provider = 'away', name = 'gpt-4o-mini'", "", SELECT);
    let summary = away.config(&provider(&providers, "openai", Provider::Openai)).say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
    assert!(providers.requests() > 3 * ROWS as u64, "nothing failed");
}

#[test]
fn nothing_leaves_unless_the_operator_and_the_job_say_so() {
    let providers = Providers::start(Faults::default());
    let model = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini'";
    let inside = provider(&providers, "openai", Provider::Openai);
    let outside = "[providers.away]\nkind = \"openai\"\nsecret = \"env:ROWMILL_TEST_KEY\"\nmodels = [\"gpt-*\"]\n\
                   [providers.away.facts]\nasserted_by = \"test\"\ntrains_on_data = false\n";
    let rule = |columns: &str, class: &str| {
        format!(
            "{outside}[[egress.allow]]\nname = \"r\"\nproviders = [\"away\"]\ndatasets = [\"*\"]\ncolumns = [{columns}]\n\
             data_class_max = \"{class}\"\n"
        )
    };
    let cases: Vec<(&str, Option<String>, &str, &str, &str)> = vec![
        ("no file", None, "", SELECT, "there is no rowmill.toml"),
        ("no such provider", Some("[providers.other]\nkind = \"groq\"\nmodels = [\"*\"]\n".into()), "", SELECT, "away"),
        ("no rule", Some(outside.into()), "", SELECT, "policy refuses"),
        ("another column", Some(rule("\"subject\"", "internal")), ", data_class = 'internal'", SELECT, "text"),
        ("too secret", Some(rule("\"*\"", "internal")), ", data_class = 'restricted'", SELECT, "restricted"),
        ("not classified", Some(rule("\"*\"", "internal")), "", SELECT, "restricted"),
        ("never_send", Some(inside.clone()), ", never_send = 'text'", SELECT, "text"),
        (
            "never_send under another name",
            Some(inside.clone()),
            ", never_send = 'text'",
            "SELECT id, ai_complete(b) AS answer FROM (SELECT id, upper(text) || '!' AS b FROM rows) AS r",
            "text",
        ),
        ("another kind", Some(inside.replace("kind = \"openai\"", "kind = \"groq\"")), "", SELECT, "groq"),
        ("another model", Some(inside.replace("models = [\"*\"]", "models = [\"gpt-5*\"]")), "", SELECT, "gpt-4o-mini"),
    ];
    for (what, config, options, select, word) in cases {
        let away = Elsewhere::new(model, options, select);
        if let Some(config) = &config {
            away.config(config);
        }
        for command in ["plan", "run", "preview"] {
            let said = away.say(command);
            assert_eq!(said.code, Some(1), "{what}, {command}: {said:?}");
            assert!(said.stderr.contains(word) && said.stderr.contains("hint:"), "{what}, {command}: {}", said.stderr);
        }
        assert!(!away.job.output().join("_claims").exists(), "{what}: a refused run was claimed");
    }
    assert_eq!(providers.requests(), 0, "something was sent");
}

#[test]
fn a_cap_is_never_exceeded_and_raising_it_goes_on() {
    let providers = Providers::start(Faults::default());
    let prices = "[prices.\"away/gpt-4o-mini\"]\ninput = \"100\"\noutput = \"400\"\n";
    let model = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini'";
    let select = "SELECT id, ai_classify(text, ['billing', 'bug']) AS topic FROM rows";
    let cost = |summary: &Value| summary["cost_usd"].as_f64().expect("a cost");

    let free = Elsewhere::new(model, "", select);
    let config = format!("{}{prices}", provider(&providers, "openai", Provider::Openai));
    let whole = cost(&free.config(&config).say("run").ok().summary());
    assert!(whole > 0.0);

    // About half of what it costs.
    let capped = Elsewhere::new(model, &format!(", max_cost_usd = {:.4}", whole / 2.0), select);
    capped.config(&config);
    let before = providers.simulator.journal().paid_answers(Provider::Openai).0;
    let said = capped.say("run");
    assert_eq!((said.code, said.summary()["status"].as_str()), (Some(3), Some("incomplete")), "{said:?}");
    assert!(said.stderr.contains("max_cost_usd is reached"), "{}", said.stderr);
    let paid = providers.simulator.journal().paid_answers(Provider::Openai).0 - before;
    assert!(paid < ROWS as u64, "{paid} of {ROWS} answers were paid with half of the money");

    let path = capped.job.path();
    let text = std::fs::read_to_string(&path).expect("the job file");
    let start = text.find("max_cost_usd = ").expect("a cap");
    let end = start + text[start..].find(')').expect("its end");
    std::fs::write(&path, format!("{}max_cost_usd = {:.4}{}", &text[..start], whole * 4.0, &text[end..]))
        .expect("written");
    let summary = capped.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
}
