//! Matrices that stay on a device as GGUF stores them: which types candle's kernels multiply, what those kernels want behind a
//! matrix, and how much room a product takes beside it. There are two kinds of kernels. Those for vectors take a few rows and read
//! each block once for all of them; those for tiles take any number, on tensor cores. Both multiply integers: the other side is
//! brought to 8 bits first, block by block. Computes nothing.

use candle_core::quantized::GgmlDType;

/// Rows that the kernels for vectors take.
const VECTOR_ROWS: usize = 8;
/// Rows that are multiplied at a time: enough to fill a GPU, few enough that the room for them stays small.
const ROWS: usize = 1024;
/// Columns are filled up with zeros to a multiple of this, on both sides.
const COLUMNS: usize = 512;
/// A side of the largest tile.
const TILE: usize = 128;
/// Numbers of a block of the other side for vectors, and its bytes: scale, sum and numbers.
const VECTOR_BLOCK: (usize, usize) = (32, 36);
/// The same for tiles: four such blocks together, their scales and sums first.
const TILE_BLOCK: (usize, usize) = (128, 144);

/// What stands beside the other side's numbers in the blocks for tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// A scale of each 32 numbers.
    Plain,
    /// And their sum, for types with a smallest value.
    Sums,
    /// A scale of each 64 numbers, and sums of each 16.
    FineSums,
}

/// What the kernels for tiles want to know of the other side of a type's products; `None` where candle has no kernels for it.
pub(crate) fn scales(dtype: GgmlDType) -> Option<Scales> {
    match dtype {
        GgmlDType::Q5_0 | GgmlDType::Q8_0 | GgmlDType::Q3K | GgmlDType::Q6K => Some(Scales::Plain),
        GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => Some(Scales::Sums),
        GgmlDType::Q2K => Some(Scales::FineSums),
        _ => None,
    }
}

/// Whether a device multiplies a matrix of this type as it is stored; what it does not is rounded to `bf16`.
pub(crate) fn is_carried(dtype: GgmlDType) -> bool {
    scales(dtype).is_some()
}

/// Which of several matrices below each other are multiplied together: runs of one type, with their lengths.
pub(crate) fn runs(dtypes: &[GgmlDType]) -> Vec<(GgmlDType, usize)> {
    dtypes.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
}

/// Zero bytes behind a matrix with so many columns. Kernels for tiles read the last row as if its columns were filled up; those
/// for vectors take two rows of the matrix at a time, so behind an odd number of rows they read one more.
pub(crate) fn padding(dtype: GgmlDType, columns: usize) -> usize {
    row_bytes(dtype, COLUMNS).max(row_bytes(dtype, columns))
}

/// Columns of the other side, filled up.
pub(crate) fn columns_padded(columns: usize) -> usize {
    columns.next_multiple_of(COLUMNS)
}

/// Bytes from row to row of a stored matrix.
pub(crate) fn row_bytes(dtype: GgmlDType, columns: usize) -> usize {
    columns / dtype.block_size() * dtype.type_size()
}

/// Which kernels take so many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Vectors,
    Tiles,
}

impl Way {
    pub(crate) fn of(rows: usize) -> Self {
        if rows <= VECTOR_ROWS { Self::Vectors } else { Self::Tiles }
    }
}

/// Runs of rows that are multiplied at a time: the first one's place and how many.
pub(crate) fn steps(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(ROWS).map(move |first| (first, ROWS.min(rows - first)))
}

/// The room that products take beside their matrices and their results, taken once for all of a model.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// The most columns of any matrix.
    inputs: usize,
    /// The most rows of any matrix whose product does not go straight to where it is wanted.
    outputs: usize,
}

impl Room {
    /// Makes it large enough for a matrix, whose product goes through it if `outputs` are not 0.
    pub(crate) fn widen(&mut self, inputs: usize, outputs: usize) {
        (self.inputs, self.outputs) = (self.inputs.max(inputs), self.outputs.max(outputs));
    }

    /// Whether there is anything to make room for.
    pub(crate) fn is_needed(&self) -> bool {
        self.inputs > 0
    }

    /// `f32` of the other side, before it is brought to 8 bits.
    pub(crate) fn floats(&self) -> usize {
        ROWS * self.inputs
    }

