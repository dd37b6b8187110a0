//! Schemas as they are sent, and answers as they are read.

use serde_json::json;

use super::*;
use crate::target::{Overrides, SchemaSubset};

fn sent(schema: &Value, subset: SchemaSubset) -> Option<Value> {
    print::print(schema, subset)
}

fn object(properties: Value, required: Value) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

#[test]
fn strict_schemas_are_closed_and_require_everything() {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Ticket", "type": "object",
        "properties": {
            "product": {"type": "string", "description": "What it is about", "minLength": 1},
            "severity": {"type": "integer", "minimum": 1, "maximum": 5, "default": 3},
            "day": {"type": "string", "format": "date"}, "site": {"type": "string", "format": "uri"},
            "kind": {"enum": ["a", "b", null]},
            "who": {"$ref": "#/$defs/person"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "value": {"anyOf": [{"type": "number"}, {"type": "object", "properties": {"x": {"type": "null"}}}]}
        },
        "required": ["product", "kind"],
        "$defs": {"person": {"type": "object", "properties": {"name": {"type": ["string", "null"]}}, "required": ["name"]}}
    });
    let person = |types: Value| json!({"type": types, "properties": {"name": {"type": ["string", "null"]}}, "required": ["name"], "additionalProperties": false});
    let expected = json!({
        "type": "object",
        "properties": {
            "product": {"description": "What it is about", "type": "string"},
            "severity": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
            "day": {"type": ["string", "null"], "format": "date"}, "site": {"type": ["string", "null"]},
            "kind": {"type": ["string", "null"], "enum": ["a", "b", null]},
            "who": person(json!(["object", "null"])),
            "tags": {"type": ["array", "null"], "items": {"type": "string"}, "maxItems": 3},
            "value": {"anyOf": [{"type": "number"}, {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"], "additionalProperties": false}, {"type": "null"}]}
        },
        "required": ["product", "severity", "day", "site", "kind", "who", "tags", "value"],
        "additionalProperties": false
    });
    assert_eq!(sent(&schema, SchemaSubset::Strict), Some(expected.clone()));
    let mut plainer = expected;
    for (name, bound) in [("severity", "minimum"), ("severity", "maximum"), ("day", "format"), ("tags", "maxItems")] {
        plainer["properties"][name].as_object_mut().unwrap().remove(bound);
    }
    assert_eq!(sent(&schema, SchemaSubset::Anthropic), Some(plainer));
    assert_eq!(sent(&schema, SchemaSubset::Plain), Some(schema.clone()));
    assert_eq!(sent(&schema, SchemaSubset::Gemini), None, "a property that is only null has no OpenAPI type");
}

#[test]
fn geminis_schemas_are_openapi() {
    let schema = object(
        json!({"a": {"type": ["string", "null"]}, "b": {"type": "array", "items": {"type": ["number", "string"]}}, "c": {"enum": ["x", null]}}),
        json!(["a", "b", "c"]),
    );
    let expected = json!({
        "type": "OBJECT",
        "properties": {
            "a": {"type": "STRING", "nullable": true},
            "b": {"type": "ARRAY", "items": {"anyOf": [{"type": "NUMBER"}, {"type": "STRING"}]}},
            "c": {"type": "STRING", "enum": ["x"], "nullable": true}
        },
        "required": ["a", "b", "c"],
        "propertyOrdering": ["a", "b", "c"]
    });
    assert_eq!(sent(&schema, SchemaSubset::Gemini), Some(expected));
    assert_eq!(sent(&object(json!({"a": {"enum": [1, 2]}}), json!(["a"])), SchemaSubset::Gemini), None);
}

#[test]
fn what_a_provider_would_refuse_is_asked_for_otherwise() {
    let many = |count: usize, types: Value| {
        let properties: serde_json::Map<String, Value> =
            (0..count).map(|i| (format!("p{i}"), json!({ "type": types }))).collect();
        let names: Vec<&String> = properties.keys().collect();
        json!({"type": "object", "properties": properties, "required": names})
    };
    let labels = |count: usize, length: usize| {
        let labels: Vec<String> = (0..count).map(|i| format!("{i:0length$}")).collect();
        object(json!({"label": {"type": "string", "enum": labels}}), json!(["label"]))
    };
    let mut deep = json!({"type": "string"});
    (0..12).for_each(|_| deep = object(json!({ "inner": deep }), json!(["inner"])));
    // A thousand million nodes, were it put in place.
    let branches: serde_json::Map<String, Value> = (0..8).map(|i| (format!("b{i}"), json!({"$ref": "#"}))).collect();
    let tree = json!({"type": "object", "properties": branches});
    let (strict, anthropic) = (SchemaSubset::Strict, SchemaSubset::Anthropic);
    for (schema, subset, expected) in [
        (many(16, json!(["string", "null"])), anthropic, true),
        (many(17, json!(["string", "null"])), anthropic, false),
        (many(17, json!("string")), anthropic, true),
        (many(17, json!(["string", "null"])), strict, true),
        (many(5001, json!("string")), strict, false),
        (labels(1000, 4), strict, true),
        (labels(1001, 4), strict, false),
        (labels(250, 100), strict, true),
        (labels(251, 100), strict, false),
        (deep, strict, false),
        (json!({"type": "array", "items": {"type": "string"}}), strict, false),
        (
            json!({"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "null"}]}),
            strict,
            false,
        ),
        (
            object(json!({"map": {"type": "object", "additionalProperties": {"type": "string"}}}), json!([])),
            strict,
            false,
        ),
        (object(json!({"any": {}}), json!([])), strict, false),
        (object(json!({"list": {"type": "array"}}), json!([])), strict, false),
        (object(json!({"not": {"not": {"type": "string"}}}), json!([])), strict, false),
        (json!({"type": "object", "properties": {"me": {"$ref": "#"}}, "required": ["me"]}), strict, false),
        (tree.clone(), strict, false),
    ] {
        assert_eq!(sent(&schema, subset).is_some(), expected, "{subset:?} {schema}");
    }
}

/// The format of a schema at a provider, or at a provider's model.
fn format(provider: &str, schema: Value) -> JsonFormat {
    let (provider, model) = provider.split_once(' ').unwrap_or((provider, "m"));
    let fill = |name: &str| (name.to_owned(), "x".to_owned());
    let holes = Some(["region", "project"].into_iter().map(fill).collect());
    let target = Target::resolve(provider, model, &Overrides { holes, ..Overrides::default() }).unwrap();
    JsonFormat::new(&schema, &target).unwrap()
}

#[test]
fn the_best_way_that_fits_is_taken() {
    let plain = object(json!({"a": {"type": "string"}}), json!(["a"]));
    let map = object(json!({"m": {"type": "object", "additionalProperties": {"type": "string"}}}), json!(["m"]));
    let list = json!({"type": "array", "items": {"type": "string"}});
    for (provider, schema, mode) in [
        ("openai", &plain, StructuredMode::JsonSchema),
        ("openai", &map, StructuredMode::JsonObject),
        ("openai", &list, StructuredMode::None),
        ("anthropic", &plain, StructuredMode::JsonSchema),
        ("anthropic", &map, StructuredMode::None),
        ("anthropic claude-opus-4-8", &map, StructuredMode::Tools),
        ("vertex claude-haiku-4-5@20251001", &plain, StructuredMode::Tools),
        ("vertex", &plain, StructuredMode::None),
        ("anthropic", &list, StructuredMode::None),
        ("gemini", &map, StructuredMode::JsonObject),
        ("groq", &map, StructuredMode::Tools),
        ("deepseek", &plain, StructuredMode::JsonObject),
        ("vllm", &map, StructuredMode::JsonSchema),
        ("vllm", &list, StructuredMode::JsonSchema),
        ("tgi", &plain, StructuredMode::JsonValue),
    ] {
        let format = format(provider, schema.clone());
        assert_eq!(format.mode, mode, "{provider} {schema}");
        let told = format.instructions().unwrap_or_default();
        let helped = [StructuredMode::JsonObject, StructuredMode::None].contains(&mode);
        assert_eq!(told.contains("JSON Schema") && told.contains(&schema.to_string()), helped, "{provider}");
    }
}

#[test]
fn answers_are_put_in_order_mended_and_checked() {
    let schema = json!({
        "type": "object",
        "properties": {
            "id": {"type": "integer"}, "note": {"type": "string"}, "none": {"type": ["string", "null"]},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
            "either": {"anyOf": [{"$ref": "#/$defs/part"}, {"type": "null"}]}
        },
        "required": ["id", "parts"],
        "$defs": {"part": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "integer"}}, "required": ["x"], "additionalProperties": false}}
    });
    let format = format("openai", schema);
    let read = |text: &str| format.read(text).map(|value| value.to_string());
    assert_eq!(
        read(r#"{"extra": 1, "parts": [{"y": 2.0, "x": 1.0}], "either": {"y": null, "x": 3}, "none": null, "note": null, "id": 4e0}"#).unwrap(),
        r#"{"id":4,"none":null,"parts":[{"x":1.0,"y":2}],"either":{"x":3},"extra":1}"#,
        "null where a property may be absent and not null is its absence"
    );
    for (text, place) in [
        (r#"{"id": null, "parts": []}"#, "/properties/id/type"),
        (r#"{"id": 1.5, "parts": []}"#, "/properties/id/type"),
        (r#"{"parts": []}"#, "/required"),
        (r#"{"id": 1, "parts": [{"x": 1, "secret": 2}]}"#, "additionalProperties"),
        ("[1]", "/type"),
    ] {
        let Misfit(message) = read(text).unwrap_err();
        assert!(message.contains(place), "{text}: {message}");
        assert!(!message.contains("secret"), "an answer's words are not repeated: {message}");
    }
    assert_eq!(
        read(&format!("{}1{}", "[".repeat(200), "]".repeat(200))).unwrap_err(),
        Misfit("it is not JSON".to_owned())
    );
}

#[test]
fn json_is_found_where_there_is_one() {
    for (text, found) in [
        ("{\"a\":1}", true),
        ("  \n{\"a\":1}\n", true),
        ("```json\n{\"a\":1}\n```", true),
        ("```\n{\"a\":1}\n```", true),
        ("Sure:\n{\"a\":1}\nBye.", true),
        ("{\"a\":1} or {\"a\":2}", false),
        ("{\"a\":1", false),
        ("a", false),
        ("", false),
    ] {
        assert_eq!(answer::json_in(text), found.then(|| json!({"a": 1})), "{text}");
    }
}

#[test]
fn schemas_that_reach_out_are_refused() {
    let target = Target::resolve("openai", "m", &Overrides::default()).unwrap();
    for schema in [
        object(json!({"a": {"$ref": "https://schemas.example/a.json"}}), json!([])),
        object(json!({"a": {"$ref": "file:///etc/passwd"}}), json!([])),
        object(json!({"a": {"$ref": "#/$defs/none"}}), json!([])),
        object(json!({"a": {"type": "strange"}}), json!([])),
    ] {
        let error = JsonFormat::new(&schema, &target).unwrap_err();
        assert_eq!(error.kind(), rowmill_jobs::Kind::Invalid, "{schema}");
    }
}

#[test]
fn labels_are_read_as_models_write_them() {
    let labels = vec!["Bug".to_owned(), "bug".to_owned(), "How-To".to_owned()];
    let format = Format::Label { labels, json: None, grammar: None };
    for (text, index) in [("bug", 1), ("Bug", 0), ("\"bug\".", 1), (" how-to\n", 2), ("**How-To**", 2)] {
        assert_eq!(format.read(text), Ok(Formatted::Label(index)), "{text}");
    }
    for text in ["BUG", "", "bugs", "It is a bug"] {
        assert!(format.read(text).is_err(), "{text}");
    }
}
