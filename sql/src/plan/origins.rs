//! Which columns of the tables a call's values come from: what an operator's policy is asked about before values go to a
//! model elsewhere. Where that cannot be told exactly, it names more columns than there are, never fewer. What decides only
//! whether a row is there at all (conditions, order) is not a value.

use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Aggregate, Distinct, Expr, LogicalPlan};

use super::infer_node::Infer;
use super::subquery::subquery_of;

/// For each call of a plan, by its number, the table columns that its values are made of.
pub(crate) fn of_calls(plan: &LogicalPlan, calls: usize) -> Result<Vec<Vec<String>>> {
    let mut found: Vec<BTreeSet<String>> = vec![BTreeSet::new(); calls];
    plan.apply(|node| {
        if let Some(infer) = as_infer(node) {
            for call in &infer.calls {
                if let Some(columns) = found.get_mut(call.id) {
                    call.values.iter().try_for_each(|value| of_expression(value, &[&infer.input], columns))?;
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found.into_iter().map(|columns| columns.into_iter().collect()).collect())
}

fn as_infer(plan: &LogicalPlan) -> Option<&Infer> {
    match plan {
        LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref::<Infer>(),
        _ => None,
    }
}

/// Adds what an expression over these inputs is made of.
fn of_expression(expr: &Expr, inputs: &[&LogicalPlan], found: &mut BTreeSet<String>) -> Result<()> {
    expr.apply(|part| {
        let Some(subquery) = subquery_of(part) else { return Ok(TreeNodeRecursion::Continue) };
        everything(&subquery.subquery, found)?;
        if refers_outside(&subquery.subquery)? {
            inputs.iter().try_for_each(|input| everything(input, found))?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    for column in expr.column_refs() {
        for input in inputs.iter().filter(|input| input.schema().has_column(column)) {
            of_column(column, input, found)?;
        }
    }
    Ok(())
}

/// Adds what a column of a plan's output is made of.
fn of_column(column: &Column, plan: &LogicalPlan, found: &mut BTreeSet<String>) -> Result<()> {
    let index = plan.schema().index_of_column(column)?;
    let same = |input: &LogicalPlan| Column::from(input.schema().qualified_field(index));
    match plan {
        LogicalPlan::TableScan(scan) => {
            found.insert(scan.projected_schema.field(index).name().clone());
            Ok(())
        }
        LogicalPlan::Projection(projection) => of_expression(&projection.expr[index], &[&projection.input], found),
        LogicalPlan::SubqueryAlias(alias) => of_column(&same(&alias.input), &alias.input, found),
        LogicalPlan::Filter(filter) => of_column(&same(&filter.input), &filter.input, found),
        LogicalPlan::Sort(sort) => of_column(&same(&sort.input), &sort.input, found),
        LogicalPlan::Limit(limit) => of_column(&same(&limit.input), &limit.input, found),
        LogicalPlan::Distinct(Distinct::All(input)) => of_column(&same(input), input, found),
        LogicalPlan::Aggregate(aggregate) => match aggregated(aggregate, index) {
            Some(expr) => of_expression(expr, &[&aggregate.input], found),
            None => everything(plan, found),
        },
        LogicalPlan::Union(union) => union.inputs.iter().try_for_each(|input| of_column(&same(input), input, found)),
        LogicalPlan::Join(join) => {
            // A lateral one: what stands right is made of what stands left.
            if refers_outside(&join.right)? {
                everything(&join.left, found)?;
            }
            of_expression(&Expr::Column(column.clone()), &[&join.left, &join.right], found)
        }
        LogicalPlan::Extension(_) => match as_infer(plan) {
            Some(infer) if index < infer.input.schema().fields().len() => {
                of_column(&same(&infer.input), &infer.input, found)
            }
            // An answer, or what is said of it: both are made of the call's values.
            Some(infer) => match infer.call_of_column(index) {
                Some(call) => call.values.iter().try_for_each(|value| of_expression(value, &[&infer.input], found)),
                None => everything(plan, found),
            },
            None => everything(plan, found),
        },
        _ => everything(plan, found),
    }
}

/// The expression behind a column of an aggregation; `None` for grouping sets, whose columns have no fixed places.
fn aggregated(aggregate: &Aggregate, index: usize) -> Option<&Expr> {
    if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
        return None;
    }
    aggregate.group_expr.iter().chain(&aggregate.aggr_expr).nth(index)
}

/// Whether a plan uses columns of a query around it.
fn refers_outside(plan: &LogicalPlan) -> Result<bool> {
    let mut refers = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            refers |= expr.exists(|part| Ok(matches!(part, Expr::OuterReferenceColumn(..))))?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(refers)
}

/// Adds all columns of all tables below, and of subqueries in expressions.
fn everything(plan: &LogicalPlan, found: &mut BTreeSet<String>) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found.extend(scan.projected_schema.fields().iter().map(|field| field.name().clone()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use datafusion::prelude::SessionContext;

    use super::*;

    /// DataFusion plans few of these outside of WHERE; whichever a later one plans must not hide a column.
    #[tokio::test]
    async fn no_kind_of_subquery_hides_its_columns() {
        let text = || Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
        let context = SessionContext::new();
        let here = RecordBatch::try_from_iter([("lang", text()), ("body", text())]).unwrap();
        context.register_batch("t", here).unwrap();
        context.register_batch("other", RecordBatch::try_from_iter([("email", text())]).unwrap()).unwrap();
        for condition in [
            "lang = (SELECT max(email) FROM other)",
            "lang IN (SELECT email FROM other)",
            "EXISTS (SELECT 1 FROM other WHERE email = lang)",
            "lang = ANY (SELECT email FROM other)",
            "lang <> ALL (SELECT email FROM other)",
        ] {
            let query = format!("SELECT CASE WHEN {condition} THEN body ELSE 'y' END AS v FROM t");
            let plan = context.sql(&query).await.unwrap().into_unoptimized_plan();
            let mut found = BTreeSet::new();
            of_column(&Column::from_name("v"), &plan, &mut found).unwrap();
            assert_eq!(found, ["body", "email", "lang"].map(str::to_owned).into(), "{query}");
        }
    }
}
