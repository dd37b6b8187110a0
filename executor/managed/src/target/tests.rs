//! The whole table is checked here: every entry is read, every provider resolves, and what one entry promises fits the rest.

use super::table::{matches, parse};
use super::*;
use rowmill_jobs::Kind;

fn holes() -> Overrides {
    let fill = |name: &str| (name.to_owned(), "x-1".to_owned());
    Overrides {
        holes: Some(["resource", "region", "project"].into_iter().map(fill).collect()),
        base_url: None,
        ..Overrides::default()
    }
}

/// A model of each provider's entries, made from their globs, and one that no glob names.
fn samples() -> Vec<(String, String)> {
    let table = parse(include_str!("../targets.toml")).unwrap();
    let mut samples = Vec::new();
    for (provider, layers) in table.into_iter().filter(|(name, _)| name != "defaults") {
        let globs = layers.into_iter().flat_map(|layer| layer.models);
        let models = globs.map(|glob| glob.replace('*', "9")).chain(["some-model".to_owned()]);
        samples.extend(models.map(|model| (provider.clone(), model)));
    }
    samples
}

#[test]
fn every_entry_resolves_and_agrees_with_itself() {
    let samples = samples();
    assert!(samples.len() > 50, "{}", samples.len());
    for (provider, model) in samples {
        let mut overrides = holes();
        if provider == "openai-compatible" {
            let error = Target::resolve(&provider, &model, &overrides).unwrap_err();
            assert!(error.to_string().contains("needs `base_url`"), "{error}");
            overrides.base_url = Some("https://models.example/v1".to_owned());
        }
        let target = Target::resolve(&provider, &model, &overrides).unwrap();
        let at = format!("{provider}/{model}");
        for path in [&target.base_url, &target.completion_path().unwrap(), &target.embedding_path().unwrap()] {
            assert!(!path.contains(['{', '}']), "{at}: {path}");
        }
        assert!(target.structured.contains(&StructuredMode::None), "{at}: something must always work");
        let places = target.structured.iter().position(|mode| *mode == StructuredMode::None);
        assert_eq!(places, Some(target.structured.len() - 1), "{at}: nothing comes after no help at all");
        assert!(["system", "developer"].contains(&target.system_role.as_str()), "{at}");
        assert!(!target.tokens_field.is_empty(), "{at}");
        assert!(target.temperature || target.logprobs == 0, "{at}: a model that thinks shows no probabilities");
        assert_eq!(target.embed_rows_max > 0, target.embed_tokens_max > 0, "{at}");
        assert!(target.embed_rows_max == 0 || !target.embed_path.is_empty(), "{at}");
        assert_eq!(target.batch != BatchApi::None, target.batch_requests_max > 0, "{at}");
        assert_eq!(target.batch != BatchApi::None, target.batch_bytes_max > 0 && target.batch_hours > 0, "{at}");
        assert_eq!(target.self_hosted, target.base_url.starts_with("http://127.0.0.1:"), "{at}");
        assert!(!target.self_hosted || (!target.key_needed && target.batch == BatchApi::None), "{at}");
        let by_key = matches!(target.auth, Auth::Bearer | Auth::ApiKey | Auth::XApiKey | Auth::XGoogApiKey);
        assert_eq!(by_key && target.key_needed, by_key && target.key_needed && !target.key_env.is_empty(), "{at}");
        let path = [&target.chat_path, &target.embed_path].into_iter().any(|path| path.contains("{model}"));
        assert_eq!(path, !target.model_in_body, "{at}: the model is named in one place");
        let subset = match target.dialect {
            Dialect::Openai if target.self_hosted => {
                target.chat_path.is_empty() || target.schema_subset == SchemaSubset::Plain
            }
            Dialect::Openai => target.schema_subset == SchemaSubset::Strict,
            Dialect::Anthropic => target.schema_subset == SchemaSubset::Anthropic,
            Dialect::Gemini => target.schema_subset == SchemaSubset::Gemini,
        };
        assert!(subset, "{at}");
    }
}

