//! What a model wrote, made into what the task asked for: the JSON in it is found, put in the schema's order and checked.
//! It mends only what has one meaning; nothing is guessed.

use serde_json::{Map, Number, Value};

/// The JSON in a model's text: alone, in a code fence, or after some words. `None` if there is none.
pub(super) fn json_in(text: &str) -> Option<Value> {
    let text = text.trim();
    let fenced = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let inside = fenced.map_or(text, |inside| inside.strip_prefix("json").unwrap_or(inside));
    if let Ok(value) = serde_json::from_str(inside) {
        return Some(value);
    }
    let from = text.find(['{', '['])?;
    let mut values = serde_json::Deserializer::from_str(&text[from..]).into_iter::<Value>();
    let value = values.next()?.ok()?;
    // A second value leaves open which is the answer.
    let rest = &text[from + values.byte_offset()..];
    (!rest.contains(['{', '['])).then_some(value)
}

/// A value in its schema's order, with what a strict schema made of it undone: null for a property that may be absent and
/// not null, and `3.0` for an integer.
pub(super) fn in_order(value: Value, schema: &Value, root: &Value) -> Value {
    let schema = resolved(schema, root);
    match value {
        Value::Object(mut fields) => {
            let branch = object_branch(schema, root);
            let Some(properties) = branch.and_then(|branch| branch.get("properties")).and_then(Value::as_object) else {
                return Value::Object(fields);
            };
            let required = branch.and_then(|branch| branch.get("required")).and_then(Value::as_array);
            let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|known| known == name));
            let mut ordered = Map::new();
            for (name, schema) in properties {
                match fields.shift_remove(name) {
                    None => {}
                    Some(Value::Null) if !is_required(name) && !may_be_null(schema, root) => {}
                    Some(value) => {
                        ordered.insert(name.clone(), in_order(value, schema, root));
                    }
                }
            }
            ordered.extend(fields);
            Value::Object(ordered)
        }
        Value::Array(values) => match schema.get("items") {
            Some(items) => Value::Array(values.into_iter().map(|value| in_order(value, items, root)).collect()),
            None => Value::Array(values),
        },
        Value::Number(number) => Value::Number(whole(number, schema)),
        other => other,
    }
}

/// Follows local references, a few times.
fn resolved<'a>(mut schema: &'a Value, root: &'a Value) -> &'a Value {
    for _ in 0..8 {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
        match target.and_then(|pointer| root.pointer(pointer)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

fn branches(schema: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"].into_iter().filter_map(|name| schema.get(name)).filter_map(Value::as_array).flatten()
}

fn object_branch<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Value> {
    if schema.get("properties").is_some() {
        return Some(schema);
    }
    let mut objects = branches(schema).map(|branch| resolved(branch, root)).filter(|s| s.get("properties").is_some());
    // Of several, which is meant is not known: the order stays the model's.
    objects.next().filter(|_| objects.next().is_none())
}

fn may_be_null(schema: &Value, root: &Value) -> bool {
    let schema = resolved(schema, root);
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.contains(&Value::Null);
    }
    match schema.get("type") {
        Some(Value::String(name)) => name == "null",
        Some(Value::Array(names)) => names.iter().any(|name| name == "null"),
        _ if branches(schema).next().is_some() => branches(schema).any(|branch| may_be_null(branch, root)),
        _ => schema.get("const").is_none_or(Value::is_null),
    }
}

fn whole(number: Number, schema: &Value) -> Number {
    let is = |name: &str| match schema.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(many)) => many.iter().any(|one| one == name),
        _ => false,
    };
    match number.as_f64() {
        // 2⁵³: up to here a float is exactly one integer.
        Some(float)
            if number.is_f64()
                && is("integer")
                && !is("number")
                && float.fract() == 0.0
                && float.abs() <= 9_007_199_254_740_992.0 =>
        {
            Number::from(float as i64)
        }
        _ => number,
    }
}
