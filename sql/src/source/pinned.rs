//! A read-only object store that reads each pinned file only while it is still the pinned one (`If-Match` on its entity
//! tag), and remembers which file was not. Writing and listing through it are refused.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, coalesce_ranges,
};
use rowmill_jobs::plan::InputFile;
use rowmill_jobs::{Error, Kind};

use super::buffers;

/// Troubles with pinned files, by path: the layers above keep a store's error, but not the file's URL nor what to do.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<HashMap<String, (Kind, String, String)>>);

impl Troubles {
    fn set(&self, path: &Path, kind: Kind, url: &str, what: String) {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.insert(path.to_string(), (kind, url.to_owned(), what));
    }

    /// What is known of the store's error in an error's chain, as an error that names the file.
    pub(crate) fn explain(&self, error: &(dyn std::error::Error + 'static)) -> Option<Error> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match store_error(error) {
            Some(store_error) => {
                let path = match store_error {
                    object_store::Error::NotFound { path, .. }
                    | object_store::Error::Precondition { path, .. }
                    | object_store::Error::PermissionDenied { path, .. }
                    | object_store::Error::Unauthenticated { path, .. } => Some(path),
                    _ => None,
                };
                // Local stores tell an absolute path of their own; of several troubles only one can end with it.
                troubles.iter().find(|(at, _)| path.is_none_or(|path| path.ends_with(at.as_str())))
            }
            // DataFusion keeps but the text of an error that it met while it read a footer.
            None => {
                let text = error.to_string();
                troubles.iter().find(|(at, _)| text.contains(&format!("Failed to fetch metadata for file {at}: ")))
            }
        };
        let (kind, url, what) = known.map(|(_, trouble)| trouble.clone())?;
        Some(match kind {
            Kind::InputChanged => {
                Error::new(kind, format!("an input file is not the one this run was planned for: {what}"))
                    .with("file", url)
                    .hint("put the file back, or pin the files as they are now with --rerun ID")
            }
            _ => Error::new(kind, format!("cannot read an input file: {what}")).with("file", url),
        })
    }
}

/// The store's error that an error comes from.
fn store_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a object_store::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<object_store::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What is known of a pinned file.
#[derive(Debug, Clone)]
struct Pin {
    url: String,
    etag: Option<String>,
    bytes: u64,
}

/// The store.
#[derive(Debug)]
pub(crate) struct PinnedStore {
    inner: Arc<dyn ObjectStore>,
    pins: HashMap<Path, Pin>,
    troubles: Arc<Troubles>,
}

impl PinnedStore {
    /// Pins `files`, given with their paths in `inner`.
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, files: Vec<(Path, &InputFile)>, troubles: Arc<Troubles>) -> Self {
        let pins = files
            .into_iter()
            .map(|(path, file)| (path, Pin { url: file.url.clone(), etag: file.etag.clone(), bytes: file.bytes }))
            .collect();
        Self { inner, pins, troubles }
    }

    fn note(&self, path: &Path, pin: &Pin, error: &object_store::Error) {
        let (kind, what) = match error {
            object_store::Error::Precondition { .. } => (Kind::InputChanged, "it was changed".to_owned()),
            object_store::Error::NotFound { .. } => (Kind::InputChanged, "it is gone".to_owned()),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                (Kind::Invalid, "the store denies access".to_owned())
            }
            other => (Kind::Temporary, other.to_string()),
        };
        self.troubles.set(path, kind, &pin.url, what);
    }
}

impl fmt::Display for PinnedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pinned({})", self.inner)
    }
}

fn refused<T>(what: &str) -> Result<T> {
    Err(object_store::Error::NotSupported { source: format!("{what} through a store of pinned inputs").into() })
}

#[async_trait]
impl ObjectStore for PinnedStore {
    async fn put_opts(&self, _location: &Path, _payload: PutPayload, _options: PutOptions) -> Result<PutResult> {
        refused("writing")
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        refused("writing")
    }

    async fn get_opts(&self, location: &Path, mut options: GetOptions) -> Result<GetResult> {
        let Some(pin) = self.pins.get(location) else { return refused("reading a file that is not an input") };
        if options.if_match.is_none() {
            options.if_match.clone_from(&pin.etag);
        }
        match self.inner.get_opts(location, options).await {
            Ok(result) if result.meta.size != pin.bytes => {
                let what = format!("it has {} bytes, and had {}", result.meta.size, pin.bytes);
                self.troubles.set(location, Kind::InputChanged, &pin.url, what);
                Err(object_store::Error::Precondition { path: location.to_string(), source: "another size".into() })
            }
            Ok(result) => Ok(result),
            Err(error) => {
                self.note(location, pin, &error);
                Err(error)
            }
        }
    }

    /// What a reader of Parquet asks for.
    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let fetch = |range: Range<u64>| async {
            let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
            buffers::read(self.get_opts(location, options).await?).await
        };
        coalesce_ranges(ranges, fetch, OBJECT_STORE_COALESCE_DEFAULT).await
    }

    fn delete_stream(&self, _locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { refused("deleting") }).boxed()
    }

    fn list(&self, _prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { refused("listing") }).boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        refused("listing")
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        refused("copying")
    }
}
