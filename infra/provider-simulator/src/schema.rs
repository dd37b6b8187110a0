//! A small value that is valid for a JSON Schema, chosen by a number: enough of the standard for the schemas that table
//! functions make (objects, arrays, enums, unions, references, bounds). No validator.

use serde_json::{Map, Value, json};

use crate::random;

/// Schemas nested deeper than this are cut off with `null`.
const DEPTH_MAX: usize = 24;

/// The first schema of an object that a text holds, as instructions in prompts do.
pub(crate) fn within(text: &str) -> Option<Value> {
    let starts = text.match_indices('{').map(|(start, _)| start);
    let read = |start: usize| serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>().next()?.ok();
    starts.filter_map(read).find(|value| value["type"] == "object" && value["properties"].is_object())
}

/// A value for `schema`; the same number gives the same value.
pub(crate) fn value(schema: &Value, number: u64) -> Value {
    of(schema, schema, number, 0)
}

fn of(root: &Value, schema: &Value, number: u64, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    let next = |schema: &Value, name: u64| of(root, schema, random::draw(number, &[name]), depth + 1);
    if let Some(reference) = schema["$ref"].as_str() {
        let found = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        return found.map_or(Value::Null, |found| next(found, 0));
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(values) = schema["enum"].as_array().filter(|values| !values.is_empty()) {
        return values[number as usize % values.len()].clone();
    }
    for union in ["anyOf", "oneOf"] {
        if let Some(arms) = schema[union].as_array().filter(|arms| !arms.is_empty()) {
            return next(&arms[number as usize % arms.len()], 1);
        }
    }
    if let Some([only]) = schema["allOf"].as_array().map(Vec::as_slice) {
        return next(only, 2);
    }
    match kind(schema, number).as_str() {
        "object" => object(schema, next),
        "array" => {
            let count = schema["minItems"].as_u64().unwrap_or(0).max(1).min(schema["maxItems"].as_u64().unwrap_or(64));
            (0..count).map(|i| next(&schema["items"], i)).collect()
        }
        "string" => text(schema, number),
        "integer" => json!(whole(schema, number)),
        "number" => json!(whole(schema, number) as f64 + 0.5),
        "boolean" => json!(number.is_multiple_of(2)),
        _ => Value::Null,
    }
}

/// The schema's type in lower case: Gemini writes them large. One of several, by the number.
fn kind(schema: &Value, number: u64) -> String {
    let named = match &schema["type"] {
        Value::String(name) => name.to_lowercase(),
        Value::Array(names) if !names.is_empty() => {
            names[number as usize % names.len()].as_str().unwrap_or("null").to_lowercase()
        }
        _ if schema.get("properties").is_some() => "object".into(),
        _ => "string".into(),
    };
    if schema["nullable"] == json!(true) && number % 8 == 7 { "null".into() } else { named }
}

fn object(schema: &Value, next: impl Fn(&Value, u64) -> Value) -> Value {
    let mut fields = Map::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let required = schema["required"].as_array();
        if required.is_none_or(|required| required.iter().any(|other| other == name)) {
            fields.insert(name.clone(), next(field, random::of(name)));
        }
    }
    Value::Object(fields)
}

fn text(schema: &Value, number: u64) -> Value {
    match schema["format"].as_str() {
        Some("date") => return json!(format!("2026-{:02}-{:02}", number % 12 + 1, number % 28 + 1)),
        Some("date-time") => return json!(format!("2026-01-{:02}T00:00:00Z", number % 28 + 1)),
        _ => {}
    }
    let mut text = format!("{:06x}", number & 0xff_ffff);
    let least = schema["minLength"].as_u64().unwrap_or(0).min(10_000) as usize;
    while text.len() < least {
        text.push('x');
    }
    text.truncate(schema["maxLength"].as_u64().unwrap_or(u64::MAX).min(text.len() as u64) as usize);
    json!(text)
}

fn whole(schema: &Value, number: u64) -> i64 {
    let bound = |name: &str| schema[name].as_f64().map(|bound| bound as i64);
    let low = bound("minimum").or_else(|| bound("exclusiveMinimum").map(|low| low + 1)).unwrap_or(0);
    let high = bound("maximum").or_else(|| bound("exclusiveMaximum").map(|high| high - 1)).unwrap_or(low + 9);
    let span = high.saturating_sub(low).max(0) as u64 + 1;
    low + (number % span) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_found_in_a_text() {
        let schema = json!({"type": "object", "properties": {"label": {"enum": ["a", "b"]}}});
        assert_eq!(within(&format!("Of {{this}} schema:\n{schema}\n\nText: {{}}")), Some(schema));
        assert_eq!(within("{\"type\": \"object\"} and { nothing"), None);
    }

    #[test]
    fn required_fields_have_their_types_and_labels_come_from_the_list() {
        let schema = json!({
            "$defs": {"severity": {"type": "integer", "minimum": 1, "maximum": 5}},
            "type": "object", "required": ["label", "severity", "tags", "note", "when"],
            "properties": {
                "label": {"enum": ["a", "b"]}, "severity": {"$ref": "#/$defs/severity"},
                "tags": {"type": "array", "items": {"type": "string", "minLength": 8}, "minItems": 2},
                "note": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "when": {"type": "STRING", "format": "date"},
                "more": {"type": "string"},
            },
        });
        for number in 0..200 {
            let value = value(&schema, number);
            assert!(["a", "b"].contains(&value["label"].as_str().unwrap()), "{value}");
            assert!((1..=5).contains(&value["severity"].as_i64().unwrap()), "{value}");
            assert!(value["tags"].as_array().unwrap().iter().all(|tag| tag.as_str().unwrap().len() >= 8), "{value}");
            assert!(value["note"].is_null() || value["note"].is_boolean(), "{value}");
            assert!(value["when"].as_str().unwrap().starts_with("2026-") && value.get("more").is_none(), "{value}");
        }
    }
}
