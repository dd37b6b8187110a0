//! DataFusion's errors as Rowmill's: with the place in the job file, and a hint where one can be given. Errors while rows
//! are read keep DataFusion's text out of sight where it could show a row's content.

use std::ops::ControlFlow;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::ast::{Expr, Ident, Query, Visit, Visitor};
use rowmill_jobs::error::closest;
use rowmill_jobs::plan::TableInput;
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Error, Kind};

use super::chain::Refusal;
use super::operands::Mismatch;
use crate::functions::{CallSpec, OWN_PREFIX, Places};
use crate::jobfile::options::Place;

/// What is needed to find places: the job, its tables, its query as written, and its calls.
pub(super) struct Diagnosis<'a> {
    pub(super) job: &'a JobSpec,
    pub(super) inputs: &'a [TableInput],
    pub(super) ast: &'a Query,
    pub(super) calls: &'a [CallSpec],
}

impl Diagnosis<'_> {
    fn places(&self) -> Places<'_> {
        Places::InQuery(self.job)
    }

    /// An error at a place of the query.
    pub(super) fn at(&self, at: Place, message: impl Into<String>) -> Error {
        self.places().error(at, message)
    }

    /// Why a query's AI calls cannot be lifted.
    pub(super) fn refusal(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Plan(error) => self.planning(error),
            Refusal::Query { call, message, hint } => {
                let at = call.and_then(|call| self.calls.get(call)).map_or((1, 1), |call| call.at);
                self.at(at, message).hint(hint)
            }
        }
    }

    /// An error of planning: nothing was read yet, so its text holds no row.
    pub(super) fn planning(&self, error: DataFusionError) -> Error {
        let span =
            error.diagnostic().and_then(|diagnostic| diagnostic.span).map(|span| (span.start.line, span.start.column));
        let root = error.find_root();
        if let DataFusionError::SchemaError(schema, _) = root {
            return self.schema_error(schema, span);
        }
        let message = tidy(&root.message());
        if let Some(name) = quoted_after(&message, "table '") {
            let short = name.rsplit('.').next().unwrap_or(&name).to_owned();
            let at = span.or_else(|| self.find(&short)).unwrap_or((1, 1));
            let error = self.at(at, format!("there is no table `{short}`"));
            return match closest(&short, self.job.tables.iter().map(|table| table.name.as_str())) {
                Some(close) => error.hint(format!("did you mean `{close}`?")),
                None => error.hint("define it with CREATE EXTERNAL TABLE above the job"),
            };
        }
        if message.contains("'prompt'") {
            let at = span.or_else(|| self.find("prompt")).unwrap_or((1, 1));
            return self
                .at(at, "prompt(…) stands outside an AI function")
                .hint("use it as an argument: ai_complete(prompt('… {0}', column))");
        }
        if message.starts_with("Projections require unique expression names") {
            let name = message.split('"').nth(1).map(|expr| expr.rsplit(" AS ").next().unwrap_or(expr));
            let name = name.map(|name| name.rsplit('.').next().unwrap_or(name)).unwrap_or_default();
            return self
                .at(self.find(name).unwrap_or((1, 1)), format!("two columns of a SELECT are called `{name}`"))
                .hint("give one another name: expression AS name");
        }
        if let Some((index, call)) = self.call_in(&message) {
            let own = format!("{OWN_PREFIX}{index}");
            return match message.find("cannot read a value") {
                Some(from) => {
                    let reason = message[from..].split(" No function matches").next().unwrap_or_default();
                    self.at(call.at, format!("{} {}", call.function, reason.lines().next().unwrap_or_default()))
                        .hint("take a field of it, or make a text of it first")
                }
                None => self.at(call.at, message.replace(&own, call.function)),
            };
        }
        if let Some(error) = self.argument_types(&message, span) {
            return error;
        }
        if let Some(mismatch) = Mismatch::read(&message) {
            let at = span.or_else(|| mismatch.find(self.ast, self.inputs)).unwrap_or((1, 1));
            return self.at(at, message.as_str()).hint("CAST one of the two to the other's type");
        }
        self.at(span.unwrap_or((1, 1)), message)
    }

    /// DataFusion's "No function matches …", which comes wrapped in advice to report a defect of its own.
    fn argument_types(&self, message: &str, span: Option<Place>) -> Option<Error> {
        const START: &str = "No function matches the given name and argument types '";
        let (call, rest) = message[message.find(START)? + START.len()..].split_once('\'')?;
        let name = call.split('(').next().unwrap_or_default();
        let at = span.or_else(|| self.find(name)).unwrap_or((1, 1));
        let candidates = rest.lines().map(str::trim).filter(|line| line.starts_with(name));
        let candidates = candidates.collect::<Vec<_>>().join(", ");
        Some(
            self.at(at, format!("`{name}` does not take these types: {call}"))
                .hint(format!("CAST the argument; there are {candidates}")),
        )
    }

    fn schema_error(&self, error: &SchemaError, span: Option<Place>) -> Error {
        match error {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let at = span.or_else(|| self.find(&field.name)).unwrap_or((1, 1));
                let error = self.at(at, format!("there is no column `{}`", field.name));
                let mut names: Vec<&str> = valid_fields
                    .iter()
                    .map(|field| field.name.as_str())
                    .filter(|name| !name.starts_with(OWN_PREFIX))
                    .collect();
                names.sort_unstable();
                names.dedup();
                match closest(&field.name, names.iter().copied()) {
                    Some(close) => error.hint(format!("did you mean `{close}`?")),
                    None if names.is_empty() => error,
                    None => error.hint(format!("the columns here are: {}", names.join(", "))),
                }
            }
            SchemaError::AmbiguousReference { field } => {
                let at = span.or_else(|| self.find(&field.name)).unwrap_or((1, 1));
                self.at(at, format!("more than one column is called `{}`", field.name))
                    .hint("write table.column, or give one another name with AS")
            }
            SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
                let at = span.or_else(|| self.find(name)).unwrap_or((1, 1));
                self.at(at, format!("two columns are called `{name}`"))
                    .hint("give one another name: expression AS name")
            }
        }
    }

    fn call_in(&self, message: &str) -> Option<(usize, &CallSpec)> {
        let from = message.find(OWN_PREFIX)? + OWN_PREFIX.len();
        let digits: String = message[from..].chars().take_while(char::is_ascii_digit).collect();
        let index = digits.parse().ok()?;
        Some((index, self.calls.get(index)?))
    }

    /// Where an identifier stands in the query.
    pub(super) fn find(&self, name: &str) -> Option<Place> {
        find_ident(self.ast, name)
    }
}

