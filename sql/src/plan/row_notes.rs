//! Columns that say something of a row's answers: `_errors`, a list of `{column, code, message}` for each row that has an
//! error, and `_spilled`, a list of `{column, model}` for each row with an answer of another model than the one that was
//! asked. NULL for all other rows. Built from the calls' own columns.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, NullBufferBuilder, StringArray, StringBuilder, StructArray, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

/// What a column says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Note {
    /// Why there is no answer.
    Error,
    /// Who answered in place of the model that was asked.
    Spill,
}

impl Note {
    /// Name of the output column.
    pub(crate) fn output(self) -> &'static str {
        match self {
            Note::Error => "_errors",
            Note::Spill => "_spilled",
        }
    }

    /// Whether a name is one of them.
    pub(crate) fn is_output(name: &str) -> bool {
        [Note::Error, Note::Spill].iter().any(|note| name.eq_ignore_ascii_case(note.output()))
    }

    /// Fields of a note.
    fn names(self) -> &'static [&'static str] {
        match self {
            Note::Error => &["code", "message"],
            Note::Spill => &["model"],
        }
    }

    /// Type of a call's own column: NULL where there is nothing to say.
    pub(crate) fn call_type(self) -> DataType {
        DataType::Struct(self.names().iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect())
    }

    /// The function that builds the output column.
    fn function(self) -> &'static str {
        match self {
            Note::Error => "rowmill_errors",
            Note::Spill => "rowmill_spilled",
        }
    }

    fn fields(self) -> Fields {
        let names = std::iter::once(&"column").chain(self.names());
        names.map(|name| Field::new(*name, DataType::Utf8, false)).collect()
    }

    fn output_type(self) -> DataType {
        DataType::List(Arc::new(Field::new_list_field(DataType::Struct(self.fields()), false)))
    }
}

/// The function that builds a column; its arguments are the calls' own columns.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowNotes {
    note: Note,
    /// What each argument's notes are filed under: output columns.
    labels: Vec<String>,
    signature: Signature,
}

impl RowNotes {
    /// A column of notes filed under these labels, one for each argument.
    pub(crate) fn new(note: Note, labels: Vec<String>) -> Self {
        let signature = if labels.is_empty() {
            Signature::nullary(Volatility::Immutable)
        } else {
            Signature::any(labels.len(), Volatility::Immutable)
        };
        Self { note, labels, signature }
    }
}

impl ScalarUDFImpl for RowNotes {
    fn name(&self) -> &str {
        self.note.function()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.note.output_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let data_type = self.note.output_type();
        let arrays = args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<_>>>()?;
        if arrays.iter().all(|array| array.null_count() == array.len()) {
            return Ok(ColumnarValue::Array(new_null_array(&data_type, rows)));
        }
        let notes: Vec<Notes<'_>> = arrays.iter().map(Notes::new).collect::<Result<_>>()?;
        let mut columns: Vec<StringBuilder> = self.note.fields().iter().map(|_| StringBuilder::new()).collect();
        let mut lengths = Vec::with_capacity(rows);
        let mut valid = NullBufferBuilder::new(rows);
        for row in 0..rows {
            let mut count = 0;
            for (label, note) in self.labels.iter().zip(&notes) {
                if note.whole.is_valid(row) {
                    let texts = note.texts.iter().map(|texts| texts.value(row));
                    let row = std::iter::once(label.as_str()).chain(texts);
                    columns.iter_mut().zip(row).for_each(|(column, text)| column.append_value(text));
                    count += 1;
                }
            }
            lengths.push(count);
            valid.append(count > 0);
        }
        let children = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        let items = StructArray::try_new(self.note.fields(), children, None)?;
        let DataType::List(item) = data_type else { return Err(internal_datafusion_err!("notes are a list")) };
        let list = ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(items), valid.finish())?;
        Ok(ColumnarValue::Array(Arc::new(list)))
    }
}

/// A call's notes.
struct Notes<'a> {
    whole: &'a StructArray,
    texts: Vec<&'a StringArray>,
}

impl<'a> Notes<'a> {
    fn new(array: &'a ArrayRef) -> Result<Self> {
        let whole = array.as_struct_opt().ok_or_else(|| internal_datafusion_err!("a call's notes are structs"))?;
        let text = |column: &'a ArrayRef| {
            column.as_string_opt::<i32>().ok_or_else(|| internal_datafusion_err!("a note is made of texts"))
        };
        Ok(Self { whole, texts: whole.columns().iter().map(text).collect::<Result<_>>()? })
    }
}
