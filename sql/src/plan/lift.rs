//! Lifts AI calls out of expressions into [`Infer`] nodes: filters first, so that a row that one refuses costs no further
//! call; calls that feed other calls below those; the same call once. It decides only; nothing runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{BinaryExpr, Case, ScalarFunction};
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, LogicalPlanBuilder, Operator, ScalarUDF, cast, not};

use super::chain::{Chain, calls_of};
use super::infer_node::{Infer, InferCall, note_column, value_column};
use super::origins;
use super::row_notes::{Note, RowNotes};
use crate::functions::udf::AiFunction;
use crate::source::infer_schema::plain;

/// What an error in a condition is filed under.
const WHERE: &str = "WHERE";

/// A plan without AI functions in expressions.
#[derive(Debug)]
pub(crate) struct Lifted {
    /// Outputs and notes (`_errors`) on top, [`Infer`] nodes below, the base at the bottom.
    pub(crate) plan: LogicalPlan,
    /// The plan's calls, by their numbers.
    pub(crate) calls: Vec<LiftedCall>,
}

/// What is known of a call of the plan.
#[derive(Debug)]
pub(crate) struct LiftedCall {
    /// Index of its fixed part.
    pub(crate) spec: usize,
    /// The output columns it feeds.
    pub(crate) feeds: String,
    /// The table columns that its values are made of.
    pub(crate) origins: Vec<String>,
}

/// Builds the plan. `names` are the output columns' names; `spilling`, if the job spills, the fixed parts of the calls that
/// another model may answer.
pub(crate) fn lift(chain: Chain, names: &[String], spilling: Option<&BTreeSet<usize>>) -> Result<Lifted> {
    let mut lifter = Lifter {
        plan: chain.base,
        calls: Vec::new(),
        feeds: BTreeMap::new(),
        kept_because: Vec::new(),
        spilling: spilling.cloned().unwrap_or_default(),
    };
    lifter.infer(Vec::new())?;
    for filter in chain.filters {
        lifter.filter(filter)?;
    }
    let mut outputs = chain.columns;
    let labels: Vec<&str> = names.iter().map(String::as_str).collect();
    lifter.lower(&mut outputs, &labels)?;
    let schema = Arc::clone(lifter.plan.schema());
    let mut exprs = Vec::with_capacity(outputs.len() + 1);
    for (expr, name) in outputs.into_iter().zip(names) {
        use datafusion::logical_expr::ExprSchemable;
        let (from, expr) = (expr.get_type(schema.as_ref())?, expr.unalias());
        let to = if from == DataType::Null { DataType::Utf8 } else { plain(&from) };
        exprs.push(if to == from { expr } else { cast(expr, to) }.alias(name));
    }
    let feeds: Vec<String> = (0..lifter.calls.len())
        .map(|id| {
            let mut labels = lifter.feeds.remove(&id).unwrap_or_default();
            labels.sort_by_key(|label| label == WHERE);
            labels.join(", ")
        })
        .collect();
    let notes = |note: Note, ids: Vec<usize>| {
        let function = ScalarUDF::from(RowNotes::new(note, ids.iter().map(|id| feeds[*id].clone()).collect()));
        let arguments = ids.iter().map(|id| column(&note_column(note, *id))).collect();
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function), arguments)).alias(note.output())
    };
    if spilling.is_some() {
        exprs.push(notes(Note::Spill, (0..feeds.len()).filter(|id| lifter.calls[*id].spills).collect()));
    }
    // The last: whoever counts rows with errors finds it there.
    exprs.push(notes(Note::Error, (0..feeds.len()).collect()));
    let plan = LogicalPlanBuilder::from(lifter.plan).project(exprs)?.build()?;
    let origins = origins::of_calls(&plan, feeds.len())?;
    let known = lifter.calls.iter().zip(feeds).zip(origins);
    let calls = known.map(|((call, feeds), origins)| LiftedCall { spec: call.spec, feeds, origins }).collect();
    Ok(Lifted { plan, calls })
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

struct Lifter {
    plan: LogicalPlan,
    /// All calls so far; `calls[i].id == i`.
    calls: Vec<InferCall>,
    /// Which outputs a call feeds.
    feeds: BTreeMap<usize, Vec<String>>,
    /// Conditions passed so far. A row that is still here has TRUE in each, or NULL because a model failed.
    kept_because: Vec<Expr>,
    /// Fixed parts of calls that another model may answer.
    spilling: BTreeSet<usize>,
}

