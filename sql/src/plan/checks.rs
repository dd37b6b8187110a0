//! What is checked of a query before and after DataFusion plans it: its text, its models, its columns' names.

use arrow::datatypes::{DataType, Schema};
use datafusion::common::DFSchema;
use datafusion::sql::parser::DFParserBuilder;
use datafusion::sql::sqlparser::ast::Query;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use rowmill_jobs::infer::{TaskKind, find_labels};
use rowmill_jobs::plan::{ModelPin, TableInput};
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::{Error, Result};

use super::diagnose::Diagnosis;
use super::row_notes::Note;
use crate::exec::shape_of;
use crate::functions::{self, CallSpec, OWN_PREFIX, Places, Returns};

/// Parses the job's query.
pub(super) fn parse(spec: &JobSpec) -> Result<Box<Query>> {
    let failed = |message: String| {
        let (message, at) = crate::jobfile::split_place(&message);
        Places::InQuery(spec).error(at.unwrap_or((1, 1)), message)
    };
    let mut parser = DFParserBuilder::new(spec.query.as_str())
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(crate::jobfile::DEPTH_MAX)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    parser.parser.parse_query().map_err(|error| failed(error.to_string()))
}

/// The calls' answer types; every model must exist and be able to do what its calls ask.
pub(super) fn check_models(calls: &[CallSpec], models: &[ModelPin], places: &Places<'_>) -> Result<Vec<DataType>> {
    calls
        .iter()
        .map(|call| {
            let model = models
                .iter()
                .find(|model| model.name == call.task.model)
                .ok_or_else(|| Error::internal(format!("model `{}` was not pinned", call.task.model)))?;
            if !model.abilities.contains(&call.ability()) {
                let able: Vec<String> = functions::signature::SIGNATURES
                    .iter()
                    .filter(|signature| model.abilities.contains(&functions::ability_of(signature.name)))
                    // A classifier has labels of its own, which are not a filter's yes and no.
                    .filter(|signature| model.labels.is_none() || signature.name == "ai_classify")
                    .map(|signature| signature.name.to_owned())
                    .collect();
                return Err(places
                    .error(
                        call.at,
                        format!("model `{}` ({}) cannot answer {}", model.name, model.architecture, call.function),
                    )
                    .hint(format!("it can answer {}; name another model with model => '…'", able.join(", "))));
            }
            // A classifier knows its own labels only; that is better said now than when the first row is read.
            if let (TaskKind::Choose { labels, calibrate }, Some(own)) = (&call.task.kind, &model.labels) {
                if *calibrate {
                    let message = format!("model `{}` is a trained classifier: calibrate is not for it", model.name);
                    return Err(places.error(call.at, message).hint("leave `calibrate` out"));
                }
                find_labels(labels, own)
                    .map_err(|error| error.at(places.locate(call.at)).with("model", &model.name))?;
            }
            shape_of(&call.returns, model.dimensions).ok_or_else(|| {
                debug_assert_eq!(call.returns, Returns::Vector);
                Error::internal(format!("the dimensions of model `{}` are not known", model.name))
            })
        })
        .collect()
}

/// Refuses tables with columns that are named like Rowmill's own.
pub(super) fn refuse_own_names(input: &TableInput) -> Result<()> {
    let schema: Schema = serde_json::from_value(input.schema.clone()).map_err(|error| {
        Error::internal(format!("the schema of table `{}` cannot be read", input.table)).caused_by(error)
    })?;
    match schema.fields().iter().find(|field| field.name().starts_with(OWN_PREFIX)) {
        Some(field) => Err(Error::invalid(format!(
            "column `{}`: names that start with `{OWN_PREFIX}` are Rowmill's own",
            field.name()
        ))
        .with("table", &input.table)
        .hint("rename the column where the table is written")),
        None => Ok(()),
    }
}

/// Names of the output columns; each once, none of Rowmill's own, and the job's key among them.
pub(super) fn output_names(schema: &DFSchema, spec: &JobSpec, diagnosis: &Diagnosis<'_>) -> Result<Vec<String>> {
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    for (index, name) in names.iter().enumerate() {
        let at = diagnosis.find(name).unwrap_or((1, 1));
        if Note::is_output(name) || name.starts_with(OWN_PREFIX) {
            return Err(diagnosis
                .at(at, format!("an output column is called `{name}`: this name is Rowmill's own"))
                .hint(format!("rename it with AS, or leave it out: SELECT * EXCEPT ({name})")));
        }
        if names[..index].iter().any(|earlier| earlier == name) {
            return Err(diagnosis
                .at(at, format!("two output columns are called `{name}`"))
                .hint("give one another name: expression AS name"));
        }
    }
    match spec.key.iter().find(|key| !names.contains(key)) {
        Some(key) => Err(diagnosis
            .at((1, 1), format!("the job's key `{key}` is not an output column"))
            .hint(format!("select it; the output columns are: {}", names.join(", ")))),
        None => Ok(names),
    }
}
