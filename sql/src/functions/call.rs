//! Reads one `ai_…(…)` call: arguments against the function's signature, then the [`Task`] they make. It says with the
//! place what is wrong and how the function is written.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
};
use rowmill_jobs::error::closest;
use rowmill_jobs::infer::{Piece, Task, TaskKind, TextFormat};
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Error, Result};

use super::signature::Signature;
use super::{CallSpec, Places, Returns, fields, literal, pattern, template};
use crate::jobfile::options::Place;

/// Output tokens of a row when the call does not say. More than answers have: the engine reserves memory for a few hundred
/// at first, and for more as a row goes on, so a generous limit costs only the rows that use it.
const TOKENS_DEFAULT: u32 = 4096;
/// More output tokens than any row of a table needs.
const TOKENS_MAX: u32 = 65_536;
/// Labels that can be told apart by a prompt of reasonable length.
const LABELS_MAX: usize = 1000;

/// A call's fixed part and the expressions that its values come from.
pub(super) struct ReadCall {
    pub(super) spec: CallSpec,
    pub(super) values: Vec<Expr>,
}

/// Reads a call. `at` is where its name stands.
pub(super) fn read(
    signature: &'static Signature,
    function: &Function,
    at: Place,
    job: &JobSpec,
    places: &Places<'_>,
) -> Result<ReadCall> {
    let arguments = Arguments::new(signature, function, at, places)?;
    let model = arguments.model(job)?;
    // Every function's first argument is what a row fills.
    let (input, values) = arguments.input(signature.required.first().copied().unwrap_or_default())?;
    let (template, returns, kind, system) = match signature.name {
        "ai_classify" => classify(&arguments, input.clone())?,
        "ai_extract" => extract(&arguments, input.clone())?,
        "ai_filter" => {
            let labels = vec!["yes".to_owned(), "no".to_owned()];
            let kind = TaskKind::Choose { labels, calibrate: false };
            (template::filter(input.clone()), Returns::YesNo, kind, None)
        }
        "ai_embed" => (input.clone(), Returns::Vector, TaskKind::Embed, None),
        _ => complete(&arguments, input.clone())?,
    };
    let task = Arc::new(Task { model, kind, system, template, input });
    Ok(ReadCall { spec: CallSpec { function: signature.name, at, task, returns, values: values.len() }, values })
}

/// Template, what the answer becomes, what the engine does, system message.
type Parts = (Vec<Piece>, Returns, TaskKind, Option<String>);

fn complete(arguments: &Arguments<'_>, input: Vec<Piece>) -> Result<Parts> {
    let tokens_max = arguments.tokens_max()?;
    let system = arguments.text("system")?;
    let (returns, format) = match (arguments.get("response_format"), arguments.get("pattern")) {
        (None, None) => (Returns::Text, TextFormat::Free),
        (None, Some(expr)) => (Returns::Text, TextFormat::Pattern { pattern: arguments.pattern(expr)? }),
        (Some(_), Some(expr)) => {
            let at = literal::place_of(expr, arguments.at);
            return Err(arguments.wrong(at, "ai_complete takes `response_format` or `pattern`, not both"));
        }
        (Some(expr), None) => {
            let fields = arguments.fields("response_format", expr)?;
            (Returns::Struct(fields.fields), TextFormat::Json { schema: fields.schema })
        }
    };
    Ok((input, returns, TaskKind::Complete { tokens_max, format }, system))
}

fn extract(arguments: &Arguments<'_>, input: Vec<Piece>) -> Result<Parts> {
    let fields = arguments.fields("fields", arguments.need("fields")?)?;
    let tokens_max = arguments.tokens_max()?;
    let kind = TaskKind::Complete { tokens_max, format: TextFormat::Json { schema: fields.schema } };
    Ok((template::extract(&fields.prompt, input), Returns::Struct(fields.fields), kind, None))
}

fn classify(arguments: &Arguments<'_>, input: Vec<Piece>) -> Result<Parts> {
    let expr = arguments.need("labels")?;
    let at = literal::place_of(expr, arguments.at);
    let described = if let Some(labels) = literal::strings(expr) {
        labels.into_iter().map(|label| (label, String::new())).collect()
    } else if let Some(labels) = literal::string_map(expr) {
        labels
    } else {
        return Err(arguments.wrong(at, "the labels of ai_classify must be a literal list of strings"));
    };
    let wrong = |message: &str| Err(arguments.wrong(at, message));
    if described.len() < 2 {
        return wrong("ai_classify needs at least two labels to choose from");
    }
    if described.len() > LABELS_MAX {
        return wrong("ai_classify takes at most 1000 labels");
    }
    for (index, (label, _)) in described.iter().enumerate() {
        if label.trim().is_empty() {
            return wrong("a label is empty");
        }
        if label.contains('\n') {
            return wrong("a label has more than one line");
        }
        if described[..index].iter().any(|(earlier, _)| earlier == label) {
            return Err(arguments.wrong(at, &format!("label '{label}' stands twice")));
        }
    }
    let lines: Vec<String> = described
        .iter()
        .map(|(label, text)| if text.is_empty() { format!("- {label}") } else { format!("- {label}: {text}") })
        .collect();
    let with_score = arguments.flag("with_score")?;
    let calibrate = arguments.flag("calibrate")?;
    let task = arguments.text("task_description")?.unwrap_or_default();
    let labels = described.into_iter().map(|(label, _)| label).collect();
    let kind = TaskKind::Choose { labels, calibrate };
    Ok((template::classify(&task, &lines, input), Returns::Label { with_score }, kind, None))
}

