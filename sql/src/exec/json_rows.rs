//! JSON answers as Arrow columns: checks that a value has the shape that was asked for, then builds arrays. A value that
//! does not fit is that row's error, in words that show no content.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float32Builder, Float64Builder, Int32Builder, Int64Builder, ListArray, NullBufferBuilder,
    StringBuilder, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use serde_json::Value;

/// Parses an answer that must be an object with these fields.
pub(super) fn parse(text: &str, data_type: &DataType) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| format!("the output is not JSON (at character {})", error.column()))?;
    if !value.is_object() {
        return Err("the output is not a JSON object".to_owned());
    }
    check(&value, data_type, "").map(|()| value)
}

fn check(value: &Value, data_type: &DataType, at: &str) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let fits = match data_type {
        DataType::Utf8 => value.is_string(),
        DataType::Boolean => value.is_boolean(),
        DataType::Int32 => whole(value).is_some_and(|number| i32::try_from(number).is_ok()),
        DataType::Int64 => whole(value).is_some(),
        DataType::Float32 | DataType::Float64 => value.is_number(),
        DataType::List(element) => match value.as_array() {
            Some(items) => return items.iter().try_for_each(|item| check(item, element.data_type(), at)),
            None => false,
        },
        DataType::Struct(fields) => match value.as_object() {
            Some(object) => {
                return fields.iter().try_for_each(|field| match object.get(field.name()) {
                    Some(value) => check(value, field.data_type(), field.name()),
                    None => Ok(()),
                });
            }
            None => false,
        },
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("field `{at}` of the output is not {data_type}")) }
}

/// A whole number, also when written as `5.0`.
fn whole(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= EXACT)?;
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
        Some(number as i64)
    })
}

/// Builds a column of values that [`parse`] let pass.
pub(super) fn build(values: &[Option<&Value>], data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let present = |value: &Option<&Value>| value.is_some_and(|value| !value.is_null());
    Ok(match data_type {
        DataType::Utf8 => {
            let mut builder = StringBuilder::new();
            values.iter().for_each(|value| builder.append_option(value.and_then(Value::as_str)));
            Arc::new(builder.finish())
        }
        DataType::Boolean => {
            let mut builder = BooleanBuilder::new();
            values.iter().for_each(|value| builder.append_option(value.and_then(Value::as_bool)));
            Arc::new(builder.finish())
        }
        DataType::Int32 => {
            let mut builder = Int32Builder::new();
            values.iter().for_each(|value| {
                builder.append_option(value.and_then(whole).and_then(|number| i32::try_from(number).ok()))
            });
            Arc::new(builder.finish())
        }
        DataType::Int64 => {
            let mut builder = Int64Builder::new();
            values.iter().for_each(|value| builder.append_option(value.and_then(whole)));
            Arc::new(builder.finish())
        }
        DataType::Float32 => {
            let mut builder = Float32Builder::new();
            #[expect(clippy::cast_possible_truncation, reason = "the column's type was chosen to be FLOAT")]
            values
                .iter()
                .for_each(|value| builder.append_option(value.and_then(Value::as_f64).map(|number| number as f32)));
            Arc::new(builder.finish())
        }
        DataType::Float64 => {
            let mut builder = Float64Builder::new();
            values.iter().for_each(|value| builder.append_option(value.and_then(Value::as_f64)));
            Arc::new(builder.finish())
        }
        DataType::List(element) => {
            let mut items = Vec::new();
            let mut valid = NullBufferBuilder::new(values.len());
            let mut lengths = Vec::with_capacity(values.len());
            for value in values {
                let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                items.extend(list.iter().map(Some));
                lengths.push(list.len());
                valid.append(present(value));
            }
            let child = build(&items, element.data_type())?;
            Arc::new(ListArray::try_new(
                Arc::clone(element),
                OffsetBuffer::from_lengths(lengths),
                child,
                valid.finish(),
            )?)
        }
        DataType::Struct(fields) => {
            let children = fields
                .iter()
                .map(|field| {
                    let column: Vec<Option<&Value>> =
                        values.iter().map(|value| value.and_then(|value| value.get(field.name()))).collect();
                    build(&column, field.data_type())
                })
                .collect::<Result<Vec<_>, _>>()?;
            let mut valid = NullBufferBuilder::new(values.len());
            values.iter().for_each(|value| valid.append(present(value)));
            Arc::new(StructArray::try_new(fields.clone(), children, valid.finish())?)
        }
        other => return Err(ArrowError::NotYetImplemented(format!("{other} from JSON"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Field, Fields, Int32Type};

    fn shape() -> DataType {
        DataType::Struct(Fields::from(vec![
            Field::new("name", DataType::Utf8, true),
            Field::new("n", DataType::Int32, true),
            Field::new("tags", DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))), true),
        ]))
    }

    #[test]
    fn shapes_are_checked_without_showing_content() {
        for (text, message) in [
            ("{", "the output is not JSON (at character 1)"),
            ("[1]", "the output is not a JSON object"),
            (r#"{"n":"secret"}"#, "field `n` of the output is not Int32"),
            (r#"{"n":3000000000}"#, "field `n` of the output is not Int32"),
            (r#"{"tags":[1]}"#, "field `tags` of the output is not Utf8"),
        ] {
            assert_eq!(parse(text, &shape()).unwrap_err(), message);
        }
    }

    #[test]
    fn nulls_and_lists_become_columns() {
        let good = parse(r#"{"name":null,"n":5.0,"tags":["a",null]}"#, &shape()).unwrap();
        let short = parse("{}", &shape()).unwrap();
        let array = build(&[Some(&good), None, Some(&short)], &shape()).unwrap();
        let array = array.as_struct();
        assert_eq!((array.is_valid(0), array.is_valid(1), array.is_valid(2)), (true, false, true));
        assert_eq!(array.column(1).as_primitive::<Int32Type>().value(0), 5);
        assert_eq!(array.column(2).as_list::<i32>().value_length(0), 2);
        assert!(array.column(2).is_null(2));
    }
}
