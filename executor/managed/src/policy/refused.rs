//! Requests that must be refused, each with its reason, and those that must pass; and files that must not be read.

use super::*;
use crate::lane::Lane;
use config::{Amounts, Terms};

const EXAMPLE: &str = include_str!("../../../../infra/rowmill.example.toml");

/// A policy with a rule for every sort of refusal.
const POLICY: &str = r#"
[providers.openai]
kind = "openai"
models = ["gpt-4o-mini", "text-embedding-3-*"]
facts = { asserted_by = "a test", retention = 30, batch_retention = 30, trains_on_data = false, batch_allowed = true, regions = ["us"] }

[providers.zero]
kind = "anthropic"
models = ["*"]
facts = { asserted_by = "a test", retention = "zero", batch_retention = 29, trains_on_data = false, hipaa_baa = true, batch_allowed = true, regions = ["eu-west-1", "eu-central-1"] }

[providers.silent]
kind = "groq"
models = ["*"]

[providers.cloud]
kind = "bedrock"
region = "eu-central-1"
models = ["*"]
facts = { asserted_by = "a test", batch_allowed = true }

[providers.trains]
kind = "deepseek"
models = ["*"]
facts = { asserted_by = "a test", retention = 1, trains_on_data = true, hipaa_baa = false, regions = ["cn"] }

[providers.unruled]
kind = "mistral"
models = ["*"]

[providers.house]
kind = "vllm"
base_url = "http://gpu:8000/v1"
models = ["llama-*"]
self_hosted = true

[[egress.allow]]
name = "tickets"
providers = ["openai", "silent", "trains"]
datasets = ["s3://lake/tickets/"]
columns = ["subject", "body"]
data_class_max = "internal"
per_run = { rows = 1000, tokens = 100_000, usd = "1.50" }

[[egress.allow]]
name = "redacted mail"
providers = ["openai"]
datasets = ["s3://lake/mail/"]
columns = ["*"]
lanes = ["online"]
redact = true

[[egress.allow]]
name = "patients"
providers = ["zero", "openai", "silent", "trains"]
datasets = ["s3://clinic/"]
columns = ["letter"]
require = { retention = "zero", regions = ["eu"], no_training = true, hipaa_baa = true }

[[egress.allow]]
name = "no training"
providers = ["trains", "silent"]
datasets = ["s3://web/"]
columns = ["*"]
require = { no_training = true }

[[egress.allow]]
name = "covered"
providers = ["openai", "trains"]
datasets = ["s3://covered/"]
columns = ["*"]
require = { hipaa_baa = true }

[[egress.allow]]
name = "europe"
providers = ["openai", "silent", "trains"]
datasets = ["s3://europe/"]
columns = ["*"]
require = { regions = ["eu"] }

[[egress.allow]]
name = "ten days"
providers = ["openai", "zero", "silent"]
datasets = ["s3://short/"]
columns = ["*"]
require = { retention = 10 }
"#;

