//! The one place that makes object stores: `file://` and `s3://`. S3 is reached through the standard `AWS_*` variables and
//! profiles, the same chain that the AWS SDK uses elsewhere in the product.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use futures::stream::{BoxStream, StreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    ClientOptions, CopyOptions, CredentialProvider, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use rowmill_jobs::store::aws::{S3Access, s3_access};
use rowmill_jobs::{Error, Result};
use tokio::sync::Mutex;
use url::Url;

/// Credentials are asked for again this long before they end.
const CREDENTIALS_MARGIN: Duration = Duration::from_secs(300);
/// Credentials that do not say when they end are asked for again after this.
const CREDENTIALS_AGE: Duration = Duration::from_secs(900);

/// Stores by bucket; a store holds its connections, so it is worth keeping.
static STORES: LazyLock<Mutex<HashMap<String, Arc<dyn ObjectStore>>>> = LazyLock::new(Mutex::default);

/// The store that holds `url`, and the object's path in it.
///
/// # Errors
/// Kind `Invalid` for schemes that are not supported and for a client that cannot be configured.
pub async fn object_store_for(url: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let parsed = Url::parse(url).map_err(|error| Error::invalid(format!("'{url}' is not a URL")).caused_by(error))?;
    let path = path_of(url)?;
    let root = root_of(&parsed);
    let mut stores = STORES.lock().await;
    if let Some(store) = stores.get(&root) {
        return Ok((Arc::clone(store), path));
    }
    let store: Arc<dyn ObjectStore> = match parsed.scheme() {
        "file" => Arc::new(LocalFileSystem::new()),
        "s3" => s3(&parsed).await?,
        other => {
            return Err(
                Error::invalid(format!("'{other}://' is not a store this version reads")).hint("file:// and s3:// are")
            );
        }
    };
    stores.insert(root, Arc::clone(&store));
    Ok((store, path))
}

/// The object's path in its store, `%20` and the like decoded for local files.
pub(crate) fn path_of(url: &str) -> Result<Path> {
    let not_a_path = |reason: String| Error::invalid(format!("'{url}' does not name an object: {reason}"));
    if let Some(rest) = url.strip_prefix("s3://") {
        let key = rest.split_once('/').map_or("", |(_, key)| key);
        return Path::parse(key.trim_end_matches('/')).map_err(|error| not_a_path(error.to_string()));
    }
    let parsed = Url::parse(url).map_err(|error| not_a_path(error.to_string()))?;
    Path::from_url_path(parsed.path()).map_err(|error| not_a_path(error.to_string()))
}

/// `s3://bucket/` or `file:///`: what a store is registered under.
pub(crate) fn root_of(url: &Url) -> String {
    format!("{}://{}/", url.scheme(), url.host_str().unwrap_or_default())
}

/// The URL of an object of the store under `root`.
pub(crate) fn url_of(root: &str, path: &Path) -> String {
    if root.starts_with("file:") {
        let local = format!("/{path}");
        Url::from_file_path(&local).map_or(format!("{root}{path}"), String::from)
    } else {
        format!("{root}{path}")
    }
}

async fn s3(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let bucket = url.host_str().ok_or_else(|| Error::invalid(format!("'{url}' names no bucket")))?;
    let S3Access { region, endpoint, credentials } = s3_access().await;
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_region(region);
    if let Some(endpoint) = &endpoint {
        let plain = endpoint.starts_with("http://");
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/'))
            .with_virtual_hosted_style_request(false)
            .with_client_options(ClientOptions::new().with_allow_http(plain));
    }
    if let Some(provider) = credentials {
        builder = builder.with_credentials(Arc::new(AwsBridge { provider, kept: Mutex::new(None) }));
    }
    let store = builder
        .build()
        .map_err(|error| Error::invalid(format!("cannot make an S3 client for bucket '{bucket}'")).caused_by(error))?;
    Ok(Arc::new(SortedErrors(store)))
}

/// S3, with errors of listing sorted like those of reading: `object_store` calls all of them "generic", also those that
/// come back however often one tries.
#[derive(Debug)]
struct SortedErrors(AmazonS3);

fn sorted(error: object_store::Error, place: Option<&Path>) -> object_store::Error {
    let object_store::Error::Generic { store, source } = error else { return error };
    let path = place.map(Path::to_string).unwrap_or_default();
    // The type that has the status is private; its text is not.
    let text = source.to_string();
    let is = |status: &str| text.contains(&format!("non-2xx status code: {status}"));
    if is("404") {
        object_store::Error::NotFound { path, source }
    } else if is("403") {
        object_store::Error::PermissionDenied { path, source }
    } else if is("401") {
        object_store::Error::Unauthenticated { path, source }
    } else {
        object_store::Error::Generic { store, source }
    }
}

impl fmt::Display for SortedErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for SortedErrors {
    async fn put_opts(&self, place: &Path, content: PutPayload, how: PutOptions) -> object_store::Result<PutResult> {
        self.0.put_opts(place, content, how).await
    }

    async fn put_multipart_opts(
        &self,
        place: &Path,
        how: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(place, how).await
    }

    async fn get_opts(&self, place: &Path, how: GetOptions) -> object_store::Result<GetResult> {
        self.0.get_opts(place, how).await
    }

    fn delete_stream(
        &self,
        places: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.0.delete_stream(places)
    }

    fn list(&self, place: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let owned = place.cloned();
        self.0.list(place).map(move |found| found.map_err(|error| sorted(error, owned.as_ref()))).boxed()
    }

    async fn list_with_delimiter(&self, place: Option<&Path>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(place).await.map_err(|error| sorted(error, place))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, how).await
    }
}

/// Gives object_store the AWS SDK's credentials. The SDK's own cache sits elsewhere, so this keeps them until they end.
#[derive(Debug)]
struct AwsBridge {
    provider: SharedCredentialsProvider,
    kept: Mutex<Option<(Arc<AwsCredential>, SystemTime)>>,
}

#[async_trait]
impl CredentialProvider for AwsBridge {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut kept = self.kept.lock().await;
        let now = SystemTime::now();
        if let Some((credential, until)) = kept.as_ref()
            && now < *until
        {
            return Ok(Arc::clone(credential));
        }
        let fresh = self
            .provider
            .provide_credentials()
            .await
            .map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        let until =
            fresh.expiry().map_or(now + CREDENTIALS_AGE, |end| end.checked_sub(CREDENTIALS_MARGIN).unwrap_or(now));
        let credential = Arc::new(AwsCredential {
            key_id: fresh.access_key_id().to_owned(),
            secret_key: fresh.secret_access_key().to_owned(),
            token: fresh.session_token().map(str::to_owned),
        });
        *kept = Some((Arc::clone(&credential), until));
        Ok(credential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_paths_are_inverse() {
        for url in ["file:///tmp/a%20b/ds=2026-11-20/x.parquet", "s3://lake/t/ds=1/x.parquet"] {
            let root = root_of(&Url::parse(url).unwrap());
            assert_eq!(url_of(&root, &path_of(url).unwrap()), url);
        }
    }

    #[tokio::test]
    async fn other_schemes_are_refused() {
        assert!(object_store_for("gs://bucket/x").await.unwrap_err().to_string().contains("gs://"));
    }
}
