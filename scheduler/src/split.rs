//! Cuts a table along its row groups, from footers alone: into shards, or into bites for whoever wants a few rows only.
//! Pure: the same footers give the same cuts.

use rowmill_jobs::plan::{InputFile, Shard, Slice};
use rowmill_jobs::{Error, Result};

/// How large a shard may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSize {
    /// Most input rows.
    pub rows_max: u64,
    /// Most uncompressed input bytes, as far as row groups can be cut evenly.
    pub bytes_max: u64,
}

/// Uncompressed input bytes of a shard: keeps parts well below the 256 MiB that one PUT carries, unless the model writes
/// far more than it reads.
const BYTES_MAX: u64 = 128 << 20;

/// Most shards of a run: a plan names each of them.
pub const SHARDS_MAX: usize = 1_000_000;

impl ShardSize {
    /// A few minutes of work: `rows` is the job's own wish, else what the kinds of calls suggest.
    pub fn new(rows: u64) -> Self {
        Self { rows_max: rows.max(1), bytes_max: BYTES_MAX }
    }
}

/// Cuts files into shards. Row groups are kept whole where they fit; a larger one is cut into equal runs of rows. Every
/// row is in exactly one shard, in the order of the files; a table without rows gives one empty shard, so that its
/// output still has a file with a schema.
///
/// # Errors
/// There would be more than [`SHARDS_MAX`]: names the file where they end.
pub fn split(files: &[InputFile], size: ShardSize) -> Result<Vec<Shard>> {
    let mut shards: Vec<Vec<Slice>> = vec![Vec::new()];
    let (mut rows, mut bytes) = (0, 0);
    for (file, row_group, group) in row_groups(files) {
        let pieces = group.rows.div_ceil(size.rows_max).max(group.bytes.div_ceil(size.bytes_max)).clamp(1, group.rows);
        for piece in 0..pieces {
            let first_row = start(group.rows, piece, pieces);
            let piece_rows = start(group.rows, piece + 1, pieces) - first_row;
            let piece_bytes = group.bytes / pieces;
            let fits =
                piece_rows.saturating_add(rows) <= size.rows_max && piece_bytes.saturating_add(bytes) <= size.bytes_max;
            if rows > 0 && !fits {
                if shards.len() == SHARDS_MAX {
                    return Err(too_many(&files[file as usize]));
                }
                shards.push(Vec::new());
                (rows, bytes) = (0, 0);
            }
            if let Some(shard) = shards.last_mut() {
                shard.push(Slice { file, row_group, first_row, rows: piece_rows });
            }
            rows = piece_rows.saturating_add(rows);
            bytes = piece_bytes.saturating_add(bytes);
        }
    }
    Ok((0..).zip(shards).map(|(index, slices)| Shard { index, slices }).collect())
}

/// First row of a piece of `rows` rows in `pieces`: multiplying before dividing spreads the remainder, so that pieces
/// differ by one row at most.
fn start(rows: u64, piece: u64, pieces: u64) -> u64 {
    let exact = u128::from(rows) * u128::from(piece) / u128::from(pieces);
    // No piece starts behind the last row.
    u64::try_from(exact).unwrap_or(rows)
}

fn too_many(file: &InputFile) -> Error {
    Error::invalid(format!("the table would be cut into more than {SHARDS_MAX} shards"))
        .with("file", &file.url)
        .hint("raise shard_rows in CREATE JOB, or name fewer files; does the file's footer say how many rows it has?")
}

/// The table in bites that grow: the first has as many rows as are wanted, each further one twice its predecessor's. They
/// are cut when they are asked for; nobody knows how large the table is, and mostly the first ones are enough.
pub fn bites(files: &[InputFile], rows: u64) -> impl Iterator<Item = Vec<Slice>> {
    let mut groups =
        row_groups(files).map(|(file, row_group, group)| Slice { file, row_group, first_row: 0, rows: group.rows });
    let mut left: Option<Slice> = None;
    let mut size = rows;
    std::iter::from_fn(move || {
        let (mut bite, mut missing) = (Vec::new(), size);
        while missing > 0
            && let Some(group) = left.take().or_else(|| groups.next())
        {
            let taken = group.rows.min(missing);
            missing -= taken;
            if taken < group.rows {
                left = Some(Slice { first_row: group.first_row + taken, rows: group.rows - taken, ..group });
            }
            bite.push(Slice { rows: taken, ..group });
        }
        size = size.saturating_mul(2);
        (!bite.is_empty()).then_some(bite)
    })
}

