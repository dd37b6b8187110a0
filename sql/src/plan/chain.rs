//! Reads a query's plan as base, filters and columns: everything without AI calls goes into the base, everything above is
//! expressions over the base's columns. It refuses operators that mix rows above an AI call.

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, LogicalPlanBuilder};

use super::subquery::subquery_of;
use crate::functions::udf::AiFunction;

/// A query, taken apart.
#[derive(Debug)]
pub(crate) struct Chain {
    /// The part without AI calls.
    pub(crate) base: LogicalPlan,
    /// Conditions with AI calls, in the order they are to be asked, over the base's columns.
    pub(crate) filters: Vec<Expr>,
    /// Output columns, over the base's columns.
    pub(crate) columns: Vec<Expr>,
}

/// Why a query cannot be run.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The job's author has to change something.
    Query {
        /// Call that is concerned, as an index into the calls' fixed parts.
        call: Option<usize>,
        /// What is wrong.
        message: String,
        /// What would be right.
        hint: &'static str,
    },
    /// DataFusion's own.
    Plan(DataFusionError),
}

impl From<DataFusionError> for Refusal {
    fn from(error: DataFusionError) -> Self {
        Refusal::Plan(error)
    }
}

const SECOND_JOB: &str = "publish the AI results first, then do this in a second job that reads them";

const CORRELATED: &str = "a subquery in WHERE uses a column of a query with an AI function";
const IN_FROM: &str = "compute it in a CTE or a subquery in FROM, and use its column";

/// Takes a plan apart.
pub(crate) fn read(plan: &LogicalPlan) -> Result<Chain, Refusal> {
    let Some(call) = first_call(plan)? else {
        let columns = plan
            .schema()
            .iter()
            .map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name())))
            .collect();
        return Ok(Chain { base: plan.clone(), filters: Vec::new(), columns });
    };
    match plan {
        LogicalPlan::Projection(projection) => {
            let mut chain = read(&projection.input)?;
            let columns = projection.expr.iter().map(|expr| inline(expr, projection.input.schema(), &chain.columns));
            chain.columns = columns.collect::<Result<_, _>>()?;
            refuse_subqueries(&chain.columns, call)?;
            Ok(chain)
        }
        LogicalPlan::SubqueryAlias(alias) => read(&alias.input),
        LogicalPlan::Filter(filter) => {
            let mut chain = read(&filter.input)?;
            let renamed = !is_identity(&chain.columns, filter.input.schema());
            for conjunct in split_conjunction(&filter.predicate) {
                if renamed && has_outer_reference(conjunct)? {
                    return Err(refuse(Some(call), CORRELATED, IN_FROM));
                }
                let conjunct = inline(conjunct, filter.input.schema(), &chain.columns)?;
                if calls_of(&conjunct)?.is_empty() {
                    chain.base = LogicalPlan::Filter(Filter::try_new(conjunct, chain.base.into())?);
                } else {
                    refuse_subqueries(std::slice::from_ref(&conjunct), call)?;
                    chain.filters.push(conjunct);
                }
            }
            Ok(chain)
        }
        LogicalPlan::Sort(sort) => {
            let mut chain = read(&sort.input)?;
            let mut keys = Vec::new();
            for key in &sort.expr {
                let expr = inline(&key.expr, sort.input.schema(), &chain.columns)?;
                if let Some(call) = calls_of(&expr)?.first() {
                    return Err(refuse(
                        Some(*call),
                        "ORDER BY on an AI result: the rows of a shard know only their own shard",
                        SECOND_JOB,
                    ));
                }
                keys.push(key.with_expr(expr));
            }
            if sort.fetch.is_some() && !chain.filters.is_empty() {
                return Err(limit_above_filter(call));
            }
            chain.base = LogicalPlanBuilder::from(chain.base).sort_with_limit(keys, sort.fetch)?.build()?;
            Ok(chain)
        }
        LogicalPlan::Limit(limit) => {
            let mut chain = read(&limit.input)?;
            if !chain.filters.is_empty() {
                return Err(limit_above_filter(call));
            }
            chain.base = LogicalPlanBuilder::from(chain.base)
                .limit_by_expr(limit.skip.as_deref().cloned(), limit.fetch.as_deref().cloned())?
                .build()?;
            Ok(chain)
        }
        other => Err(refuse(
            Some(call),
            &format!("{} over AI results is not run in the same job", operator(other)),
            SECOND_JOB,
        )),
    }
}

fn limit_above_filter(call: usize) -> Refusal {
    refuse(
        Some(call),
        "LIMIT after a condition that a model decides: which rows those are is known only when all were asked",
        "put the LIMIT into a subquery below the AI function, or drop it",
    )
}

fn refuse(call: Option<usize>, message: &str, hint: &'static str) -> Refusal {
    Refusal::Query { call, message: message.to_owned(), hint }
}

fn operator(plan: &LogicalPlan) -> &'static str {
    match plan {
        LogicalPlan::Aggregate(_) => "GROUP BY or an aggregate",
        LogicalPlan::Distinct(_) => "DISTINCT",
        LogicalPlan::Join(_) => "a join",
        LogicalPlan::Window(_) => "a window function",
        LogicalPlan::Union(_) => "UNION",
        LogicalPlan::Unnest(_) => "UNNEST",
        LogicalPlan::RecursiveQuery(_) => "a recursive query",
        _ => "this operation",
    }
}

/// A subquery above the base would be a join of every shard with another table.
fn refuse_subqueries(exprs: &[Expr], call: usize) -> Result<(), Refusal> {
    for expr in exprs {
        let found =
            expr.exists(|part| Ok(subquery_of(part).is_some() || matches!(part, Expr::OuterReferenceColumn(..))))?;
        if found {
            return Err(refuse(Some(call), "a subquery stands beside an AI function", IN_FROM));
        }
    }
    Ok(())
}

/// Whether a subquery in the expression uses columns from around it. Those cannot be renamed from here.
fn has_outer_reference(expr: &Expr) -> PlanResult<bool> {
    expr.exists(|part| Ok(subquery_of(part).is_some_and(|subquery| !subquery.outer_ref_columns.is_empty())))
}

/// Whether a node's columns are the base's own, under their own names.
fn is_identity(columns: &[Expr], schema: &DFSchema) -> bool {
    let own = schema.iter().map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name())));
    own.eq(columns.iter().cloned())
}

/// An expression over a node's input as an expression over the base.
fn inline(expr: &Expr, input: &DFSchema, columns: &[Expr]) -> PlanResult<Expr> {
    let inlined = expr.clone().transform_up(|part| match &part {
        Expr::Column(column) => {
            let replacement = columns.get(input.index_of_column(column)?).cloned();
            let replacement =
                replacement.ok_or_else(|| DataFusionError::Internal(format!("column {column} has no source")))?;
            Ok(Transformed::yes(replacement))
        }
        _ => Ok(Transformed::no(part)),
    })?;
    Ok(inlined.data.unalias_nested().data)
}

/// The fixed parts of the AI calls of an expression, as indices.
pub(crate) fn calls_of(expr: &Expr) -> PlanResult<Vec<usize>> {
    let mut found = Vec::new();
    expr.apply(|part| {
        if let Some((function, _)) = AiFunction::of(part) {
            found.push(function.index);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// The first AI call of a plan, subqueries included.
fn first_call(plan: &LogicalPlan) -> PlanResult<Option<usize>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            if let Some(call) = calls_of(expr)?.first() {
                found = Some(*call);
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(found)
}
