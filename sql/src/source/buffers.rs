//! Buffers that column chunks of local files are read into, used again and again: memory that is fresh from the system for
//! each row group costs a tenth of what a run without a model takes. What comes over a network is left as it comes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use object_store::{GetResult, GetResultPayload, Result};

/// Buffers that wait take no more than this: two row groups of the size that most writers make.
const WAITING_BYTES_MAX: usize = 96 << 20;
/// Less is left to the allocator, which keeps it.
const LEAST: u64 = 1 << 20;
/// Sizes of buffers are multiples of it, so that row groups of about one size fit each other's.
const STEP: usize = 4 << 20;

/// The process's buffers: runs in one process take turns.
static BUFFERS: LazyLock<Arc<Buffers>> = LazyLock::new(Arc::default);

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// The smallest that is large enough, but not far too large; else a new one.
    fn take(self: &Arc<Self>, len: usize) -> Lent {
        let size = len.next_multiple_of(STEP);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = waiting.iter().enumerate().filter(|(_, buffer)| (size..=2 * size).contains(&buffer.len()));
        let found = fits.min_by_key(|(_, buffer)| buffer.len()).map(|(at, _)| at);
        let bytes = found.map(|at| waiting.swap_remove(at)).unwrap_or_else(|| vec![0; size]);
        Lent { bytes, len, home: Arc::clone(self) }
    }

    /// Keeps a buffer; those that have waited longest go.
    fn give_back(&self, buffer: Vec<u8>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(buffer);
        let mut bytes: usize = waiting.iter().map(Vec::len).sum();
        while bytes > WAITING_BYTES_MAX {
            bytes -= waiting.remove(0).len();
        }
    }
}

/// A buffer in use; it goes home when the last slice of it is dropped.
struct Lent {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

/// What a store found, as bytes; of a local file in a buffer that was used before.
pub(super) async fn read(found: GetResult) -> Result<Bytes> {
    match found {
        GetResult { payload: GetResultPayload::File(file, path), range, .. } if range.end - range.start >= LEAST => {
            let read = tokio::task::spawn_blocking(move || read_range(file, range));
            let failed = |source: std::io::Error| object_store::Error::Generic {
                store: "LocalFileSystem",
                source: format!("cannot read {}: {source}", path.display()).into(),
            };
            read.await.map_err(std::io::Error::from).flatten().map_err(failed)
        }
        found => found.bytes().await,
    }
}

fn read_range(mut file: File, range: Range<u64>) -> std::io::Result<Bytes> {
    let mut buffer = BUFFERS.take(usize::try_from(range.end - range.start).map_err(std::io::Error::other)?);
    file.seek(SeekFrom::Start(range.start))?;
    let len = buffer.len;
    file.read_exact(&mut buffer.bytes[..len])?;
    Ok(Bytes::from_owner(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_slice_is_gone() {
        let buffers = Arc::<Buffers>::default();
        let waiting = || buffers.0.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>();
        let bytes = Bytes::from_owner(buffers.take(STEP + 1));
        assert_eq!(bytes.len(), STEP + 1);
        let slice = bytes.slice(7..9);
        drop(bytes);
        assert_eq!(waiting(), [0_usize; 0]);
        drop(slice);
        assert_eq!(waiting(), [2 * STEP]);
        let (fitting, small) = (buffers.take(2 * STEP), buffers.take(1));
        assert_eq!((fitting.bytes.len(), small.bytes.len(), waiting()), (2 * STEP, STEP, vec![]));
        drop((fitting, small));
        assert_eq!(buffers.take(3 * STEP).bytes.len(), 3 * STEP, "too small ones are left");
        assert_eq!(buffers.take(1).bytes.len(), STEP, "far too large ones are left");
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_goes() {
        let buffers = Arc::<Buffers>::default();
        let lent: Vec<Lent> = (1..=6).map(|size| buffers.take(size * 2 * STEP)).collect();
        drop(lent);
        let waiting: Vec<usize> = buffers.0.lock().unwrap().iter().map(|buffer| buffer.len() / STEP).collect();
        assert_eq!(waiting, [10, 12]);
    }

    #[tokio::test]
    async fn ranges_of_a_local_file_are_its_bytes_however_often_buffers_are_used() {
        use object_store::local::LocalFileSystem;
        use object_store::{GetOptions, GetRange, ObjectStore};

        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3 * LEAST + 5).map(|at| (at % 251) as u8).collect();
        std::fs::write(folder.path().join("t"), &content).unwrap();
        let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let place = object_store::path::Path::from("t");
        for range in [0..LEAST, 5..2 * LEAST + 5, 1..4, LEAST..3 * LEAST + 5] {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let found = store.get_opts(&place, options).await.unwrap();
            assert!(read(found).await.unwrap() == content[range.start as usize..range.end as usize], "{range:?}");
        }
    }
}
