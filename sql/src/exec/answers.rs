//! Outcomes of an engine as Arrow columns: answers of the call's type, errors, and who answered in another's place. It knows
//! no rows: `shelf.rs` looks theirs up.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, FixedSizeListArray, Float32Array, Float64Builder, NullBufferBuilder,
    StringBuilder, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, internal_datafusion_err, internal_err};
use rowmill_jobs::infer::{Answer, Outcome, RowError, RowErrorCode, TaskKind, Usage};
use serde_json::Value;

use super::json_rows;
use crate::functions::Returns;
use crate::plan::row_notes::Note;

/// What answers become: the call's shape and its Arrow type.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// What the answer means.
    pub(crate) returns: Returns,
    /// Type of the column.
    pub(crate) data_type: DataType,
}

impl Shape {
    /// The column type of an answer; `dimensions` is the model's, for vectors.
    pub(crate) fn data_type_of(returns: &Returns, dimensions: Option<u32>) -> Option<DataType> {
        Some(match returns {
            Returns::Text | Returns::Label { with_score: false } => DataType::Utf8,
            Returns::Struct(fields) => DataType::Struct(fields.clone()),
            Returns::Label { with_score: true } => DataType::Struct(Fields::from(vec![
                Field::new("label", DataType::Utf8, true),
                Field::new("score", DataType::Float64, true),
            ])),
            Returns::YesNo => DataType::Boolean,
            Returns::Vector => {
                let length = i32::try_from(dimensions?).ok().filter(|length| *length > 0)?;
                DataType::FixedSizeList(Arc::new(Field::new_list_field(DataType::Float32, true)), length)
            }
        })
    }
}

/// The answers of one window to one desk's requests.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    /// One row for each request.
    pub(super) values: ArrayRef,
    /// One row for each request; absent if none failed.
    pub(super) errors: Option<ArrayRef>,
    /// One row for each request; absent if the model that was asked answered all.
    pub(super) spills: Option<ArrayRef>,
    /// Tokens of all.
    pub(super) usage: Usage,
    /// None of them has more bytes, with what is said of it.
    pub(super) largest: usize,
}

impl Answers {
    /// Bytes that keeping them takes.
    pub(super) fn bytes(&self) -> usize {
        let notes = self.errors.iter().chain(&self.spills);
        self.values.get_array_memory_size() + notes.map(|notes| notes.get_array_memory_size()).sum::<usize>()
    }

    fn new(values: ArrayRef, errors: Option<ArrayRef>, spills: Option<ArrayRef>, usage: Usage) -> Self {
        let largest = std::iter::once(&values).chain(&errors).chain(&spills).map(|array| largest_row(array)).sum();
        Self { values, errors, spills, usage, largest }
    }

    /// Bytes of one answer with what is said of it.
    pub(super) fn bytes_of(&self, index: usize) -> usize {
        let notes = self.errors.iter().chain(&self.spills);
        std::iter::once(&self.values).chain(notes).map(|array| bytes_of_rows(array, index..index + 1)).sum()
    }

    /// What is to be said of them.
    pub(super) fn notes(&self, note: Note) -> Option<&ArrayRef> {
        match note {
            Note::Error => self.errors.as_ref(),
            Note::Spill => self.spills.as_ref(),
        }
    }
}

/// Bytes of the content of some rows of an array.
fn bytes_of_rows(array: &dyn Array, rows: Range<usize>) -> usize {
    let between = |offsets: &[i32]| offsets[rows.start] as usize..offsets[rows.end] as usize;
    match array.data_type() {
        DataType::Utf8 => between(array.as_string::<i32>().value_offsets()).len(),
        DataType::Binary => between(array.as_binary::<i32>().value_offsets()).len(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            bytes_of_rows(list.values(), between(list.value_offsets()))
        }
        DataType::FixedSizeList(_, length) => {
            let length = *length as usize;
            bytes_of_rows(array.as_fixed_size_list().values(), rows.start * length..rows.end * length)
        }
        DataType::Struct(_) => {
            array.as_struct().columns().iter().map(|column| bytes_of_rows(column, rows.clone())).sum()
        }
        other => rows.len() * other.primitive_width().unwrap_or(1),
    }
}

