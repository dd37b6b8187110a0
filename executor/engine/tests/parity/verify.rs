//! `verify` over every fixture that has a reference, and over references that are wrong in one place.

use rowmill_engine::EngineOptions;
use rowmill_engine::verify::{Kind, Reference, Report, verify};
use rowmill_jobs::spec::Dtype;
use serde_json::{Value, json};

use crate::{fixture, reference};

const MODELS: [(&str, &str); 6] = [
    ("llama-tiny", "llama-tiny/reference.json"),
    ("llama-tied", "llama-tied/reference.json"),
    ("llama-tiny.gguf", "llama-tiny/reference.json"),
    ("llama-tiny-q8_0.gguf", "llama-tiny-q8_0.reference.json"),
    ("bert-tiny", "bert-tiny/reference.json"),
    ("bert-cls", "bert-cls/reference.json"),
];

fn verified(model: &str, reference: &Value, dtype: Dtype) -> Report {
    let reference = Reference::parse(reference.to_string().as_bytes()).unwrap();
    let options = EngineOptions { dtype, threads: Some(2), ..EngineOptions::default() };
    verify(&fixture(model), &reference, &options).unwrap()
}

#[test]
fn every_fixture_answers_as_its_reference_says() {
    for (model, file) in MODELS {
        let expected = Reference::read(&fixture(file)).unwrap();
        let report = verified(model, &reference(file), Dtype::F32);
        assert_eq!((report.kind, report.items.len()), (expected.kind, expected.items.len()), "{model}");
        for item in &report.items {
            assert!(item.passed(), "{model}: {:?}", item.faults);
            // Well inside the tolerance, alone and in the batch; exact equality would mean that nothing was computed.
            let worst = item.alone.unwrap().max(item.together.unwrap());
            assert!(worst > 0.0 && worst < 1e-4, "{model}: {worst}");
            let whole = if report.kind == Kind::Decoder { Some((24, 24)) } else { None };
            assert_eq!(item.greedy, whole, "{model}");
        }
        assert!(report.passed());
    }
}

#[test]
fn wider_number_types_pass_within_their_own_tolerance() {
    // Not llama-tied: its weights are wide, and its file says the range of the highest logits only.
    for (model, file) in [MODELS[0], MODELS[4], MODELS[5]] {
        let report = verified(model, &reference(file), Dtype::F16);
        let faults: Vec<_> = report.items.iter().flat_map(|item| &item.faults).collect();
        assert!(report.passed(), "{model}: {faults:?}");
        let worst = report.items.iter().filter_map(|item| item.largest_error()).fold(0.0, f64::max);
        assert!(worst > 1e-8, "{model}: {worst} is not of half precision");
    }
}

/// A reference whose item 2 is changed, and the faults of that item; the others must pass.
fn faults_of(model: &str, mut reference: Value, change: impl Fn(&mut Value)) -> Vec<String> {
    change(&mut reference["items"][1]);
    let report = verified(model, &reference, Dtype::F32);
    assert!(!report.passed());
    for (at, item) in report.items.iter().enumerate().filter(|(at, _)| *at != 1) {
        assert!(item.passed(), "item {}: {:?}", at + 1, item.faults);
    }
    report.items[1].faults.clone()
}

#[test]
fn a_reference_that_is_wrong_in_one_number_fails_in_that_item() {
    let decoder = || reference("llama-tiny/reference.json");
    for (what, place, by) in [("the highest", 0, 0.02), ("a middle one", 7, -0.02), ("the lowest", 19, 0.02)] {
        let faults = faults_of("llama-tiny", decoder(), |item| {
            let logit = &mut item["top_logits"][place][1];
            *logit = json!(logit.as_f64().unwrap() + by);
        });
        assert_eq!(faults.len(), 2, "{what}: {faults:?}");
        assert!(faults[0].starts_with("alone: a logit is") && faults[1].starts_with("in the batch:"), "{faults:?}");
    }
    let faults = faults_of("bert-tiny", reference("bert-tiny/reference.json"), |item| {
        item["vector"][5] = json!(item["vector"][5].as_f64().unwrap() + 0.05);
    });
    assert!(faults.len() == 2 && faults[0].contains("cosine"), "{faults:?}");
}