#[test]
fn all_providers_of_the_product_are_there() {
    let expected = [
        "anthropic",
        "azure",
        "azure-deployments",
        "bedrock",
        "deepseek",
        "fireworks",
        "gemini",
        "groq",
        "llama-server",
        "mistral",
        "ollama",
        "openai",
        "openai-compatible",
        "openrouter",
        "tei",
        "tgi",
        "together",
        "vertex",
        "vllm",
    ];
    assert_eq!(Target::providers().unwrap(), expected);
    // What a job file may name, what the operator may, and what the table has are one list.
    for kind in rowmill_jobs::spec::PROVIDER_KINDS {
        assert!(expected.contains(&kind), "{kind}");
        let known: crate::policy::config::ProviderKind = serde_json::from_value(kind.into()).unwrap();
        assert_eq!(known.as_str(), kind);
    }
}

#[test]
fn models_refine_their_provider_and_overrides_win() {
    let resolve = |provider, model| Target::resolve(provider, model, &holes()).unwrap();
    assert!(resolve("openai", "gpt-4.1-mini").temperature);
    for model in ["gpt-5.4", "gpt-6.2-sol", "o4-mini"] {
        let target = resolve("openai", model);
        assert!(!target.temperature && target.seed_field.is_empty() && target.thinking_tokens > 0, "{model}");
    }
    assert!(!resolve("openai", "gpt-4-turbo").structured.contains(&StructuredMode::JsonSchema));
    assert!(resolve("openai", "gpt-4o").structured.contains(&StructuredMode::JsonSchema));
    for (model, temperature) in [
        ("claude-opus-4-7", false),
        ("claude-sonnet-5-5", false),
        ("claude-fable-5", false),
        ("claude-haiku-4-6", true),
        ("claude-opus-4-6", true),
        ("claude-3-haiku-20240307", true),
        ("claude-sonnet-4-20250514", true),
    ] {
        let target = resolve("anthropic", model);
        assert_eq!(target.temperature, temperature, "{model}");
        // What thinks must not be forced to call a tool.
        assert!(target.thinking_tokens == 0 || !target.structured.contains(&StructuredMode::Tools), "{model}");
        assert_eq!(target.thinking_tokens > 0, model.contains("-5"), "{model}");
    }
    let bedrock = resolve("bedrock", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0");
    assert_eq!(bedrock.completion_path().unwrap(), "/model/eu.anthropic.claude-sonnet-4-5-20250929-v1%3A0/invoke");
    assert!(bedrock.temperature && bedrock.structured.contains(&StructuredMode::JsonSchema));
    let overrides = Overrides {
        temperature: Some(false),
        headers: Some([("x-team".to_owned(), "data".to_owned())].into()),
        body: Some(serde_json::from_str(r#"{"thinking":{"type":"disabled"}}"#).unwrap()),
        ..holes()
    };
    let target = Target::resolve("anthropic", "claude-haiku-4-5", &overrides).unwrap();
    assert!(!target.temperature);
    assert_eq!(target.headers.len(), 2, "{:?}", target.headers);
    assert_eq!(target.body["thinking"]["type"], "disabled");
}

#[test]
fn batches_go_where_the_provider_is_unless_they_have_a_host_of_their_own() {
    let at = |base_url: Option<&str>, batch_url: Option<&str>| {
        let overrides = Overrides {
            base_url: base_url.map(str::to_owned),
            batch_url: batch_url.map(str::to_owned),
            holes: Some([("region".to_owned(), "eu-west-1".to_owned())].into()),
            ..Overrides::default()
        };
        Target::resolve("bedrock", "m", &overrides).unwrap().batch_url
    };
    let (gateway, endpoint) = ("https://gateway.example", "https://batches.example/");
    assert_eq!(at(None, None), "https://bedrock.eu-west-1.amazonaws.com");
    assert_eq!(at(Some(gateway), None), gateway, "a gateway is not gone round");
    assert_eq!(at(Some(gateway), Some(endpoint)), "https://batches.example");
    let anthropic = Target::resolve("anthropic", "claude-haiku-4-5", &holes()).unwrap();
    assert_eq!(anthropic.batch_url, anthropic.base_url);
    let open = Overrides { batch_url: Some("http://batches.example".to_owned()), ..holes() };
    let error = Target::resolve("bedrock", "m", &open).unwrap_err();
    assert!(error.to_string().contains("batch_url") && error.to_string().contains("no TLS"), "{error}");
}

#[test]
fn what_cannot_be_reached_safely_is_refused() {
    let at = |base_url: &str| Overrides { base_url: Some(base_url.to_owned()), ..Overrides::default() };
    for (provider, overrides, word) in [
        ("opnai", Overrides::default(), "there is no provider"),
        ("defaults", Overrides::default(), "there is no provider"),
        ("azure", Overrides::default(), "needs `resource`"),
        ("openai-compatible", at("http://models.example/v1"), "no TLS"),
        ("openai", at("http://10.0.0.1/v1"), "no TLS"),
        ("openai-compatible", at("ftp://models.example"), "neither https nor http"),
        ("openai-compatible", at("models"), "not a URL"),
        ("openai-compatible", at("https://user:secret@models.example/v1"), "nothing else"),
        ("openai-compatible", at("https://models.example/v1?key=1"), "nothing else"),
    ] {
        let error = Target::resolve(provider, "m", &overrides).unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.to_string().contains(word), "{error}");
        assert!(!error.report().contains("secret"), "{}", error.report());
    }
    assert!(Target::resolve("openai", " ", &Overrides::default()).is_err());
    let region = |region: &str| Overrides {
        holes: Some([("region".to_owned(), region.to_owned())].into()),
        ..Overrides::default()
    };
    assert!(Target::resolve("bedrock", "m", &region("eu-central-1")).is_ok());
    assert!(Target::resolve("bedrock", "m", &region("evil.example/")).is_err());
    for own in ["http://127.0.0.1:9/v1", "http://localhost:9/v1", "http://[::1]:9/v1/"] {
        let target = Target::resolve("openai", "m", &at(own)).unwrap();
        assert!(!target.base_url.ends_with('/') && !target.self_hosted);
    }
    assert!(
        Target::resolve("vllm", "m", &at("http://gpu-3.internal:8000/v1")).is_ok(),
        "an own machine, as configured"
    );
}

#[test]
fn unknown_fields_and_wrong_values_are_refused() {
    for (text, word) in [
        ("[[a]]\nbase_url = 'x'\nspeed = 3", "speed"),
        ("[[a]]\ndialect = 'klingon'", "klingon"),
        ("[[a]]\nmodels = 'gpt'", "a, entry 1"),
        ("[[a]]\n[[a]]\nlogprobs = -1", "a, entry 2"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    assert!(serde_json::from_str::<Overrides>(r#"{"dialect":"gemini","nonsense":1}"#).is_err());
    let some: Overrides = serde_json::from_str(r#"{"structured":["json_object","none"]}"#).unwrap();
    assert_eq!(serde_json::to_string(&some).unwrap(), r#"{"structured":["json_object","none"]}"#);
}

#[test]
fn globs_are_of_whole_names() {
    for (glob, name, expected) in [
        ("gpt-5*", "gpt-5", true),
        ("gpt-5*", "GPT-5.1-mini", true),
        ("gpt-5*", "my-gpt-5", false),
        ("*deepseek-r1*", "unsloth/DeepSeek-R1-Distill", true),
        ("gpt-4", "gpt-4o", false),
        ("", "", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
    ] {
        assert_eq!(matches(glob.as_bytes(), name.as_bytes()), expected, "{glob} {name}");
    }
}
