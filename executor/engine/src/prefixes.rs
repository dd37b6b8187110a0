//! Which beginnings rows share: a radix tree over the rows in the order of their tokens. Pure: it looks at tokens and
//! decides what is worth computing once; when it is computed, and in which pages, is the scheduler's.

/// A beginning is worth a place of its own if it saves at least this many tokens. It costs a page, which is soon repaid: a
/// token's way through a model takes longer than copying a page of its keys and values.
const SAVED_TOKENS_MIN: usize = 4;

/// A beginning that rows share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// Its length.
    pub(crate) tokens: usize,
    /// The longer beginning's shorter one; `None` for the first, which all rows have.
    pub(crate) parent: Option<usize>,
    /// One of the rows that begin with it.
    pub(crate) row: usize,
}

/// Beginnings and the rows below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefixes {
    /// Beginnings, each after its parent; the first is the one that was known, which may be empty.
    pub(crate) nodes: Vec<Prefix>,
    /// Rows in the order of their tokens, each with the longest beginning that it continues.
    pub(crate) rows: Vec<(usize, usize)>,
}

/// An inner node of the full tree.
#[derive(Debug)]
struct Branch {
    tokens: usize,
    parent: usize,
    row: usize,
    rows: usize,
}

impl Prefixes {
    /// Finds them. All `rows` begin with `known` equal tokens and have at least one more; a row's last token is never
    /// shared, because somebody must compute what comes after it.
    pub(crate) fn of(rows: &[&[u32]], known: usize) -> Self {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|a, b| rows[*a].cmp(rows[*b]));
        let (branches, parents) = tree(rows, &order, known);
        let mut nodes = vec![Prefix { tokens: known, parent: None, row: order.first().copied().unwrap_or(0) }];
        // Shorter ones first, so that each is judged by what its chosen parent leaves to it.
        let mut by_length: Vec<usize> = (1..branches.len()).collect();
        by_length.sort_by_key(|branch| branches[*branch].tokens);
        let mut chosen = vec![0; branches.len()];
        for index in by_length {
            let branch = &branches[index];
            let parent = chosen[branch.parent];
            let saved = (branch.tokens - nodes[parent].tokens) * (branch.rows - 1);
            chosen[index] = if saved >= SAVED_TOKENS_MIN {
                nodes.push(Prefix { tokens: branch.tokens, parent: Some(parent), row: branch.row });
                nodes.len() - 1
            } else {
                parent
            };
        }
        let rows = order.iter().zip(parents).map(|(row, parent)| (*row, chosen[parent])).collect();
        Self { nodes, rows }
    }
}

/// The inner nodes of the tree over ordered rows, the first of them the root, and each row's parent. One pass with a stack
/// of the nodes that the next row may still belong to, as suffix trees are built from sorted suffixes.
fn tree(rows: &[&[u32]], order: &[usize], known: usize) -> (Vec<Branch>, Vec<usize>) {
    let branch = |tokens, parent, row| Branch { tokens, parent, row, rows: 0 };
    let mut branches = vec![branch(known, 0, order.first().copied().unwrap_or(0))];
    let mut parents = Vec::with_capacity(order.len());
    let mut stack = vec![0];
    for (at, row) in order.iter().enumerate() {
        let common = order.get(at + 1).map_or(known, |next| shared(rows[*row], rows[*next]).max(known));
        let top = stack[stack.len() - 1];
        if common > branches[top].tokens {
            branches.push(branch(common, top, *row));
            stack.push(branches.len() - 1);
            parents.push(branches.len() - 1);
            continue;
        }
        parents.push(top);
        let mut last = None;
        while branches[stack[stack.len() - 1]].tokens > common {
            last = stack.pop();
        }
        let top = stack[stack.len() - 1];
        if let Some(last) = last
            && branches[top].tokens < common
        {
            let first = branches[last].row;
            branches.push(branch(common, top, first));
            branches[last].parent = branches.len() - 1;
            stack.push(branches.len() - 1);
        }
    }
    for parent in &parents {
        branches[*parent].rows += 1;
    }
    let mut by_length: Vec<usize> = (1..branches.len()).collect();
    by_length.sort_by_key(|branch| std::cmp::Reverse(branches[*branch].tokens));
    for index in by_length {
        let (parent, rows) = (branches[index].parent, branches[index].rows);
        branches[parent].rows += rows;
    }
    (branches, parents)
}

