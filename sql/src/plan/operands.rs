//! Finds the expression of a query whose operands' types do not go together. DataFusion names the operator and the types,
//! and mostly no place. It guesses nothing: of two expressions that fit neither is taken.

use std::ops::ControlFlow;

use arrow::datatypes::Schema;
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Query, Spanned, Value, Visit, Visitor};
use rowmill_jobs::plan::TableInput;

use crate::jobfile::options::Place;

/// What DataFusion's message tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch<'a>(&'a str);

impl<'a> Mismatch<'a> {
    /// `Cannot coerce arithmetic expression Int64 + Utf8 to valid types` and the like.
    pub(super) fn read(message: &'a str) -> Option<Self> {
        let rest = message.strip_prefix("Cannot coerce ").or_else(|| message.strip_prefix("Cannot infer common "))?;
        let (_, operands) = rest.split_once(" expression ").or_else(|| rest.split_once(" operation "))?;
        Some(Self(operands.trim_end_matches(" to valid types")))
    }

    /// Where the only expression that fits begins.
    pub(super) fn find(&self, ast: &Query, inputs: &[TableInput]) -> Option<Place> {
        let mut finder = Finder { mismatch: self, columns: columns(inputs), found: Vec::new() };
        let _ = ast.visit(&mut finder);
        match finder.found.as_slice() {
            [place] => Some(*place),
            _ => None,
        }
    }

    fn fits(&self, left: &Expr, op: &BinaryOperator, right: &Expr, columns: &[(String, String)]) -> bool {
        let op = if *op == BinaryOperator::NotEq { "!=".to_owned() } else { op.to_string() };
        let Some((left_type, right_type)) = self.0.split_once(&format!(" {op} ")) else { return false };
        may_be(left, left_type, columns) && may_be(right, right_type, columns)
    }
}

/// The tables' columns with their types, as DataFusion writes them.
fn columns(inputs: &[TableInput]) -> Vec<(String, String)> {
    let schemas = inputs.iter().filter_map(|input| serde_json::from_value::<Schema>(input.schema.clone()).ok());
    let named = |schema: Schema| {
        let of = |field: &arrow::datatypes::FieldRef| (field.name().clone(), field.data_type().to_string());
        schema.fields().iter().map(of).collect::<Vec<_>>()
    };
    schemas.flat_map(named).collect()
}

/// Whether an operand may be of this type; what is neither literal nor column may be of any.
fn may_be(operand: &Expr, wanted: &str, columns: &[(String, String)]) -> bool {
    let name = match operand {
        Expr::Nested(inner) => return may_be(inner, wanted, columns),
        Expr::Value(literal) => {
            return match &literal.value {
                Value::Number(..) => ["Int", "UInt", "Float", "Decimal"].iter().any(|kind| wanted.starts_with(kind)),
                Value::Boolean(_) => wanted == "Boolean",
                Value::Null => wanted == "Null",
                Value::SingleQuotedString(_) => wanted.contains("Utf8"),
                _ => true,
            };
        }
        Expr::Identifier(ident) => Some(ident),
        Expr::CompoundIdentifier(idents) => idents.last(),
        _ => None,
    };
    let Some(name) = name else { return true };
    let mut types = columns.iter().filter(|(column, _)| column.eq_ignore_ascii_case(&name.value)).peekable();
    // An alias of a subquery is no column of a table.
    types.peek().is_none() || types.any(|(_, data_type)| data_type == wanted)
}

struct Finder<'a> {
    mismatch: &'a Mismatch<'a>,
    columns: Vec<(String, String)>,
    found: Vec<Place>,
}

impl Visitor for Finder<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::BinaryOp { left, op, right } = expr
            && self.mismatch.fits(left, op, right, &self.columns)
        {
            let start = expr.span().start;
            if start.line > 0 {
                self.found.push((start.line, start.column));
            }
        }
        ControlFlow::Continue(())
    }
}
