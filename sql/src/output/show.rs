//! Rows as a table of text, for `preview`. Vectors and long texts are shortened: people look, they do not parse.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float32Type, Schema};
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use std::sync::Arc;

/// Characters of a text that are shown.
const TEXT_SHOWN: usize = 60;
/// Numbers of a vector that are shown.
const VECTOR_SHOWN: i32 = 3;

/// Formats batches of one schema.
pub fn format_rows(batches: &[RecordBatch]) -> String {
    let shown: Vec<RecordBatch> = batches.iter().filter_map(shorten).collect();
    let options = FormatOptions::default().with_null("NULL").with_display_error(true);
    match pretty_format_batches_with_options(&shown, &options) {
        Ok(table) => table.to_string(),
        Err(error) => format!("(these rows cannot be shown: {error})"),
    }
}

fn shorten(batch: &RecordBatch) -> Option<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let column: ArrayRef = match column.data_type() {
            DataType::Utf8 => {
                Arc::new(column.as_string::<i32>().iter().map(|text| text.map(short)).collect::<StringArray>())
            }
            DataType::FixedSizeList(item, _) if item.data_type() == &DataType::Float32 => {
                let lists = column.as_fixed_size_list();
                Arc::new(
                    (0..lists.len())
                        .map(|row| lists.is_valid(row).then(|| vector(&lists.value(row))))
                        .collect::<StringArray>(),
                )
            }
            _ => Arc::clone(column),
        };
        fields.push(Field::new(field.name(), column.data_type().clone(), true));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).ok()
}

fn short(text: &str) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_SHOWN + 1).collect();
    if flat.chars().count() > TEXT_SHOWN { flat.chars().take(TEXT_SHOWN - 1).chain(['…']).collect() } else { flat }
}

fn vector(values: &ArrayRef) -> String {
    let numbers = values.as_primitive::<Float32Type>();
    let first: Vec<String> =
        numbers.iter().flatten().take(VECTOR_SHOWN as usize).map(|number| format!("{number:.3}")).collect();
    format!("[{}, … {} numbers]", first.join(", "), numbers.len())
}
