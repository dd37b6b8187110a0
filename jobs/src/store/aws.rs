//! The one AWS configuration of the process: region, endpoint and credentials from the standard `AWS_*` variables and
//! profiles, loaded once. Every client of AWS is made from it, so that one set of keys opens everything.

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::config::SharedCredentialsProvider;
use tokio::sync::OnceCell;

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
