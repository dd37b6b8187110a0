//! Which tokens each row may have next, in the words that a device reads. A row without a grammar has no mask; masks that are
//! there stand behind each other.

/// Says that a row may have any token.
const EVERY_TOKEN: u32 = u32::MAX;

/// Masks of a step's rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Masks {
    /// For each row which mask is its own.
    pub(crate) places: Vec<u32>,
    /// Bits of tokens, the first token lowest: `[masks, words]`.
    pub(crate) bits: Vec<u32>,
    /// Words of a mask.
    pub(crate) words: usize,
}

impl Masks {
    /// Of rows in their order, for so many tokens. Words that a mask lacks allow nothing.
    pub(crate) fn of<'a>(rows: impl IntoIterator<Item = Option<&'a [u32]>>, vocab: usize) -> Self {
        let mut masks = Self { places: Vec::new(), bits: Vec::new(), words: vocab.div_ceil(32) };
        for row in rows {
            let place = row.map_or(EVERY_TOKEN, |_| (masks.bits.len() / masks.words.max(1)) as u32);
            masks.places.push(place);
            if let Some(mask) = row {
                let (end, words) = (masks.bits.len() + masks.words, mask.len().min(masks.words));
                masks.bits.extend_from_slice(&mask[..words]);
                masks.bits.resize(end, 0);
            }
        }
        masks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_stand_behind_each_other_in_words_of_the_vocabulary() {
        let masks = Masks::of([None, Some(&[7][..]), None, Some(&[1, 2, 3][..])], 40);
        assert_eq!(masks.places, [u32::MAX, 0, u32::MAX, 1]);
        assert_eq!((masks.words, &masks.bits[..]), (2, &[7, 0, 1, 2][..]));
    }
}
