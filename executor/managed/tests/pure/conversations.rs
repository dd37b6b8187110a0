//! How talks about rows go: what is asked again, what is a row's error, what stops the lane, what it took.

use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::Kind;
use rowmill_jobs::infer::{Answer, Outcome, Request, RowErrorCode, TaskKind, TextFormat};
use rowmill_managed::call::{CallError, Class};
use rowmill_managed::tokens::Estimates;
use rowmill_managed::{Conversation, Overrides, Question, Step, Target, Turn};
use serde_json::{Value, json};

use crate::bed::{body, reply, row, task};

fn question(provider: &str, kind: &str) -> Arc<Question> {
    let target = Target::resolve(provider, "m", &Overrides::default()).unwrap();
    Question::new(&Arc::new(target), &Arc::new(task(kind))).unwrap()
}

fn talk(question: &Arc<Question>) -> Conversation {
    Conversation::start(question, &[row("the text")]).unwrap()
}

fn said(text: &str, reason: &str) -> String {
    let usage = json!({"prompt_tokens": 20, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}});
    json!({"choices": [{"message": {"content": text}, "finish_reason": reason}], "usage": usage}).to_string()
}

fn done(step: Step) -> Vec<Outcome> {
    match step {
        Step::Done(outcomes) => outcomes,
        other => panic!("{other:?}"),
    }
}