/// Row groups that have rows, with the indices of their file and of themselves.
fn row_groups(files: &[InputFile]) -> impl Iterator<Item = (u32, u32, rowmill_jobs::plan::RowGroup)> {
    (0..).zip(files).flat_map(|(file, input)| {
        (0..)
            .zip(&input.row_groups)
            .filter(|(_, group)| group.rows > 0)
            .map(move |(index, group)| (file, index, *group))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowmill_jobs::Kind;
    use rowmill_jobs::plan::RowGroup;

    fn file(row_groups: &[(u64, u64)]) -> InputFile {
        InputFile {
            url: "file:///t.parquet".into(),
            bytes: 1,
            etag: None,
            modified: String::new(),
            partition_values: Vec::new(),
            row_groups: row_groups.iter().map(|&(rows, bytes)| RowGroup { rows, bytes }).collect(),
        }
    }

    fn size(rows_max: u64, bytes_max: u64) -> ShardSize {
        ShardSize { rows_max, bytes_max }
    }

    /// Every row of every row group once, in order, whatever the sizes are.
    #[test]
    fn every_row_is_in_exactly_one_shard() {
        let files = [file(&[(7, 70), (0, 0), (1000, 9), (3, 900_000)]), file(&[]), file(&[(1, 1), (64, 64)])];
        for rows_max in [1, 2, 3, 10, 64, 999, 1000, 10_000] {
            for bytes_max in [1, 100, 1 << 40] {
                let shards = split(&files, size(rows_max, bytes_max)).unwrap();
                let mut expected = row_groups(&files).map(|(file, group, footer)| (file, group, 0, footer.rows));
                let mut current = expected.next();
                for (index, shard) in shards.iter().enumerate() {
                    assert_eq!(shard.index as usize, index);
                    assert!(shard.rows() <= rows_max, "{rows_max} {shard:?}");
                    for slice in &shard.slices {
                        let (file, group, next, rows) = current.unwrap();
                        assert_eq!((slice.file, slice.row_group, slice.first_row), (file, group, next));
                        assert!(slice.rows > 0);
                        let next = next + slice.rows;
                        current = if next == rows { expected.next() } else { Some((file, group, next, rows)) };
                    }
                }
                assert_eq!(current, None);
            }
        }
    }

    #[test]
    fn whole_row_groups_stay_together_and_large_ones_are_cut_evenly() {
        let shards = split(&[file(&[(40, 1), (40, 1), (40, 1), (250, 1)])], size(100, 1 << 30)).unwrap();
        let rows: Vec<u64> = shards.iter().map(Shard::rows).collect();
        assert_eq!(rows, [80, 40, 83, 83, 84]);
    }

    #[test]
    fn an_empty_table_is_one_empty_shard() {
        assert_eq!(split(&[], size(10, 10)).unwrap(), [Shard { index: 0, slices: Vec::new() }]);
    }

    /// Whatever a footer says: counting neither overflows nor takes the memory for it.
    #[test]
    fn a_table_that_cannot_be_is_refused() {
        for group in [(1 << 62, 1), (u64::MAX, u64::MAX), (1 << 40, u64::MAX)] {
            let files = [file(&[(3, 1)]), InputFile { url: "file:///forged.parquet".into(), ..file(&[group, group]) }];
            let error = split(&files, size(1000, 1 << 27)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.report().contains("file:///forged.parquet"), "{}", error.report());
        }
        let whole = split(&[file(&[(u64::MAX / 2, u64::MAX), (1, u64::MAX)])], size(u64::MAX, u64::MAX)).unwrap();
        assert_eq!(whole.iter().map(Shard::rows).collect::<Vec<_>>(), [1 << 63]);
        let cut = split(&[file(&[(u64::MAX, 1)])], size(u64::MAX / 4, u64::MAX)).unwrap();
        assert_eq!(cut.iter().map(Shard::rows).sum::<u64>(), u64::MAX);
        let most = u64::try_from(SHARDS_MAX).unwrap();
        assert_eq!(split(&[file(&[(most, 1)])], size(1, 1)).unwrap().len(), SHARDS_MAX);
        assert!(split(&[file(&[(most + 1, 1)])], size(1, 1)).is_err());
    }

    #[test]
    fn bites_are_cut_from_a_huge_table_as_they_are_asked_for() {
        let files = [file(&[(0, 1), (4, 1)]), file(&[]), file(&[(1_000_000_000_000, 1)])];
        let cut: Vec<Vec<(u32, u32, u64, u64)>> = bites(&files, 10)
            .take(3)
            .map(|bite| bite.iter().map(|s| (s.file, s.row_group, s.first_row, s.rows)).collect())
            .collect();
        assert_eq!(cut, [vec![(0, 1, 0, 4), (2, 0, 0, 6)], vec![(2, 0, 6, 20)], vec![(2, 0, 26, 40)]]);
    }

    #[test]
    fn every_row_is_in_one_bite_and_an_empty_table_has_none() {
        let files = [file(&[(7, 1), (0, 1), (64, 1)]), file(&[]), file(&[(1, 1), (9, 1)])];
        for rows in [1, 2, 10, 1000] {
            let mut next: Vec<(u32, u32, u64)> = Vec::new();
            for slice in bites(&files, rows).flatten() {
                assert!(slice.rows > 0);
                next.extend(
                    (slice.first_row..slice.first_row + slice.rows).map(|row| (slice.file, slice.row_group, row)),
                );
            }
            let all = [(0, 0, 7), (0, 2, 64), (2, 0, 1), (2, 1, 9)];
            let all: Vec<_> =
                all.iter().flat_map(|&(file, group, rows)| (0..rows).map(move |row| (file, group, row))).collect();
            assert_eq!(next, all);
        }
        assert_eq!(bites(&[file(&[(0, 1)]), file(&[])], 10).count(), 0);
    }
}
