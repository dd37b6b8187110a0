//! Requests of the OpenAI dialect against what OpenAI's API takes (tests/fixtures/openai-spec). What a provider has
//! beyond them is named here, field by field; anything else is a defect.

use jsonschema::Validator;
use rowmill_managed::target::{Dialect, SchemaSubset};
use serde_json::{Value, json};

use crate::bed::{Fixture, body, first_call};

fn validator(name: &str) -> Validator {
    let path = format!("{}/tests/fixtures/openai-spec/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    jsonschema::options().offline().build(&schema).unwrap()
}

/// Fields of providers that OpenAI does not have; TGI's grammars replace `response_format`; and a deployment in the path
/// stands for the model.
fn without_extensions(provider: &str, mut body: Value) -> Value {
    let fields = body.as_object_mut().unwrap();
    let own: &[&str] = match provider {
        "deepseek" => &["thinking"],
        "mistral" => &["random_seed"],
        "openrouter" => &["provider"],
        "vllm" => &["structured_outputs"],
        "llama-server" => &["grammar"],
        "tgi" => &["response_format"],
        _ => &[],
    };
    for name in own {
        fields.shift_remove(*name);
    }
    if provider == "azure-deployments" {
        assert!(fields.insert("model".to_owned(), json!("deployment")).is_none());
    }
    body
}

fn errors(validator: &Validator, body: &Value) -> Vec<String> {
    validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn every_request_is_one_that_openai_takes() {
    let (chat, embedding) = (validator("chat-completion-request"), validator("embedding-request"));
    let mut checked = 0;
    for fixture in Fixture::all() {
        let target = fixture.target();
        if target.dialect != Dialect::Openai {
            continue;
        }
        for task in fixture.requests.keys() {
            let question = fixture.question(task);
            let body = without_extensions(&fixture.provider, body(&first_call(&question, &["the \"text\"\n"])));
            let validator = if task == "embed" { &embedding } else { &chat };
            assert_eq!(errors(validator, &body), Vec::<String>::new(), "{} {task}: {body}", fixture.name);
            if target.schema_subset == SchemaSubset::Strict {
                assert_strict(&body["response_format"]["json_schema"]["schema"]);
                assert_strict(&body["tools"][0]["function"]["parameters"]);
            }
            checked += 1;
        }
    }
    assert!(checked > 70, "{checked}");
}

/// What strict schemas need beyond JSON Schema: closed objects, all properties required.
fn assert_strict(schema: &Value) {
    if let Some(properties) = schema["properties"].as_object() {
        let names: Vec<&String> = properties.keys().collect();
        assert_eq!(schema["additionalProperties"], false, "{schema}");
        assert_eq!(schema["required"], json!(names), "{schema}");
        properties.values().for_each(assert_strict);
    }
    if schema.get("items").is_some() {
        assert_strict(&schema["items"]);
    }
    schema["anyOf"].as_array().into_iter().flatten().for_each(assert_strict);
}

#[test]
fn the_contract_finds_what_is_wrong() {
    let (chat, embedding) = (validator("chat-completion-request"), validator("embedding-request"));
    let good = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0});
    assert!(chat.is_valid(&good));
    for (pointer, wrong) in [
        ("temperature", json!(9)),
        ("n", json!(0)),
        ("messages", json!([])),
        ("messages", json!([{"role": "robot", "content": "x"}])),
        ("messages", json!([{"role": "user", "content": "x", "name_": "y"}])),
        ("response_format", json!({"type": "json_schema", "json_schema": {"schema": {}}})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "no spaces", "schema": {}}})),
        ("tools", json!([{"type": "function", "function": {"parameters": {}}}])),
        ("tool_choice", json!({"type": "function", "name": "answer"})),
        ("top_logprobs", json!(21)),
        ("max_output_tokens", json!(5)),
    ] {
        let mut body = good.clone();
        body[pointer] = wrong;
        assert!(!chat.is_valid(&body), "{body}");
    }
    assert!(embedding.is_valid(&json!({"model": "m", "input": ["x"]})));
    for wrong in [
        json!({"model": "m", "input": [""]}),
        json!({"model": "m", "input": []}),
        json!({"model": "m", "input": ["x"], "dimensions": 0}),
        json!({"input": ["x"]}),
        json!({"model": "m", "input": ["x"], "dims": 3}),
    ] {
        assert!(!embedding.is_valid(&wrong), "{wrong}");
    }
}
