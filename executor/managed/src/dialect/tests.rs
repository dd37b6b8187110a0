//! Responses as providers really send them, each with what goes wrong when it is believed too readily.

use serde_json::json;

use super::*;
use crate::target::Overrides;

fn target(provider: &str) -> Target {
    let fill = |name: &str| (name.to_owned(), "x".to_owned());
    let holes = Some(["resource", "region", "project"].into_iter().map(fill).collect());
    Target::resolve(provider, "m", &Overrides { holes, ..Overrides::default() }).unwrap()
}

fn read(provider: &str, body: &str) -> Result<Said, Unreadable> {
    read_completion(&target(provider), body.as_bytes())
}

/// A chat completion with this choice and usage.
fn chat(choice: Value, usage: Value) -> Said {
    read("openai", &json!({"id": "x", "choices": [choice], "usage": usage}).to_string()).unwrap()
}

fn answer(text: &str) -> Value {
    json!({"message": {"role": "assistant", "content": text}, "finish_reason": "stop"})
}

#[test]
fn reasons_to_end_are_understood_in_all_their_spellings() {
    let ended = |reason: Value| chat(json!({"message": {"content": "a"}, "finish_reason": reason}), json!(null)).end;
    for whole in [
        json!("stop"),
        json!("eos"),
        json!("eos_token"),
        json!("stop_sequence"),
        json!(""),
        json!(null),
        json!("tool_calls"),
    ] {
        assert_eq!(ended(whole.clone()), End::Whole, "{whole}");
    }
    for cut in ["length", "max_tokens", "model_length"] {
        assert_eq!(ended(json!(cut)), End::Length, "{cut}");
    }
    assert_eq!(ended(json!("content_filter")), End::Filtered);
    assert_eq!(ended(json!("refusal")), End::Refused);
    for broken in ["error", "insufficient_system_resource"] {
        assert_eq!(ended(json!(broken)), End::Broken(format!("the answer ended for the reason `{broken}`")));
    }
    let echo = ended(json!("Dear Ms Smith, your account 4711"));
    assert_eq!(
        echo,
        End::Broken("the answer ended for the reason `of no known kind`".to_owned()),
        "no content in messages"
    );
}

#[test]
fn odd_fields_do_not_hide_the_answer() {
    for body in [
        // Blank lines that keep a connection alive; no id; a float where a date should be.
        "\n\n\n  {\"created\":1.5e9,\"choices\":[{\"message\":{\"content\":\"yes\"},\"finish_reason\":\"stop\"}]}",
        // Unknown tiers, integer ids, null usage, fields that should not be.
        r#"{"id":7,"service_tier":"on_demand","usage":null,"error":null,"choices":[{"index":"0","message":{"role":null,"content":"yes","reasoning_content":"no, wait","refusal":null,"tool_calls":null},"logprobs":null,"finish_reason":"stop"}]}"#,
        // Content as parts, with thoughts among them.
        r#"{"choices":[{"message":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"y"},{"type":"text","text":"es"}]},"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"message":{"content":["y",{"text":"es"}]},"finish_reason":""}]}"#,
    ] {
        let said = read("deepseek", body).unwrap();
        assert_eq!((said.text.as_str(), said.end, said.spent), ("yes", End::Whole, None), "{body}");
    }
    let null = chat(json!({"message": {"content": null}, "finish_reason": "stop"}), json!(null));
    assert_eq!(null.text, "");
}