/// Bytes of the row of an array that has the most. Every window asks for it, so it is cheap for text and vectors.
fn largest_row(array: &dyn Array) -> usize {
    let rows = array.len();
    match array.data_type() {
        DataType::Utf8 => {
            let offsets = array.as_string::<i32>().value_offsets();
            offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
        }
        DataType::FixedSizeList(..) => bytes_of_rows(array, 0..rows.min(1)),
        _ => (0..rows).map(|row| bytes_of_rows(array, row..row + 1)).max().unwrap_or(0),
    }
}

/// Turns outcomes into columns.
pub(super) fn from_outcomes(outcomes: Vec<Outcome>, kind: &TaskKind, shape: &Shape) -> Result<Answers> {
    let mut usage = Usage::default();
    let mut errors: Vec<(usize, RowError)> = Vec::new();
    let mut spills: Vec<(usize, Arc<str>)> = Vec::new();
    let rows = outcomes.len();
    let mut answers = outcomes.into_iter().enumerate().map(|(row, outcome)| match outcome {
        Ok(answered) => {
            usage += answered.usage;
            spills.extend(answered.spilled_to.map(|model| (row, model)));
            Some(answered.answer)
        }
        Err(error) => {
            errors.push((row, error));
            None
        }
    });
    let (values, misfits) = match (&shape.returns, kind) {
        (Returns::Text, _) => texts(&mut answers, rows)?,
        (Returns::Struct(_), _) => objects(&mut answers, rows, &shape.data_type)?,
        (Returns::Label { .. }, TaskKind::Choose { labels, .. }) => {
            choices(&mut answers, rows, labels, &shape.data_type)?
        }
        (Returns::YesNo, _) => yes_or_no(&mut answers, rows)?,
        (Returns::Vector, _) => vectors(&mut answers, rows, &shape.data_type)?,
        _ => return internal_err!("an answer of a kind that was not asked for"),
    };
    // Whoever gave an answer that does not fit gave none.
    spills.retain(|(row, _)| misfits.iter().all(|(misfit, _)| misfit != row));
    errors.extend(misfits);
    let errors = (!errors.is_empty()).then(|| error_rows(errors, rows)).transpose()?;
    let spills = (!spills.is_empty()).then(|| spill_rows(spills, rows)).transpose()?;
    Ok(Answers::new(values, errors, spills, usage))
}

type Column = (ArrayRef, Vec<(usize, RowError)>);

fn wrong_kind<T>() -> Result<T> {
    internal_err!("the engine gave an answer of another kind")
}

fn texts(answers: &mut dyn Iterator<Item = Option<Answer>>, rows: usize) -> Result<Column> {
    let mut builder = StringBuilder::with_capacity(rows, rows * 32);
    for answer in answers {
        match answer {
            Some(Answer::Text(text)) => builder.append_value(text),
            Some(_) => return wrong_kind(),
            None => builder.append_null(),
        }
    }
    Ok((Arc::new(builder.finish()), Vec::new()))
}

fn objects(answers: &mut dyn Iterator<Item = Option<Answer>>, rows: usize, data_type: &DataType) -> Result<Column> {
    let mut parsed: Vec<Option<Value>> = Vec::with_capacity(rows);
    let mut misfits = Vec::new();
    for (row, answer) in answers.enumerate() {
        parsed.push(match answer {
            Some(Answer::Text(text)) => match json_rows::parse(&text, data_type) {
                Ok(value) => Some(value),
                Err(message) => {
                    misfits.push((row, RowError::new(RowErrorCode::InvalidOutput, message)));
                    None
                }
            },
            Some(_) => return wrong_kind(),
            None => None,
        });
    }
    let values: Vec<Option<&Value>> = parsed.iter().map(Option::as_ref).collect();
    Ok((json_rows::build(&values, data_type)?, misfits))
}

