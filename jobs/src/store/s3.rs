//! [`S3Store`]: a folder of a bucket, through the AWS SDK. An object appears by one PUT with `If-None-Match: *`, which the
//! server does atomically and only if the name is free. As a `Store` it cannot overwrite or delete, and it never writes in
//! several parts: what is written here fits into one PUT.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumMode, ServerSideEncryption};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use super::{ObjectInfo, Payload, Put, Store, aws, check_name};
use crate::{Error, Kind, Result};

/// Tries of one read, with the SDK's own pauses between them.
const READ_ATTEMPTS: u32 = 4;
/// Wait after an answer that broke off; longer each time.
const BROKEN_WAIT: Duration = Duration::from_millis(200);
/// Longest a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest an answer may take, beyond what its bytes take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A connection slower than this, in bytes a second, is broken.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// Encryption of what is written: `AES256` or `aws:kms`; without it, what the bucket does by itself.
pub const ENCRYPTION: &str = "ROWMILL_S3_SSE";
/// Key for `aws:kms`, if not the account's own.
pub const ENCRYPTION_KEY: &str = "ROWMILL_S3_KMS_KEY_ID";

/// A folder of a bucket.
#[derive(Debug)]
pub struct S3Store {
    url: String,
    bucket: String,
    /// Ends in `/`, or is empty.
    folder: String,
    connected: OnceCell<Connected>,
}

/// A client with what it writes with.
#[derive(Debug)]
struct Connected {
    client: Client,
    encryption: Option<(ServerSideEncryption, Option<String>)>,
}

impl S3Store {
    /// The store in the folder that `s3://bucket/folder/` names. Opens no connection yet.
    ///
    /// # Errors
    /// The URL names no bucket.
    pub fn new(url: &str) -> Result<Self> {
        let place = url.strip_prefix("s3://").unwrap_or(url);
        let (bucket, folder) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() {
            return Err(Error::invalid(format!("'{url}' names no bucket")).hint("write s3://bucket/folder/"));
        }
        let folder = folder.trim_end_matches('/');
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Ok(Self { url: format!("s3://{bucket}/{folder}"), bucket: bucket.into(), folder, connected: OnceCell::new() })
    }

    async fn connected(&self) -> Result<&Connected> {
        self.connected
            .get_or_try_init(|| async {
                let access = aws::s3_access().await;
                let mut config = aws_sdk_s3::Config::builder()
                    .behavior_version(BehaviorVersion::latest())
                    .region(Region::new(access.region))
                    // Ours are sent always; what other servers than AWS's make of the SDK's defaults differs too much.
                    .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                    .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
                    .retry_config(RetryConfig::standard().with_max_attempts(READ_ATTEMPTS))
                    .timeout_config(timeouts(0));
                config.set_credentials_provider(access.credentials);
                if let Some(endpoint) = access.endpoint {
                    config = config.endpoint_url(endpoint).force_path_style(true);
                }
                Ok(Connected { client: Client::from_conf(config.build()), encryption: encryption()? })
            })
            .await
    }

    fn key(&self, name: &str) -> Result<String> {
        check_name(name)?;
        Ok(format!("{}{name}", self.folder))
    }

    /// Deletes an object. Only the eraser calls it, under other credentials.
    pub(super) async fn erase(&self, name: &str) -> Result<()> {
        let key = self.key(name)?;
        let client = &self.connected().await?.client;
        let deleted = client.delete_object().bucket(&self.bucket).key(key).send().await;
        deleted.map(drop).map_err(|error| self.failed("delete", name, error))
    }

    /// An object or a range of it, if it exists. The SDK tries again until an answer begins; an answer that breaks off is
    /// asked for again here.
    async fn read(&self, name: &str, range: Option<String>) -> Result<Option<Bytes>> {
        let key = self.key(name)?;
        let client = &self.connected().await?.client;
        let mut attempt = 1;
        loop {
            // A checksum is of the whole object.
            let checked = range.is_none().then_some(ChecksumMode::Enabled);
            let get = client.get_object().bucket(&self.bucket).key(&key);
            let answer = match get.set_range(range.clone()).set_checksum_mode(checked).send().await {
                Ok(answer) => answer,
                Err(error) if error.code() == Some("NoSuchKey") => return Ok(None),
                Err(error) => return Err(self.failed("read", name, error)),
            };
            match answer.body.collect().await {
                Ok(body) => return Ok(Some(body.into_bytes())),
                Err(error) if attempt == READ_ATTEMPTS => {
                    let message = format!("cannot read all of {}{name}: the answer breaks off", self.url);
                    return Err(Error::temporary(message).caused_by(error));
                }
                Err(error) => tracing::warn!(name, attempt, error = %error, "an answer broke off; reading again"),
            }
            tokio::time::sleep(BROKEN_WAIT * attempt).await;
            attempt += 1;
        }
    }

