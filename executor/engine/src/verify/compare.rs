//! How far an answer is from the reference's. Pure numbers; a number that is not finite is infinitely far away.

/// Largest error of the listed logits, as a part of `range`. `listed` are the highest ones: any other that is above the
/// lowest of them counts as an error, too.
pub(super) fn listed_logits(logits: &[f32], listed: &[(u32, f32)], range: f64) -> f64 {
    let lowest = listed.iter().map(|(_, logit)| *logit).fold(f32::INFINITY, f32::min);
    let mut above = logits.to_vec();
    let mut worst = 0f64;
    for (id, logit) in listed {
        let Some(own) = above.get_mut(*id as usize) else { return f64::INFINITY };
        worst = worse(worst, f64::from(*own - *logit).abs() / range);
        *own = f32::NEG_INFINITY;
    }
    let other = above.iter().copied().filter(|logit| *logit != f32::NEG_INFINITY);
    other.fold(worst, |worst, logit| worse(worst, f64::from(logit - lowest) / range))
}

/// Largest error of a classifier's logits, as a part of `range`. Labels that only one side has are infinitely wrong.
pub(super) fn labelled_logits(own: &[(String, f32)], expected: &[(String, f32)], range: f64) -> f64 {
    if own.len() != expected.len() {
        return f64::INFINITY;
    }
    expected.iter().fold(0.0, |worst, (label, logit)| {
        let found = own.iter().find(|(name, _)| name == label);
        worse(worst, found.map_or(f64::INFINITY, |(_, own)| f64::from(own - logit).abs() / range))
    })
}

/// 1 − cosine of two vectors.
pub(super) fn distance(own: &[f32], expected: &[f32]) -> f64 {
    if own.len() != expected.len() {
        return f64::INFINITY;
    }
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = product(own, expected) / (product(own, own) * product(expected, expected)).sqrt();
    // Rounding may put it a little beyond 1.
    worse(0.0, 1.0 - cosine)
}

/// The larger of two errors; what is not a number is the worst, where `f64::max` alone would drop it.
fn worse(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_logits_are_measured_in_their_range() {
        let logits = [0.0, 3.0, 1.0, -4.0];
        assert_eq!(listed_logits(&logits, &[(1, 3.0), (2, 1.0)], 2.0), 0.0);
        assert_eq!(listed_logits(&logits, &[(1, 3.5), (2, 1.0)], 2.0), 0.25);
        assert_eq!(listed_logits(&logits, &[(1, 3.0), (0, 0.0)], 2.0), 0.5, "2 is above the lowest that is listed");
        assert_eq!(listed_logits(&logits, &[(9, 3.0)], 2.0), f64::INFINITY);
        assert_eq!(listed_logits(&[f32::NAN, 3.0, 1.0], &[(1, 3.0), (2, 1.0)], 2.0), f64::INFINITY);
        assert_eq!(listed_logits(&[0.0, f32::NAN, 1.0], &[(1, 3.0), (2, 1.0)], 2.0), f64::INFINITY);
    }

    #[test]
    fn vectors_are_compared_by_their_direction() {
        assert!(distance(&[1.0, 2.0], &[2.0, 4.0]) < 1e-12);
        assert!((distance(&[1.0, 0.0], &[0.0, 3.0]) - 1.0).abs() < 1e-12);
        assert_eq!(distance(&[1.0], &[1.0, 0.0]), f64::INFINITY);
        assert_eq!(distance(&[f32::NAN, 1.0], &[1.0, 0.0]), f64::INFINITY);
        assert_eq!(distance(&[0.0, 0.0], &[1.0, 0.0]), f64::INFINITY);
    }

    #[test]
    fn labels_are_compared_by_name() {
        let named = |pairs: [(&str, f32); 2]| pairs.map(|(name, logit)| (name.to_owned(), logit)).to_vec();
        let own = named([("bug", 1.0), ("other", -1.0)]);
        assert_eq!(labelled_logits(&own, &named([("other", -1.0), ("bug", 1.5)]), 2.0), 0.25);
        assert_eq!(labelled_logits(&own, &named([("other", -1.0), ("bill", 1.0)]), 2.0), f64::INFINITY);
        assert_eq!(labelled_logits(&own[..1], &own, 2.0), f64::INFINITY);
    }
}
