//! Reads a decoder's tensors by the names of its family, or only checks that they are there with the shapes the
//! architecture asks for: loading and checking are the same walk. Puts rows into the order the decoder computes in.

use crate::linear::Precision;
use candle_core::quantized::QTensor;
use rowmill_jobs::Result;

use super::names::Names;
use crate::linear::{Linear, from_bytes, internal};
use crate::weights::Weights;

/// A decoder's tensors.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'a> {
    weights: &'a Weights,
    root: &'static str,
    /// The number type of matrices; `None` only checks, and everything that is read is empty.
    reading: Option<Precision>,
}

/// A matrix to be stacked on others.
pub(crate) struct Piece {
    /// Module name without `.weight` or `.bias`.
    pub(crate) module: String,
    /// Rows of the stored tensor.
    pub(crate) stored: usize,
    /// Which of them, in which order; all as they are if not said.
    pub(crate) rows: Option<Vec<usize>>,
    /// Whether there is a bias.
    pub(crate) bias: Bias,
}

/// Whether a module has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    No,
    Yes,
}

impl Piece {
    /// A matrix taken as it is.
    pub(crate) fn whole(module: String, rows: usize, bias: Bias) -> Self {
        Self { module, stored: rows, rows: None, bias }
    }

    /// Its rows (each `width` long) in their order.
    fn arranged<T: Copy>(&self, values: Vec<T>, width: usize) -> Vec<T> {
        match &self.rows {
            None => values,
            Some(rows) => rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect(),
        }
    }

    fn count(&self) -> usize {
        self.rows.as_ref().map_or(self.stored, Vec::len)
    }
}

impl<'a> Tensors<'a> {
    /// Finds the root of the family's names.
    pub(crate) fn new(weights: &'a Weights, names: &Names, reading: Option<Precision>) -> Self {
        let fits = |root: &&&str| weights.has(&format!("{root}{}.weight", names.embedding));
        let root = names.roots.iter().find(fits).or(names.roots.first()).copied().unwrap_or_default();
        Self { weights, root, reading }
    }

    /// The stored name of a module under the root.
    pub(crate) fn name(&self, module: &str) -> String {
        format!("{}{module}", self.root)
    }

    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.weights.has(tensor)
    }

    /// A tensor's values by its whole name.
    pub(crate) fn values(&self, tensor: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match self.reading {
            Some(_) => self.weights.read(tensor, shape),
            None => self.weights.check(tensor, shape).map(|()| Vec::new()),
        }
    }

    /// Matrices of `columns` columns below each other, with their biases.
    pub(crate) fn stack(&self, pieces: &[Piece], columns: usize) -> Result<Linear> {
        for piece in pieces {
            self.weights.check(&format!("{}.weight", piece.module), &[piece.stored, columns])?;
        }
        let mut bias = Vec::new();
        for piece in pieces.iter().filter(|_| pieces.iter().any(|piece| piece.bias == Bias::Yes)) {
            match piece.bias {
                Bias::No => bias.resize(bias.len() + piece.count(), 0.0),
                Bias::Yes => {
                    let values = self.values(&format!("{}.bias", piece.module), &[piece.stored])?;
                    bias.extend(if values.is_empty() { values } else { piece.arranged(values, 1) });
                }
            }
        }
        let Some(dtype) = self.reading else { return Ok(Linear::of(Vec::new(), columns, None)) };
        let bias = Some(bias).filter(|bias| !bias.is_empty());
        if let Some(tensors) = self.quantised(pieces, columns)? {
            return Linear::quantised(tensors, columns, bias, dtype);
        }
        let names: Vec<String> = pieces.iter().map(|piece| format!("{}.weight", piece.module)).collect();
        let mut matrix = Vec::with_capacity(pieces.iter().map(Piece::count).sum::<usize>() * columns);
        for (name, piece) in names.iter().zip(pieces) {
            matrix.extend(piece.arranged(self.weights.read(name, &[piece.stored, columns])?, columns));
        }
        Linear::new(matrix, columns, bias, self.weights.precision(dtype, names.iter().map(String::as_str)))
    }

    /// The matrices as they are quantised, or `None` if one of them is not to stay so.
    fn quantised(&self, pieces: &[Piece], columns: usize) -> Result<Option<Vec<QTensor>>> {
        let mut matrices = Vec::new();
        for piece in pieces {
            let Some(tensor) = self.weights.quantised(&format!("{}.weight", piece.module))? else { return Ok(None) };
            let tensor = match &piece.rows {
                None => tensor,
                Some(rows) => {
                    // A quantised row is a run of bytes of its own, so rows can be put in order without being read.
                    let bytes = tensor.data().map_err(internal)?.into_owned();
                    let width = bytes.len() / piece.stored;
                    from_bytes(piece.arranged(bytes, width), tensor.dtype(), rows.len(), columns)?
                }
            };
            matrices.push(tensor);
        }
        Ok(Some(matrices))
    }

    /// Matrices of several experts: tensors `[count, rows, columns]` (whole names), of each the expert's slab, stacked.
    pub(crate) fn slabs(&self, tensors: &[(String, usize)], count: usize, columns: usize) -> Result<Vec<Linear>> {
        for (tensor, rows) in tensors {
            self.weights.check(tensor, &[count, *rows, columns])?;
        }
        let Some(dtype) = self.reading else {
            return Ok((0..count).map(|_| Linear::of(Vec::new(), columns, None)).collect());
        };
        let stored =
            tensors.iter().map(|(tensor, _)| self.weights.quantised(tensor)).collect::<Result<Option<Vec<_>>>>();
        if let Some(stored) = stored? {
            return (0..count)
                .map(|expert| quantised_slabs(&stored, tensors, expert, [count, columns], dtype))
                .collect();
        }
        let mut matrices = vec![Vec::new(); count];
        for (tensor, rows) in tensors {
            let values = self.weights.read(tensor, &[count, *rows, columns])?;
            for (matrix, slab) in matrices.iter_mut().zip(values.chunks_exact(rows * columns)) {
                matrix.extend_from_slice(slab);
            }
        }
        let dtype = self.weights.precision(dtype, tensors.iter().map(|(tensor, _)| tensor.as_str()));
        matrices.into_iter().map(|matrix| Linear::new(matrix, columns, None, dtype)).collect()
    }
}

fn quantised_slabs(
    stored: &[QTensor],
    tensors: &[(String, usize)],
    expert: usize,
    [count, columns]: [usize; 2],
    dtype: Precision,
) -> Result<Linear> {
    let mut matrices = Vec::new();
    for (tensor, (_, rows)) in stored.iter().zip(tensors) {
        let bytes = tensor.data().map_err(internal)?;
        let width = bytes.len() / count;
        let slab = bytes[expert * width..(expert + 1) * width].to_vec();
        matrices.push(from_bytes(slab, tensor.dtype(), *rows, columns)?);
    }
    Linear::quantised(matrices, columns, None, dtype)
}
