//! The fields that `ai_extract` and `ai_complete(response_format => …)` fill in, from the three ways to write them.
//! Every field may be NULL in the result.

use arrow::datatypes::{DataType, Field, Fields};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use serde_json::Value;

use super::sql_type;

/// Fields, with the schema that the engine holds the model to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OutputFields {
    /// Arrow fields of the struct.
    pub(crate) fields: Fields,
    /// A line of the prompt for each: `- name (type)` or `- name (type): description`.
    pub(crate) prompt: Vec<String>,
    /// JSON Schema of the object.
    pub(crate) schema: Value,
}

/// From `'product STRING, severity INT'` or a JSON Schema's text. The error has a message and what would be right.
pub(crate) fn from_text(text: &str) -> Result<OutputFields, (String, String)> {
    if text.trim_start().starts_with('{') { from_schema(text) } else { from_declaration(text) }
}

/// From `{'name': 'question', …}`: strings with a description.
pub(crate) fn from_questions(questions: &[(String, String)]) -> Result<OutputFields, (String, String)> {
    let fields: Vec<(Field, Option<String>)> = questions
        .iter()
        .map(|(name, question)| (Field::new(name, DataType::Utf8, true), Some(question.clone())))
        .collect();
    assemble(fields)
}

fn from_declaration(text: &str) -> Result<OutputFields, (String, String)> {
    let example = || "fields are written as 'product STRING, severity INT'".to_owned();
    let mut parser = Parser::new(&GenericDialect {})
        .with_recursion_limit(20)
        .try_with_sql(text)
        .map_err(|error| (format!("the fields cannot be read: {error}"), example()))?;
    let mut fields = Vec::new();
    loop {
        let name = parser.parse_identifier().map_err(|_| ("a field has no name".to_owned(), example()))?;
        if parser.consume_token(&Token::Colon) {
            // `name: TYPE`, as Spark writes it.
        }
        let sql = parser.parse_data_type().map_err(|_| {
            (format!("field `{}` has no type that can be read", name.value), sql_type::FIELD_HINT.to_owned())
        })?;
        let data_type = sql_type::to_arrow(&sql)
            .map_err(|message| (format!("field `{}`: {message}", name.value), sql_type::FIELD_HINT.to_owned()))?;
        fields.push((Field::new(&name.value, data_type, true), None));
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err((format!("the fields cannot be read from `{}` on", rest.token), example()));
    }
    assemble(fields)
}

fn assemble(fields: Vec<(Field, Option<String>)>) -> Result<OutputFields, (String, String)> {
    if fields.is_empty() {
        return Err(("there are no fields".to_owned(), "name at least one: 'product STRING'".to_owned()));
    }
    let prompt = fields
        .iter()
        .map(|(field, description)| {
            let word = sql_type::prompt_word(field.data_type());
            match description {
                Some(description) if !description.is_empty() => format!("- {} ({word}): {description}", field.name()),
                _ => format!("- {} ({word})", field.name()),
            }
        })
        .collect();
    let fields: Fields = fields.into_iter().map(|(field, _)| field).collect();
    refuse_duplicates(&fields)?;
    let schema = sql_type::object_schema(&fields).map_err(|message| (message, sql_type::FIELD_HINT.to_owned()))?;
    Ok(OutputFields { fields, prompt, schema })
}

fn refuse_duplicates(fields: &Fields) -> Result<(), (String, String)> {
    for (index, field) in fields.iter().enumerate() {
        if field.name().is_empty() {
            return Err(("a field has an empty name".to_owned(), "name every field".to_owned()));
        }
        if fields[..index].iter().any(|earlier| earlier.name() == field.name()) {
            return Err((format!("field `{}` stands twice", field.name()), "name every field once".to_owned()));
        }
    }
    Ok(())
}

fn from_schema(text: &str) -> Result<OutputFields, (String, String)> {
    let schema: Value = serde_json::from_str(text).map_err(|error| {
        (format!("the JSON Schema is not JSON: {error}"), "write a JSON object, or 'name TYPE, …'".to_owned())
    })?;
    let hint = || "use objects with `properties`, arrays with `items`, string, integer, number and boolean".to_owned();
    let fields = match sql_type::from_json_schema(&schema) {
        Ok(DataType::Struct(fields)) => fields,
        Ok(_) => return Err(("the JSON Schema does not describe an object".to_owned(), hint())),
        Err(part) => return Err((format!("the JSON Schema has {part}, which has no column type"), hint())),
    };
    let descriptions: Vec<String> = fields
        .iter()
        .map(|field| {
            let description =
                schema["properties"][field.name()].get("description").and_then(Value::as_str).unwrap_or("");
            let word = sql_type::prompt_word(field.data_type());
            let end = if description.is_empty() { String::new() } else { format!(": {description}") };
            format!("- {} ({word}){end}", field.name())
        })
        .collect();
    Ok(OutputFields { fields, prompt: descriptions, schema })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn three_ways_to_write_fields() {
        let fields = from_text("product STRING, severity INT, tags ARRAY<STRING>").unwrap();
        assert_eq!(fields.prompt, ["- product (string)", "- severity (integer)", "- tags (list of string)"]);
        assert_eq!(
            fields.schema,
            json!({"type": "object", "properties": {"product": {"type": ["string", "null"]}, "severity": {"type": ["integer", "null"]},
                "tags": {"type": ["array", "null"], "items": {"type": ["string", "null"]}}},
                "required": ["product", "severity", "tags"], "additionalProperties": false})
        );
        let asked = from_questions(&[("name".into(), "Who wrote it?".into())]).unwrap();
        assert_eq!(asked.prompt, ["- name (string): Who wrote it?"]);
        let schema =
            from_text(r#"{"type":"object","properties":{"n":{"type":"number","description":"How many"}}}"#).unwrap();
        assert_eq!(schema.prompt, ["- n (number): How many"]);
        assert_eq!(schema.fields[0].data_type(), &DataType::Float64);
    }

    #[test]
    fn what_cannot_be_a_field_is_said() {
        for (text, message) in [
            ("product", "field `product` has no type that can be read"),
            ("d DATE", "field `d`: it is of a type that a model cannot fill in"),
            ("a INT, a INT", "field `a` stands twice"),
            ("{\"type\":\"string\"}", "the JSON Schema does not describe an object"),
            ("a INT b", "the fields cannot be read from `b` on"),
        ] {
            assert_eq!(from_text(text).unwrap_err().0, message, "{text}");
        }
    }
}
