//! How much of a device's memory is free, how much of it keys and values get, and how many whole rows fit what they got.

use crate::attention::BLOCK;

/// Of what is free when a model's weights are loaded, the part that its keys and values get: others may be loaded after it, and
/// a step needs room to compute.
const SHARE: f64 = 0.6;

/// Pages of `page_bytes` in `free_bytes`, or in `bytes_max` if the operator has set a limit that is lower; one at least.
pub(crate) fn pages_that_fit(free_bytes: usize, page_bytes: usize, bytes_max: Option<usize>) -> usize {
    let share = (free_bytes as f64 * SHARE) as usize;
    // Kernels count a page's slots with 32 bits.
    (bytes_max.unwrap_or(share).min(share) / page_bytes.max(1)).clamp(1, 1 << 26)
}

/// Free bytes, where the driver calls `free` what nobody has, and a pool has `reserved` of which only `used` are in use: the rest of
/// those is given to whoever asks the pool next.
pub(crate) fn free_with_pool(free: usize, reserved: usize, used: usize) -> usize {
    free.saturating_add(reserved.saturating_sub(used))
}

/// Runs of whole rows, each of which fits so many pages; a row that does not fit alone is a run of its own.
pub(crate) fn rows_that_fit<'a, 'b>(rows: &'a [&'b [u32]], pages: usize) -> impl Iterator<Item = &'a [&'b [u32]]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut taken = 0;
        let fitting = rest.iter().take_while(|row| {
            taken += row.len().div_ceil(BLOCK);
            taken <= pages
        });
        let count = fitting.count().max(1).min(rest.len());
        let (some, after) = rest.split_at(count);
        rest = after;
        (!some.is_empty()).then_some(some)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pool_keeps_unused_is_free() {
        assert_eq!(free_with_pool(100, 50, 20), 130);
        assert_eq!(free_with_pool(100, 20, 50), 100, "numbers that were read at two moments");
    }

    #[test]
    fn rows_go_in_runs_that_fit_the_pages() {
        let rows: Vec<Vec<u32>> = [32, 1, 33, 100, 5, 5].iter().map(|tokens| vec![0; *tokens]).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let lengths = |pages| -> Vec<usize> { rows_that_fit(&rows, pages).map(<[_]>::len).collect() };
        assert_eq!(lengths(100), [6]);
        assert_eq!(lengths(4), [3, 1, 2]);
        assert_eq!(lengths(2), [2, 1, 1, 2], "a row of four pages is alone");
        assert_eq!(rows_that_fit(&[], 4).count(), 0);
    }

    #[test]
    fn keys_and_values_get_their_share_or_the_operators_limit() {
        assert_eq!(pages_that_fit(100 << 20, 1 << 20, None), 60);
        assert_eq!(pages_that_fit(100 << 20, 1 << 20, Some(8 << 20)), 8);
        assert_eq!(pages_that_fit(100 << 20, 1 << 20, Some(1 << 40)), 60, "no more than there is");
        assert_eq!(pages_that_fit(10, 1 << 20, None), 1, "a row may find out that it does not fit");
    }
}