    /// Bytes of the other side in 8 bits. Tiles are read whole, so one may end behind the last row.
    pub(crate) fn bytes(&self) -> usize {
        let columns = columns_padded(self.inputs);
        let vectors = VECTOR_ROWS * columns / VECTOR_BLOCK.0 * VECTOR_BLOCK.1;
        let tiles = (ROWS * columns / TILE_BLOCK.0 + TILE) * TILE_BLOCK.1;
        vectors.max(tiles)
    }

    /// `f32` of products on their way.
    pub(crate) fn products(&self) -> usize {
        ROWS * self.outputs
    }

    /// `f32` of tiles that two multiprocessors share: each leaves one at most to the next.
    pub(crate) fn shared_tiles(multiprocessors: usize) -> usize {
        multiprocessors * TILE * TILE
    }
}

/// Blocks of a vector, counted as the kernels for vectors do.
pub(crate) fn vector_blocks(columns: usize) -> usize {
    columns_padded(columns) / VECTOR_BLOCK.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    use super::*;

    const CARRIED: [GgmlDType; 10] = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    #[test]
    fn rows_and_padding_are_counted_as_candle_lays_blocks_out() {
        for dtype in CARRIED {
            assert!(is_carried(dtype));
            let columns = 2 * dtype.block_size();
            let tensor =
                QTensor::quantize(&Tensor::ones((3, columns), candle_core::DType::F32, &Device::Cpu).unwrap(), dtype);
            assert_eq!(tensor.unwrap().data().unwrap().len(), 3 * row_bytes(dtype, columns), "{dtype:?}");
            assert_eq!(padding(dtype, columns), row_bytes(dtype, 512), "{dtype:?}: as many bytes as 512 columns take");
            assert_eq!(padding(dtype, 4096), row_bytes(dtype, 4096), "{dtype:?}: and as another row of the matrix");
            assert!(row_bytes(dtype, dtype.block_size()).is_multiple_of(2), "{dtype:?}: rows are copied in halves");
        }
        for dtype in [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16, GgmlDType::Q8_1, GgmlDType::Q8K] {
            assert!(!is_carried(dtype), "{dtype:?}");
        }
    }

    #[test]
    fn blocks_of_the_other_side_are_those_of_candle() {
        assert_eq!(VECTOR_BLOCK, (GgmlDType::Q8_1.block_size(), GgmlDType::Q8_1.type_size()));
        assert_eq!(TILE_BLOCK, (4 * VECTOR_BLOCK.0, 4 * VECTOR_BLOCK.1));
    }

    #[test]
    fn matrices_of_one_type_are_multiplied_together() {
        use GgmlDType::{Q4K, Q6K};
        assert_eq!(runs(&[Q4K, Q4K, Q4K]), [(Q4K, 3)]);
        assert_eq!(runs(&[Q4K, Q4K, Q6K]), [(Q4K, 2), (Q6K, 1)]);
        assert_eq!(runs(&[Q4K, Q6K, Q4K]), [(Q4K, 1), (Q6K, 1), (Q4K, 1)]);
    }

    #[test]
    fn few_rows_are_vectors_and_many_go_in_steps() {
        assert_eq!([1, 8, 9, 8192].map(Way::of), [Way::Vectors, Way::Vectors, Way::Tiles, Way::Tiles]);
        assert_eq!(steps(0).count(), 0);
        assert_eq!(steps(7).collect::<Vec<_>>(), [(0, 7)]);
        assert_eq!(steps(2050).collect::<Vec<_>>(), [(0, 1024), (1024, 1024), (2048, 2)]);
    }

    #[test]
    fn room_is_that_of_the_widest_matrices() {
        let mut room = Room::default();
        assert!(!room.is_needed());
        room.widen(896, 4864);
        room.widen(4864, 0);
        assert!(room.is_needed());
        assert_eq!((room.floats(), room.products()), (1024 * 4864, 1024 * 4864));
        // 4864 columns are filled up to 5120: 40 blocks of 144 bytes a row, and a tile's 128 behind the last.
        assert_eq!(room.bytes(), (1024 * 40 + 128) * 144);
        assert_eq!((columns_padded(896), vector_blocks(896)), (1024, 32));
        assert_eq!(Room::shared_tiles(132), 132 * 16384);
    }
}