impl Lifter {
    fn infer(&mut self, calls: Vec<InferCall>) -> Result<()> {
        let node = Infer::try_new(self.plan.clone(), calls)?;
        self.plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        Ok(())
    }

    /// A condition that a model decides. A row whose model failed stays, so that its error is seen.
    fn filter(&mut self, condition: Expr) -> Result<()> {
        let mut lowered = [condition];
        self.lower(&mut lowered, &[WHERE])?;
        let [condition] = lowered;
        let failed: Vec<Expr> = calls_below(&condition, &self.calls)?
            .into_iter()
            .map(|id| column(&note_column(Note::Error, id)).is_not_null())
            .collect();
        let keep = match disjunction(failed) {
            Some(failed) => condition.clone().is_true().or(condition.clone().is_null().and(failed)),
            None => condition.clone().is_true(),
        };
        self.plan = LogicalPlanBuilder::from(self.plan.clone()).filter(keep)?.build()?;
        self.kept_because.push(condition);
        Ok(())
    }

    /// Replaces the AI calls of `exprs` by columns, innermost first, adding a node for each depth.
    fn lower(&mut self, exprs: &mut [Expr], labels: &[&str]) -> Result<()> {
        loop {
            let mut ready = Vec::new();
            for expr in exprs.iter() {
                collect_ready(expr, &mut Vec::new(), &mut ready)?;
            }
            if ready.is_empty() {
                return Ok(());
            }
            let known = self.calls.len();
            for found in ready {
                let call = self.as_call(found)?;
                if !self.calls.iter().any(|known| same_call(known, &call)) {
                    self.calls.push(InferCall { id: self.calls.len(), ..call });
                }
            }
            let fresh: Vec<InferCall> = self.calls[known..].to_vec();
            if !fresh.is_empty() {
                self.infer(fresh)?;
            }
            for (expr, label) in exprs.iter_mut().zip(labels) {
                *expr = self.replace_ready(expr.clone(), &mut Vec::new(), label)?;
            }
        }
    }

    fn as_call(&self, found: Ready) -> Result<InferCall> {
        let mut only = found.guards;
        // A row that is here only because a condition's model failed gets no further answers.
        only.extend(self.kept_because.iter().map(|condition| condition.clone().is_not_null()));
        Ok(InferCall {
            id: usize::MAX,
            spec: found.spec,
            values: found.values,
            only: conjunction(only),
            spills: self.spilling.contains(&found.spec),
            returns: found.returns,
        })
    }

    /// Replaces calls that [`collect_ready`] finds. It walks the same way.
    fn replace_ready(&mut self, expr: Expr, guards: &mut Vec<Expr>, label: &str) -> Result<Expr> {
        if let Some(found) = ready(&expr, guards)? {
            let call = self.as_call(found)?;
            if let Some(id) = self.calls.iter().position(|known| same_call(known, &call)) {
                let labels = self.feeds.entry(id).or_default();
                if !labels.iter().any(|known| known == label) {
                    labels.push(label.to_owned());
                }
                return Ok(column(&value_column(id)));
            }
        }
        match expr {
            Expr::Case(case) if guardable(&case)? => {
                let mut branches = Vec::new();
                let before = guards.len();
                for (when, then) in case.when_then_expr {
                    let lowered_when = self.replace_ready((*when).clone(), guards, label)?;
                    guards.push((*when).clone().is_true());
                    let then = self.replace_ready(*then, guards, label)?;
                    guards.pop();
                    guards.push(not((*when).is_true()));
                    branches.push((Box::new(lowered_when), Box::new(then)));
                }
                let otherwise = match case.else_expr {
                    Some(otherwise) => Some(Box::new(self.replace_ready(*otherwise, guards, label)?)),
                    None => None,
                };
                guards.truncate(before);
                Ok(Expr::Case(Case::new(None, branches, otherwise)))
            }
            other if shortcut(&other)?.is_some() => {
                let Some((cheap, asked, guard)) = shortcut(&other)? else { return Ok(other) };
                let Expr::BinaryExpr(binary) = &other else { return Ok(other) };
                guards.push(guard);
                let replaced = self.replace_ready(asked.clone(), guards, label)?;
                guards.pop();
                Ok(Expr::BinaryExpr(BinaryExpr::new(Box::new(cheap.clone()), binary.op, Box::new(replaced))))
            }
            other => {
                Ok(other.map_children(|child| Ok(Transformed::yes(self.replace_ready(child, guards, label)?)))?.data)
            }
        }
    }
}

