//! Whether a base query is row-local: then its table can be cut along row groups and each shard reads its own. Pure: looks
//! at an optimised logical plan.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;

use crate::plan::infer_node::Infer;
use crate::plan::subquery;
use crate::source::table::PinnedTable;

/// What a base query reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// Rows of one Parquet table, each by itself.
    RowLocal {
        /// The table's name.
        table: String,
    },
    /// Anything else, with the reason.
    Mixed(&'static str),
}

/// The plan below the lowest [`Infer`] node.
pub(crate) fn base_of(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    let mut node = plan;
    let mut base = None;
    loop {
        if let LogicalPlan::Extension(extension) = node
            && let Some(infer) = extension.node.as_any().downcast_ref::<Infer>()
            && infer.calls.is_empty()
        {
            base = Some(&infer.input);
        }
        match node.inputs().as_slice() {
            [input] if base.is_none() => node = input,
            _ => return base,
        }
    }
}

/// Looks at a base.
pub(crate) fn classify(base: &LogicalPlan) -> Result<Base> {
    let mut node = base;
    loop {
        if has_subquery(node)? {
            return Ok(Base::Mixed("it has a subquery in an expression"));
        }
        node = match node {
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::Filter(filter) => &filter.input,
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::TableScan(scan) => {
                let Ok(provider) = source_as_provider(&scan.source) else {
                    return Ok(Base::Mixed("it reads no table of the job"));
                };
                let Some(table) = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<PinnedTable>() else {
                    return Ok(Base::Mixed("it reads no table of the job"));
                };
                return Ok(if scan.fetch.is_some() {
                    Base::Mixed("it has a LIMIT")
                } else if table.is_parquet() {
                    Base::RowLocal { table: table.name().to_owned() }
                } else {
                    Base::Mixed("its table is not Parquet, so it cannot be cut without reading it")
                });
            }
            LogicalPlan::Join(_) => return Ok(Base::Mixed("it joins tables")),
            LogicalPlan::Aggregate(_) => return Ok(Base::Mixed("it aggregates or removes duplicates")),
            LogicalPlan::Distinct(_) => return Ok(Base::Mixed("it removes duplicates")),
            LogicalPlan::Sort(_) => return Ok(Base::Mixed("it orders the whole table")),
            LogicalPlan::Limit(_) => return Ok(Base::Mixed("it has a LIMIT")),
            LogicalPlan::Window(_) => return Ok(Base::Mixed("it has a window function")),
            LogicalPlan::Union(_) => return Ok(Base::Mixed("it is a UNION")),
            LogicalPlan::Unnest(_) => return Ok(Base::Mixed("it unnests lists")),
            LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => return Ok(Base::Mixed("it reads no table")),
            _ => return Ok(Base::Mixed("it mixes rows")),
        };
    }
}

fn has_subquery(node: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    node.apply_expressions(|expr| {
        found |= subquery::has_subquery(expr)?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}
