//! Shapes as the providers want them written: OpenAI's strict schemas, the same without bounds for Anthropic, and Gemini's
//! OpenAPI objects. Each refuses what its provider is known to refuse, so that the next best way is taken.

use serde_json::{Map, Value, json};

use super::shape::{Kind, Shape};
use crate::target::SchemaSubset;

/// Most properties of a strict schema at OpenAI.
const PROPERTIES_MAX: usize = 5000;
/// Most values of all enums of a strict schema at OpenAI.
const ENUM_VALUES_MAX: usize = 1000;
/// Most characters of the values of one enum with more than [`ENUM_LONG`] values, at OpenAI.
const ENUM_CHARS_MAX: usize = 15_000;
/// Enums up to here may be of any length.
const ENUM_LONG: usize = 250;
/// Most parameters with a union type at Anthropic; nullable ones are unions.
const UNIONS_MAX: usize = 16;
/// String formats that strict schemas know.
const FORMATS: [&str; 9] = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"];

/// The schema to send; `None` where the provider would refuse it.
pub(super) fn print(schema: &Value, subset: SchemaSubset) -> Option<Value> {
    if subset == SchemaSubset::Plain {
        return Some(schema.clone());
    }
    let shape = Shape::of(schema)?;
    // The root must be one object, everywhere.
    if shape.nullable || !matches!(shape.kinds.as_slice(), [Kind::Object(_)]) || !fits(&shape, subset) {
        return None;
    }
    match subset {
        SchemaSubset::Gemini => openapi(&shape),
        _ => Some(strict(&shape, subset)),
    }
}

fn fits(shape: &Shape, subset: SchemaSubset) -> bool {
    let (mut properties, mut values, mut unions) = (0, 0, 0);
    for shape in shape.all() {
        unions += usize::from(shape.kinds.len() + usize::from(shape.nullable) > 1);
        for kind in &shape.kinds {
            match kind {
                Kind::Object(fields) => properties += fields.len(),
                Kind::Enum(options) => {
                    values += options.len();
                    let chars: usize = options.iter().filter_map(Value::as_str).map(str::len).sum();
                    if options.len() > ENUM_LONG && chars > ENUM_CHARS_MAX {
                        return false;
                    }
                }
                Kind::Simple(_) | Kind::Array(_) | Kind::Nested(_) => {}
            }
        }
    }
    let many = subset == SchemaSubset::Anthropic && unions > UNIONS_MAX;
    properties <= PROPERTIES_MAX && values <= ENUM_VALUES_MAX && !many
}

fn strict(shape: &Shape, subset: SchemaSubset) -> Value {
    let mut written = Map::new();
    if let Some(description) = &shape.description {
        written.insert("description".to_owned(), json!(description));
    }
    match shape.kinds.as_slice() {
        [] => {
            written.insert("type".to_owned(), json!("null"));
        }
        [Kind::Enum(values)] => {
            let mut names: Vec<&str> = Vec::new();
            for name in values.iter().map(type_name).chain(shape.nullable.then_some("null")) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            let values: Vec<Value> = values.iter().cloned().chain(shape.nullable.then_some(Value::Null)).collect();
            written.insert("type".to_owned(), one_or_many(&names));
            written.insert("enum".to_owned(), Value::Array(values));
        }
        kinds if kinds.iter().any(|kind| matches!(kind, Kind::Nested(_) | Kind::Enum(_))) => {
            let mut branches: Vec<Value> = kinds.iter().map(|kind| alone(kind, subset)).collect();
            branches.extend(shape.nullable.then(|| json!({"type": "null"})));
            written.insert("anyOf".to_owned(), Value::Array(branches));
        }
        kinds => {
            let names: Vec<&str> = kinds.iter().map(kind_name).chain(shape.nullable.then_some("null")).collect();
            written.insert("type".to_owned(), one_or_many(&names));
            for kind in kinds {
                add_inner(kind, subset, &mut written);
            }
            if subset == SchemaSubset::Strict {
                written.extend(shape.bounds.iter().filter(|(name, value)| is_known(name, value)).map(own));
            }
        }
    }
    Value::Object(written)
}