    fn failed<E>(&self, action: &str, name: &str, error: SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = status(&error);
        let (kind, hint) =
            classify(status, error.code().unwrap_or_default(), &format!("{}", DisplayErrorContext(&error)));
        let what = error.code().map_or_else(|| summary(&error), str::to_owned);
        let status = status.map_or(String::new(), |status| format!(" (status {status})"));
        let wrapped = Error::new(kind, format!("cannot {action} {}{name}: {what}{status}", self.url)).caused_by(error);
        match hint {
            Some(hint) => wrapped.hint(hint),
            None => wrapped,
        }
    }
}

/// The status of the answer that a request failed with, if one came.
fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// What kept a request from an answer, in a few words.
fn summary<E>(error: &SdkError<E>) -> String {
    match error {
        SdkError::TimeoutError(_) => "no answer in time",
        SdkError::DispatchFailure(failure) if failure.is_timeout() => "no connection in time",
        SdkError::DispatchFailure(_) => "no connection",
        SdkError::ResponseError(_) => "an answer that makes no sense",
        _ => "the request failed",
    }
    .into()
}

/// What an answer means for whoever asked.
fn classify(status: Option<u16>, code: &str, text: &str) -> (Kind, Option<&'static str>) {
    let keys = "check the AWS_* variables or profile: they must allow reading, listing and creating objects there";
    match (status, code) {
        (_, "NoSuchBucket") => (Kind::Invalid, Some("create the bucket, or check its name")),
        (_, "RequestTimeTooSkewed") => (Kind::Invalid, Some("set this machine's clock")),
        (_, "ExpiredToken") => (Kind::Invalid, Some("sign in again: the AWS session has ended")),
        (_, "RequestTimeout" | "SlowDown" | "InternalError" | "ConditionalRequestConflict" | "OperationAborted") => {
            (Kind::Temporary, None)
        }
        (Some(401 | 403), _) => (Kind::Invalid, Some(keys)),
        (Some(301 | 307), _) => (Kind::Invalid, Some("the bucket is in another region: set AWS_REGION")),
        (Some(408 | 409 | 429 | 500..), _) => (Kind::Temporary, None),
        (Some(_), _) => (Kind::Invalid, None),
        (None, _) if text.contains("redential") => (Kind::Invalid, Some(keys)),
        (None, _) => (Kind::Temporary, Some("check the network, AWS_ENDPOINT_URL and AWS_REGION")),
    }
}

/// Limits of one request that carries `bytes` bytes.
fn timeouts(bytes: u64) -> TimeoutConfig {
    let whole = ANSWER_MAX + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
    TimeoutConfig::builder().connect_timeout(CONNECT_MAX).operation_attempt_timeout(whole).build()
}

/// The encryption that the environment asks for.
fn encryption() -> Result<Option<(ServerSideEncryption, Option<String>)>> {
    let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    match (set(ENCRYPTION).as_deref(), set(ENCRYPTION_KEY)) {
        (None, None) => Ok(None),
        (Some("AES256"), None) => Ok(Some((ServerSideEncryption::Aes256, None))),
        (Some("aws:kms"), key) => Ok(Some((ServerSideEncryption::AwsKms, key))),
        _ => Err(Error::new(Kind::Usage, format!("{ENCRYPTION} and {ENCRYPTION_KEY} do not fit together"))
            .hint(format!("{ENCRYPTION}=aws:kms, with or without {ENCRYPTION_KEY}, or {ENCRYPTION}=AES256"))),
    }
}

/// sha256 and size of a file, read off the async threads.
async fn digest(path: &Path) -> Result<(String, u64)> {
    let unreadable = {
        let path = path.to_path_buf();
        move |error| Error::invalid(format!("cannot read {}", path.display())).caused_by(error)
    };
    let path = path.to_path_buf();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        let bytes = std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
        Ok::<_, std::io::Error>((BASE64.encode(hasher.finalize()), bytes))
    });
    match hashed.await {
        Ok(hashed) => hashed.map_err(unreadable),
        Err(error) => Err(Error::internal("hashing a file did not finish").caused_by(error)),
    }
}

