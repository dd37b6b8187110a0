//! Memory for intermediate results, used again and again: a step's largest ones are tens of megabytes, and memory that comes
//! fresh from the system for each of them costs more than computing what is written into it. Bounded; keeps no values. Weights,
//! which stay, are not for it.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use half::bf16;

/// Buffers of one type that wait to be used again; beyond these, memory is given back.
const KEPT: usize = 12;
/// Bytes that they take together, at most.
const BYTES_KEPT: usize = 256 << 20;

/// Buffers that are free, the oldest first.
pub(crate) struct Pool<T: 'static> {
    free: Mutex<VecDeque<Vec<T>>>,
}

static FLOATS: Pool<f32> = Pool { free: Mutex::new(VecDeque::new()) };
static HALVES: Pool<bf16> = Pool { free: Mutex::new(VecDeque::new()) };

/// Bytes of free buffers.
fn bytes_of<T>(free: &VecDeque<Vec<T>>) -> usize {
    free.iter().map(|values| values.capacity() * size_of::<T>()).sum()
}

/// Numbers that have a pool.
pub(crate) trait Pooled: Copy + Default + 'static {
    fn pool() -> &'static Pool<Self>;
}

impl Pooled for f32 {
    fn pool() -> &'static Pool<Self> {
        &FLOATS
    }
}

impl Pooled for bf16 {
    fn pool() -> &'static Pool<Self> {
        &HALVES
    }
}

/// Memory of some length, given back to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T: Pooled>(Vec<T>);

impl<T: Pooled> Buffer<T> {
    /// Memory for `len` numbers, which may be any: whoever takes it writes all of them.
    pub(crate) fn of(len: usize) -> Self {
        let found = match T::pool().free.lock() {
            Ok(mut free) => {
                // The smallest that is large enough; one that is much too large is left for who needs it.
                let fits = |values: &Vec<T>| (len..=len.saturating_mul(2)).contains(&values.capacity());
                let sizes = free.iter().enumerate().filter(|(_, values)| fits(values));
                let best = sizes.min_by_key(|(_, values)| values.capacity()).map(|(at, _)| at);
                best.and_then(|at| free.remove(at))
            }
            Err(_) => None,
        };
        let mut values = found.unwrap_or_default();
        values.resize(len, T::default());
        Self(values)
    }
}

impl<T: Pooled> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Ok(mut free) = T::pool().free.lock() {
            free.push_back(std::mem::take(&mut self.0));
            // The oldest: sizes that are no longer asked for go.
            while free.len() > KEPT || bytes_of(&free) > BYTES_KEPT {
                free.pop_front();
            }
        }
    }
}

impl<T: Pooled> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pooled> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Pooled> AsRef<[T]> for Buffer<T> {
    fn as_ref(&self) -> &[T] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm;

    #[test]
    fn memory_comes_back_and_is_bounded() {
        // A length that nothing else in this process asks for.
        let len = 1_234_567;
        let buffer = Buffer::<bf16>::of(len);
        let at = buffer.as_ptr();
        drop(buffer);
        let again = Buffer::<bf16>::of(len - 1);
        assert_eq!((again.as_ptr(), again.len()), (at, len - 1));
        let many: Vec<Buffer<bf16>> = (0..3 * KEPT).map(|_| Buffer::of(len)).collect();
        drop(many);
        assert!(bf16::pool().free.lock().is_ok_and(|free| free.len() <= KEPT));
    }

    /// A pool that nothing else uses.
    static ODD: Pool<u64> = Pool { free: Mutex::new(VecDeque::new()) };

    impl Pooled for u64 {
        fn pool() -> &'static Pool<Self> {
            &ODD
        }
    }

    #[test]
    fn large_buffers_go_back_to_the_system_the_oldest_first() {
        let first = |values: &Vec<u64>| values.first().copied();
        let kept = || ODD.free.lock().map(|free| free.iter().filter_map(first).collect::<Vec<_>>()).unwrap_or_default();
        let give = |len: usize| {
            // But for its first number it is not written to, so it takes next to no memory.
            let mut values = Vec::with_capacity(len);
            values.push(len as u64);
            drop(Buffer::<u64>(values));
        };
        let third = BYTES_KEPT / 3 / size_of::<u64>();
        for len in [100, third, third + 1, third + 2] {
            give(len);
        }
        assert_eq!(kept(), [third as u64 + 1, third as u64 + 2]);
        give(BYTES_KEPT / size_of::<u64>() + 1);
        assert!(kept().is_empty(), "one that is too large alone is not kept");
    }

    /// An engine that is dropped gives its weights back.
    #[test]
    fn weights_are_not_kept() {
        // A size that nothing else in this process has.
        let (outputs, inputs) = (112, 93_088);
        let numbers = outputs * inputs;
        drop(gemm::Weights::pack(&vec![1.0; numbers], inputs, gemm::Exactness::Rounded));
        let kept = |free: &VecDeque<Vec<bf16>>| free.iter().any(|values| values.capacity() == numbers);
        assert!(bf16::pool().free.lock().is_ok_and(|free| !kept(&free)));
    }
}
