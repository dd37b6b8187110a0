//! Which expressions hold a subquery: the one list of them, because a kind that one reader forgets is a column that leaves
//! unseen. It looks into no subquery.

use datafusion::common::Result;
use datafusion::common::tree_node::TreeNode;
use datafusion::logical_expr::{Expr, Subquery};

/// The subquery of an expression that is one: a scalar one, `IN`, `EXISTS`, or `ANY` and `ALL`.
pub(crate) fn subquery_of(expr: &Expr) -> Option<&Subquery> {
    match expr {
        Expr::ScalarSubquery(subquery) => Some(subquery),
        Expr::InSubquery(within) => Some(&within.subquery),
        Expr::Exists(exists) => Some(&exists.subquery),
        Expr::SetComparison(comparison) => Some(&comparison.subquery),
        _ => None,
    }
}

/// Whether a subquery stands anywhere in an expression.
pub(crate) fn has_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|part| Ok(subquery_of(part).is_some()))
}
