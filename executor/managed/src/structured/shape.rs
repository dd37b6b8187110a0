//! A JSON Schema as the shape that all providers can be asked for: objects, arrays, simple types, unions. Keywords that
//! only narrow a value and that a provider may not take are kept apart, to be dropped: answers are checked against the
//! task's own schema afterwards. What is no such shape (maps, negations, conditions) is refused, and asked for otherwise.

use serde_json::{Map, Value};

/// Deeper schemas are not sent. OpenAI takes 10 levels; the others name no number.
const DEPTH_MAX: usize = 10;
/// Larger schemas are not sent either. Definitions are put in place, so a small one could have very many.
const NODES_MAX: usize = 10_000;
/// Keywords that mean more than a narrower value: without them the shape would be another.
const REFUSED: [&str; 12] = [
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "dependentSchemas",
    "dependentRequired",
    "prefixItems",
    "contains",
    "propertyNames",
    "$dynamicRef",
];

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    /// The alternatives, of which null is not one. Empty: only null.
    pub(super) kinds: Vec<Kind>,
    /// Whether it may be null.
    pub(super) nullable: bool,
    /// What it means, for the model.
    pub(super) description: Option<String>,
    /// Keywords that narrow it: `minimum`, `pattern`, `minItems`, …
    pub(super) bounds: Map<String, Value>,
}

/// One alternative.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// `string`, `integer`, `number` or `boolean`.
    Simple(&'static str),
    /// One of these values.
    Enum(Vec<Value>),
    /// An object with exactly these properties.
    Object(Vec<(String, Shape)>),
    /// An array.
    Array(Box<Shape>),
    /// A schema of its own among alternatives.
    Nested(Box<Shape>),
}

impl Shape {
    /// The shape of a whole schema; `None` where it has none.
    pub(super) fn of(schema: &Value) -> Option<Self> {
        read(schema, schema, &mut Reach { depth: 0, nodes: NODES_MAX })
    }

    /// The same, or null.
    fn or_null(mut self) -> Self {
        self.nullable = true;
        self
    }

    /// This shape and all within it.
    pub(super) fn all(&self) -> Vec<&Shape> {
        let mut all = vec![self];
        let mut next = 0;
        while let Some(shape) = all.get(next).copied() {
            for kind in &shape.kinds {
                match kind {
                    Kind::Object(properties) => all.extend(properties.iter().map(|(_, shape)| shape)),
                    Kind::Array(inner) | Kind::Nested(inner) => all.push(inner),
                    Kind::Simple(_) | Kind::Enum(_) => {}
                }
            }
            next += 1;
        }
        all
    }
}

/// How far reading has gone.
struct Reach {
    depth: usize,
    nodes: usize,
}

/// Reads a part of a schema, one level further down.
fn read(schema: &Value, root: &Value, reach: &mut Reach) -> Option<Shape> {
    if reach.depth > DEPTH_MAX || reach.nodes == 0 {
        return None;
    }
    reach.depth += 1;
    reach.nodes -= 1;
    let shape = read_here(schema, root, reach);
    reach.depth -= 1;
    shape
}

fn read_here(schema: &Value, root: &Value, reach: &mut Reach) -> Option<Shape> {
    let fields = schema.as_object()?;
    if REFUSED.iter().any(|name| fields.contains_key(*name)) {
        return None;
    }
    if let Some(reference) = fields.get("$ref") {
        // Definitions are put in place; one that contains itself ends at the greatest depth, and is refused.
        return read(root.pointer(reference.as_str()?.strip_prefix('#')?)?, root, reach);
    }
    let description = fields.get("description").and_then(Value::as_str).map(str::to_owned);
    let bounds = fields.iter().filter(|(name, _)| is_bound(name));
    let mut shape = Shape {
        kinds: Vec::new(),
        nullable: false,
        description,
        bounds: bounds.map(|(name, value)| (name.clone(), value.clone())).collect(),
    };
    if let Some(branches) = fields.get("anyOf").or_else(|| fields.get("oneOf")) {
        for branch in branches.as_array()? {
            let branch = read(branch, root, reach)?;
            shape.nullable |= branch.nullable;
            if !branch.kinds.is_empty() {
                shape.kinds.push(Kind::Nested(Box::new(Shape { nullable: false, ..branch })));
            }
        }
        return Some(flattened(shape));
    }
    let fixed = match (fields.get("const"), fields.get("enum")) {
        (Some(value), _) => Some(vec![value.clone()]),
        (None, Some(values)) => Some(values.as_array()?.clone()),
        (None, None) => None,
    };
    if let Some(values) = fixed {
        shape.nullable = values.iter().any(Value::is_null);
        let values: Vec<Value> = values.into_iter().filter(|value| !value.is_null()).collect();
        if values.iter().any(|value| value.is_object() || value.is_array()) {
            return None;
        }
        shape.kinds.extend((!values.is_empty()).then_some(Kind::Enum(values)));
        return Some(shape);
    }
    let names: Vec<&str> = match fields.get("type")? {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    for name in names {
        match name {
            "null" => shape.nullable = true,
            "string" => shape.kinds.push(Kind::Simple("string")),
            "integer" => shape.kinds.push(Kind::Simple("integer")),
            "number" => shape.kinds.push(Kind::Simple("number")),
            "boolean" => shape.kinds.push(Kind::Simple("boolean")),
            "array" => shape.kinds.push(Kind::Array(Box::new(read(fields.get("items")?, root, reach)?))),
            "object" => shape.kinds.push(Kind::Object(properties(fields, root, reach)?)),
            _ => return None,
        }
    }
    Some(shape)
}

/// An object's properties. One that is not required may be null instead of absent.
fn properties(fields: &Map<String, Value>, root: &Value, reach: &mut Reach) -> Option<Vec<(String, Shape)>> {
    let properties = fields.get("properties")?.as_object().filter(|properties| !properties.is_empty())?;
    if fields.get("additionalProperties").is_some_and(Value::is_object) {
        return None;
    }
    let required = fields.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|required| required == name));
    properties
        .iter()
        .map(|(name, schema)| {
            let shape = read(schema, root, reach)?;
            Some((name.clone(), if is_required(name) { shape } else { shape.or_null() }))
        })
        .collect()
}

/// A union of one is that one.
fn flattened(mut shape: Shape) -> Shape {
    match shape.kinds.as_slice() {
        [Kind::Nested(_)] => match shape.kinds.pop() {
            Some(Kind::Nested(only)) => Shape {
                nullable: shape.nullable,
                description: shape.description.or_else(|| only.description.clone()),
                ..*only
            },
            _ => shape,
        },
        _ => shape,
    }
}

fn is_bound(name: &str) -> bool {
    [
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minItems",
        "maxItems",
        "pattern",
        "format",
    ]
    .contains(&name)
}
