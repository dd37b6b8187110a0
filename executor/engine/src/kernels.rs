//! Arithmetic on slices of `f32`, written so that the compiler vectorises it: norms, activations, softmax weights and a
//! small product. Every public function runs with the widest instructions this processor has. Allocates nothing.

use pulp::Arch;
use rayon::prelude::*;

/// Runs `f` compiled for this processor's vector instructions. `f` itself and what it calls must be `#[inline(always)]`:
/// what is not inlined is compiled for the oldest processor, where a fused multiply-add is a slow library call.
#[inline]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

const LANES: usize = 16;

/// Tokens that one parallel task takes of an element-wise pass.
const TOKENS: usize = 16;

/// Runs `f(token, row)` for every row of `out` (`[tokens, width]`), in parallel, vectorised. `f` must be
/// `#[inline(always)]`, as for [`simd`].
pub(crate) fn for_tokens(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    out.par_chunks_mut(width * TOKENS).enumerate().for_each(|(chunk, rows)| {
        simd(
            #[inline(always)]
            || {
                for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                    f(chunk * TOKENS + i, row);
                }
            },
        );
    });
}

/// e^x to about 1e-7 relative (Cephes' polynomial); NaN stays NaN, the ends are clamped to the range of `f32`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    let rounded = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = rounded - 12_582_912.0;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 5.0e-1);
    let p = p.mul_add(r * r, r) + 1.0;
    p * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// Beyond it the error function is 1 to 1.2e-7.
const ERF_END: f32 = 3.75;

/// erf(x) / x as a polynomial of `2 * (x / ERF_END)^2 - 1`, the highest power first: a fit at Chebyshev points, weighted until
/// the error of erf(x) is even, 1.8e-7 absolute.
const ERF: [f32; 15] = [
    8.110_027e-4,
    -2.184_137_3e-3,
    2.083_669e-3,
    -3.109_800_6e-3,
    8.913_289e-3,
    -1.662_189_2e-2,
    2.504_674e-2,
    -3.736_949_4e-2,
    5.360_081_3e-2,
    -7.160_009e-2,
    9.074_154_4e-2,
    -1.119_406_6e-1,
    1.392_687_5e-1,
    -1.880_300_3e-1,
    3.770_569_3e-1,
];

/// The error function, to 2e-7 absolute. It divides by nothing: a division takes as long as the whole polynomial.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let u = (x * x).mul_add(2.0 / (ERF_END * ERF_END), -1.0);
    let mut p = 0f32;
    for coefficient in ERF {
        p = p.mul_add(u, coefficient);
    }
    if x.abs() < ERF_END { p * x } else { 1f32.copysign(x) }
}

/// GELU with the error function.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// GELU with the tanh approximation: x * sigmoid(2u) is x/2 * (1 + tanh u).
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6 * (0.044_715 * x * x).mul_add(x, x);
    x / (1.0 + exp(-2.0 * u))
}

/// The hyperbolic tangent, to about 1e-7 absolute.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// x * sigmoid(x).
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            lanes[j] += f(chunk[j]);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}

/// RMS norm of one token: `x`, `weight` and `out` are `[size]`.
#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = rms_scale(x, epsilon);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// RMS norm of one head, in place.
#[inline(always)]
pub(crate) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let scale = rms_scale(x, epsilon);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * scale * weight;
    }
}

#[inline(always)]
fn rms_scale(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_of(
        x,
        #[inline(always)]
        |x| x * x,
    ) / x.len() as f32
        + epsilon)
        .sqrt()
}

/// Layer norm of one token, in place: `x`, `weight` and `bias` are `[size]`.
#[inline(always)]
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let mean = sum_of(
        x,
        #[inline(always)]
        |x| x,
    ) / x.len() as f32;
    let variance = sum_of(
        x,
        #[inline(always)]
        |x| (x - mean) * (x - mean),
    ) / x.len() as f32;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * weight + bias;
    }
}

