//! Pages that are taken, shared, copied and given back.

#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn the_ledger_is_bounded_and_gives_pages_back_when_nobody_refers_to_them() {
    let mut ledger = PageLedger::new(2);
    let (a, b) = (ledger.take().unwrap(), ledger.take().unwrap());
    assert_eq!((ledger.take(), ledger.available()), (None, 0));
    ledger.share(a);
    ledger.release(a);
    assert_eq!(ledger.available(), 0);
    ledger.release(a);
    ledger.release(b);
    assert_eq!(ledger.available(), 2);
}

#[test]
fn a_fork_shares_whole_pages_and_copies_the_partial_one() {
    let heads = Heads { heads: 1, kv_heads: 1, head_dim: 2, value_dim: 2 };
    a_fork_is_a_copy(KvCache::new(heads, 1, 4));
    a_fork_is_a_copy(KvCache::of(heads, 1, KvForm::Tiles, 4));
}

fn a_fork_is_a_copy(mut cache: KvCache) {
    let block = |cache: &KvCache, table: &[PageId], tokens: usize, at: usize| match cache.blocks(0, table, tokens) {
        Blocks::Floats(blocks) => blocks[at].to_vec(),
        Blocks::Tiles(blocks) => blocks.high[at].iter().map(|x| x.to_f32()).collect(),
    };
    let mut table = Vec::new();
    cache.grow(&mut table, BLOCK + 3).unwrap();
    let writes: Vec<KvWrite> =
        (0..BLOCK + 3).map(|token| KvWrite { token, page: table[token / BLOCK], slot: token % BLOCK }).collect();
    let floats: Vec<f32> = (0..2 * (BLOCK + 3)).map(|x| x as f32).collect();
    cache.write(0, &floats, &floats, &writes);
    let mut fork = cache.fork(&table, BLOCK + 3).unwrap();
    assert_eq!(fork[0], table[0]);
    assert_ne!(fork[1], table[1]);
    assert_eq!(block(&cache, &fork, BLOCK + 3, 0), block(&cache, &table, BLOCK + 3, 0));
    assert_eq!(block(&cache, &fork, BLOCK + 3, 1), block(&cache, &table, BLOCK + 3, 1));
    cache.write(0, &[7.0, 7.0], &[7.0, 7.0], &[KvWrite { token: 0, page: fork[1], slot: 3 }]);
    assert_ne!(block(&cache, &fork, BLOCK + 4, 1), block(&cache, &table, BLOCK + 4, 1));
    assert_eq!(cache.available(), 1);
    assert_eq!(cache.fork(&table, BLOCK + 3).map(|mut f| cache.release(&mut f)), Some(()));
    cache.release(&mut fork);
    cache.release(&mut table);
    assert_eq!(cache.available(), 4);
    assert_eq!(cache.grow(&mut Vec::new(), 5 * BLOCK), None);
}

#[test]
fn a_devices_cache_notes_copies_in_their_order() {
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 64, value_dim: 64 };
    assert_eq!(KvCache::page_bytes(heads, 16, KvForm::Device), 16 * 2 * 32 * 128 * 2);
    let mut cache = KvCache::of(heads, 16, KvForm::Device, 4);
    let mut table = Vec::new();
    cache.grow(&mut table, BLOCK + 3).unwrap();
    let fork = cache.fork(&table, BLOCK + 3).unwrap();
    let whole = cache.fork(&table, BLOCK).unwrap();
    let second = cache.fork(&fork, BLOCK + 2).unwrap();
    assert_eq!(whole, [table[0]], "whole pages are shared, not copied");
    let copies = [(table[1], fork[1]), (fork[1], second[1])];
    assert_eq!(cache.copies(), copies);
    assert_eq!(cache.copies(), copies, "they stay until the device has made them");
    cache.copies_made();
    assert_eq!(cache.copies(), []);
    assert_eq!(cache.fork(&table, BLOCK + 1).map(|fork| (cache.take_copies(), fork[1])), None, "the cache is full");
    cache.release(&mut vec![second[1]]);
    let third = cache.fork(&table, BLOCK + 1).unwrap();
    assert_eq!(cache.take_copies(), [(table[1], third[1])]);
    assert_eq!(cache.copies(), []);
}

#[test]
fn a_cache_of_ids_gives_a_row_back_its_tokens() {
    let mut cache = KvCache::of(KvCache::ID_HEADS, 1, KvForm::Ids, 4);
    let (mut table, mut other) = (Vec::new(), Vec::new());
    cache.grow(&mut other, 1).unwrap();
    cache.grow(&mut table, BLOCK + 2).unwrap();
    let place = |token: usize| KvWrite { token, page: table[token / BLOCK], slot: token % BLOCK };
    let writes: Vec<KvWrite> = (0..BLOCK + 2).map(place).collect();
    let ids: Vec<u32> = (100..).take(BLOCK + 2).collect();
    cache.write_ids(&ids, &writes);
    assert_eq!(cache.ids(&table, BLOCK + 2), ids);
    let fork = cache.fork(&table, BLOCK + 1).unwrap();
    cache.write_ids(&[7], &[KvWrite { token: 0, page: fork[1], slot: 1 }]);
    assert_eq!(cache.ids(&fork, BLOCK + 2)[BLOCK - 1..], [131, 132, 7]);
    assert_eq!(cache.ids(&table, BLOCK + 2), ids);
}
