//! DeBERTa's disentangled attention (He et al., 2021, eq. 4; buckets of v2): beside the product of query and key, a query's
//! product with the vector of the distance, and the key's. Vectors are laid out by distance when the model is loaded, so that
//! neighbouring keys need neighbouring columns.

use crate::linear::Precision;
use rowmill_jobs::Result;

use super::names::Named;
use super::norm::Norm;
use super::shape::{Disentangled, EncoderShape};
use crate::attention::{BLOCK, Heads};
use crate::kernels::{for_tokens, simd};
use crate::linear::Linear;
use crate::weights::{Part, fused};

/// Keys whose scores are computed together.
const WIDTH: usize = 16;

/// The distances' vectors of a model, before a layer projects them.
pub(crate) struct DistanceVectors {
    shape: Disentangled,
    /// `[2 * span, hidden]`.
    vectors: Vec<f32>,
}

/// A layer's projected vectors of distances.
#[derive(Debug)]
pub(crate) struct DisentangledBias {
    heads: Heads,
    context: usize,
    /// Columns of a table's row: one for each distance, and enough behind them to read [`WIDTH`] at any.
    width: usize,
    /// What queries are multiplied with, `[heads, head_dim, width]`, scaled; column `c` is for a key `c - (context - 1)` places
    /// behind the query. Empty if the model does not do this.
    for_queries: Vec<f32>,
    /// What keys are multiplied with, laid out alike.
    for_keys: Vec<f32>,
}

impl DistanceVectors {
    /// Reads and norms the vectors.
    pub(crate) fn load(named: &Named<'_>, model: &EncoderShape, shape: Disentangled) -> Result<Self> {
        let table = named.module(named.names.relative);
        let mut vectors = named.weights.read(&format!("{table}.weight"), &[2 * shape.span, model.hidden])?;
        if shape.normed {
            let norm = Norm::load(named.weights, &named.module(named.names.relative_norm), model.hidden)?;
            let epsilon = model.norm_epsilon;
            for_tokens(
                &mut vectors,
                model.hidden,
                #[inline(always)]
                |_, x| norm.apply(x, epsilon),
            );
        }
        Ok(Self { shape, vectors })
    }

    /// Projects the vectors for a layer whose queries, keys and values `qkv` makes.
    pub(crate) fn project(
        &self,
        named: &Named<'_>,
        layer: usize,
        qkv: &Linear,
        place: (Heads, usize),
    ) -> Result<DisentangledBias> {
        let (heads, context) = place;
        let hidden = heads.heads * heads.head_dim;
        let (queries, keys) = if self.shape.shared {
            let both = biased(qkv, &self.vectors)?;
            let part =
                |from: usize| both.chunks_exact(3 * hidden).flat_map(move |row| row[from..from + hidden].to_vec());
            (part(0).collect(), part(hidden).collect())
        } else {
            let of = |module: &str, is_used: bool| {
                if !is_used {
                    return Ok(Vec::new());
                }
                let module = named.layer(layer, module);
                let part = Part { module: &module, rows: hidden };
                biased(&fused(named.weights, &[part], hidden, Precision::F32)?, &self.vectors)
            };
            (
                of("attention.self.pos_query_proj", self.shape.position_to_content)?,
                of("attention.self.pos_key_proj", self.shape.content_to_position)?,
            )
        };
        let mut bias = DisentangledBias {
            heads,
            context,
            width: 2 * context - 1 + WIDTH,
            for_queries: Vec::new(),
            for_keys: Vec::new(),
        };
        if self.shape.content_to_position {
            bias.for_queries = self.by_distance(&keys, &bias);
        }
        if self.shape.position_to_content {
            bias.for_keys = self.by_distance(&queries, &bias);
        }
        Ok(bias)
    }

    /// The products' number, by which scores are scaled: `1 / sqrt(parts * head_dim)`.
    pub(crate) fn scale(shape: Disentangled, head_dim: usize) -> f32 {
        let parts = 1 + usize::from(shape.content_to_position) + usize::from(shape.position_to_content);
        1.0 / ((parts * head_dim) as f32).sqrt()
    }

