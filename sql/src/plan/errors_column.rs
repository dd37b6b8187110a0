//! The `_errors` column: a list of `{column, code, message}` for each row that has an error, NULL for the others. Built
//! from the error columns of all calls.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, NullBufferBuilder, StringBuilder, StructArray, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

/// The function that builds the column; its arguments are the calls' error columns.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct ErrorsColumn {
    /// What each argument's errors are filed under: output columns.
    labels: Vec<String>,
    signature: Signature,
}

impl ErrorsColumn {
    /// A column of errors filed under these labels, one for each argument.
    pub(crate) fn new(labels: Vec<String>) -> Self {
        let signature = if labels.is_empty() {
            Signature::nullary(Volatility::Immutable)
        } else {
            Signature::any(labels.len(), Volatility::Immutable)
        };
        Self { labels, signature }
    }
}

fn fields() -> Fields {
    Fields::from(vec![
        Field::new("column", DataType::Utf8, false),
        Field::new("code", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
    ])
}

/// Type of the column.
pub(crate) fn data_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Struct(fields()), false)))
}

impl ScalarUDFImpl for ErrorsColumn {
    fn name(&self) -> &str {
        "rowmill_errors"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(data_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let arrays = args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<_>>>()?;
        if arrays.iter().all(|array| array.null_count() == array.len()) {
            return Ok(ColumnarValue::Array(new_null_array(&data_type(), rows)));
        }
        let errors: Vec<ErrorArrays<'_>> = arrays.iter().map(ErrorArrays::new).collect::<Result<_>>()?;
        let (mut columns, mut codes, mut messages) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
        let mut lengths = Vec::with_capacity(rows);
        let mut valid = NullBufferBuilder::new(rows);
        for row in 0..rows {
            let mut count = 0;
            for (label, error) in self.labels.iter().zip(&errors) {
                if error.whole.is_valid(row) {
                    columns.append_value(label);
                    codes.append_value(error.code.value(row));
                    messages.append_value(error.message.value(row));
                    count += 1;
                }
            }
            lengths.push(count);
            valid.append(count > 0);
        }
        let children: Vec<ArrayRef> =
            vec![Arc::new(columns.finish()), Arc::new(codes.finish()), Arc::new(messages.finish())];
        let items = StructArray::try_new(fields(), children, None)?;
        let DataType::List(item) = data_type() else { return Err(internal_datafusion_err!("_errors is a list")) };
        let list = ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(items), valid.finish())?;
        Ok(ColumnarValue::Array(Arc::new(list)))
    }
}

struct ErrorArrays<'a> {
    whole: &'a StructArray,
    code: &'a arrow::array::StringArray,
    message: &'a arrow::array::StringArray,
}

impl<'a> ErrorArrays<'a> {
    fn new(array: &'a ArrayRef) -> Result<Self> {
        let whole = array.as_struct_opt().ok_or_else(|| internal_datafusion_err!("an error column is a struct"))?;
        let text = |index: usize| {
            whole
                .column(index)
                .as_string_opt::<i32>()
                .ok_or_else(|| internal_datafusion_err!("an error has a code and a message"))
        };
        Ok(Self { whole, code: text(0)?, message: text(1)? })
    }
}