/// Tokens that two rows begin with, at least one less than either has.
fn shared(a: &[u32], b: &[u32]) -> usize {
    let equal = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    equal.min(a.len().min(b.len()).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn of(rows: &[Vec<u32>], known: usize) -> Prefixes {
        Prefixes::of(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), known)
    }

    /// Tokens that are computed when every beginning and every row is computed after its parent.
    fn computed(rows: &[Vec<u32>], prefixes: &Prefixes) -> usize {
        let nodes = &prefixes.nodes;
        let inner = nodes.iter().map(|node| node.tokens - node.parent.map_or(0, |parent| nodes[parent].tokens));
        let leaves = prefixes.rows.iter().map(|(row, node)| rows[*row].len() - nodes[*node].tokens);
        inner.sum::<usize>() + leaves.sum::<usize>()
    }

    fn distinct(rows: &[Vec<u32>]) -> usize {
        rows.iter().flat_map(|row| (1..=row.len()).map(|end| &row[..end])).collect::<HashSet<_>>().len()
    }

    #[test]
    fn a_join_like_table_is_computed_as_its_distinct_beginnings() {
        // Template, country (3 values of 9 tokens), product (20 of 5), text (2 tokens, no two alike), rows mixed up.
        let value = |column: u32, value: u32, tokens: u32| (0..tokens).map(move |t| column * 10_000 + value * 100 + t);
        let rows: Vec<Vec<u32>> = (0..600u32)
            .map(|i| i * 7 % 600)
            .map(|i| (0..40).chain(value(1, i % 3, 9)).chain(value(2, i % 20, 5)).chain([900_000 + i, 7]).collect())
            .collect();
        let prefixes = of(&rows, 40);
        assert_eq!(computed(&rows, &prefixes), distinct(&rows));
        assert_eq!(distinct(&rows), 40 + 3 * 9 + 60 * 5 + 600 * 2);
        assert_eq!(prefixes.nodes.len(), 1 + 3 + 60);
        assert!(prefixes.nodes.iter().enumerate().all(|(i, node)| node.parent.is_none_or(|parent| parent < i)));
        for (row, node) in &prefixes.rows {
            let node = prefixes.nodes[*node];
            assert_eq!(rows[*row][..node.tokens], rows[node.row][..node.tokens]);
        }
    }

    #[test]
    fn a_beginning_is_kept_only_if_it_saves_enough() {
        let rows = |equal: usize, count: u32| -> Vec<Vec<u32>> {
            (0..count).map(|row| std::iter::repeat_n(1, equal).chain([100 + row]).collect()).collect()
        };
        for (equal, count, kept) in [(3, 2, false), (4, 2, true), (1, 4, false), (1, 5, true), (2, 3, true)] {
            assert_eq!(of(&rows(equal, count), 0).nodes.len() == 2, kept, "{equal} tokens of {count} rows");
        }
    }

    #[test]
    fn what_a_refused_beginning_would_have_saved_counts_for_those_below_it() {
        // Two tokens in common are too few; with the two below they are four.
        let rows = vec![vec![1, 1, 5], vec![1, 1, 6, 6, 7], vec![1, 1, 6, 6, 8]];
        let prefixes = of(&rows, 0);
        assert_eq!(prefixes.nodes.len(), 2);
        let rows = vec![vec![1, 1, 6, 6, 7], vec![1, 1, 6, 6, 8], vec![2]];
        assert_eq!(of(&rows, 0).nodes[1], Prefix { tokens: 4, parent: Some(0), row: 0 });
    }

    #[test]
    fn every_row_keeps_a_token_of_its_own() {
        let long: Vec<u32> = (0..50).collect();
        let rows = vec![long.clone(), long[..20].to_vec(), long.clone(), long[..6].to_vec()];
        let prefixes = of(&rows, 0);
        assert!(prefixes.rows.iter().all(|(row, node)| prefixes.nodes[*node].tokens < rows[*row].len()));
        assert_eq!(prefixes.nodes.iter().map(|node| node.tokens).collect::<Vec<_>>(), [0, 5, 19, 49]);
        assert_eq!(of(&[], 0).rows, []);
        assert_eq!(of(&rows[..1], 3).rows, [(0, 0)]);
    }
}