    /// Projected vectors (`[2 * span, hidden]`) by distance.
    fn by_distance(&self, vectors: &[f32], bias: &DisentangledBias) -> Vec<f32> {
        let Heads { heads, head_dim, .. } = bias.heads;
        let hidden = heads * head_dim;
        let scale = Self::scale(self.shape, head_dim);
        let last = bias.context as isize - 1;
        let columns: Vec<usize> = (-last..=last).map(|behind| self.shape.row(-behind)).collect();
        let mut table = vec![0f32; hidden * bias.width];
        for (feature, out) in table.chunks_exact_mut(bias.width).enumerate() {
            for (out, row) in out.iter_mut().zip(&columns) {
                *out = vectors[row * hidden + feature] * scale;
            }
        }
        table
    }
}

/// The product with its bias added.
fn biased(linear: &Linear, x: &[f32]) -> Result<Vec<f32>> {
    let mut out = linear.apply(x)?.read(<[f32]>::to_vec)?;
    if let Some(bias) = &linear.bias {
        for row in out.chunks_exact_mut(linear.outputs) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    }
    Ok(out)
}

impl Disentangled {
    /// The row of the vectors' table for a query that stands `ahead` places behind the key (negative: before it).
    fn row(self, ahead: isize) -> usize {
        let span = self.span as isize;
        let bucketed = self.buckets.map_or(ahead, |buckets| log_bucket(ahead, buckets, self.distance_max));
        (bucketed + span).clamp(0, 2 * span - 1) as usize
    }
}

/// Near distances are their own buckets, further ones share ever wider ones.
fn log_bucket(distance: isize, buckets: usize, distance_max: usize) -> isize {
    let middle = (buckets / 2) as f32;
    let absolute = distance.unsigned_abs() as f32;
    if absolute <= middle {
        return distance;
    }
    let share = (absolute / middle).ln() / ((distance_max - 1) as f32 / middle).ln();
    ((share * (middle - 1.0)).ceil() + middle) as isize * distance.signum()
}

impl DisentangledBias {
    /// Adds to the scores of one query (`[head_dim]`) of `head` at `position`. `blocks` are those of its row.
    pub(crate) fn add(&self, query: &[f32], blocks: &[&[f32]], head: usize, position: usize, scores: &mut [f32]) {
        let rows = self.heads.head_dim * self.width;
        let of_head = |table: &'_ [f32]| (head * rows).min(table.len())..((head + 1) * rows).min(table.len());
        let for_queries = &self.for_queries[of_head(&self.for_queries)];
        let for_keys = &self.for_keys[of_head(&self.for_keys)];
        let keys_at = head * self.heads.head_floats();
        simd(
            #[inline(always)]
            || {
                for (chunk, scores) in scores.chunks_mut(WIDTH).enumerate() {
                    let (block, slot) = (chunk * WIDTH / BLOCK, chunk * WIDTH % BLOCK);
                    let keys = &blocks[block][keys_at + slot..keys_at + self.heads.key_floats()];
                    let column = self.context - 1 - position + chunk * WIDTH;
                    let mut sums = [0f32; WIDTH];
                    for (row, x) in for_queries.chunks_exact(self.width).zip(query) {
                        add_product(&mut sums, &row[column..], &[*x; WIDTH]);
                    }
                    for (row, keys) in for_keys.chunks_exact(self.width).zip(keys.chunks(BLOCK)) {
                        add_product(&mut sums, &row[column..], keys);
                    }
                    for (score, sum) in scores.iter_mut().zip(sums) {
                        *score += sum;
                    }
                }
            },
        );
    }
}

/// sums += a * b, element by element.
#[inline(always)]
fn add_product(sums: &mut [f32; WIDTH], a: &[f32], b: &[f32]) {
    let (Some(a), Some(b)) = (a.first_chunk::<WIDTH>(), b.first_chunk::<WIDTH>()) else { return };
    for j in 0..WIDTH {
        sums[j] = a[j].mul_add(b[j], sums[j]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_distances_share_buckets() {
        // Values of transformers' make_log_bucket_position, 8 buckets up to distance 100.
        let bucket = |distance| log_bucket(distance, 8, 100);
        assert_eq!([0, 3, 4, 5, 9, 12, 40, 99].map(bucket), [0, 3, 4, 5, 5, 6, 7, 7]);
        assert_eq!([-4, -5, -12, -99].map(bucket), [-4, -5, -6, -7]);
    }
}