/// Whole seconds, since a HEAD tells no more: some servers' listings do, and an object has one age, whoever tells it.
fn milliseconds(time: Option<&DateTime>) -> i64 {
    time.map_or(0, |time| time.secs().saturating_mul(1000))
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> &str {
        &self.url
    }

    async fn put_if_absent(&self, name: &str, payload: &Payload) -> Result<Put> {
        let key = self.key(name)?;
        let Connected { client, encryption } = self.connected().await?;
        let unreadable = |error| Error::invalid("cannot read a finished part").caused_by(error);
        let (body, sha256, bytes) = match payload {
            Payload::Bytes(bytes) => {
                (ByteStream::from(bytes.clone()), BASE64.encode(Sha256::digest(bytes)), bytes.len() as u64)
            }
            Payload::File(path) => {
                let (sha256, bytes) = digest(path).await?;
                (ByteStream::from_path(path).await.map_err(unreadable)?, sha256, bytes)
            }
        };
        let (encryption, encryption_key) = encryption.clone().unzip();
        // Not tried again by the SDK: its second try would meet what its first one wrote. `create` looks and decides.
        let config =
            aws_sdk_s3::config::Builder::new().retry_config(RetryConfig::disabled()).timeout_config(timeouts(bytes));
        let sent = client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .if_none_match("*")
            .checksum_sha256(sha256)
            .content_length(i64::try_from(bytes).unwrap_or(i64::MAX))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(encryption_key.flatten())
            .body(body)
            .customize()
            .config_override(config)
            .send()
            .await;
        match sent {
            Ok(_) => Ok(Put::Created),
            Err(error) if status(&error) == Some(412) => Ok(Put::Exists),
            Err(error) => Err(self.failed("write", name, error)),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.read(name, None).await
    }

    async fn get_tail(&self, name: &str, bytes_max: u64) -> Result<Bytes> {
        let tail = self.read(name, Some(format!("bytes=-{bytes_max}"))).await?;
        tail.ok_or_else(|| Error::temporary(format!("there is no {}{name} any more", self.url)))
    }

    async fn head(&self, name: &str) -> Result<Option<ObjectInfo>> {
        let key = self.key(name)?;
        let client = &self.connected().await?.client;
        match client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(answer) => Ok(Some(ObjectInfo {
                name: name.into(),
                bytes: answer.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
                etag: answer.e_tag().map(str::to_owned),
                modified_ms: milliseconds(answer.last_modified()),
            })),
            // A HEAD has no body that could tell a missing bucket from a missing object; reading and writing will.
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed("look at", name, error)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let client = &self.connected().await?.client;
        let full = format!("{}{prefix}", self.folder);
        let mut pages = client.list_objects_v2().bucket(&self.bucket).prefix(full).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed("list", prefix, error))?;
            found.extend(page.contents().iter().filter_map(|object| {
                Some(ObjectInfo {
                    name: object.key()?.strip_prefix(&self.folder)?.to_owned(),
                    bytes: object.size().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
                    etag: object.e_tag().map(str::to_owned),
                    modified_ms: milliseconds(object.last_modified()),
                })
            }));
        }
        // S3 sorts by bytes, as we do; other servers need not.
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_bucket_and_a_folder() {
        for (url, bucket, folder) in
            [("s3://lake/a/b/", "lake", "a/b/"), ("s3://lake/a", "lake", "a/"), ("s3://lake", "lake", "")]
        {
            let store = S3Store::new(url).unwrap();
            assert_eq!((store.bucket.as_str(), store.folder.as_str()), (bucket, folder), "{url}");
        }
        assert_eq!(S3Store::new("s3:///x").unwrap_err().kind(), Kind::Invalid);
        assert_eq!(S3Store::new("s3://lake/a").unwrap().key("../x").unwrap_err().kind(), Kind::Internal);
    }

    #[test]
    fn answers_say_whether_trying_again_helps() {
        for (status, code, kind) in [
            (Some(403), "AccessDenied", Kind::Invalid),
            (Some(404), "NoSuchBucket", Kind::Invalid),
            (Some(400), "RequestTimeout", Kind::Temporary),
            (Some(409), "ConditionalRequestConflict", Kind::Temporary),
            (Some(503), "SlowDown", Kind::Temporary),
            (Some(500), "", Kind::Temporary),
            (None, "", Kind::Temporary),
        ] {
            assert_eq!(classify(status, code, "").0, kind, "{status:?} {code}");
        }
        assert_eq!(classify(None, "", "no credentials in the chain").0, Kind::Invalid);
    }

    #[test]
    fn a_request_may_take_as_long_as_its_bytes_need() {
        assert_eq!(timeouts(256 << 20).operation_attempt_timeout(), Some(Duration::from_secs(30 + 256)));
    }
}
