//! Literals in the arguments of AI functions: what has to be known before any row is read. It evaluates nothing.

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Spanned, UnaryOperator, Value,
};

use crate::jobfile::options::Place;

/// Where an expression starts, or `near` if the parser did not keep it.
pub(crate) fn place_of(expr: &Expr, near: Place) -> Place {
    let start = expr.span().start;
    if start.line == 0 || start.column == 0 { near } else { (start.line, start.column) }
}

/// A string literal.
pub(crate) fn string(expr: &Expr) -> Option<&str> {
    match unwrap(expr) {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text),
            Value::DollarQuotedString(text) => Some(&text.value),
            _ => None,
        },
        _ => None,
    }
}

/// `true` or `false`.
pub(crate) fn boolean(expr: &Expr) -> Option<bool> {
    match unwrap(expr) {
        Expr::Value(value) => match value.value {
            Value::Boolean(value) => Some(value),
            _ => None,
        },
        _ => None,
    }
}

/// A whole number of at least 1.
pub(crate) fn count(expr: &Expr) -> Option<u32> {
    match unwrap(expr) {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.parse().ok().filter(|number| *number > 0),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => count(expr),
        _ => None,
    }
}

/// `['a', 'b']` or `ARRAY['a', 'b']`.
pub(crate) fn strings(expr: &Expr) -> Option<Vec<String>> {
    match unwrap(expr) {
        Expr::Array(array) => array.elem.iter().map(|element| string(element).map(str::to_owned)).collect(),
        _ => None,
    }
}

/// `{'a': 'x', 'b': 'y'}`, `MAP {'a': 'x'}`, or `map(['a'], ['x'])`.
pub(crate) fn string_map(expr: &Expr) -> Option<Vec<(String, String)>> {
    match unwrap(expr) {
        Expr::Dictionary(fields) => {
            fields.iter().map(|field| Some((field.key.value.clone(), string(&field.value)?.to_owned()))).collect()
        }
        Expr::Map(map) => map
            .entries
            .iter()
            .map(|entry| Some((string(&entry.key)?.to_owned(), string(&entry.value)?.to_owned())))
            .collect(),
        Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("map") => {
            match positional(function)?.as_slice() {
                [keys, values] => {
                    let (keys, values) = (strings(keys)?, strings(values)?);
                    (keys.len() == values.len()).then(|| keys.into_iter().zip(values).collect())
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// A function's arguments, if all are plain and positional.
pub(crate) fn positional(function: &Function) -> Option<Vec<&Expr>> {
    let FunctionArguments::List(list) = &function.args else { return None };
    list.args
        .iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect()
}

/// An expression without the parentheses around it.
pub(crate) fn unwrap(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => unwrap(inner),
        other => other,
    }
}