#[test]
fn what_is_no_answer_is_not_taken_for_one() {
    for (body, word) in [
        (r#"{"error":{"code":502,"message":"upstream for row 17"}}"#, "status of success"),
        (r#"{"error":"model not loaded","choices":[]}"#, "status of success"),
        (r#"{"choices":[]}"#, "no answer"),
        (r#"{"choices":null}"#, "no answer"),
        (r#"{"object":"list"}"#, "no answer"),
        (r#"{"choices":[{"message":{"content":"y"#, "not JSON"),
        ("<html>busy</html>", "not JSON"),
        ("", "not JSON"),
        (r#"{"choices":"none"}"#, "shape"),
    ] {
        let Unreadable(message) = read("openrouter", body).unwrap_err();
        assert!(message.contains(word), "{body}: {message}");
        assert!(!message.contains("row"), "a provider's text is not repeated: {message}");
    }
    for body in
        [r#"{"type":"error","error":{"type":"overloaded_error"}}"#, r#"{"type":"completion","content":[]}"#, "{}"]
    {
        assert!(read("anthropic", body).is_err(), "{body}");
    }
    for body in [r#"[{"error":{"code":429}}]"#, r#"{"error":{"code":400}}"#, r#"{"candidates":[]}"#] {
        assert!(read("gemini", body).is_err(), "{body}");
    }
}

#[test]
fn usage_is_read_whatever_is_missing() {
    let spent =
        |usage: Value| chat(answer("a"), usage).spent.map(|s| (s.input_tokens, s.cached_tokens, s.output_tokens));
    assert_eq!(
        spent(json!({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}})),
        Some((9, 5, 4))
    );
    assert_eq!(
        spent(json!({"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 3})),
        Some((9, 3, 4)),
        "DeepSeek"
    );
    assert_eq!(
        spent(json!({"prompt_tokens": 9, "completion_tokens": null, "prompt_tokens_details": null})),
        Some((9, 0, 0))
    );
    assert_eq!(
        spent(json!({"prompt_tokens": 9.0, "completion_tokens": 4, "total_tokens": 40})),
        Some((9, 0, 31)),
        "thoughts in the total"
    );
    for none in [json!(null), json!({}), json!({"prompt_tokens": null}), json!({"prompt_tokens": -1}), json!("free")] {
        assert_eq!(spent(none.clone()), None, "{none}");
    }
    let claude = r#"{"type":"message","content":[{"type":"text","text":"a"}],"stop_reason":"end_turn","usage":{"input_tokens":10,"cache_read_input_tokens":200,"cache_creation_input_tokens":30,"output_tokens":7}}"#;
    let spent = read("anthropic", claude).unwrap().spent.unwrap();
    assert_eq!((spent.input_tokens, spent.cached_tokens, spent.output_tokens), (240, 200, 7));
    let gemini = r#"{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":10,"candidatesTokenCount":3,"thoughtsTokenCount":50,"cachedContentTokenCount":4}}"#;
    let spent = read("gemini", gemini).unwrap().spent.unwrap();
    assert_eq!((spent.input_tokens, spent.cached_tokens, spent.output_tokens, spent.nano_usd), (10, 4, 53, 0));
}

#[test]
fn refusals_filters_and_tools_are_told_apart() {
    let refusal =
        json!({"message": {"content": null, "refusal": "I cannot help with row 17."}, "finish_reason": "stop"});
    assert_eq!(chat(refusal, json!(null)).end, End::Refused);
    let call = |arguments: Value| {
        let call = json!({"id": "c", "type": "function", "function": {"name": "answer", "arguments": arguments}});
        chat(json!({"message": {"content": null, "tool_calls": [call]}, "finish_reason": "tool_calls"}), json!(null))
            .text
    };
    assert_eq!(call(json!("{\"a\": 1}")), "{\"a\": 1}");
    assert_eq!(call(json!({"a": 1})), "{\"a\":1}", "arguments that are JSON already");

    let claude = |content: Value, reason: &str| {
        let body = json!({"type": "message", "content": content, "stop_reason": reason});
        read("bedrock", &body.to_string()).unwrap()
    };
    let said = claude(
        json!([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        "end_turn",
    );
    assert_eq!((said.text.as_str(), said.end), ("ab", End::Whole));
    assert_eq!(
        claude(json!([{"type": "tool_use", "name": "answer", "input": {"a": 1}}]), "tool_use").text,
        "{\"a\":1}"
    );
    assert_eq!(claude(json!([]), "refusal").end, End::Refused);
    assert_eq!(claude(json!([]), "max_tokens").end, End::Length);
    assert_eq!(claude(json!([]), "model_context_window_exceeded").end, End::Length);
    assert!(matches!(claude(json!([]), "pause_turn").end, End::Broken(_)));

    let gemini = |body: Value| read("gemini", &body.to_string()).unwrap();
    let said = gemini(
        json!({"candidates": [{"content": {"parts": [{"text": "hm", "thought": true}, {"text": "a"}]}, "finishReason": "STOP"}]}),
    );
    assert_eq!(said.text, "a");
    assert_eq!(gemini(json!({"promptFeedback": {"blockReason": "SAFETY"}})).end, End::Filtered);
    for (reason, end) in [("MAX_TOKENS", End::Length), ("SAFETY", End::Filtered), ("RECITATION", End::Filtered)] {
        assert_eq!(gemini(json!({"candidates": [{"finishReason": reason}]})).end, end, "{reason}");
    }
    let call = json!({"functionCall": {"name": "answer", "args": {"a": 1}}});
    assert_eq!(
        gemini(json!({"candidates": [{"content": {"parts": [call]}, "finishReason": "STOP"}]})).text,
        "{\"a\":1}"
    );
}

#[test]
fn thoughts_in_the_text_are_left_out_only_where_a_model_writes_them() {
    let body = json!({"choices": [answer("<think>\nhm\n</think>\n\nyes")]}).to_string();
    let model = |name: &str| Target::resolve("vllm", name, &Overrides::default()).unwrap();
    let text = |name: &str| read_completion(&model(name), body.as_bytes()).unwrap().text;
    assert_eq!(text("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"), "yes");
    assert_eq!(text("meta-llama/Llama-3.1-8B"), "<think>\nhm\n</think>\n\nyes");
}

#[test]
fn probabilities_of_tokens_are_read_or_left_out_whole() {
    let entry = |token: &str, bytes: Value| json!({"token": token, "logprob": -0.5, "bytes": bytes, "top_logprobs": [{"token": token, "logprob": -0.5}, {"token": "b", "logprob": -2}]});
    let tokens = |content: Value| {
        let mut choice = answer("ü");
        choice["logprobs"] = json!({ "content": content });
        chat(choice, json!(null)).tokens
    };
    let read = tokens(json!([entry("\\xc3", json!([0xc3])), entry("\\xbc", json!([0xbc]))]));
    assert_eq!(read.iter().flat_map(|token| token.bytes.clone()).collect::<Vec<u8>>(), "ü".as_bytes());
    assert_eq!(read[0].others[1], (b"b".to_vec(), -2.0));
    assert_eq!(tokens(json!([entry("ü", json!(null))]))[0].bytes, "ü".as_bytes());
    assert!(tokens(json!([entry("ü", json!(null)), {"token": "x", "logprob": null}])).is_empty());
    assert!(tokens(json!(3)).is_empty() && tokens(json!(null)).is_empty());
    let gemini = json!({"candidates": [{"content": {"parts": [{"text": "ab"}]}, "finishReason": "STOP", "logprobsResult": {
        "chosenCandidates": [{"token": "ab", "logProbability": -0.1}],
        "topCandidates": [{"candidates": [{"token": "ab", "logProbability": -0.1}, {"token": "c", "logProbability": -3.0}]}]}}]});
    let said = super::read_completion(&target("gemini"), gemini.to_string().as_bytes()).unwrap();
    assert_eq!(
        said.tokens,
        [TokenChoice {
            bytes: b"ab".to_vec(),
            logprob: -0.1,
            others: vec![(b"ab".to_vec(), -0.1), (b"c".to_vec(), -3.0)]
        }]
    );
}

#[test]
fn vectors_come_in_any_order_and_all_of_them() {
    let read = |body: Value, rows| read_embeddings(&target("mistral"), body.to_string().as_bytes(), rows);
    let data = json!([{"index": 1, "embedding": [0, 2.5]}, {"index": 0, "embedding": [1, 0]}]);
    let embedded = read(json!({"data": data, "usage": {"prompt_tokens": 6, "total_tokens": 6}}), 2).unwrap();
    assert_eq!(embedded.vectors, [[1.0, 0.0], [0.0, 2.5]]);
    assert_eq!(embedded.spent.unwrap(), Spent { input_tokens: 6, ..Spent::default() });
    let unnumbered = read(json!({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]}), 2).unwrap();
    assert_eq!((unnumbered.vectors, unnumbered.spent), (vec![vec![1.0], vec![2.0]], None));
    for wrong in [
        json!({"data": [{"index": 0, "embedding": [1.0]}]}),
        json!({"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]}),
        json!({"data": [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [2.0]}]}),
        json!({"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}]}),
        json!({"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [null]}]}),
        json!({"data": null}),
        json!({"error": "busy"}),
    ] {
        assert!(read(wrong.clone(), 2).is_err(), "{wrong}");
    }
    let gemini = |body: Value| read_embeddings(&target("gemini"), body.to_string().as_bytes(), 2);
    assert_eq!(gemini(json!({"embeddings": [{"values": [1]}, {"values": [2]}]})).unwrap().vectors, [[1.0], [2.0]]);
    assert!(gemini(json!({"embeddings": [{"values": [1]}]})).is_err());
}

#[test]
fn a_body_that_leaves_no_place_for_a_row_is_refused() {
    let format = Format::Free;
    let form = |body: Value| {
        let mut target = target("openai");
        target.body = body.as_object().unwrap().clone();
        Form::new(&target, &Asked { system: Some("Be brief."), format: &format })
    };
    assert!(form(json!({"service_tier": "flex"})).is_ok());
    assert!(form(json!({"messages": []})).is_err());
    let mut gemini = target("gemini");
    gemini.body =
        json!({"generationConfig": {"thinkingConfig": {"thinkingLevel": "low"}}}).as_object().unwrap().clone();
    let joined = Form::new(&gemini, &Asked { system: None, format: &format }).unwrap().fill("row", 5);
    let joined: Value = serde_json::from_slice(&joined).unwrap();
    assert_eq!(joined["generationConfig"]["thinkingConfig"]["thinkingLevel"], "low");
    assert_eq!(joined["generationConfig"]["maxOutputTokens"], 5);
    assert!(form(json!({"max_completion_tokens": 9})).is_err());
    // An author who writes what marks a row's place gets an error, or the words; never another place for rows.
    let system = |text: &'static str| Form::new(&target("openai"), &Asked { system: Some(text), format: &format });
    assert!(system(TEXT_MARK).is_err());
    let body: Value = serde_json::from_slice(&system("a \u{F8F0}text\u{F8F1}").unwrap().fill("row", 5)).unwrap();
    assert_eq!(body["messages"][0]["content"], "a \u{F8F0}text\u{F8F1}");
    assert_eq!(body["messages"][1]["content"], "row");
}

#[test]
fn an_embedding_of_gemini_is_another_request_in_a_batch_and_the_same_answer() {
    let target = Target::resolve("gemini", "gemini-embedding-001", &Overrides::default()).unwrap();
    let call = embedding(&target, &["a text"]);
    let row: Value = serde_json::from_slice(&batch_row(&target, call)).unwrap();
    assert_eq!(row["content"]["parts"][0]["text"], "a text");
    assert!(row["requests"].is_null());
    let answer = batch_answer(&target, r#"{"embedding":{"values":[0.6,0.8]},"usageMetadata":{"promptTokenCount":7}}"#);
    let embedded = read_embeddings(&target, &answer, 1).unwrap();
    assert_eq!((embedded.vectors, embedded.spent.unwrap().input_tokens), (vec![vec![0.6, 0.8]], 7));
    let words = r#"{"candidates":[]}"#;
    assert_eq!(batch_answer(&target, words), words, "all else is as it comes online");
    let openai = Target::resolve("openai", "text-embedding-3-small", &Overrides::default()).unwrap();
    let call = embedding(&openai, &["a text"]);
    assert_eq!(batch_row(&openai, call.clone()), call);
}
