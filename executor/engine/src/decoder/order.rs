//! Orders of rows: checkpoints store queries, keys and values in several ways, the decoder computes in one. A head's rotated
//! part comes first, its pairs as halves. Pure arithmetic of indices: `order[i]` is the stored row that becomes row `i`.

use crate::attention::Heads;

/// Heads whose first `rotary` rows are stored as neighbouring pairs.
pub(crate) fn in_halves(heads: usize, head_dim: usize, rotary: usize) -> Vec<usize> {
    let half = rotary / 2;
    let within = |row: usize| if row < rotary { 2 * (row % half) + row / half } else { row };
    (0..heads).flat_map(|head| (0..head_dim).map(move |row| head * head_dim + within(row))).collect()
}

/// For each key head its queries, its key and its value, to all queries, all keys, all values.
pub(crate) fn grouped(heads: usize, kv_heads: usize, head_dim: usize) -> Vec<usize> {
    let group = heads / kv_heads;
    let part = |within: std::ops::Range<usize>| {
        (0..kv_heads).flat_map(move |kv| {
            let first = kv * (group + 2) * head_dim;
            within.clone().map(move |row| first + row)
        })
    };
    let (queries, key) = (group * head_dim, (group + 1) * head_dim);
    part(0..queries).chain(part(queries..key)).chain(part(key..key + head_dim)).collect()
}

/// Queries of latent attention, each `[own, rotated]`, to `[rotated, own]`, with `rotated` as the order of that part.
pub(crate) fn latent_queries(heads: Heads, rotated: &[usize]) -> Vec<usize> {
    let own = heads.head_dim - rotated.len();
    let within: Vec<usize> = rotated.iter().map(|row| own + row).chain(0..own).collect();
    (0..heads.heads).flat_map(|head| within.iter().map(move |row| head * heads.head_dim + row)).collect()
}

/// Keys and values of latent attention, for each head `[key, value]`, to all keys, all values.
pub(crate) fn latent_keys_values(heads: Heads, rotary: usize) -> Vec<usize> {
    let own = heads.head_dim - rotary;
    let stored = own + heads.value_dim;
    let part = |within: std::ops::Range<usize>| {
        (0..heads.heads).flat_map(move |head| within.clone().map(move |row| head * stored + row))
    };
    part(0..own).chain(part(own..stored)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves_and_the_rest_stays() {
        assert_eq!(in_halves(2, 6, 4), [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
    }

    #[test]
    fn groups_are_taken_apart() {
        // Two key heads of two queries each, heads of one row: q q k v q q k v.
        assert_eq!(grouped(4, 2, 1), [0, 1, 4, 5, 2, 6, 3, 7]);
    }

    #[test]
    fn latent_heads_begin_with_what_is_rotated() {
        let heads = Heads { heads: 2, kv_heads: 2, head_dim: 3, value_dim: 1 };
        assert_eq!(latent_queries(heads, &in_halves(1, 2, 2)), [1, 2, 0, 4, 5, 3]);
        assert_eq!(latent_keys_values(heads, 2), [0, 2, 1, 3]);
    }
}
