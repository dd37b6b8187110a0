//! Memory for intermediate results, used again and again: a step's largest ones are tens of megabytes, and memory that comes
//! fresh from the system for each of them costs more than computing what is written into it. Bounded; keeps no values.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use half::bf16;

/// Buffers of one type that wait to be used again; beyond these, memory is given back.
const KEPT: usize = 12;

/// Buffers that are free.
pub(crate) struct Pool<T: 'static> {
    free: Mutex<Vec<Vec<T>>>,
}

static FLOATS: Pool<f32> = Pool { free: Mutex::new(Vec::new()) };
static HALVES: Pool<bf16> = Pool { free: Mutex::new(Vec::new()) };

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
                best.map(|at| free.swap_remove(at))
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
            free.push(std::mem::take(&mut self.0));
            if free.len() > KEPT {
                // The oldest: sizes that are no longer asked for go.
                free.remove(0);
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
}