/// DataFusion's own words, as a cause.
#[derive(Debug)]
struct Cause(String);

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

fn tidy(message: &str) -> String {
    let message = message.split("\n\nbacktrace").next().unwrap_or(message);
    crate::jobfile::split_place(message).0
}

fn quoted_after(message: &str, start: &str) -> Option<String> {
    let from = message.find(start)? + start.len();
    let rest = &message[from..];
    let end = rest.find('\'')?;
    rest[end..].contains("not found").then(|| rest[..end].to_owned())
}

fn find_ident(ast: &Query, name: &str) -> Option<Place> {
    struct Finder<'a>(&'a str);
    impl Finder<'_> {
        fn check(&self, ident: &Ident) -> ControlFlow<Place> {
            if ident.value.eq_ignore_ascii_case(self.0) && ident.span.start.line > 0 {
                return ControlFlow::Break((ident.span.start.line, ident.span.start.column));
            }
            ControlFlow::Continue(())
        }
    }
    impl Visitor for Finder<'_> {
        type Break = Place;
        fn pre_visit_relation(&mut self, relation: &datafusion::sql::sqlparser::ast::ObjectName) -> ControlFlow<Place> {
            relation.0.iter().filter_map(|part| part.as_ident()).try_for_each(|ident| self.check(ident))
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Place> {
            match expr {
                Expr::Identifier(ident) => self.check(ident),
                Expr::CompoundIdentifier(idents) => idents.iter().try_for_each(|ident| self.check(ident)),
                Expr::Function(function) => {
                    function.name.0.iter().filter_map(|part| part.as_ident()).try_for_each(|ident| self.check(ident))
                }
                _ => ControlFlow::Continue(()),
            }
        }
        fn pre_visit_select(&mut self, select: &datafusion::sql::sqlparser::ast::Select) -> ControlFlow<Place> {
            use datafusion::sql::sqlparser::ast::SelectItem;
            select.projection.iter().try_for_each(|item| match item {
                SelectItem::ExprWithAlias { alias, .. } => self.check(alias),
                _ => ControlFlow::Continue(()),
            })
        }
    }
    match ast.visit(&mut Finder(name)) {
        ControlFlow::Break(place) => Some(place),
        ControlFlow::Continue(()) => None,
    }
}

