//! `rowmill models`: proving and measuring models on this machine, and what can be computed at all.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Said, repository, say};

fn fixture(name: &str) -> PathBuf {
    repository().join("executor/engine/tests/fixtures").join(name)
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// `rowmill models verify` of a fixture against its reference, changed.
fn verify(model: &str, change: impl Fn(&mut Value), more: &[&str]) -> Said {
    let bytes = std::fs::read(fixture(model).join("reference.json")).expect("a reference");
    let mut reference: Value = serde_json::from_slice(&bytes).expect("JSON");
    change(&mut reference);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("reference.json");
    std::fs::write(&file, reference.to_string()).expect("a reference is written");
    let source = fixture(model);
    let args = [&["models", "verify", "--source", text(&source), "--reference", text(&file)], more].concat();
    say(&args)
}

#[test]
fn verify_says_a_line_for_each_item_and_exits_0() {
    let said = verify("llama-tiny", |_| (), &[]).ok();
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 10, "{}", said.stdout);
    assert!(lines[0].starts_with("item  tokens  largest error  greedy ids"), "{}", lines[0]);
    assert!(lines[1..9].iter().all(|line| line.contains("24 of 24") && line.ends_with("ok")), "{}", said.stdout);
    assert_eq!(
        lines[9],
        "all 8 as the reference says, alone and in one batch: logits within 0.001 of their range in f32, greedy ids equal"
    );
    let said = verify("bert-tiny", |_| (), &["--json"]).ok();
    let summary = said.summary();
    assert_eq!((summary["status"].as_str(), summary["kind"].as_str()), (Some("ok"), Some("encoder")));
    assert_eq!(summary["items"].as_array().map(Vec::len), Some(7));
    assert!(summary["items"][0]["error_together"].as_f64().is_some_and(|error| error < 1e-6), "{summary}");
}

#[test]
fn verify_exits_1_where_one_number_or_one_id_is_wrong() {
    let wrong_number = |reference: &mut Value| {
        let logit = &mut reference["items"][4]["top_logits"][0][1];
        *logit = json!(logit.as_f64().expect("a logit") + 0.05);
    };
    let said = verify("llama-tiny", wrong_number, &[]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("1 of 8 items are not as the reference says"), "{}", said.stderr);
    let line = said.stdout.lines().nth(5).expect("a line for item 5");
    assert!(line.starts_with('5') && line.contains("alone: a logit is"), "{line}");
    assert!(line.contains("in the batch: a logit is"), "{line}");

    let wrong_id = |reference: &mut Value| reference["items"][0]["greedy_ids"][7] = json!(1);
    let said = verify("llama-tied", wrong_id, &["--json"]);
    assert_eq!((said.code, said.stdout.lines().count()), (Some(1), 1), "{}", said.stdout);
    assert_eq!(said.summary()["status"], "failed");
    assert!(said.stderr.contains("greedy id 8 is") && said.stderr.contains("7 of 24"), "{}", said.stderr);

    let wrong_vector = |reference: &mut Value| reference["items"][2]["vector"][0] = json!(0.5);
    let said = verify("bert-cls", wrong_vector, &[]);
    assert_eq!(said.code, Some(1));
    assert!(said.stdout.lines().nth(3).is_some_and(|line| line.contains("1 - cosine")), "{}", said.stdout);
}

#[test]
fn verify_names_the_file_that_it_cannot_use() {
    let said = verify("llama-tiny", |reference| reference["items"] = json!([]), &[]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("0 items") && said.stderr.contains("reference.json"), "{}", said.stderr);
    assert_eq!(verify("llama-tiny", |_| (), &["--dtype", "f8"]).code, Some(2));
}

#[test]
fn bench_measures_each_kind_of_work() {
    let bench = |model: &str, more: &[&str]| {
        let source = fixture(model);
        let args = ["models", "bench", "--source", text(&source), "--seconds", "1", "--prompt-tokens", "20"];
        say(&[&args[..], more].concat())
    };
    let summary = bench("llama-tiny", &["--rows", "1,3", "--output-tokens", "4", "--json"]).ok().summary();
    let measurements = summary["measurements"].as_array().expect("measurements").clone();
    let of: Vec<_> = measurements.iter().map(|one| (one["work"].as_str(), one["rows"].as_u64())).collect();
    let (prefill, decode) = (Some("prefill"), Some("decode"));
    assert_eq!(of, [(prefill, Some(1)), (prefill, Some(3)), (decode, Some(1)), (decode, Some(3))]);
    assert!(measurements.iter().all(|one| one["tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0)));
    let said = bench("bert-tiny", &["--rows", "2", "--threads", "1"]).ok();
    assert!(said.stdout.lines().nth(1).is_some_and(|line| line.starts_with("embedding  2")), "{}", said.stdout);
    assert!(said.stderr.contains("1/1  embedding, 2 rows"), "{}", said.stderr);
    let said = bench("bert-tiny", &["--prompt-tokens", "65"]);
    assert_eq!(said.code, Some(2), "an option is given twice");
    let source = fixture("bert-tiny");
    let said = say(&["models", "bench", "--source", text(&source)]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("128 tokens a row; the model takes 64"), "{}", said.stderr);
}

#[test]
fn architectures_are_listed_with_what_computes_them() {
    let said = say(&["models", "list", "--architectures"]).ok();
    let line = |name: &str| said.stdout.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    assert!(line("Qwen3ForCausalLM").is_some_and(|line| line.ends_with("packed decoder")), "{}", said.stdout);
    assert!(line("BertModel").is_some_and(|line| line.ends_with("packed encoder")), "{}", said.stdout);
    assert!(
        line("PhiForCausalLM").is_some_and(|line| line.ends_with("candle-transformers (slower)")),
        "{}",
        said.stdout
    );
    let summary = say(&["models", "list", "--architectures", "--json"]).ok().summary();
    assert!(summary["architectures"].as_array().is_some_and(|all| all.len() == said.stdout.lines().count() - 1));
    assert_eq!(say(&["models", "list"]).code, Some(2), "neither a job nor --architectures");
}