#[test]
fn a_reference_that_is_wrong_in_one_id_fails_in_that_item() {
    let decoder = || reference("llama-tiny/reference.json");
    let faults = faults_of("llama-tiny", decoder(), |item| item["greedy_ids"][23] = json!(5));
    assert!(faults.len() == 2 && faults[0].contains("greedy id 24 is"), "{faults:?}");
    let faults = faults_of("llama-tiny", decoder(), |item| item["top_logits"][3][0] = json!(319));
    assert!(faults.iter().all(|fault| fault.contains("a logit is")), "{faults:?}");
    let faults = faults_of("llama-tiny", decoder(), |item| item["ids"][2] = json!(5));
    assert!(faults[0].contains("the tokenizers differ: token 3 is") && faults[0].contains("should be 5"), "{faults:?}");
    assert!(faults.len() > 1, "the file's ids are what is run, and they are other ids: {faults:?}");
    let faults = faults_of("bert-cls", reference("bert-cls/reference.json"), |item| item["ids"] = json!([2, 3, 3]));
    assert!(faults[0].contains("the tokenizers differ"), "{faults:?}");
}

/// Where rounding decides, the other id is none the worse; the path is then checked beyond it.
#[test]
fn close_calls_excuse_close_calls_only() {
    let mut reference = reference("llama-tied/reference.json");
    let item = reference["items"][0].clone();
    let second = item["top_logits"][1][0].clone();
    let mut verdict = |greedy: Value, dtype: &str| {
        reference["dtype"] = json!(dtype);
        reference["items"] = json!([item]);
        reference["items"][0]["greedy_ids"] = greedy;
        verified("llama-tied", &reference, Dtype::F32).items.remove(0)
    };
    // The two highest logits are 1/24 of the listed ones' range apart.
    let close = verdict(json!([second]), "bfloat16");
    assert_eq!((close.passed(), close.greedy), (true, Some((0, 1))), "{:?}", close.faults);
    assert!(!verdict(json!([second]), "float32").passed());
    let third = item["top_logits"][2][0].clone();
    assert!(verdict(json!([third]), "bfloat16").faults[0].contains("greedy id 1 is"));
    // What follows the close call is neither excused nor left unlooked at.
    let beyond = verdict(json!([second, 5]), "bfloat16").faults;
    let own: u32 = beyond[0].split(' ').nth(5).unwrap().trim_end_matches(',').parse().unwrap();
    assert!(beyond[0].contains("greedy id 2 is") && own != 5, "{beyond:?}");
    assert_eq!(verdict(json!([second, own]), "bfloat16").greedy, Some((1, 2)));
}

#[test]
fn texts_are_tokenised_as_they_stand_where_the_file_has_no_ids() {
    let without_ids = |file: &str| {
        let mut reference = reference(file);
        for item in reference["items"].as_array_mut().unwrap() {
            item.as_object_mut().unwrap().remove("ids");
        }
        reference
    };
    assert!(verified("llama-tiny", &without_ids("llama-tiny/reference.json"), Dtype::F32).passed());
    // This encoder's reference saw special tokens.
    let report = verified("bert-tiny", &without_ids("bert-tiny/reference.json"), Dtype::F32);
    assert_eq!(report.items[0].tokens, 3);
    assert!(report.items[0].faults[0].contains("cosine"), "{:?}", report.items[0]);
    assert_eq!(report.items[1].faults, ["the text has no tokens"], "the empty text");
}

#[test]
fn what_the_model_cannot_run_is_that_items_fault() {
    let long = json!({"text": "x", "ids": vec![5; 500], "top_logits": [[1, 2.0], [2, 1.0]], "greedy_ids": vec![5; 24]});
    let beyond = json!({"text": "x", "ids": [320], "top_logits": [[1, 2.0], [2, 1.0]]});
    let mut reference = reference("llama-tiny/reference.json");
    reference["items"].as_array_mut().unwrap().extend([long, beyond]);
    let report = verified("llama-tiny", &reference, Dtype::F32);
    let last: Vec<&Vec<String>> = report.items.iter().rev().take(2).map(|item| &item.faults).collect();
    assert!(last[1].iter().any(|fault| fault.contains("524 tokens") && fault.contains("takes 512")), "{last:?}");
    assert!(last[0].iter().any(|fault| fault.contains("the token 320")), "{last:?}");
    assert!(report.items[..8].iter().all(|item| item.passed()));
}

#[test]
fn a_reference_of_another_kind_is_refused() {
    let of = |file: &str| Reference::read(&fixture(file)).unwrap();
    let options = EngineOptions::default();
    let error = verify(&fixture("bert-tiny"), &of("llama-tiny/reference.json"), &options).unwrap_err();
    assert!(error.to_string().contains("a decoder's; the model makes vectors"), "{}", error.report());
    let classifier = r#"{"kind": "classifier", "items": [{"text": "a", "logits": {"x": 1, "y": 0}}]}"#;
    let error =
        verify(&fixture("llama-tiny"), &Reference::parse(classifier.as_bytes()).unwrap(), &options).unwrap_err();
    assert!(error.to_string().contains("a classifier's; the model writes text"), "{}", error.report());
}