/// An error while rows are read, asked and written.
pub(crate) fn running(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(error) => *error,
            Err(inner) => described(&DataFusionError::External(inner)),
        },
        DataFusionError::Context(_, inner) => running(*inner),
        other => described(&other),
    }
}

/// As [`running`], of an error that several readers of one input have: it can be looked at, and not taken apart.
fn described(error: &DataFusionError) -> Error {
    match error {
        DataFusionError::Context(_, inner) => described(inner),
        DataFusionError::Shared(inner) => described(inner.find_root()),
        DataFusionError::External(inner) if inner.is::<Error>() => {
            let ours = inner.downcast_ref::<Error>();
            let error = Error::new(ours.map_or(Kind::Internal, Error::kind), inner.to_string());
            match ours.and_then(Error::hint_text) {
                Some(hint) => error.hint(hint),
                None => error,
            }
        }
        // A function's own error may quote the value it failed on; what a store said was looked at before.
        DataFusionError::External(_) => Error::invalid("the query failed on a row's value: a function refused it")
            .hint("guard the expression: NULLIF, or a WHERE that leaves such rows out"),
        DataFusionError::ObjectStore(inner) => {
            Error::temporary("the store failed while rows were read").caused_by(Cause(inner.to_string()))
        }
        corrupt if is_parquet(corrupt) => {
            Error::invalid("an input file cannot be read as Parquet").hint("is the file complete and undamaged?")
        }
        DataFusionError::ResourcesExhausted(_) => Error::temporary("the query needs more memory than it may take"),
        DataFusionError::ArrowError(inner, _) if place_in_file(inner).is_some() => {
            let place = place_in_file(inner).unwrap_or_default();
            Error::invalid(format!("an input file cannot be read: {place}"))
                .hint("check the format and its OPTIONS, or declare the column as STRING")
        }
        // A cast or an arithmetic error quotes the value it failed on: that is row content.
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => {
            Error::invalid(format!("the query failed on a row's value: {}", kind_only(error)))
                .hint("guard the expression: TRY_CAST, NULLIF, or a WHERE that leaves such rows out")
        }
        other => Error::internal(format!("running the query failed: {}", kind_only(other)))
            .caused_by(Cause(other.strip_backtrace())),
    }
}

/// Whether a page or footer could not be decoded. The decoder's own text may show bytes of the page: it is left out.
fn is_parquet(error: &DataFusionError) -> bool {
    match error {
        DataFusionError::ParquetError(_) => true,
        DataFusionError::ArrowError(inner, _) => matches!(**inner, ArrowError::ParquetError(_)),
        _ => false,
    }
}

/// What a CSV or JSON reader's error tells of the place, in numbers: its text quotes the row.
fn place_in_file(error: &ArrowError) -> Option<String> {
    let text = error.to_string();
    let number = |after: &str| {
        let from = text.rfind(after)? + after.len();
        text[from..].chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().ok()
    };
    match error {
        ArrowError::ParseError(_) => {
            // The reader's line numbers count from where it began in the file, so they would mislead.
            let column = number(" for column ").filter(|_| text.contains(" at line "))?;
            Some(format!("a value of column {} is not of the column's type", column + 1))
        }
        ArrowError::CsvError(_) => Some(match number("incorrect number of fields for line ") {
            Some(line) => format!("line {line} has another number of fields"),
            None => "it is not well-formed CSV".to_owned(),
        }),
        ArrowError::JsonError(_) => Some("a line is not a JSON object with the table's types".to_owned()),
        _ => None,
    }
}

/// The sort of an error, without the values that its text may quote.
fn kind_only(error: &DataFusionError) -> String {
    match error {
        DataFusionError::ArrowError(inner, _) => {
            let text = inner.to_string();
            text.split(':').next().unwrap_or_default().to_owned()
        }
        DataFusionError::Execution(_) => "a function refused it".to_owned(),
        DataFusionError::Internal(_) => "an internal error".to_owned(),
        DataFusionError::NotImplemented(_) => "something is not implemented".to_owned(),
        _ => "DataFusion refused it".to_owned(),
    }
}
