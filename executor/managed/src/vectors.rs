//! Vectors as the task wants them: of length 1; and the tokens of a call shared among its rows. Pure.

/// The vector at Euclidean length 1; `None` where it has none, or a number that is not finite.
pub(crate) fn normalised(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length <= 0.0 {
        return None;
    }
    for x in &mut vector {
        *x = (f64::from(*x) / length) as f32;
    }
    Some(vector)
}

/// A total shared in proportion to lengths, in whole numbers that sum to it.
pub(crate) fn shares(total: u64, lengths: &[usize]) -> Vec<u64> {
    let sum = lengths.iter().sum::<usize>().max(1) as u128;
    let (mut before, mut given) = (0u128, 0u64);
    lengths
        .iter()
        .map(|length| {
            before += *length as u128;
            let until = (u128::from(total) * before / sum) as u64;
            let share = until - given;
            given = until;
            share
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_get_length_one_or_are_none() {
        assert_eq!(normalised(vec![3.0, 4.0]).unwrap(), [0.6, 0.8]);
        let tiny = normalised(vec![1e-30, 0.0]).unwrap();
        assert!((tiny[0] - 1.0).abs() < 1e-6);
        assert_eq!(normalised(vec![0.0, 0.0]), None);
        assert_eq!(normalised(vec![f32::NAN, 1.0]), None);
        assert_eq!(normalised(Vec::new()), None);
    }

    #[test]
    fn shares_sum_to_the_total() {
        assert_eq!(shares(10, &[1, 1, 2]), [2, 3, 5]);
        assert_eq!(shares(7, &[3, 3, 3]).iter().sum::<u64>(), 7);
        assert_eq!(shares(7, &[]), Vec::<u64>::new());
    }
}
