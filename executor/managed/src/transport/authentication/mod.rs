//! How requests are authenticated: a key in a header, a signature (AWS), or a token that is fetched and renewed (Google).
//! Keys are looked at when they are loaded, so that a stray line break is an error that says so; they are never shown.

mod aws;
mod google;
#[cfg(test)]
mod google_tests;

use std::sync::Arc;

use async_openai::middleware::HttpRequestFactory;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use rowmill_jobs::{Error, Result};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

pub use google::GoogleCredentials;
use google::GoogleTokens;

use super::host::Reach;
use super::options::Timeouts;
use super::stack::{Failed, error};
use super::wire::{Response, Wire};
use crate::call::Class;

/// How requests are authenticated.
#[derive(Debug, Clone)]
pub enum Authentication {
    /// Not at all.
    None,
    /// `Authorization: Bearer …`.
    Bearer(SecretString),
    /// `x-api-key` (Anthropic).
    XApiKey(SecretString),
    /// `api-key` (Azure).
    ApiKey(SecretString),
    /// `x-goog-api-key` (Gemini).
    GoogleApiKey(SecretString),
    /// AWS Signature Version 4, with the credentials of the process.
    AwsSignature {
        /// `us-east-1`.
        region: String,
        /// What is signed for: `bedrock`.
        service: String,
    },
    /// OAuth of Google.
    Google(Arc<GoogleCredentials>),
}

/// Authenticates requests and sends them.
#[derive(Debug, Clone)]
pub(super) struct Authenticated {
    wire: Wire,
    base: Arc<Url>,
    scheme: Arc<Scheme>,
}

/// What is done to a request.
#[derive(Debug)]
enum Scheme {
    None,
    Header(HeaderName, HeaderValue),
    Aws { region: String, service: String },
    Google(GoogleTokens),
}

impl Authenticated {
    /// For requests to `base`.
    ///
    /// # Errors
    /// A key is none.
    pub(super) fn new(
        authentication: &Authentication,
        wire: Wire,
        base: Url,
        reach: Reach,
        timeouts: Timeouts,
    ) -> Result<Self> {
        let header =
            |name, key: &SecretString| -> Result<Scheme> { Ok(Scheme::Header(name, key_header(key.expose_secret())?)) };
        let scheme = match authentication {
            Authentication::None => Ok(Scheme::None),
            Authentication::Bearer(key) => Ok(Scheme::Header(AUTHORIZATION, bearer(key.expose_secret())?)),
            Authentication::XApiKey(key) => header(HeaderName::from_static("x-api-key"), key),
            Authentication::ApiKey(key) => header(HeaderName::from_static("api-key"), key),
            Authentication::GoogleApiKey(key) => header(HeaderName::from_static("x-goog-api-key"), key),
            Authentication::AwsSignature { region, service } => {
                Ok(Scheme::Aws { region: region.clone(), service: service.clone() })
            }
            Authentication::Google(credentials) => {
                Ok(Scheme::Google(GoogleTokens::new(Arc::clone(credentials), reach, timeouts)?))
            }
        }?;
        Ok(Self { wire, base: Arc::new(base), scheme: Arc::new(scheme) })
    }

    /// Sends one attempt. A token that is not accepted any more is renewed once.
    pub(super) async fn send(&self, factory: &HttpRequestFactory) -> Result<(Method, Response), Box<Failed>> {
        let (method, response) = self.attempt(factory).await?;
        if let (Scheme::Google(tokens), StatusCode::UNAUTHORIZED) = (&*self.scheme, response.status) {
            tokens.forget();
            return self.attempt(factory).await;
        }
        Ok((method, response))
    }

    async fn attempt(&self, factory: &HttpRequestFactory) -> Result<(Method, Response), Box<Failed>> {
        let unmade = || Failed::unsent(error(Class::Refused, "the request cannot be made"));
        let mut request = factory.build().await.map_err(|_| unmade())?;
        // A path is appended to the base URL as text: it must not have become another host.
        if request.url().origin() != self.base.origin() || !request.url().username().is_empty() {
            return Err(unmade());
        }
        match &*self.scheme {
            Scheme::None => {}
            Scheme::Header(name, value) => drop(request.headers_mut().insert(name, value.clone())),
            Scheme::Google(tokens) => drop(request.headers_mut().insert(AUTHORIZATION, tokens.header().await?)),
            Scheme::Aws { region, service } => aws::sign(&mut request, region, service).await?,
        }
        Ok((request.method().clone(), self.wire.send(request).await?))
    }
}

/// `Bearer <token>` as a header.
fn bearer(token: &str) -> Result<HeaderValue> {
    sensitive(&format!("Bearer {}", checked(token)?))
}

/// A key as a header.
fn key_header(key: &str) -> Result<HeaderValue> {
    sensitive(checked(key)?)
}

fn sensitive(text: &str) -> Result<HeaderValue> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| Error::invalid("the API key cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A key without the white space around it that files and environments add.
fn checked(key: &str) -> Result<&str> {
    let key = key.trim();
    if key.is_empty() {
        return Err(Error::invalid("the API key is empty"));
    }
    if let Some(at) = key.bytes().position(|byte| !(0x21..=0x7e).contains(&byte)) {
        return Err(Error::invalid(format!("the API key has a character at position {} that no key has", at + 1))
            .hint("a line break or a space within it: give the key alone, without quotes or a second line"));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_key_is_dropped_and_within_it_refused() {
        assert_eq!(key_header(" sk-1\n").unwrap(), "sk-1");
        assert_eq!(bearer("sk-1\r\n").unwrap(), "Bearer sk-1");
        for key in ["", " \n", "sk-1\nsk-2", "sk 1", "sk-1\u{0}", "\u{201c}sk-1\u{201d}"] {
            let error = key_header(key).unwrap_err();
            assert!(!error.report().contains("sk-"), "a key is shown: {}", error.report());
        }
    }

    #[test]
    fn keys_are_not_shown() {
        assert!(!format!("{:?}", bearer("canary").unwrap()).contains("canary"));
        let authentication = Authentication::Bearer("canary".to_owned().into());
        assert!(!format!("{authentication:?}").contains("canary"));
    }
}