fn only(step: Step) -> Outcome {
    let mut outcomes = done(step);
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

/// Sends these replies to the calls of a talk, one after another, each of which must lead to another call.
fn after(talk: &mut Conversation, estimates: &Estimates, replies: &[String]) -> Turn {
    let mut turn = None;
    for (i, text) in replies.iter().enumerate() {
        talk.call(estimates);
        let next = talk.on_reply(&reply(text.clone()));
        assert!(i + 1 == replies.len() || matches!(next.step, Step::Ask), "reply {i}: {:?}", next.step);
        turn = Some(next);
    }
    turn.unwrap()
}

#[test]
fn an_answer_has_its_text_and_what_it_took() {
    let question = question("openai", "completion");
    let mut talk = talk(&question);
    assert!(matches!(talk.first(), Step::Ask));
    let turn = after(&mut talk, &question.estimates(), &[said(" Fine.\n", "stop")]);
    assert_eq!((turn.spent.input_tokens, turn.spent.cached_tokens, turn.spent.output_tokens), (20, 8, 5));
    let answered = only(turn.step).unwrap();
    assert_eq!(answered.answer, Answer::Text(" Fine.\n".to_owned()), "free text is as the model wrote it");
    assert_eq!((answered.usage.input_tokens, answered.usage.cached_tokens, answered.usage.output_tokens), (20, 8, 5));
}

#[test]
fn json_is_compact_in_the_schemas_order_and_valid() {
    let question = question("openai", "schema");
    for text in [
        r#"{"severity": 3, "product": "kettle"}"#,
        "```json\n{\"severity\": 3.0,\n \"product\": \"kettle\"}\n```",
        "Here it is: {\"product\": \"kettle\", \"severity\": 3}. Anything else?",
    ] {
        let turn = after(&mut talk(&question), &question.estimates(), &[said(text, "stop")]);
        let answer = only(turn.step).unwrap().answer;
        assert_eq!(answer, Answer::Text(r#"{"product":"kettle","severity":3}"#.to_owned()), "{text}");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_repaired_once() {
    let question = question("openai", "schema");
    let (bad, good) =
        (said(r#"{"product": 7, "severity": 3}"#, "stop"), said(r#"{"product":null,"severity":3}"#, "stop"));
    let answered = only(after(&mut talk(&question), &question.estimates(), &[bad.clone(), good]).step).unwrap();
    assert_eq!((answered.usage.input_tokens, answered.usage.output_tokens), (40, 10), "both calls count");

    let mut second = talk(&question);
    after(&mut second, &question.estimates(), std::slice::from_ref(&bad));
    let text = body(&second.call(&question.estimates()))["messages"][0]["content"].as_str().unwrap().to_owned();
    assert!(text.contains("/properties/product/type of the JSON Schema"), "{text}");
    let error = only(second.on_reply(&reply(bad)).step).unwrap_err();
    assert_eq!(error.code, RowErrorCode::InvalidOutput);
    assert!(error.message.contains("/properties/product/type"), "{}", error.message);

    for text in
        ["", "none", "{\"product\":\"a\"", "{\"product\":\"a\",\"severity\":1} {\"product\":\"b\",\"severity\":2}"]
    {
        let bad = said(text, "stop");
        let error = only(after(&mut talk(&question), &question.estimates(), &[bad.clone(), bad]).step).unwrap_err();
        assert_eq!(error.code, RowErrorCode::InvalidOutput, "{text}");
    }
}

#[test]
fn patterns_are_of_the_whole_answer() {
    let question = question("openai", "pattern");
    let turn = after(&mut talk(&question), &question.estimates(), &[said(" AB\n", "stop")]);
    assert_eq!(only(turn.step).unwrap().answer, Answer::Text("AB".to_owned()));
    let bad = said("ABC", "stop");
    let error = only(after(&mut talk(&question), &question.estimates(), &[bad.clone(), bad]).step).unwrap_err();
    assert_eq!(error.code, RowErrorCode::InvalidOutput);
    let target = Arc::new(Target::resolve("openai", "m", &Overrides::default()).unwrap());
    let format = TextFormat::Pattern { pattern: "(?x) a|b # either".to_owned() };
    let task = rowmill_jobs::infer::Task { kind: TaskKind::Complete { tokens_max: 5, format }, ..task("pattern") };
    let question = Question::new(&target, &Arc::new(task)).unwrap();
    let turn = after(&mut talk(&question), &question.estimates(), &[said("b", "stop")]);
    assert_eq!(only(turn.step).unwrap().answer, Answer::Text("b".to_owned()), "flags within a pattern end with it");
}

#[test]
fn cut_answers_are_asked_for_with_more_tokens_and_never_short() {
    let question = question("openai", "completion");
    let mut estimates = question.estimates();
    let error = only(after(&mut talk(&question), &estimates, &[said("The", "length")]).step).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (RowErrorCode::Truncated, "the answer was not whole after 200 tokens")
    );

    let long = TaskKind::Complete { tokens_max: 4096, format: TextFormat::Free };
    let long = rowmill_jobs::infer::Task { kind: long, ..task("completion") };
    let target = Arc::new(Target::resolve("openai", "m", &Overrides::default()).unwrap());
    let question = Question::new(&target, &Arc::new(long)).unwrap();
    estimates = question.estimates();
    assert_eq!(body(&talk(&question).call(&estimates))["max_completion_tokens"], 4096, "nothing is known yet");
    for _ in 0..300 {
        estimates.output.observe(30);
    }
    let mut talk = talk(&question);
    assert_eq!(body(&talk.call(&estimates))["max_completion_tokens"], 256);
    assert_eq!(talk.output_tokens_max(), 256);
    assert!(matches!(talk.on_reply(&reply(said("The", "length"))).step, Step::Ask));
    assert_eq!(body(&talk.call(&estimates))["max_completion_tokens"], 4096);
    assert_eq!(talk.output_tokens_max(), 4096);
    assert!(only(talk.on_reply(&reply(said("The end.", "stop"))).step).is_ok());
}

#[test]
fn refusals_and_filters_are_the_rows() {
    let question = question("openai", "completion");
    let refused = json!({"choices": [{"message": {"refusal": "No."}, "finish_reason": "stop"}]}).to_string();
    for (text, code) in [(refused, RowErrorCode::Refused), (said("", "content_filter"), RowErrorCode::Filtered)] {
        let error = only(after(&mut talk(&question), &question.estimates(), &[text]).step).unwrap_err();
        assert_eq!(error.code, code);
    }
}

#[test]
fn responses_that_cannot_be_read_are_asked_for_again_and_are_paid_for() {
    let question = question("openrouter", "completion");
    let bad = r#"{"error":{"code":502,"message":"upstream"}}"#.to_owned();
    let mut good = talk(&question);
    let turn = after(&mut good, &question.estimates(), &[bad.clone(), said("", "error"), said("Fine.", "stop")]);
    let answered = only(turn.step).unwrap();
    assert!(answered.usage.input_tokens > 40, "what could not be read counts as estimated: {:?}", answered.usage);
    let turn = after(&mut talk(&question), &question.estimates(), &[bad.clone(), bad.clone(), bad]);
    assert!(turn.spent.input_tokens > 0 && turn.spent.output_tokens > 0);
    assert_eq!(only(turn.step).unwrap_err().code, RowErrorCode::Provider);
}

#[test]
fn usage_that_is_not_said_is_estimated() {
    let question = question("vllm", "completion");
    let text = json!({"choices": [{"message": {"content": "x".repeat(380)}, "finish_reason": "stop"}]}).to_string();
    let turn = after(&mut talk(&question), &question.estimates(), &[text]);
    assert_eq!(turn.spent.output_tokens, 100);
    assert!(turn.spent.input_tokens > 10);
}

fn error(class: Class, code: Option<&str>) -> CallError {
    let (code, message) = (code.map(str::to_owned), "the provider said no".to_owned());
    CallError { class, status: Some(400), code, message, retry_after: Some(Duration::ZERO), request_id: None }
}

#[test]
fn errors_are_the_rows_or_the_lanes() {
    let question = question("openai", "completion");
    let step = |class, code| {
        let mut talk = talk(&question);
        talk.call(&question.estimates());
        talk.on_error(&error(class, code))
    };
    for (class, code, expected) in [
        (Class::Refused, None, RowErrorCode::Provider),
        (Class::Refused, Some("content_filter"), RowErrorCode::Filtered),
        (Class::TooLong, Some("context_length_exceeded"), RowErrorCode::TooLong),
    ] {
        assert_eq!(only(step(class, code)).unwrap_err().code, expected, "{class:?} {code:?}");
    }
    for (class, kind) in [
        (Class::Denied, Kind::Invalid),
        (Class::Billing, Kind::Invalid),
        (Class::Stopped, Kind::Incomplete),
        (Class::Throttled, Kind::Temporary),
        (Class::Transient, Kind::Temporary),
    ] {
        match step(class, None) {
            Step::Failed(error) => assert_eq!(error.kind(), kind, "{class:?}"),
            other => panic!("{class:?}: {other:?}"),
        }
    }
    let mut talk = talk(&question);
    assert!(matches!(talk.on_error(&error(Class::InvalidOutput, None)), Step::Ask), "asked for once more");
    assert_eq!(only(talk.on_error(&error(Class::InvalidOutput, None))).unwrap_err().code, RowErrorCode::InvalidOutput);
}

#[test]
fn labels_have_scores_only_where_the_provider_shows_them() {
    let question = question("openai", "choose");
    let turn = after(&mut talk(&question), &question.estimates(), &[said(r#"{"label":"bug"}"#, "stop")]);
    assert_eq!(only(turn.step).unwrap().answer, Answer::Choice { index: 1, scores: Vec::new() });

    let entry = |token: &str, p: f64, other: &str, q: f64| {
        json!({"token": token, "logprob": p.ln(), "top_logprobs":
        [{"token": token, "logprob": p.ln()}, {"token": other, "logprob": q.ln()}]})
    };
    let tokens = json!([
        entry("{\"", 1.0, "x", 1e-9),
        entry("label", 1.0, "x", 1e-9),
        entry("\":\"", 1.0, "x", 1e-9),
        entry("bug", 0.75, "bill", 0.25),
        entry("\"}", 1.0, "x", 1e-9)
    ]);
    let mut response: Value = serde_json::from_str(&said(r#"{"label":"bug"}"#, "stop")).unwrap();
    response["choices"][0]["logprobs"] = json!({ "content": tokens });
    let turn = after(&mut talk(&question), &question.estimates(), &[response.to_string()]);
    let Answer::Choice { index: 1, scores } = only(turn.step).unwrap().answer else { panic!("another label") };
    assert!((scores[0] - 0.25).abs() < 1e-6 && (scores[1] - 0.75).abs() < 1e-6, "{scores:?}");

    // Without structured output the label is the text, as models write it.
    let plain = Overrides { structured: serde_json::from_value(json!(["none"])).unwrap(), ..Overrides::default() };
    let target = Arc::new(Target::resolve("openai", "m", &plain).unwrap());
    let question = Question::new(&target, &Arc::new(task("choose"))).unwrap();
    assert!(
        body(&talk(&question).call(&question.estimates()))["messages"][0]["content"]
            .as_str()
            .unwrap()
            .contains("- bug")
    );
    let turn = after(&mut talk(&question), &question.estimates(), &[said("\"Bug\".\n", "stop")]);
    assert_eq!(only(turn.step).unwrap().answer, Answer::Choice { index: 1, scores: Vec::new() });
    let calibrated = TaskKind::Choose { labels: vec!["a".into(), "b".into()], calibrate: true };
    let calibrated = rowmill_jobs::infer::Task { kind: calibrated, ..task("choose") };
    assert!(Question::new(&target, &Arc::new(calibrated)).unwrap_err().to_string().contains("calibrate"));
}

fn vectors(vectors: &[(usize, [f32; 2])]) -> String {
    let data: Vec<Value> = vectors.iter().map(|(i, vector)| json!({"index": i, "embedding": vector})).collect();
    json!({"data": data, "usage": {"prompt_tokens": 30, "total_tokens": 30}}).to_string()
}

#[test]
fn texts_are_embedded_in_packs_and_find_their_rows() {
    let question = question("mistral", "embed");
    let rows: Vec<Request> = ["a", "bb", "ccc"].iter().map(|value| row(value)).collect();
    let mut talk = Conversation::start(&question, &rows).unwrap();
    talk.call(&question.estimates());
    let turn = talk.on_reply(&reply(vectors(&[(2, [0.0, 0.0]), (0, [3.0, 4.0]), (1, [0.0, 0.5])])));
    let outcomes = done(turn.step);
    let vector = |i: usize| outcomes[i].as_ref().unwrap().answer.clone();
    assert_eq!((vector(0), vector(1)), (Answer::Vector(vec![0.6, 0.8]), Answer::Vector(vec![0.0, 1.0])));
    assert_eq!(outcomes[2].as_ref().unwrap_err().code, RowErrorCode::Numeric, "a vector without length");
    let taken: u64 = outcomes.iter().flatten().map(|answered| answered.usage.input_tokens).sum();
    assert!((19..=20).contains(&taken), "30 tokens among texts of 10, 11 and 12 bytes: {taken}");

    let many: Vec<Request> = (0..300).map(|_| row("text")).collect();
    assert_eq!(question.packs(&many).iter().map(|pack| pack.len()).collect::<Vec<_>>(), [128, 128, 44]);
    let long: Vec<Request> = (0..4).map(|_| row(&"x".repeat(20_000))).collect();
    assert_eq!(question.packs(&long).len(), 4, "no more bytes than half of the limit's tokens");
    assert!(question.packs(&[]).is_empty());
}

#[test]
fn one_text_that_is_refused_does_not_take_its_pack_along() {
    let question = question("mistral", "embed");
    let rows: Vec<Request> = ["a", "bad", "c", "d"].iter().map(|value| row(value)).collect();
    let mut talk = Conversation::start(&question, &rows).unwrap();
    let estimates = question.estimates();
    let (mut calls, mut step) = (0, talk.first());
    while let Step::Ask = step {
        calls += 1;
        assert!(calls < 20);
        let sent = body(&talk.call(&estimates));
        let texts = sent["input"].as_array().unwrap();
        step = if texts.contains(&json!("passage: bad")) {
            talk.on_error(&error(Class::Refused, None))
        } else {
            let good: Vec<(usize, [f32; 2])> = (0..texts.len()).map(|i| (i, [1.0, 0.0])).collect();
            talk.on_reply(&reply(vectors(&good))).step
        };
    }
    let outcomes = done(step);
    let failed: Vec<usize> = (0..4).filter(|i| outcomes[*i].is_err()).collect();
    assert_eq!((failed, calls), (vec![1], 5));
}

#[test]
fn empty_texts_are_not_sent_and_lengths_of_vectors_agree() {
    let question = question("mistral", "embed");
    let empty = rowmill_jobs::infer::Task { template: vec![rowmill_jobs::infer::Piece::Value(0)], ..task("embed") };
    let bare =
        Question::new(&Arc::new(Target::resolve("mistral", "m", &Overrides::default()).unwrap()), &Arc::new(empty));
    let bare = bare.unwrap();
    let mut talk = Conversation::start(&bare, &[row(""), row("x"), row("")]).unwrap();
    assert_eq!(body(&talk.call(&bare.estimates()))["input"], json!(["x"]));
    let outcomes = done(talk.on_reply(&reply(vectors(&[(0, [1.0, 0.0])]))).step);
    assert!(outcomes[0].is_err() && outcomes[1].is_ok() && outcomes[2].is_err());
    let outcomes = done(Conversation::start(&bare, &[row("")]).unwrap().first());
    assert_eq!(outcomes[0].as_ref().unwrap_err().code, RowErrorCode::InvalidOutput);

    let mut first = Conversation::start(&question, &[row("a")]).unwrap();
    assert!(matches!(first.on_reply(&reply(vectors(&[(0, [1.0, 0.0])]))).step, Step::Done(_)));
    let longer = r#"{"data":[{"index":0,"embedding":[1,0,0]}]}"#;
    let mut second = Conversation::start(&question, &[row("a")]).unwrap();
    match second.on_reply(&reply(longer)).step {
        Step::Failed(error) => assert!(error.to_string().contains("length 3, expected is 2"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_without_the_values_of_its_template_is_a_defect() {
    let question = question("openai", "completion");
    let none = Request { values: Vec::new().into() };
    assert_eq!(Conversation::start(&question, &[none]).unwrap_err().kind(), Kind::Internal);
}
