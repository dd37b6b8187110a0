//! Which host buffer serves the next copy to or from a device. A buffer that a copy is still reading cannot be filled anew; waiting
//! for it would make the host wait for all that the device does before the copy. So there are as many as copies are under way, up to
//! a bound of bytes, in few sizes, so that most copies find one. Knows no device: what a buffer is, whether its copy is done, and how
//! to wait for it, is the caller's.

use std::collections::VecDeque;

/// Bytes of the smallest buffer.
const BYTES_MIN: usize = 64 << 10;
/// Bytes of the largest: longer copies go over in pieces. The token masks of a full step fit.
pub(crate) const BYTES_MAX: usize = 32 << 20;
/// Bytes of all buffers that are free or being read, beyond which a copy waits for the oldest one.
const BYTES_TOGETHER: usize = 4 * BYTES_MAX;

/// A buffer of a shelf.
pub(crate) trait Lent {
    type Error;

    /// Its bytes.
    fn bytes(&self) -> usize;
    /// Whether its last copy is done.
    fn is_done(&self) -> bool;
    /// Waits for its last copy.
    fn wait(&self) -> Result<(), Self::Error>;
}

/// Buffers that are free, and those that a copy to the device may still be reading, the oldest first.
#[derive(Debug)]
pub(crate) struct Shelf<B> {
    free: Vec<B>,
    read: VecDeque<B>,
}

impl<B: Lent> Shelf<B> {
    pub(crate) fn new() -> Self {
        Self { free: Vec::new(), read: VecDeque::new() }
    }

    /// A buffer of at least `bytes` bytes ([`BYTES_MAX`] at most) whose copies are done. `make` makes one of so many bytes.
    pub(crate) fn take(
        &mut self,
        bytes: usize,
        make: impl FnOnce(usize) -> Result<B, B::Error>,
    ) -> Result<B, B::Error> {
        let bytes = bytes.next_power_of_two().max(BYTES_MIN);
        loop {
            while let Some(done) = self.read.pop_front_if(|oldest| oldest.is_done()) {
                self.free.push(done);
            }
            let fitting = (0..self.free.len()).filter(|at| self.free[*at].bytes() >= bytes);
            if let Some(at) = fitting.min_by_key(|at| self.free[*at].bytes()) {
                return Ok(self.free.swap_remove(at));
            }
            // Those that are too small make room.
            while self.together() + bytes > BYTES_TOGETHER && self.free.pop().is_some() {}
            if self.together() + bytes <= BYTES_TOGETHER {
                return make(bytes);
            }
            let Some(oldest) = self.read.pop_front() else { return make(bytes) };
            // One that cannot be waited for is lent to nobody.
            oldest.wait()?;
            self.free.push(oldest);
        }
    }

    /// Gives back a buffer that a copy to the device has been asked of: it is lent again when that is done.
    pub(crate) fn put_read(&mut self, buffer: B) {
        self.read.push_back(buffer);
    }

    /// Gives back a buffer whose copies are done.
    pub(crate) fn put(&mut self, buffer: B) {
        self.free.push(buffer);
    }

    fn together(&self) -> usize {
        self.free.iter().chain(&self.read).map(Lent::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::rc::Rc;

    use super::*;

    #[derive(Debug)]
    struct Buffer {
        number: usize,
        bytes: usize,
        /// Whether its last copy is done.
        done: Rc<Cell<bool>>,
    }

    impl Lent for Buffer {
        type Error = Infallible;

        fn bytes(&self) -> usize {
            self.bytes
        }

        fn is_done(&self) -> bool {
            self.done.get()
        }

        fn wait(&self) -> Result<(), Infallible> {
            self.done.set(true);
            Ok(())
        }
    }

    /// A shelf, and what was made for it.
    struct Made {
        shelf: Shelf<Buffer>,
        copies: Vec<Rc<Cell<bool>>>,
    }

    impl Made {
        fn new() -> Self {
            Self { shelf: Shelf::new(), copies: Vec::new() }
        }

        fn take(&mut self, bytes: usize) -> Buffer {
            let copies = &mut self.copies;
            let make = |bytes| {
                copies.push(Rc::new(Cell::new(true)));
                Ok(Buffer { number: copies.len() - 1, bytes, done: Rc::clone(&copies[copies.len() - 1]) })
            };
            let buffer = self.shelf.take(bytes, make).unwrap();
            assert!(buffer.is_done(), "{buffer:?}");
            buffer
        }

        /// Lends a buffer to a copy that is not done. Returns its number.
        fn copy(&mut self, bytes: usize) -> usize {
            let buffer = self.take(bytes);
            let number = buffer.number;
            buffer.done.set(false);
            self.shelf.put_read(buffer);
            number
        }
    }

    #[test]
    fn a_buffer_that_is_being_read_is_not_lent_while_there_is_room_for_another() {
        let mut all = Made::new();
        assert_eq!((all.copy(100), all.copy(BYTES_MIN + 1)), (0, 1));
        all.copies[0].set(true);
        assert_eq!(all.take(1).bytes, BYTES_MIN, "the first one's copy is done");
        assert_eq!(all.take(1).number, 2, "the second one's is not");
        all.copies[1].set(true);
        let second = all.take(1);
        assert_eq!((second.number, second.bytes), (1, 2 * BYTES_MIN), "a larger one serves as well");
    }

    #[test]
    fn many_copies_wait_for_the_oldest() {
        let mut all = Made::new();
        let numbers: Vec<usize> = (0..100).map(|_| all.copy(BYTES_MAX)).collect();
        assert_eq!(all.copies.len(), 4);
        assert!(numbers.iter().enumerate().all(|(copy, number)| *number == copy % 4), "{numbers:?}");
    }

    #[test]
    fn small_buffers_make_room_for_large_ones() {
        let mut all = Made::new();
        let small: Vec<Buffer> = (0..2048).map(|_| all.take(1)).collect();
        small.into_iter().for_each(|buffer| all.shelf.put(buffer));
        assert_eq!((all.take(BYTES_MAX).bytes, all.shelf.together()), (BYTES_MAX, 3 * BYTES_MAX));
    }

    #[test]
    fn what_is_lent_elsewhere_keeps_nobody_waiting() {
        let mut all = Made::new();
        let held: Vec<Buffer> = (0..20).map(|_| all.take(BYTES_MAX)).collect();
        assert_eq!(held.len(), all.copies.len());
    }
}
