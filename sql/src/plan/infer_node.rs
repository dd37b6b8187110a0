//! `Infer`, the logical node that appends to each row the answers of AI calls and their errors. Everything below the
//! lowest one is the job's base query. A node without calls only marks that border.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, DFSchemaRef, Result, TableReference, internal_err};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use super::row_notes::Note;
use crate::functions::OWN_PREFIX;

/// One AI call, resolved against the node's input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct InferCall {
    /// Number of the call in the job; names its columns.
    pub(crate) id: usize,
    /// Index of its fixed part, `CallSpec`.
    pub(crate) spec: usize,
    /// The row's values, all of type Utf8.
    pub(crate) values: Vec<Expr>,
    /// Only rows where this is TRUE are asked; the others get NULL.
    pub(crate) only: Option<Expr>,
    /// Type of the answer.
    pub(crate) returns: DataType,
    /// Whether another model than its own may answer.
    pub(crate) spills: bool,
}

impl InferCall {
    /// The columns that a node appends for the call.
    pub(crate) fn fields(&self) -> Vec<Arc<Field>> {
        let field = |name, data_type| Arc::new(Field::new(name, data_type, true));
        let note = |note: Note| field(note_column(note, self.id), note.call_type());
        let value = field(value_column(self.id), self.returns.clone());
        [value, note(Note::Error)].into_iter().chain(self.spills.then(|| note(Note::Spill))).collect()
    }
}

/// Name of the column with a call's answer.
pub(crate) fn value_column(id: usize) -> String {
    format!("{OWN_PREFIX}{id}")
}

/// Name of the column with what is to be said of a call's answers.
pub(crate) fn note_column(note: Note, id: usize) -> String {
    match note {
        Note::Error => format!("{OWN_PREFIX}{id}_error"),
        Note::Spill => format!("{OWN_PREFIX}{id}_spill"),
    }
}

/// The node.
#[derive(Debug, Clone)]
pub(crate) struct Infer {
    /// What gives the rows.
    pub(crate) input: LogicalPlan,
    /// Calls that do not depend on each other.
    pub(crate) calls: Vec<InferCall>,
    schema: DFSchemaRef,
}

impl Infer {
    /// A node over `input`.
    pub(crate) fn try_new(input: LogicalPlan, calls: Vec<InferCall>) -> Result<Self> {
        let mut fields: Vec<(Option<TableReference>, Arc<Field>)> =
            input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
        fields.extend(calls.iter().flat_map(InferCall::fields).map(|field| (None, field)));
        let schema = DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?;
        Ok(Self { input, calls, schema: Arc::new(schema) })
    }

    /// The call that a column of the node belongs to; `None` for the input's own.
    pub(crate) fn call_of_column(&self, index: usize) -> Option<&InferCall> {
        let mut first = self.input.schema().fields().len();
        let index = (index >= first).then_some(index)?;
        self.calls.iter().find(|call| {
            first += call.fields().len();
            index < first
        })
    }
}

impl PartialEq for Infer {
    fn eq(&self, other: &Self) -> bool {
        self.input == other.input && self.calls == other.calls
    }
}

impl Eq for Infer {}

impl Hash for Infer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.calls.hash(state);
    }
}

impl PartialOrd for Infer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let ids = |node: &Self| node.calls.iter().map(|call| call.id).collect::<Vec<_>>();
        // Nodes of one plan differ in their calls' ids; only the border has none.
        (self == other || ids(self) != ids(other)).then(|| ids(self).cmp(&ids(other)))
    }
}

impl UserDefinedLogicalNodeCore for Infer {
    fn name(&self) -> &str {
        "Infer"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.calls.iter().flat_map(|call| call.values.iter().chain(&call.only).cloned()).collect()
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.calls.iter().flat_map(InferCall::fields).map(|field| field.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Infer:")?;
        for call in &self.calls {
            let values: Vec<String> = call.values.iter().map(ToString::to_string).collect();
            write!(f, " {}({})", value_column(call.id), values.join(", "))?;
        }
        Ok(())
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let Some(input) = inputs.pop().filter(|_| inputs.is_empty()) else {
            return internal_err!("Infer has one input");
        };
        let mut exprs = exprs.into_iter();
        let calls: Vec<InferCall> = self
            .calls
            .iter()
            .map(|call| InferCall {
                values: exprs.by_ref().take(call.values.len()).collect(),
                only: call.only.as_ref().and_then(|_| exprs.next()),
                ..call.clone()
            })
            .collect();
        Self::try_new(input, calls)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // What the calls themselves read is added by the optimiser.
        let below = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|column| *column < below).collect()])
    }
}
