//! How much of a device's memory keys and values get.

/// Of what is free when a model's weights are loaded, the part that its keys and values get: others may be loaded after it, and
/// a step needs room to compute.
const SHARE: f64 = 0.6;

/// Pages of `page_bytes` in `free_bytes`, or in `bytes_max` if the operator has set a limit that is lower; one at least.
pub(crate) fn pages_that_fit(free_bytes: usize, page_bytes: usize, bytes_max: Option<usize>) -> usize {
    let share = (free_bytes as f64 * SHARE) as usize;
    // Kernels count a page's slots with 32 bits.
    (bytes_max.unwrap_or(share).min(share) / page_bytes.max(1)).clamp(1, 1 << 26)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_get_their_share_or_the_operators_limit() {
        assert_eq!(pages_that_fit(100 << 20, 1 << 20, None), 60);
        assert_eq!(pages_that_fit(100 << 20, 1 << 20, Some(8 << 20)), 8);
        assert_eq!(pages_that_fit(100 << 20, 1 << 20, Some(1 << 40)), 60, "no more than there is");
        assert_eq!(pages_that_fit(10, 1 << 20, None), 1, "a row may find out that it does not fit");
    }
}
