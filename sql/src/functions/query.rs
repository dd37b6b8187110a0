//! Walks a query's syntax tree: checks every function's name, turns AI calls into `__ai_N(…)`, and gives columns that
//! hold an AI call without a name one that users can read. It resolves no column and no table.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use datafusion::execution::SessionStateDefaults;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName,
    ObjectNamePart, Query, Select, SelectItem, SetExpr, Visit, VisitMut, Visitor, VisitorMut,
};
use rowmill_jobs::error::closest;
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Error, Result};

use super::{CallSpec, OWN_PREFIX, Places, call, literal, signature};
use crate::jobfile::options::Place;

/// Functions that would give a retried shard other rows than the first try.
const UNREPEATABLE: [&str; 9] =
    ["random", "rand", "uuid", "now", "current_date", "current_time", "current_timestamp", "today", "clock_timestamp"];

/// Checks a job's query and replaces its AI calls. Calls with the same fixed part share one entry of the result.
///
/// # Errors
/// With the place in the user's file, of the first thing that is wrong.
pub(crate) fn rewrite(query: &mut Query, job: &JobSpec, places: &Places<'_>) -> Result<Vec<CallSpec>> {
    let mut rewriter = Rewriter { job, places, calls: Vec::new() };
    match query.visit(&mut rewriter) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(rewriter.calls),
    }
}

struct Rewriter<'a> {
    job: &'a JobSpec,
    places: &'a Places<'a>,
    calls: Vec<CallSpec>,
}

impl VisitorMut for Rewriter<'_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        let place = |at: Option<Place>| at.unwrap_or((1, 1));
        let refused = match query.body.as_ref() {
            SetExpr::Insert(_) => Some("INSERT"),
            SetExpr::Update(_) => Some("UPDATE"),
            SetExpr::Delete(_) => Some("DELETE"),
            SetExpr::Merge(_) => Some("MERGE"),
            SetExpr::Select(select) if select.into.is_some() => Some("SELECT INTO"),
            _ => None,
        };
        match refused {
            Some(what) => ControlFlow::Break(
                self.places
                    .error(place(None), format!("{what} cannot stand in a job"))
                    .hint("a job's query is a SELECT; its result goes to the job's output"),
            ),
            None => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        let mut given: Vec<String> = Vec::new();
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item
                && has_ai_call(expr)
            {
                let alias = match literal::unwrap(expr) {
                    Expr::Function(function) => function_name(function),
                    other => other.to_string(),
                };
                if given.contains(&alias) {
                    let at = literal::place_of(expr, (1, 1));
                    let error = self.places.error(at, format!("two output columns are called `{alias}`"));
                    return ControlFlow::Break(error.hint(format!("name them: {alias}(…) AS name")));
                }
                given.push(alias.clone());
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('"', alias) };
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        let at = literal::place_of(expr, (1, 1));
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        match self.replace(function, at) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl Rewriter<'_> {
    fn replace(&mut self, function: &mut Function, at: Place) -> Result<()> {
        let name = function_name(function);
        if name == "prompt" || is_replaced(&name) {
            // `prompt` is read by the call around it; one without such a call is found by DataFusion's planner.
            return Ok(());
        }
        let Some(signature) = signature::find(&name) else { return self.check_plain(&name, at) };
        let read = call::read(signature, function, at, self.job, self.places)?;
        let same = |known: &CallSpec| {
            known.task == read.spec.task && known.returns == read.spec.returns && known.values == read.spec.values
        };
        let index = self.calls.iter().position(same).unwrap_or_else(|| {
            self.calls.push(read.spec.clone());
            self.calls.len() - 1
        });
        let span = function.name.0.first().and_then(ObjectNamePart::as_ident).map(|ident| ident.span);
        let mut ident = Ident::new(format!("{OWN_PREFIX}{index}"));
        ident.span = span.unwrap_or(ident.span);
        function.name = ObjectName(vec![ObjectNamePart::Identifier(ident)]);
        let args = read.values.into_iter().map(|value| FunctionArg::Unnamed(FunctionArgExpr::Expr(value))).collect();
        function.args =
            FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() });
        Ok(())
    }

    /// A function that is not an AI function must be one of DataFusion's, and give the same value every time.
    fn check_plain(&self, name: &str, at: Place) -> Result<()> {
        if UNREPEATABLE.contains(&name) {
            return Err(self
                .places
                .error(at, format!("{name}() gives another value every time, and a shard that is tried again must give the same rows"))
                .hint("use a parameter: '{{ ds }}'"));
        }
        if name.starts_with("ai_") {
            let error = self.places.error(at, format!("there is no AI function `{name}`"));
            return Err(match closest(name, signature::names()) {
                Some(close) => {
                    error.hint(format!("did you mean `{close}`? {}", signature::find(close).map_or("", |s| s.usage)))
                }
                None => {
                    error.hint(format!("the AI functions are {}", signature::names().collect::<Vec<_>>().join(", ")))
                }
            });
        }
        if PLAIN.contains(name) {
            return Ok(());
        }
        let error = self.places.error(at, format!("there is no function `{name}`"));
        let known = PLAIN.iter().map(String::as_str).chain(signature::names());
        let mut known: Vec<&str> = known.collect();
        known.sort_unstable();
        Err(match closest(name, known) {
            Some(close) => error.hint(format!("did you mean `{close}`?")),
            None => error.hint("functions are DataFusion's own and the AI functions"),
        })
    }
}

/// Names of all functions of DataFusion.
static PLAIN: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let mut names = HashSet::new();
    for function in SessionStateDefaults::default_scalar_functions() {
        names.insert(function.name().to_owned());
        names.extend(function.aliases().iter().cloned());
    }
    for function in SessionStateDefaults::default_aggregate_functions() {
        names.insert(function.name().to_owned());
        names.extend(function.aliases().iter().cloned());
    }
    for function in SessionStateDefaults::default_window_functions() {
        names.insert(function.name().to_owned());
        names.extend(function.aliases().iter().cloned());
    }
    // Planned from syntax, not from the registry.
    names.extend(["coalesce", "grouping", "map", "make_map", "struct", "row", "array"].map(str::to_owned));
    names
});

fn function_name(function: &Function) -> String {
    match function.name.0.as_slice() {
        [part] => part.as_ident().map_or_else(String::new, |ident| ident.value.to_lowercase()),
        _ => function.name.to_string().to_lowercase(),
    }
}

fn is_replaced(name: &str) -> bool {
    name.strip_prefix(OWN_PREFIX).is_some_and(|number| number.parse::<usize>().is_ok())
}

/// Whether an AI call stands somewhere in an expression.
fn has_ai_call(expr: &Expr) -> bool {
    struct Finder;
    impl Visitor for Finder {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Function(function) if signature::find(&function_name(function)).is_some() => {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    expr.visit(&mut Finder).is_break()
}
