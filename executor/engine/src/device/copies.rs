//! Copies of pages, made at once where nothing forbids it. A cache notes them in the order rows were forked; one launch makes
//! many, and none of those may read what another of them writes.

use std::collections::HashSet;

use crate::kv::PageId;

/// Copies (from, to) in their order, cut into runs whose copies are independent of each other.
pub(crate) fn waves(copies: &[(PageId, PageId)]) -> Vec<Vec<u32>> {
    let mut waves: Vec<Vec<u32>> = Vec::new();
    let (mut read, mut written) = (HashSet::new(), HashSet::new());
    for (from, to) in copies {
        if waves.is_empty() || written.contains(from) || written.contains(to) || read.contains(to) {
            waves.push(Vec::new());
            read.clear();
            written.clear();
        }
        read.insert(*from);
        written.insert(*to);
        if let Some(wave) = waves.last_mut() {
            wave.extend([*from as u32, *to as u32]);
        }
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_depend_on_each_other_are_made_one_after_the_other() {
        assert_eq!(waves(&[]), Vec::<Vec<u32>>::new());
        assert_eq!(waves(&[(1, 2), (1, 3), (4, 5)]), [vec![1, 2, 1, 3, 4, 5]]);
        assert_eq!(waves(&[(1, 2), (2, 3)]), [[1, 2], [2, 3]], "a copy of a copy");
        assert_eq!(waves(&[(1, 2), (3, 1)]), [[1, 2], [3, 1]], "a page that is read, then written");
        assert_eq!(waves(&[(1, 2), (3, 2)]), [[1, 2], [3, 2]], "a page that is written twice");
    }
}