fn alone(kind: &Kind, subset: SchemaSubset) -> Value {
    match kind {
        Kind::Nested(shape) => strict(shape, subset),
        kind => {
            let shape = Shape { kinds: vec![kind.clone()], nullable: false, description: None, bounds: Map::default() };
            strict(&shape, subset)
        }
    }
}

fn add_inner(kind: &Kind, subset: SchemaSubset, written: &mut Map<String, Value>) {
    match kind {
        Kind::Object(properties) => {
            let names: Vec<&String> = properties.iter().map(|(name, _)| name).collect();
            let required = json!(names);
            let properties = properties.iter().map(|(name, shape)| (name.clone(), strict(shape, subset)));
            written.insert("properties".to_owned(), Value::Object(properties.collect()));
            written.insert("required".to_owned(), required);
            written.insert("additionalProperties".to_owned(), json!(false));
        }
        Kind::Array(items) => {
            written.insert("items".to_owned(), strict(items, subset));
        }
        Kind::Simple(_) | Kind::Enum(_) | Kind::Nested(_) => {}
    }
}

/// Gemini's schema object: one type in capitals, `nullable`, and the order in which to write properties.
fn openapi(shape: &Shape) -> Option<Value> {
    let mut written = Map::new();
    match shape.kinds.as_slice() {
        [] => return None,
        [Kind::Enum(values)] => {
            if values.iter().any(|value| !value.is_string()) {
                return None;
            }
            written.insert("type".to_owned(), json!("STRING"));
            written.insert("enum".to_owned(), json!(values));
        }
        [Kind::Nested(inner)] => return openapi(&Shape { nullable: shape.nullable, ..(**inner).clone() }),
        [kind] => {
            written.insert("type".to_owned(), json!(kind_name(kind).to_uppercase()));
            match kind {
                Kind::Object(properties) => {
                    let names: Vec<&String> = properties.iter().map(|(name, _)| name).collect();
                    let order = json!(names);
                    let properties: Option<Map<String, Value>> =
                        properties.iter().map(|(name, shape)| Some((name.clone(), openapi(shape)?))).collect();
                    written.insert("properties".to_owned(), Value::Object(properties?));
                    written.insert("required".to_owned(), order.clone());
                    written.insert("propertyOrdering".to_owned(), order);
                }
                Kind::Array(items) => {
                    written.insert("items".to_owned(), openapi(items)?);
                }
                Kind::Simple(_) | Kind::Enum(_) | Kind::Nested(_) => {}
            }
            let known = ["minimum", "maximum", "minItems", "maxItems"];
            written.extend(shape.bounds.iter().filter(|(name, _)| known.contains(&name.as_str())).map(own));
        }
        kinds => {
            let branch = |kind: &Kind| {
                let bounds = Map::default();
                openapi(&Shape { kinds: vec![kind.clone()], nullable: false, description: None, bounds })
            };
            let branches: Option<Vec<Value>> = kinds.iter().map(branch).collect();
            written.insert("anyOf".to_owned(), Value::Array(branches?));
        }
    }
    if shape.nullable {
        written.insert("nullable".to_owned(), json!(true));
    }
    if let Some(description) = &shape.description {
        written.insert("description".to_owned(), json!(description));
    }
    Some(Value::Object(written))
}

fn own((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

fn is_known(name: &str, value: &Value) -> bool {
    name != "format" || value.as_str().is_some_and(|format| FORMATS.contains(&format))
}

fn one_or_many(names: &[&str]) -> Value {
    match names {
        [name] => json!(name),
        names => json!(names),
    }
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Simple(name) => name,
        Kind::Object(_) => "object",
        Kind::Array(_) => "array",
        Kind::Enum(_) | Kind::Nested(_) => "string",
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        _ => "string",
    }
}
