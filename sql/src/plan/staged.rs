//! The staged table: the base query as it is written to files, and the plan that reads those files instead. Columns are
//! named by position, because a join's columns may have equal names.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, col, lit};
use rowmill_jobs::plan::TableInput;

use crate::source::infer_schema::plain;
use crate::source::table::PinnedTable;

/// Name of the staged table.
pub(super) const STAGED: &str = "__staged";

/// The base query with columns named by position: names of a join's columns need not differ.
pub(super) fn staged_plan(base: &LogicalPlan) -> Result<LogicalPlan> {
    let mut exprs: Vec<Expr> = Vec::new();
    for (index, (qualifier, field)) in base.schema().iter().enumerate() {
        let column = Expr::from((qualifier, field));
        let wanted = plain(field.data_type());
        exprs.push(if wanted == *field.data_type() { column } else { cast(column, wanted) }.alias(format!("c{index}")));
    }
    if exprs.is_empty() {
        // Parquet needs a column to count rows by.
        exprs.push(lit(1i32).alias("c0"));
    }
    LogicalPlanBuilder::from(base.clone()).project(exprs)?.build()
}

/// The plan with its base replaced by the staged table.
pub(super) fn over_staged(plan: &LogicalPlan, base: &LogicalPlan, staged: &TableInput) -> Result<LogicalPlan> {
    let table = PinnedTable::staged(staged).map_err(|error| DataFusionError::External(Box::new(error)))?;
    let mut exprs: Vec<Expr> = Vec::new();
    for (index, (qualifier, field)) in base.schema().iter().enumerate() {
        let column = col(format!("c{index}"));
        let staged_type = plain(field.data_type());
        let column = if staged_type == *field.data_type() { column } else { cast(column, field.data_type().clone()) };
        exprs.push(column.alias_qualified(qualifier.cloned(), field.name()));
    }
    let scan = LogicalPlanBuilder::scan(STAGED, provider_as_source(Arc::new(table)), None)?.project(exprs)?.build()?;
    let replaced = plan.clone().transform_down(|node| {
        Ok(if node == *base {
            Transformed::new(scan.clone(), true, TreeNodeRecursion::Stop)
        } else {
            Transformed::no(node)
        })
    })?;
    Ok(replaced.data)
}