fn policy() -> Policy {
    Policy::parse(POLICY, "rowmill.toml").unwrap_or_else(|error| panic!("{}", error.report()))
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A request that passes: each case changes something about it.
fn fine() -> EgressRequest {
    EgressRequest {
        provider: "openai".into(),
        model: "gpt-4o-mini".into(),
        datasets: strings(&["s3://lake/tickets/ds=2026-11-20/"]),
        columns: strings(&["subject", "body"]),
        never_send: strings(&["email"]),
        data_class: Some(DataClass::Internal),
        ..EgressRequest::default()
    }
}

/// A request of the given rows, otherwise fine.
fn of(provider: &str, dataset: &str) -> EgressRequest {
    let columns = if dataset.starts_with("s3://clinic/") { strings(&["letter"]) } else { strings(&["body"]) };
    let model = if provider == "house" { "llama-3" } else { "gpt-4o-mini" };
    EgressRequest { provider: provider.into(), model: model.into(), datasets: strings(&[dataset]), columns, ..fine() }
}

fn amounts(rows: u64, tokens: u64, nano_usd: u64) -> Amounts {
    Amounts { rows: Some(rows), tokens: Some(tokens), usd: Some(Usd { nano_usd }) }
}

type Case = (&'static str, EgressRequest, Reason, Who);

/// Each must not send a byte.
pub(crate) fn refused() -> Vec<Case> {
    use Reason as R;
    use Who::{JobAuthor, Operator};
    let requires = |require: Terms| EgressRequest { require, ..fine() };
    let zero = Terms { retention: Some(Retention::ZERO), ..Terms::default() };
    let batch = |request: EgressRequest| EgressRequest { lane: Lane::Batch, ..request };
    vec![
        ("a provider that is not there", of("opnai", "s3://lake/tickets/"), R::UnknownProvider, Operator),
        ("a provider by its kind", of("anthropic", "s3://lake/tickets/"), R::UnknownProvider, Operator),
        ("a provider without a name", of("", "s3://lake/tickets/"), R::UnknownProvider, Operator),
        ("a model that is not listed", EgressRequest { model: "gpt-4o".into(), ..fine() }, R::Model, Operator),
        ("a model that begins like one", EgressRequest { model: "gpt-4o-mini-2".into(), ..fine() }, R::Model, Operator),
        ("a model of no name", EgressRequest { model: String::new(), ..fine() }, R::Model, Operator),
        (
            "a column never to be sent",
            EgressRequest { never_send: strings(&["body"]), ..fine() },
            R::NeverSend,
            JobAuthor,
        ),
        ("the same in other case", EgressRequest { never_send: strings(&["BODY"]), ..fine() }, R::NeverSend, JobAuthor),
        (
            "the same in the house",
            EgressRequest { never_send: strings(&["body"]), ..of("house", "s3://any/") },
            R::NeverSend,
            JobAuthor,
        ),
        (
            "a model the house has not",
            EgressRequest { model: "gpt-4o".into(), ..of("house", "s3://any/") },
            R::Model,
            Operator,
        ),
        (
            "a column that is not listed",
            EgressRequest { columns: strings(&["body", "email"]), never_send: vec![], ..fine() },
            R::Column,
            Operator,
        ),
        ("a column in other case", EgressRequest { columns: strings(&["Body"]), ..fine() }, R::Column, Operator),
        ("another table", of("openai", "s3://lake/payroll/"), R::Dataset, Operator),
        ("a table beside the folder", of("openai", "s3://lake/tickets_private/"), R::Dataset, Operator),
        ("a path out of the folder", of("openai", "s3://lake/tickets/../payroll/"), R::Dataset, Operator),
        (
            "one of two tables",
            EgressRequest { datasets: strings(&["s3://lake/tickets/", "s3://lake/payroll/"]), ..fine() },
            R::Dataset,
            Operator,
        ),
        (
            "two tables of two rules",
            EgressRequest { datasets: strings(&["s3://lake/tickets/", "s3://lake/mail/"]), ..fine() },
            R::Dataset,
            Operator,
        ),
        ("a table of this machine", of("openai", "file:///lake/tickets/"), R::Dataset, Operator),
        ("rows of unknown tables", EgressRequest { datasets: vec![], ..fine() }, R::NoDatasets, JobAuthor),
        (
            "data too secret",
            EgressRequest { data_class: Some(DataClass::Confidential), ..fine() },
            R::DataClass,
            Operator,
        ),
        ("data of no class", EgressRequest { data_class: None, ..fine() }, R::DataClass, JobAuthor),
        ("a provider no rule names", of("unruled", "s3://lake/tickets/"), R::NoRule, Operator),
        ("a batch where none is allowed", batch(of("silent", "s3://lake/tickets/")), R::BatchNotAllowed, Operator),
        ("a batch through a folder that is none", batch(of("cloud", "s3://lake/tickets/")), R::BatchFolder, Operator),
        (
            "a batch where the rule allows none",
            EgressRequest { redacts: true, ..batch(of("openai", "s3://lake/mail/")) },
            R::Lane,
            Operator,
        ),
        (
            "flex where the rule allows none",
            EgressRequest { redacts: true, lane: Lane::Flex, ..of("openai", "s3://lake/mail/") },
            R::Lane,
            Operator,
        ),
        ("a batch where nothing may be kept", batch(of("zero", "s3://clinic/letters/")), R::BatchKeepsData, Operator),
        ("a batch where the job lets nothing be kept", batch(requires(zero.clone())), R::BatchKeepsData, JobAuthor),
        ("zero retention the job requires", requires(zero), R::Retention, JobAuthor),
        ("data kept too long for the rule", of("openai", "s3://clinic/letters/"), R::Retention, Operator),
        ("data kept too long, online", of("openai", "s3://short/"), R::Retention, Operator),
        ("data kept too long, in a batch", batch(of("zero", "s3://short/")), R::Retention, Operator),
        ("retention nobody asserts", of("silent", "s3://short/"), R::Retention, Operator),
        ("a region outside", of("openai", "s3://europe/"), R::Region, Operator),
        ("a region nobody asserts", of("silent", "s3://europe/"), R::Region, Operator),
        (
            "a region the job requires",
            requires(Terms { regions: strings(&["eu"]), ..Terms::default() }),
            R::Region,
            JobAuthor,
        ),
        ("a provider that trains", of("trains", "s3://web/"), R::Training, Operator),
        ("training nobody rules out", of("silent", "s3://web/"), R::Training, Operator),
        ("no agreement", of("trains", "s3://covered/"), R::Hipaa, Operator),
        ("an agreement nobody asserts", of("openai", "s3://covered/"), R::Hipaa, Operator),
        ("an agreement the job requires", requires(Terms { hipaa_baa: true, ..Terms::default() }), R::Hipaa, JobAuthor),
        ("mail that is not redacted", of("openai", "s3://lake/mail/"), R::Redaction, JobAuthor),
        ("too many rows", EgressRequest { expected: amounts(1_001, 1, 1), ..fine() }, R::RowsPerRun, Operator),
        ("too many tokens", EgressRequest { expected: amounts(1, 100_001, 1), ..fine() }, R::TokensPerRun, Operator),
        ("too much money", EgressRequest { expected: amounts(1, 1, 1_500_000_001), ..fine() }, R::UsdPerRun, Operator),
    ]
}

#[test]
fn what_must_be_refused_is_refused_for_its_reason() {
    let policy = policy();
    let cases = refused();
    assert!(cases.len() >= 30);
    for (what, request, reason, who) in cases {
        let Err(refusal) = policy.decide(&request) else { panic!("{what} is permitted") };
        assert_eq!((refusal.reason, refusal.who), (reason, who), "{what}: {refusal}");
        assert!(!refusal.change.is_empty() && !refusal.found.is_empty(), "{what}");
        let report = Error::from(refusal).report();
        assert!(report.contains("hint:"), "{what}: {report}");
    }
}

#[test]
fn the_table_has_every_reason_but_that_of_no_file() {
    let seen: std::collections::HashSet<Reason> = refused().into_iter().map(|(_, _, reason, _)| reason).collect();
    assert_eq!(seen.len(), 20, "{seen:?}");
    assert!(!seen.contains(&Reason::NoPolicy));
}

#[test]
fn what_must_pass_passes() {
    let policy = policy();
    let zero = Terms { retention: Some(Retention::ZERO), ..Terms::default() };
    for (what, request, rule, storage) in [
        ("tickets", fine(), "tickets", Storage::ProvidersDefault),
        (
            "at the limits",
            EgressRequest { expected: amounts(1_000, 100_000, 1_500_000_000), ..fine() },
            "tickets",
            Storage::ProvidersDefault,
        ),
        (
            "public tickets in a batch",
            EgressRequest { data_class: Some(DataClass::Public), lane: Lane::Batch, ..fine() },
            "tickets",
            Storage::ProvidersDefault,
        ),
        (
            "a model by pattern",
            EgressRequest { model: "text-embedding-3-small".into(), ..fine() },
            "tickets",
            Storage::ProvidersDefault,
        ),
        ("a prompt of no column", EgressRequest { columns: vec![], ..fine() }, "tickets", Storage::ProvidersDefault),
        (
            "redacted mail",
            EgressRequest { redacts: true, data_class: None, ..of("openai", "s3://lake/mail/") },
            "redacted mail",
            Storage::ProvidersDefault,
        ),
        ("letters of patients", of("zero", "s3://clinic/letters/"), "patients", Storage::Forbidden),
        (
            "zero that the job requires",
            EgressRequest { require: zero, ..of("zero", "s3://short/") },
            "ten days",
            Storage::Forbidden,
        ),
        ("within ten days", of("zero", "s3://short/"), "ten days", Storage::ProvidersDefault),
        (
            "anything in the house",
            EgressRequest {
                data_class: None,
                columns: strings(&["email"]),
                never_send: vec![],
                datasets: vec![],
                ..of("house", "")
            },
            "self-hosted",
            Storage::ProvidersDefault,
        ),
    ] {
        let permit = policy.decide(&request).unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
        assert_eq!((permit.rule(), permit.storage()), (rule, storage), "{what}");
        assert_eq!(permit.stays_inside(), rule == "self-hosted");
        assert_eq!(
            (permit.provider(), permit.model(), permit.lane()),
            (&*request.provider, &*request.model, request.lane)
        );
        assert_eq!(permit.policy_hash(), policy.hash());
    }
}

#[test]
fn a_refusal_names_the_columns_that_must_not_be_read() {
    let request = EgressRequest { columns: strings(&["body", "email", "phone"]), never_send: vec![], ..fine() };
    assert_eq!(policy().decide(&request).unwrap_err().columns, ["email", "phone"]);
    let request = EgressRequest { columns: strings(&["body", "email"]), ..fine() };
    assert_eq!(policy().decide(&request).unwrap_err().columns, ["email"]);
}

#[test]
fn without_a_file_nothing_leaves() {
    let refusal = Policy::none().unwrap().decide(&fine()).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoPolicy);
    assert!(refusal.change.contains("ROWMILL_CONFIG"));
    let empty = Policy::parse("", "rowmill.toml").unwrap();
    assert_eq!(empty.decide(&fine()).unwrap_err().reason, Reason::UnknownProvider);
}

#[test]
fn the_hash_is_of_what_is_said_and_not_of_how() {
    let rewritten =
        POLICY.replace("[providers.silent]\nkind = \"groq\"", "# a comment\n[providers.silent]\nkind   =  'groq'");
    assert_ne!(rewritten, POLICY);
    assert_eq!(Policy::parse(&rewritten, "x").unwrap().hash(), policy().hash());
    let changed = POLICY.replace("rows = 1000", "rows = 1001");
    assert_ne!(Policy::parse(&changed, "x").unwrap().hash(), policy().hash());
    assert_eq!(policy().hash().len(), 64);
}

#[test]
fn the_example_is_read_and_its_prices_hold() {
    let policy =
        Policy::parse(EXAMPLE, "infra/rowmill.example.toml").unwrap_or_else(|error| panic!("{}", error.report()));
    let prices = policy.prices(Catalogue::built_in().unwrap());
    let price = policy.price(&prices, "openai", "gpt-4o-mini").unwrap();
    assert_eq!((price.source.as_str(), price.most(1_000_000, 1_000_000, Lane::Online)), ("rowmill.toml", 750_000_000));
    assert_eq!(price.most(1_000_000, 1_000_000, Lane::Batch), 375_000_000);
    assert_eq!(policy.price(&prices, "house", "anything").unwrap().most(u64::MAX, 1, Lane::Online), 0);
    assert!(policy.price(&prices, "claude", "eu.anthropic.claude-sonnet-4-6").unwrap().source.contains("litellm"));
    assert!(policy.price(&prices, "openai", "text-embedding-3-nano").is_err());
    let regional = EXAMPLE.replace("kind = \"openai\"", "kind = \"openai\"\nregion = \"eu\"");
    let regional = Policy::parse(&regional, "x").unwrap().price(&prices, "openai", "gpt-5.4-mini").unwrap();
    let global = policy.price(&prices, "openai", "gpt-5.4-mini").unwrap();
    let most = |price: &ModelPrice| price.most(1_000_000, 0, Lane::Online);
    assert_eq!(most(&regional), most(&global) * 11 / 10);
    let tickets = EgressRequest { redacts: true, ..fine() };
    assert_eq!(policy.decide(&tickets).unwrap().per_day().usd, Some(Usd { nano_usd: 500_000_000_000 }));
}

#[test]
fn a_wrong_file_is_refused_with_its_line() {
    let provider = "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n";
    let cloud = "[providers.a]\nkind = \"bedrock\"\nregion = \"x\"\nmodels = [\"*\"]\n[providers.a.batches]\n";
    let rule = "[[egress.allow]]\nname = \"r\"\nproviders = [\"a\"]\ndatasets = [\"*\"]\ncolumns = [\"*\"]\n";
    for (text, line, message) in [
        ("[providers.a\n", 1, "expected"),
        ("[provider.a]\n", 1, "unknown field"),
        ("[providers.a]\nkind = \"opnai\"\nmodels = []\n", 2, "unknown variant"),
        ("[providers.a]\nkind = \"openai\"\n", 1, "missing field"),
        ("[providers.a]\nkind = \"openai\"\nmodels = []\n", 3, "has no models"),
        ("[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\nmodel = 1\n", 4, "unknown field"),
        ("[providers.a]\nkind = \"openai\"\nmodels = [\"[\"]\n", 3, "no pattern for models"),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\nsecret = \"sk-abcdefghijklmnop\"\n",
            4,
            "looks like a key",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\nproject = \"gsk_abcdefghijklmnop\"\n",
            4,
            "looks like a key",
        ),
        ("[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\nsecret = \"OPENAI_API_KEY\"\n", 4, "env:NAME"),
        ("[providers.a]\nkind = \"vllm\"\nmodels = [\"*\"]\n", 2, "no address"),
        ("[providers.a]\nkind = \"vertex\"\nregion = \"eu\"\nmodels = [\"*\"]\n", 2, "needs `project`"),
        ("[providers.a]\nkind = \"azure\"\nresource = \"x.evil.com/\"\nmodels = [\"*\"]\n", 3, "no part of an address"),
        ("[providers.a]\nkind = \"openai\"\nbase_url = \"http://proxy/v1\"\nmodels = [\"*\"]\n", 3, "unencrypted"),
        ("[providers.a]\nkind = \"openai\"\nself_hosted = true\nmodels = [\"*\"]\n", 3, "service of others"),
        (
            "[providers.a]\nkind = \"vllm\"\nbase_url = \"https://api.openai.com/v1\"\nself_hosted = true\nmodels = [\"*\"]\n",
            3,
            "not in the house",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n[providers.a.facts]\nretention = 1\n",
            4,
            "asserted by nobody",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n[providers.a.target]\nbase_url = \"https://x.example\"\n",
            5,
            "does not stand in target",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n[providers.a.target]\nself_hosted = true\n",
            5,
            "does not stand in target",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n[providers.a.target]\nstructured = [\"xml\"]\n",
            5,
            "unknown variant",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n[providers.a.target]\nheaders = { x-key = \"sk-abcdefghijklmnop\" }\n",
            5,
            "looks like a key",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n[providers.a.facts]\nretention = \"short\"\n",
            5,
            "\"zero\" or a number of days",
        ),
        (
            "[providers.a]\nkind = \"openai\"\nmodels = [\"*\"]\n[providers.a.facts]\nasserted_by = \"x\"\nbatch_retention = \"zero\"\n",
            6,
            "a batch is stored",
        ),
        (&format!("{provider}[providers.a.batches]\nrounds_max = 0\n"), 5, "`rounds_max` is 0"),
        (&format!("{provider}[providers.a.batches]\nrows_min = 9\nrows_max = 16\n"), 6, "cannot be two of 9"),
        (&format!("{provider}[providers.a.batches]\ns3_uri = \"s3://b/\"\n"), 5, "go through no folder"),
        (&format!("{cloud}s3_uri = \"s3://b/\"\n"), 6, "who opens it"),
        (
            &format!("{cloud}s3_uri = \"file:///tmp/x/\"\nrole_arn = \"arn:aws:iam::1:role/r\"\n"),
            6,
            "no folder of a bucket",
        ),
        (&format!("{cloud}s3_uri = \"s3://b/\"\nrole_arn = \"r\"\n"), 7, "is no role"),
        (&format!("{cloud}base_url = \"http://bedrock.example.com\"\n"), 6, "unencrypted"),
        (&format!("{provider}[providers.a.timeouts]\nidle_seconds = 0\n"), 5, "from 1 to"),
        (&format!("{provider}[providers.a.timeouts]\nattempt_seconds = 7200\n"), 5, "from 1 to"),
        ("[egress]\ndefault = \"allow\"\n", 2, "unknown variant"),
        (&format!("{provider}{}", rule.replace("\"a\"", "\"b\"")), 6, "which there is not"),
        (&format!("{provider}{}", rule.replace("datasets = [\"*\"]", "datasets = []")), 7, "is empty"),
        (
            &format!("{provider}{}", rule.replace("datasets = [\"*\"]", "datasets = [\"lake/\"]")),
            7,
            "no place of tables",
        ),
        (&format!("{provider}{rule}{rule}"), 10, "a name of its own"),
        (&format!("{provider}{rule}data_class_max = \"secret\"\n"), 9, "unknown variant"),
        (&format!("{provider}{rule}per_run = {{ usd = 1.5 }}\n"), 9, "in quotes"),
        (&format!("{provider}{rule}per_run = {{ rows = -1 }}\n"), 9, "invalid value"),
        (&format!("{provider}[prices.\"b/x\"]\ninput = 1\noutput = 1\n"), 4, "no provider"),
        (&format!("{provider}[prices.\"a/x\"]\ninput = \"cheap\"\noutput = 1\n"), 5, "decimal number"),
        ("[audit]\nfolder = \"audit\"\n", 2, "no absolute path"),
        ("[redaction]\ndetectors = [\"NAMES\"]\n", 2, "no detector"),
        ("[redaction.patterns]\nCASE = \"[\"\n", 2, "no regular expression"),
        ("[redaction.patterns]\ncase = \"x\"\n", 2, "no name of a detector"),
    ] {
        let error = Policy::parse(text, "rowmill.toml").expect_err(text);
        let report = error.report();
        assert!(report.contains(message), "{text}\n{report}");
        assert!(!report.contains("abcdefghijklmnop"), "{report}");
        let place = error.location().unwrap_or_else(|| panic!("{text}\n{report}"));
        assert_eq!((place.file.as_str(), place.line), ("rowmill.toml", line), "{text}\n{report}");
    }
}
