//! `InferExec`: rows in, the same rows with answers out, in the same order. Windows of requests are prepared while the
//! engine works on earlier ones. It knows no model and no file.

mod answers;
mod desk;
mod emitter;
pub(crate) mod infer_exec;
mod json_rows;
mod observer;
mod shelf;
mod window;

pub(crate) use observer::Totals;
pub use observer::{Observer, Progress};

/// The column type of an answer; `None` for vectors whose length is not known.
pub(crate) fn shape_of(
    returns: &crate::functions::Returns,
    dimensions: Option<u32>,
) -> Option<arrow::datatypes::DataType> {
    answers::Shape::data_type_of(returns, dimensions)
}