/// A call's arguments by name.
struct Arguments<'a> {
    signature: &'static Signature,
    at: Place,
    given: Vec<(&'static str, &'a Expr)>,
    places: &'a Places<'a>,
}

impl<'a> Arguments<'a> {
    fn new(signature: &'static Signature, function: &'a Function, at: Place, places: &'a Places<'a>) -> Result<Self> {
        let mut this = Self { signature, at, given: Vec::new(), places };
        let plain = matches!(function.parameters, FunctionArguments::None)
            && function.filter.is_none()
            && function.over.is_none()
            && function.null_treatment.is_none()
            && function.within_group.is_empty();
        let FunctionArguments::List(list) = &function.args else {
            return Err(this.wrong(at, &format!("{} needs arguments", signature.name)));
        };
        if !plain || list.duplicate_treatment.is_some() || !list.clauses.is_empty() {
            return Err(this
                .wrong(at, &format!("{} answers row by row: no OVER, FILTER, DISTINCT or ORDER BY", signature.name)));
        }
        let mut position = 0;
        for argument in &list.args {
            match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => {
                    let Some(name) = signature.required.get(position) else {
                        let message =
                            format!("{} takes {} arguments without a name", signature.name, signature.required.len());
                        return Err(this.wrong(literal::place_of(expr, at), &message));
                    };
                    position += 1;
                    this.add(name, expr, literal::place_of(expr, at))?;
                }
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    let name_at = (name.span.start.line.max(1), name.span.start.column.max(1));
                    let lower = name.value.to_lowercase();
                    let known = signature.required.iter().chain(signature.optional);
                    let Some(name) = known.clone().find(|known| **known == lower) else {
                        return Err(this.unknown_argument(&lower, name_at));
                    };
                    this.add(name, expr, name_at)?;
                }
                _ => return Err(this.wrong(at, &format!("an argument of {} is not an expression", signature.name))),
            }
        }
        for name in signature.required {
            this.need(name)?;
        }
        Ok(this)
    }

    fn unknown_argument(&self, name: &str, at: Place) -> Error {
        let known = self.signature.required.iter().chain(self.signature.optional).copied();
        let error = self.places.error(at, format!("{} has no argument `{name}`", self.signature.name));
        match closest(name, known) {
            Some(close) => error.hint(format!("did you mean `{close}`? {}", self.signature.usage)),
            None => error.hint(self.signature.usage),
        }
    }

    fn add(&mut self, name: &'static str, expr: &'a Expr, at: Place) -> Result<()> {
        if self.get(name).is_some() {
            return Err(self.wrong(at, &format!("argument `{name}` of {} is given twice", self.signature.name)));
        }
        self.given.push((name, expr));
        Ok(())
    }

    /// An error with the function's usage as its hint.
    fn wrong(&self, at: Place, message: &str) -> Error {
        self.places.error(at, message).hint(self.signature.usage)
    }

    fn get(&self, name: &str) -> Option<&'a Expr> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, expr)| *expr)
    }

    fn need(&self, name: &str) -> Result<&'a Expr> {
        self.get(name)
            .ok_or_else(|| self.wrong(self.at, &format!("{} needs its argument `{name}`", self.signature.name)))
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(expr) = self.get(name) else { return Ok(None) };
        match literal::string(expr) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(self.wrong(
                literal::place_of(expr, self.at),
                &format!("`{name}` of {} must be a literal string, the same for all rows", self.signature.name),
            )),
        }
    }

    /// `true` or `false`; false if it is not given.
    fn flag(&self, name: &str) -> Result<bool> {
        let Some(expr) = self.get(name) else { return Ok(false) };
        literal::boolean(expr).ok_or_else(|| {
            let message = format!("`{name}` of {} must be true or false", self.signature.name);
            self.wrong(literal::place_of(expr, self.at), &message)
        })
    }

    fn pattern(&self, expr: &Expr) -> Result<String> {
        let pattern = self.text("pattern")?.unwrap_or_default();
        let at = literal::place_of(expr, self.at);
        pattern::check(&pattern).map_err(|(message, hint)| self.places.error(at, message).hint(hint))?;
        Ok(pattern)
    }

    fn tokens_max(&self) -> Result<u32> {
        let Some(expr) = self.get("max_tokens") else { return Ok(TOKENS_DEFAULT) };
        literal::count(expr).filter(|count| *count <= TOKENS_MAX).ok_or_else(|| {
            let message =
                format!("`max_tokens` of {} must be a whole number from 1 to {TOKENS_MAX}", self.signature.name);
            self.wrong(literal::place_of(expr, self.at), &message)
        })
    }

    fn fields(&self, name: &str, expr: &Expr) -> Result<fields::OutputFields> {
        let at = literal::place_of(expr, self.at);
        let read = if let Some(text) = literal::string(expr) {
            fields::from_text(text)
        } else if let Some(questions) = literal::string_map(expr) {
            fields::from_questions(&questions)
        } else {
            let message = format!("`{name}` of {} must be a literal: the same for all rows", self.signature.name);
            return Err(self.wrong(at, &message));
        };
        read.map_err(|(message, hint)| self.places.error(at, message).hint(hint))
    }

    /// The model of this call: its own, or the job's.
    fn model(&self, job: &JobSpec) -> Result<String> {
        let Some(name) = self.text("model")? else {
            return job.model.clone().ok_or_else(|| {
                self.places
                    .error(self.at, format!("{} does not say which model answers", self.signature.name))
                    .hint("give the job a default, model = 'name', or the call its own, model => 'name'")
            });
        };
        let at = self.get("model").map_or(self.at, |expr| literal::place_of(expr, self.at));
        match job.models.iter().find(|model| model.name.eq_ignore_ascii_case(&name)) {
            Some(model) => Ok(model.name.clone()),
            None => {
                let error = self.places.error(at, format!("there is no model `{name}`"));
                Err(match closest(&name, job.models.iter().map(|model| model.name.as_str())) {
                    Some(close) => error.hint(format!("did you mean '{close}'?")),
                    None => {
                        let names: Vec<&str> = job.models.iter().map(|model| model.name.as_str()).collect();
                        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                        error.hint(format!(
                            "define it: CREATE MODEL {name} WITH (engine = 'candle', source = '…'); defined are: {known}"
                        ))
                    }
                })
            }
        }
    }

    /// The template of an argument that rows fill: `prompt(…)`, a concatenation with literals, or any expression.
    fn input(&self, name: &str) -> Result<(Vec<Piece>, Vec<Expr>)> {
        let expr = literal::unwrap(self.need(name)?);
        if let Expr::Function(function) = expr
            && function.name.to_string().eq_ignore_ascii_case("prompt")
        {
            return self.prompt(function, literal::place_of(expr, self.at));
        }
        let (mut pieces, mut values) = (Vec::new(), Vec::new());
        flatten(expr, &mut pieces, &mut values);
        Ok((template::merge(pieces), values))
    }

    fn prompt(&self, function: &Function, at: Place) -> Result<(Vec<Piece>, Vec<Expr>)> {
        let usage = "prompt('template {0} {1}', first, second)";
        let wrong = |message: String| self.places.error(at, message).hint(usage);
        let arguments = literal::positional(function)
            .ok_or_else(|| wrong("prompt takes a template and its values, without names".to_owned()))?;
        let Some((first, rest)) = arguments.split_first() else {
            return Err(wrong("prompt needs a template".to_owned()));
        };
        let text = literal::string(first).ok_or_else(|| {
            wrong("the template of prompt must be a literal string, the same for all rows".to_owned())
        })?;
        let pieces = template::parse(text, rest.len()).map_err(wrong)?;
        Ok((pieces, rest.iter().map(|expr| (*expr).clone()).collect()))
    }
}

/// `'Summarise: ' || body` is the author's text and then a row's value: keeping them apart lets all rows share the text's
/// KV cache, and keeps the value data. NULL in a value is NULL in the whole, both ways.
fn flatten(expr: &Expr, pieces: &mut Vec<Piece>, values: &mut Vec<Expr>) {
    if let Some(text) = literal::string(expr) {
        pieces.push(Piece::Text(text.to_owned()));
        return;
    }
    match literal::unwrap(expr) {
        Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } if has_literal(expr) => {
            flatten(left, pieces, values);
            flatten(right, pieces, values);
        }
        other => {
            let index = values.iter().position(|value| value == other).unwrap_or_else(|| {
                values.push(other.clone());
                values.len() - 1
            });
            pieces.push(Piece::Value(index));
        }
    }
}

/// Whether a string literal is among the operands: only then is `||` surely about strings.
fn has_literal(expr: &Expr) -> bool {
    match literal::unwrap(expr) {
        Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } => has_literal(left) || has_literal(right),
        other => literal::string(other).is_some(),
    }
}
