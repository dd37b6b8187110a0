//! Outcomes of an engine as Arrow columns: answers of the call's type, errors, and who answered in another's place. It also
//! looks rows' answers up, so that rows with the same question share one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanBuilder, FixedSizeListArray, Float32Array, Float64Builder, NullBufferBuilder,
    StringBuilder, StructArray, UInt32Builder, new_null_array,
};
use arrow::compute::{interleave, take};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{DataFusionError, Result, internal_datafusion_err, internal_err};
use rowmill_jobs::infer::{Answer, Outcome, RowError, RowErrorCode, TaskKind, Usage};
use serde_json::Value;

use super::desk::{Place, VALUE_BYTES_MAX};
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
}

impl Answers {
    /// Bytes that keeping them takes.
    pub(super) fn bytes(&self) -> usize {
        let notes = self.errors.iter().chain(&self.spills);
        self.values.get_array_memory_size() + notes.map(|notes| notes.get_array_memory_size()).sum::<usize>()
    }

    /// What is to be said of them.
    fn notes(&self, note: Note) -> Option<&ArrayRef> {
        match note {
            Note::Error => self.errors.as_ref(),
            Note::Spill => self.spills.as_ref(),
        }
    }
}

/// A call's columns for the rows of a window.
#[derive(Debug)]
pub(super) struct Answered {
    /// The answers.
    pub(super) values: ArrayRef,
    /// Why there are none.
    pub(super) errors: ArrayRef,
    /// Who answered in place of the model that was asked.
    pub(super) spills: ArrayRef,
}

impl Answered {
    /// `notes` makes the columns of notes.
    fn new(values: ArrayRef, notes: impl Fn(Note) -> Result<ArrayRef>) -> Result<Self> {
        Ok(Self { values, errors: notes(Note::Error)?, spills: notes(Note::Spill)? })
    }
}

fn nothing_said(note: Note, rows: usize) -> ArrayRef {
    new_null_array(&note.call_type(), rows)
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
        (Returns::Label { with_score }, TaskKind::Choose { labels, .. }) => {
            choices(&mut answers, rows, labels, *with_score, &shape.data_type)?
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
    Ok(Answers { values, errors, spills, usage })
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
    with_score: bool,
    data_type: &DataType,
) -> Result<Column> {
    let mut names = StringBuilder::with_capacity(rows, rows * 8);
    let mut scores = Float64Builder::with_capacity(if with_score { rows } else { 0 });
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
        if with_score {
            scores.append_option(score);
            valid.append(label.is_some());
        }
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
fn error_rows(mut errors: Vec<(usize, RowError)>, rows: usize) -> Result<ArrayRef> {
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

/// The answers that later windows may refer to, by window.
#[derive(Debug, Default)]
pub(super) struct Shelf(HashMap<u32, Answers>);

impl Shelf {
    /// Keeps a window's answers.
    pub(super) fn keep(&mut self, window: u32, answers: Answers) {
        self.0.insert(window, answers);
    }

    /// The columns for rows whose answers are at `places`; `own` are the answers of `window` itself.
    pub(super) fn columns(
        &self,
        places: &[Place],
        window: u32,
        own: Option<&Answers>,
        data_type: &DataType,
    ) -> Result<Answered> {
        let rows = places.len();
        let in_order = own.is_some_and(|own| own.values.len() == rows)
            && places.iter().enumerate().all(|(row, place)| matches!(place, Place::At { window: w, index } if *w == window && *index as usize == row));
        if let Some(own) = own.filter(|_| in_order) {
            let notes = |note| Ok(own.notes(note).cloned().unwrap_or_else(|| nothing_said(note, rows)));
            return Answered::new(Arc::clone(&own.values), notes);
        }
        let local = places.iter().all(|place| match place {
            Place::At { window: w, .. } => *w == window,
            Place::Nothing => true,
            Place::TooLarge => false,
        });
        match own {
            Some(own) if local => take_own(places, own),
            None if places.iter().all(|place| *place == Place::Nothing) => {
                Answered::new(new_null_array(data_type, rows), |note| Ok(nothing_said(note, rows)))
            }
            _ => self.gather(places, window, own, data_type),
        }
    }

    fn gather(&self, places: &[Place], window: u32, own: Option<&Answers>, data_type: &DataType) -> Result<Answered> {
        // Windows that rows refer to, each once.
        let mut used: Vec<&Answers> = Vec::new();
        let mut slots: HashMap<u32, usize> = HashMap::new();
        for place in places {
            let Place::At { window: w, .. } = place else { continue };
            if let Entry::Vacant(slot) = slots.entry(*w) {
                let answers = if *w == window { own } else { self.0.get(w) };
                used.push(answers.ok_or_else(|| internal_datafusion_err!("the answers of window {w} are gone"))?);
                slot.insert(used.len() - 1);
            }
        }
        let too_large = RowError::new(RowErrorCode::TooLarge, format!("a value has more than {VALUE_BYTES_MAX} bytes"));
        let too_large = error_rows(vec![(0, too_large)], 1)?;
        // A column of these windows' arrays; rows without any get `nothing`, those with a value too large `else_at`.
        let column = |arrays: Vec<Option<&ArrayRef>>, nothing: ArrayRef, else_at: Option<&ArrayRef>| {
            let mut parts: Vec<&dyn Array> = vec![nothing.as_ref()];
            parts.extend(else_at.map(AsRef::as_ref));
            let too_large = (parts.len() - 1, 0);
            let mut part_of = Vec::with_capacity(arrays.len());
            for array in arrays {
                parts.extend(array.map(AsRef::as_ref));
                part_of.push(array.map(|_| parts.len() - 1));
            }
            let at: Vec<(usize, usize)> = places
                .iter()
                .map(|place| match place {
                    Place::Nothing => (0, 0),
                    Place::TooLarge => too_large,
                    Place::At { window, index } => {
                        let part = slots.get(window).and_then(|slot| part_of[*slot]);
                        part.map_or((0, 0), |part| (part, *index as usize))
                    }
                })
                .collect();
            if at.iter().all(|at| *at == (0, 0)) {
                return Ok(new_null_array(nothing.data_type(), places.len()));
            }
            Ok(interleave(&parts, &at)?)
        };
        let values = used.iter().map(|answers| Some(&answers.values)).collect();
        Answered::new(column(values, new_null_array(data_type, 1), None)?, |note| {
            let arrays = used.iter().map(|answers| answers.notes(note)).collect();
            column(arrays, nothing_said(note, 1), (note == Note::Error).then_some(&too_large))
        })
    }
}

fn take_own(places: &[Place], own: &Answers) -> Result<Answered> {
    let mut indices = UInt32Builder::with_capacity(places.len());
    for place in places {
        match place {
            Place::At { index, .. } => indices.append_value(*index),
            _ => indices.append_null(),
        }
    }
    let indices = indices.finish();
    let values = take(&own.values, &indices, None).map_err(DataFusionError::from)?;
    Answered::new(values, |note| match own.notes(note) {
        Some(notes) => Ok(take(notes, &indices, None)?),
        None => Ok(nothing_said(note, places.len())),
    })
}