/// x += y, element by element.
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Divides a vector by its Euclidean length. Returns whether the result is finite.
#[inline(always)]
pub(crate) fn normalise(x: &mut [f32]) -> bool {
    let length = sum_of(
        x,
        #[inline(always)]
        |x| x * x,
    )
    .sqrt();
    for x in x.iter_mut() {
        *x /= length;
    }
    x.iter().all(|x| x.is_finite())
}

/// The product of `M` rows and a matrix's `N` columns: `c[i][j] = sum over k of a[i][k] * b[k * stride + j]`, `k < depth`.
#[inline(always)]
pub(crate) fn tile<const M: usize, const N: usize>(
    a: [&[f32]; M],
    b: &[f32],
    stride: usize,
    depth: usize,
) -> [[f32; N]; M] {
    let mut c = [[0f32; N]; M];
    let a: [&[f32]; M] = a.map(|row| &row[..depth]);
    for (k, row) in b.chunks(stride).take(depth).enumerate() {
        let Some(row) = row.first_chunk::<N>() else { break };
        for i in 0..M {
            let x = a[i][k];
            for j in 0..N {
                c[i][j] = x.mul_add(row[j], c[i][j]);
            }
        }
    }
    c
}

/// Turns scores into softmax weights, in place; returns nothing else, the weights sum to 1.
#[inline(always)]
pub(crate) fn softmax(scores: &mut [f32]) {
    let scale = 1.0 / exponentials(scores, 1.0);
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

/// Turns scores, times `scale`, which is positive, into softmax weights of which the largest is 1, in place. Returns their sum.
#[inline(always)]
pub(crate) fn exponentials(scores: &mut [f32], scale: f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            lanes[j] = if chunk[j] > lanes[j] { chunk[j] } else { lanes[j] };
        }
    }
    let top = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |top, x| if *x > top { *x } else { top });
    let mut sums = [0f32; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            chunk[j] = exp((chunk[j] - top) * scale);
            sums[j] += chunk[j];
        }
    }
    let mut sum = sums.iter().sum::<f32>();
    for x in rest {
        *x = exp((*x - top) * scale);
        sum += *x;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for i in -870..=880 {
            let x = i as f32 / 10.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 3e-6, "exp({x}) = {}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1000.0) < 1e-37);
    }

    #[test]
    fn erf_is_the_integral() {
        let (steps, mut integral) = (100_000, 0f64);
        let density = |t: f64| 2.0 / std::f64::consts::PI.sqrt() * (-t * t).exp();
        for step in 0..steps {
            // Simpson's rule, from 0 to 5.
            let (from, width) = (step as f64 * 5.0 / steps as f64, 5.0 / steps as f64);
            for (x, expected) in [(from, integral), (-from, -integral)] {
                assert!((f64::from(erf(x as f32)) - expected).abs() < 3e-7, "erf({x}) = {}", erf(x as f32));
            }
            integral += width / 6.0 * (density(from) + 4.0 * density(from + width / 2.0) + density(from + width));
        }
    }

    #[test]
    fn gelu_is_gelu() {
        // Values of torch.nn.functional.gelu.
        for (x, y) in [(-3.0, -0.004_049_7), (-0.5, -0.154_268_77), (0.0, 0.0), (1.0, 0.841_344_8), (4.0, 3.999_873_4)]
        {
            assert!((gelu(x) - y).abs() < 1e-6, "gelu({x}) = {}", gelu(x));
        }
        assert!((gelu_tanh(1.0) - 0.841_191_95).abs() < 1e-5);
        assert!(gelu(f32::NAN).is_nan());
    }

    #[test]
    fn tile_is_a_product() {
        let a = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let b: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let c = simd(|| tile::<2, 3>([&a[0], &a[1]], &b, 4, 3));
        assert_eq!(c, [[32.0, 38.0, 44.0], [68.0, 83.0, 98.0]]);
    }

    #[test]
    fn softmax_sums_to_one() {
        let mut scores: Vec<f32> = (0..37).map(|x| x as f32 / 3.0).collect();
        simd(|| softmax(&mut scores));
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((scores[36] / scores[35] - (1.0f32 / 3.0).exp()).abs() < 1e-5);
    }
}