fn choices(
    answers: &mut dyn Iterator<Item = Option<Answer>>,
    rows: usize,
    labels: &[String],
    data_type: &DataType,
) -> Result<Column> {
    let mut names = StringBuilder::with_capacity(rows, rows * 8);
    let mut scores = Float64Builder::with_capacity(rows);
    let mut valid = NullBufferBuilder::new(rows);
    for answer in answers {
        let (label, score) = match answer {
            Some(Answer::Choice { index, scores }) => match (labels.get(index), scores.get(index)) {
                (Some(label), Some(score)) => (Some(label), Some(f64::from(*score))),
                // A provider that says nothing of probabilities.
                (Some(label), None) if scores.is_empty() => (Some(label), None),
                _ => return internal_err!("the engine chose a label that was not asked for"),
            },
            Some(_) => return wrong_kind(),
            None => (None, None),
        };
        names.append_option(label);
        scores.append_option(score);
        valid.append(label.is_some());
    }
    let names: ArrayRef = Arc::new(names.finish());
    match data_type {
        DataType::Struct(fields) => {
            let children: Vec<ArrayRef> = vec![names, Arc::new(scores.finish())];
            Ok((Arc::new(StructArray::try_new(fields.clone(), children, valid.finish())?), Vec::new()))
        }
        _ => Ok((names, Vec::new())),
    }
}

fn yes_or_no(answers: &mut dyn Iterator<Item = Option<Answer>>, rows: usize) -> Result<Column> {
    let mut builder = BooleanBuilder::with_capacity(rows);
    for answer in answers {
        match answer {
            Some(Answer::Choice { index, .. }) => builder.append_value(index == 0),
            Some(_) => return wrong_kind(),
            None => builder.append_null(),
        }
    }
    Ok((Arc::new(builder.finish()), Vec::new()))
}

fn vectors(answers: &mut dyn Iterator<Item = Option<Answer>>, rows: usize, data_type: &DataType) -> Result<Column> {
    let DataType::FixedSizeList(item, length) = data_type else { return wrong_kind() };
    let width = usize::try_from(*length).map_err(|error| internal_datafusion_err!("{error}"))?;
    let mut flat: Vec<f32> = Vec::with_capacity(rows * width);
    let mut valid = NullBufferBuilder::new(rows);
    for answer in answers {
        match answer {
            Some(Answer::Vector(vector)) if vector.len() == width => {
                flat.extend_from_slice(&vector);
                valid.append_non_null();
            }
            Some(Answer::Vector(vector)) => {
                return internal_err!("the engine gave {} dimensions, not {width}", vector.len());
            }
            Some(_) => return wrong_kind(),
            None => {
                flat.resize(flat.len() + width, 0.0);
                valid.append_null();
            }
        }
    }
    let list =
        FixedSizeListArray::try_new(Arc::clone(item), *length, Arc::new(Float32Array::from(flat)), valid.finish())?;
    Ok((Arc::new(list), Vec::new()))
}

/// An error column with these rows' errors.
pub(super) fn error_rows(mut errors: Vec<(usize, RowError)>, rows: usize) -> Result<ArrayRef> {
    errors.sort_by_key(|(row, _)| *row);
    note_rows(Note::Error, errors.iter().map(|(row, error)| (*row, [error.code.as_str(), &error.message])), rows)
}

/// A column of who answered, with these rows' models, in the order of the rows.
fn spill_rows(spills: Vec<(usize, Arc<str>)>, rows: usize) -> Result<ArrayRef> {
    note_rows(Note::Spill, spills.iter().map(|(row, model)| (*row, [&**model])), rows)
}

/// A call's column of notes; `notes` are in the order of the rows.
fn note_rows<'a, const FIELDS: usize>(
    note: Note,
    notes: impl Iterator<Item = (usize, [&'a str; FIELDS])>,
    rows: usize,
) -> Result<ArrayRef> {
    let mut columns: [StringBuilder; FIELDS] = std::array::from_fn(|_| StringBuilder::new());
    let mut valid = NullBufferBuilder::new(rows);
    let mut notes = notes.peekable();
    for row in 0..rows {
        let texts = notes.next_if(|(at, _)| *at == row).map(|(_, texts)| texts);
        valid.append(texts.is_some());
        for (index, column) in columns.iter_mut().enumerate() {
            column.append_option(texts.map(|texts| texts[index]));
        }
    }
    let DataType::Struct(fields) = note.call_type() else { return internal_err!("a note is a struct") };
    let children = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
    Ok(Arc::new(StructArray::try_new(fields, children, valid.finish())?))
}
