//! Rows' answers, looked up: rows with the same question share one, which an earlier window may have asked for. It asks
//! nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use arrow::array::{Array, ArrayRef, UInt32Builder, new_null_array};
use arrow::compute::{interleave, take};
use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use rowmill_jobs::infer::{RowError, RowErrorCode};

use super::answers::{Answers, error_rows};
use super::desk::{Place, VALUE_BYTES_MAX};
use crate::plan::row_notes::Note;

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

/// The answers that later windows may refer to, by window.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    windows: HashMap<u32, Answers>,
    /// Bytes of the largest answer.
    largest: usize,
}

impl Shelf {
    /// Keeps a window's answers.
    pub(super) fn keep(&mut self, window: u32, answers: Answers) {
        self.largest = self.largest.max(answers.largest);
        self.windows.insert(window, answers);
    }

    /// No answer that is kept or among `own` has more bytes.
    pub(super) fn largest(&self, own: Option<&Answers>) -> usize {
        own.map_or(0, |own| own.largest).max(self.largest)
    }

    /// Bytes of the answer at a place; `own` are the answers of `window` itself.
    pub(super) fn bytes_at(&self, place: Place, window: u32, own: Option<&Answers>) -> usize {
        let Place::At { window: at, index } = place else { return 0 };
        self.answers(at, window, own).map_or(0, |answers| answers.bytes_of(index as usize))
    }

    fn answers<'a>(&'a self, at: u32, window: u32, own: Option<&'a Answers>) -> Option<&'a Answers> {
        if at == window { own } else { self.windows.get(&at) }
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
        if let Some(own) = own
            && let Some(first) = first_of_run(places, window)
        {
            let of_run = |array: &ArrayRef| array.slice(first, rows);
            let notes = |note| Ok(own.notes(note).map_or_else(|| nothing_said(note, rows), of_run));
            return Answered::new(of_run(&own.values), notes);
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
                let answers = self.answers(*w, window, own);
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

/// Where the answers of rows stand that are those of a window in its own order: the usual case, which copies nothing.
fn first_of_run(places: &[Place], window: u32) -> Option<usize> {
    let index_of = |place: &Place| match place {
        Place::At { window: at, index } if *at == window => Some(*index as usize),
        _ => None,
    };
    let first = index_of(places.first()?)?;
    places.iter().zip(first..).all(|(place, wanted)| index_of(place) == Some(wanted)).then_some(first)
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
