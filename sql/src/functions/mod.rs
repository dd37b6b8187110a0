//! AI functions, on the syntax tree: each `ai_…(…)` call is checked, its fixed part becomes a [`Task`], and the call
//! itself becomes `__ai_N(values…)`, which DataFusion can plan and `plan::lift` finds again. Nothing runs here.

mod call;
pub(crate) mod fields;
pub(crate) mod literal;
mod pattern;
mod query;
pub(crate) mod signature;
pub(crate) mod sql_type;
pub(crate) mod template;
pub(crate) mod udf;

use std::sync::Arc;

use arrow::datatypes::Fields;
use rowmill_jobs::infer::Task;
use rowmill_jobs::plan::Ability;
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Error, Location};

pub(crate) use query::rewrite;

use crate::jobfile::options::Place;
use crate::jobfile::render::Rendered;

/// What the start of every name is that users may not take.
pub(crate) const OWN_PREFIX: &str = "__ai_";

/// The fixed part of an AI call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CallSpec {
    /// Name of the function, without aliases.
    pub(crate) function: &'static str,
    /// Where its first use stands, as the syntax tree counts.
    pub(crate) at: Place,
    /// What the engine is asked.
    pub(crate) task: Arc<Task>,
    /// What the answer becomes.
    pub(crate) returns: Returns,
    /// Number of row values.
    pub(crate) values: usize,
}

impl CallSpec {
    /// What the model must be able to do.
    pub(crate) fn ability(&self) -> Ability {
        ability_of(self.function)
    }
}

/// What a model must be able to do for a function.
pub(crate) fn ability_of(function: &str) -> Ability {
    match function {
        "ai_classify" | "ai_filter" => Ability::Choose,
        "ai_embed" => Ability::Embed,
        _ => Ability::Complete,
    }
}

/// What an answer becomes in the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Returns {
    /// The text.
    Text,
    /// The JSON object's fields.
    Struct(Fields),
    /// The chosen label, with its probability if asked.
    Label {
        /// `with_score => true`.
        with_score: bool,
    },
    /// Whether the first label (`yes`) was chosen.
    YesNo,
    /// The vector.
    Vector,
}

/// How places of the syntax tree become places of the user's file.
pub(crate) enum Places<'a> {
    /// The tree is of the whole file.
    InFile(&'a Rendered),
    /// The tree is of the job's query alone.
    InQuery(&'a JobSpec),
}

impl Places<'_> {
    /// The place in the user's file.
    pub(crate) fn locate(&self, at: Place) -> Location {
        match self {
            Places::InFile(source) => source.locate(at.0, at.1),
            Places::InQuery(spec) => crate::jobfile::locate_in_query(spec, at.0, at.1),
        }
    }

    /// An error there.
    pub(crate) fn error(&self, at: Place, message: impl Into<String>) -> Error {
        Error::invalid(message).at(self.locate(at))
    }
}
