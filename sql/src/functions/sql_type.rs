//! SQL type names to Arrow types and to JSON Schema, for declared columns and for the fields of `ai_extract`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use datafusion::sql::sqlparser::ast::{ArrayElemTypeDef, DataType as SqlType, ExactNumberInfo, TimezoneInfo};
use serde_json::{Value, json};

/// What a user can write.
pub(crate) const HINT: &str = "types are STRING, INT, BIGINT, FLOAT, DOUBLE, BOOLEAN, DATE, TIMESTAMP, DECIMAL(p, s), BINARY, ARRAY<…> and STRUCT<name type, …>";
/// What a model can fill in.
pub(crate) const FIELD_HINT: &str =
    "types are STRING, INT, BIGINT, FLOAT, DOUBLE, BOOLEAN, ARRAY<…> and STRUCT<name type, …>";

/// The Arrow type of a SQL type. The error says what is wrong, without a place.
pub(crate) fn to_arrow(sql: &SqlType) -> Result<DataType, String> {
    Ok(match sql {
        SqlType::String(_)
        | SqlType::Text
        | SqlType::Varchar(_)
        | SqlType::Char(_)
        | SqlType::Character(_)
        | SqlType::CharacterVarying(_)
        | SqlType::CharVarying(_) => DataType::Utf8,
        SqlType::Bool | SqlType::Boolean => DataType::Boolean,
        SqlType::TinyInt(_) => DataType::Int8,
        SqlType::SmallInt(_) => DataType::Int16,
        SqlType::Int(_) | SqlType::Integer(_) => DataType::Int32,
        SqlType::BigInt(_) | SqlType::Int64 => DataType::Int64,
        SqlType::Real | SqlType::Float(_) | SqlType::Float4 | SqlType::Float32 => DataType::Float32,
        SqlType::Double(_) | SqlType::DoublePrecision | SqlType::Float8 | SqlType::Float64 => DataType::Float64,
        SqlType::Date | SqlType::Date32 => DataType::Date32,
        SqlType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) | SqlType::Datetime(_) => {
            DataType::Timestamp(TimeUnit::Nanosecond, None)
        }
        SqlType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        SqlType::Bytea | SqlType::Blob(_) | SqlType::Binary(_) => DataType::Binary,
        SqlType::Decimal(info) | SqlType::Numeric(info) => decimal(info)?,
        SqlType::Array(
            ArrayElemTypeDef::AngleBracket(element)
            | ArrayElemTypeDef::SquareBracket(element, None)
            | ArrayElemTypeDef::Parenthesis(element),
        ) => DataType::List(Arc::new(Field::new_list_field(to_arrow(element)?, true))),
        SqlType::Struct(fields, _) => {
            let fields: Result<Vec<Field>, String> = fields
                .iter()
                .map(|field| {
                    let name = field.field_name.as_ref().ok_or("a field of a STRUCT has no name")?;
                    Ok(Field::new(&name.value, to_arrow(&field.field_type)?, true))
                })
                .collect();
            DataType::Struct(Fields::from(fields?))
        }
        other => return Err(format!("{other} is not a type that is supported here")),
    })
}

fn decimal(info: &ExactNumberInfo) -> Result<DataType, String> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if scale >= 0 && scale.unsigned_abs() <= precision => {
            Ok(DataType::Decimal128(precision, scale))
        }
        _ => Err(format!("DECIMAL({precision}, {scale}) is out of range: at most 38 digits")),
    }
}

/// The JSON Schema of a type that a model may leave empty; the error names what a model cannot fill in.
pub(crate) fn to_json_schema(data_type: &DataType) -> Result<Value, String> {
    let simple = |name: &str| Ok(json!({ "type": [name, "null"] }));
    match data_type {
        DataType::Utf8 => simple("string"),
        DataType::Int32 | DataType::Int64 => simple("integer"),
        DataType::Float32 | DataType::Float64 => simple("number"),
        DataType::Boolean => simple("boolean"),
        DataType::List(element) => {
            Ok(json!({ "type": ["array", "null"], "items": to_json_schema(element.data_type())? }))
        }
        DataType::Struct(fields) => {
            let mut schema = object_schema(fields)?;
            schema["type"] = json!(["object", "null"]);
            Ok(schema)
        }
        _ => Err("it is of a type that a model cannot fill in".to_owned()),
    }
}

/// The schema of an object with exactly these fields, each of which may be null.
pub(crate) fn object_schema(fields: &Fields) -> Result<Value, String> {
    let mut properties = serde_json::Map::new();
    for field in fields {
        let schema =
            to_json_schema(field.data_type()).map_err(|message| format!("field `{}`: {message}", field.name()))?;
        properties.insert(field.name().clone(), schema);
    }
    let required: Vec<&String> = fields.iter().map(|field| field.name()).collect();
    Ok(json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false }))
}

/// The word for a type in a prompt.
pub(crate) fn prompt_word(data_type: &DataType) -> String {
    match data_type {
        DataType::Int32 | DataType::Int64 => "integer".to_owned(),
        DataType::Float32 | DataType::Float64 => "number".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::List(element) => format!("list of {}", prompt_word(element.data_type())),
        DataType::Struct(fields) => {
            let inner: Vec<String> =
                fields.iter().map(|field| format!("{} {}", field.name(), prompt_word(field.data_type()))).collect();
            format!("object of {}", inner.join(", "))
        }
        _ => "string".to_owned(),
    }
}

/// The Arrow type of a JSON Schema, for schemas that have one. The error says what has none.
pub(crate) fn from_json_schema(schema: &Value) -> Result<DataType, String> {
    let name = match schema.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => {
            let mut kinds = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            match (kinds.next(), kinds.next()) {
                (Some(name), None) => name,
                _ => return Err("a `type` that mixes several types".to_owned()),
            }
        }
        None if schema
            .get("enum")
            .is_some_and(|values| values.as_array().is_some_and(|v| v.iter().all(Value::is_string))) =>
        {
            "string"
        }
        _ => return Err("a part without `type`".to_owned()),
    };
    Ok(match name {
        "string" => DataType::Utf8,
        "integer" => DataType::Int64,
        "number" => DataType::Float64,
        "boolean" => DataType::Boolean,
        "array" => {
            let items = schema.get("items").ok_or("an array without `items`")?;
            DataType::List(Arc::new(Field::new_list_field(from_json_schema(items)?, true)))
        }
        "object" => {
            let properties = schema
                .get("properties")
                .and_then(Value::as_object)
                .filter(|properties| !properties.is_empty())
                .ok_or("an object without `properties`")?;
            let fields: Result<Vec<Field>, String> =
                properties.iter().map(|(name, schema)| Ok(Field::new(name, from_json_schema(schema)?, true))).collect();
            DataType::Struct(Fields::from(fields?))
        }
        other => return Err(format!("type '{other}'")),
    })
}
