//! The one AWS configuration of the process: region, endpoint and credentials from the standard `AWS_*` variables and
//! profiles, loaded once. Every client of AWS is made from it and every other request to AWS is
//! signed with it, so that one set of keys opens everything.

use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, SdkConfig};
pub use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::{ProvideCredentials, SharedCredentialsProvider};
use tokio::sync::{Mutex, OnceCell};

use crate::{Error, Result};

static CONFIG: OnceCell<SdkConfig> = OnceCell::const_new();

/// Where S3 is if nothing says otherwise.
const REGION_DEFAULT: &str = "us-east-1";

/// The configuration.
pub async fn config() -> &'static SdkConfig {
    CONFIG.get_or_init(|| aws_config::load_defaults(BehaviorVersion::latest())).await
}

/// What a client of S3 has to know. Two clients are made from it: the SDK's own and the one that tables are read with.
#[derive(Debug, Clone)]
pub struct S3Access {
    /// The region.
    pub region: String,
    /// Base URL of a server that is not AWS itself; its buckets are named in the path.
    pub endpoint: Option<String>,
    /// Gives credentials, and new ones before they end; `None` if nothing is configured.
    pub credentials: Option<SharedCredentialsProvider>,
}

/// How S3 is reached.
pub async fn s3_access() -> S3Access {
    let config = config().await;
    let endpoint = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|url| !url.is_empty());
    S3Access {
        region: config.region().map_or(REGION_DEFAULT, |region| region.as_ref()).to_owned(),
        endpoint: endpoint.or_else(|| config.endpoint_url().map(str::to_owned)),
        credentials: config.credentials_provider(),
    }
}

/// A secret's text in AWS Secrets Manager, by name or ARN, in its current version. Not kept: each call asks again.
///
/// # Errors
/// There is none of this name, it is no text, or the credentials do not open it. No message holds any of it.
pub async fn secret(name: &str) -> Result<String> {
    let client = aws_sdk_secretsmanager::Client::new(config().await);
    let answer = client.get_secret_value().secret_id(name).send().await.map_err(|error| {
        let answered = error.as_service_error().is_some();
        let wrapped = match answered {
            true => Error::invalid("AWS Secrets Manager does not give the secret"),
            false => Error::temporary("AWS Secrets Manager does not answer"),
        };
        let code = aws_sdk_secretsmanager::error::ProvideErrorMetadata::code(&error).unwrap_or("none").to_owned();
        wrapped
            .with("code", code)
            .hint("check its name, AWS_REGION, and that the executor may call GetSecretValue on it")
    })?;
    let text = answer.secret_string.ok_or_else(|| Error::invalid("the secret is no text"))?;
    Ok(text)
}

/// Credentials are fetched anew when they end within this time.
const REFRESH_BEFORE: Duration = Duration::from_secs(300);

static CREDENTIALS: Mutex<Option<Credentials>> = Mutex::const_new(None);

/// Credentials to sign a request with that is not one of S3's. Kept until shortly before they end, and fetched by one
/// caller at a time.
///
/// # Errors
/// None are configured, or those who give them do not answer.
pub async fn credentials() -> Result<Credentials> {
    let mut kept = CREDENTIALS.lock().await;
    let fresh =
        |credentials: &Credentials| credentials.expiry().is_none_or(|end| end > SystemTime::now() + REFRESH_BEFORE);
    if let Some(credentials) = kept.as_ref().filter(|credentials| fresh(credentials)) {
        return Ok(credentials.clone());
    }
    let none = || {
        Error::invalid("there are no AWS credentials")
            .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role")
    };
    let provider = config().await.credentials_provider().ok_or_else(none)?;
    match provider.provide_credentials().await {
        Ok(credentials) => Ok(kept.insert(credentials).clone()),
        Err(error @ CredentialsError::CredentialsNotLoaded(_)) => Err(none().caused_by(error)),
        Err(error) => Err(Error::temporary("AWS gives no credentials").caused_by(error)),
    }
}