/// Same question about the same values under the same condition.
fn same_call(a: &InferCall, b: &InferCall) -> bool {
    a.spec == b.spec && a.values == b.values && (a.only == b.only || a.only.is_none())
}

/// A call whose values and guards hold no further call.
struct Ready {
    spec: usize,
    values: Vec<Expr>,
    guards: Vec<Expr>,
    returns: DataType,
}

fn ready(expr: &Expr, guards: &[Expr]) -> Result<Option<Ready>> {
    let Some((function, values)) = AiFunction::of(expr) else { return Ok(None) };
    for part in values.iter().chain(guards) {
        if !calls_of(part)?.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(Ready {
        spec: function.index,
        values: values.to_vec(),
        guards: guards.to_vec(),
        returns: function.returns().clone(),
    }))
}

/// `CASE WHEN … THEN ai_…(…)` asks the model only for the rows of that branch. `CASE x WHEN y` is left as it is.
fn guardable(case: &Case) -> Result<bool> {
    if case.expr.is_some() {
        return Ok(false);
    }
    for expr in case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr) {
        if !calls_of(expr)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `cheap OR ai_…` asks only where `cheap` is not TRUE, `cheap AND ai_…` only where it is not FALSE: elsewhere the answer
/// changes nothing. Gives the cheap side, the asked side and the guard.
fn shortcut(expr: &Expr) -> Result<Option<(&Expr, &Expr, Expr)>> {
    let Expr::BinaryExpr(binary) = expr else { return Ok(None) };
    let (left, right) = (calls_of(&binary.left)?, calls_of(&binary.right)?);
    let (cheap, asked) = match (left.is_empty(), right.is_empty()) {
        (true, false) => (binary.left.as_ref(), binary.right.as_ref()),
        (false, true) => (binary.right.as_ref(), binary.left.as_ref()),
        _ => return Ok(None),
    };
    Ok(match binary.op {
        Operator::Or => Some((cheap, asked, cheap.clone().is_not_true())),
        Operator::And => Some((cheap, asked, cheap.clone().is_not_false())),
        _ => None,
    })
}

fn collect_ready(expr: &Expr, guards: &mut Vec<Expr>, found: &mut Vec<Ready>) -> Result<()> {
    if let Some(call) = ready(expr, guards)? {
        found.push(call);
        return Ok(());
    }
    match expr {
        Expr::Case(case) if guardable(case)? => {
            let before = guards.len();
            for (when, then) in &case.when_then_expr {
                collect_ready(when, guards, found)?;
                guards.push((**when).clone().is_true());
                collect_ready(then, guards, found)?;
                guards.pop();
                guards.push(not((**when).clone().is_true()));
            }
            if let Some(otherwise) = &case.else_expr {
                collect_ready(otherwise, guards, found)?;
            }
            guards.truncate(before);
            Ok(())
        }
        other if shortcut(other)?.is_some() => {
            if let Some((_, asked, guard)) = shortcut(other)? {
                guards.push(guard);
                collect_ready(asked, guards, found)?;
                guards.pop();
            }
            Ok(())
        }
        other => {
            other.apply_children(|child| {
                collect_ready(child, guards, found)?;
                Ok(TreeNodeRecursion::Continue)
            })?;
            Ok(())
        }
    }
}

/// The calls that an expression depends on, directly or through other calls.
fn calls_below(expr: &Expr, calls: &[InferCall]) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    let mut open: Vec<&Expr> = vec![expr];
    while let Some(expr) = open.pop() {
        for name in expr.column_refs().into_iter().map(|column| column.name.clone()) {
            if let Some(call) = calls.iter().find(|call| value_column(call.id) == name)
                && !found.contains(&call.id)
            {
                found.push(call.id);
                open.extend(call.values.iter().chain(&call.only));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}
