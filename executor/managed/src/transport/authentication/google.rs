//! OAuth access tokens of Google: from a service account's key (a signed assertion, RFC 7523) or a user's refresh token
//! (RFC 6749), as `gcloud auth application-default login` writes it. Tokens are renewed ahead of their end, by one caller at
//! a time. A machine's metadata service is not asked: such addresses are never connected to.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::Utc;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use rowmill_jobs::{Error, Result};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::Serializer;

use super::super::host::{Place, Reach, base_url};
use super::super::options::Timeouts;
use super::super::stack::{Failed, error};
use super::super::wire::{Response, Wire};
use crate::call::Class;

/// What a token is asked for.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Life of an assertion. Google takes an hour at most.
const ASSERTION: Duration = Duration::from_secs(3_600);
/// Tokens that end within this time are renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// Tokens that end within this time are not used any more.
const LAST_USE: Duration = Duration::from_secs(30);
/// Largest answer with a token.
const ANSWER_MAX: usize = 64 << 10;

/// Who asks for tokens.
pub struct GoogleCredentials {
    token_url: Url,
    kind: Kind,
}

enum Kind {
    ServiceAccount { email: String, key_id: Option<String>, key: Arc<dyn SigningKey> },
    User { id: String, secret: SecretString, refresh_token: SecretString },
}

impl fmt::Debug for GoogleCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoogleCredentials").field("token_url", &self.token_url.as_str()).finish_non_exhaustive()
    }
}

/// The file, as Google writes it.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum File {
    ServiceAccount {
        client_email: String,
        private_key: SecretString,
        private_key_id: Option<String>,
        token_uri: Option<String>,
    },
    AuthorizedUser {
        client_id: String,
        client_secret: SecretString,
        refresh_token: SecretString,
        token_uri: Option<String>,
    },
}

impl GoogleCredentials {
    /// Reads a credentials file's JSON: a service account's or an authorized user's. With [`Place::Provider`] tokens are
    /// asked for at Google alone, wherever the file says.
    ///
    /// # Errors
    /// It is none of the two, its key is no RSA key, or its token URL is not Google's.
    pub fn parse(json: &SecretString, place: Place) -> Result<Self> {
        // serde_json's message would quote the file.
        let none = || {
            Error::invalid("the Google credentials are none of a service account or an authorized user")
                .hint("give the JSON file that `gcloud iam service-accounts keys create` writes")
        };
        let file: File = serde_json::from_str(json.expose_secret()).map_err(|_| none())?;
        let (token_uri, kind) = match file {
            File::ServiceAccount { client_email, private_key, private_key_id, token_uri } => {
                let key =
                    rsa_key(&private_key).ok_or_else(|| Error::invalid("the service account's key is no RSA key"))?;
                (token_uri, Kind::ServiceAccount { email: client_email, key_id: private_key_id, key })
            }
            File::AuthorizedUser { client_id, client_secret, refresh_token, token_uri } => {
                (token_uri, Kind::User { id: client_id, secret: client_secret, refresh_token })
            }
        };
        let token_uri = token_uri.unwrap_or_else(|| "https://oauth2.googleapis.com/token".to_owned());
        let (token_url, _) = base_url(&token_uri, place)?;
        let googles = token_url.host_str().is_some_and(|host| host.ends_with(".googleapis.com"));
        if place == Place::Provider && !googles {
            return Err(Error::invalid("the Google credentials' token URL is not Google's"));
        }
        Ok(Self { token_url, kind })
    }

    /// The form that asks for a token.
    fn form(&self) -> Option<String> {
        let mut form = Serializer::new(String::new());
        match &self.kind {
            Kind::ServiceAccount { email, key_id, key } => {
                let assertion = self.assertion(email, key_id.as_deref(), &**key)?;
                form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
                form.append_pair("assertion", &assertion);
            }
            Kind::User { id, secret, refresh_token } => {
                form.append_pair("grant_type", "refresh_token");
                form.append_pair("client_id", id);
                form.append_pair("client_secret", secret.expose_secret());
                form.append_pair("refresh_token", refresh_token.expose_secret());
            }
        }
        Some(form.finish())
    }

    /// A signed JSON Web Token (RFC 7519) that says who asks for what.
    fn assertion(&self, email: &str, key_id: Option<&str>, key: &dyn SigningKey) -> Option<String> {
        let now = Utc::now().timestamp();
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": key_id});
        let end = now.saturating_add(i64::try_from(ASSERTION.as_secs()).ok()?);
        let claims = json!({"iss": email, "scope": SCOPE, "aud": self.token_url.as_str(), "iat": now, "exp": end});
        let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256])?;
        let signature = signer.sign(signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", encode(&signature)))
    }
}

/// An RSA key of a PEM file.
fn rsa_key(pem: &SecretString) -> Option<Arc<dyn SigningKey>> {
    let der = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes()).ok()?;
    let key = any_supported_type(&der).ok()?;
    key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).is_some().then_some(key)
}

/// Tokens, as they are needed.
#[derive(Debug)]
pub(super) struct GoogleTokens {
    credentials: Arc<GoogleCredentials>,
    wire: Wire,
    token: Mutex<Option<Token>>,
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    ends: Instant,
}

#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    expires_in: u64,
}

impl GoogleTokens {
    /// None yet.
    pub(super) fn new(credentials: Arc<GoogleCredentials>, reach: Reach, timeouts: Timeouts) -> Result<Self> {
        let wire = Wire::new(reach, timeouts, 1, ANSWER_MAX)?;
        Ok(Self { credentials, wire, token: Mutex::default(), renewing: tokio::sync::Mutex::default() })
    }

    /// A token that is good for a while.
    fn kept(&self, for_more_than: Duration) -> Option<HeaderValue> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let good = token.as_ref().filter(|token| token.ends > Instant::now() + for_more_than)?;
        Some(good.header.clone())
    }

    /// The token is not accepted any more.
    pub(super) fn forget(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The header of a request.
    pub(super) async fn header(&self) -> Result<HeaderValue, Box<Failed>> {
        if let Some(header) = self.kept(RENEW_BEFORE) {
            return Ok(header);
        }
        let _renewing = match (self.renewing.try_lock(), self.kept(LAST_USE)) {
            (Ok(lock), _) => lock,
            // Somebody renews it, and this one still serves.
            (Err(_), Some(header)) => return Ok(header),
            (Err(_), None) => self.renewing.lock().await,
        };
        if let Some(header) = self.kept(RENEW_BEFORE) {
            return Ok(header);
        }
        match self.fetch().await {
            Ok(token) => {
                let header = token.header.clone();
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
                Ok(header)
            }
            Err(failed) => self.kept(LAST_USE).ok_or(failed),
        }
    }

    async fn fetch(&self) -> Result<Token, Box<Failed>> {
        let failed = |class, message| Failed::unsent(error(class, message));
        let form = self.credentials.form();
        let form = form.ok_or_else(|| failed(Class::Denied, "the service account's key cannot sign"))?;
        let mut request = reqwest::Request::new(http::Method::POST, self.credentials.token_url.clone());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        *request.body_mut() = Some(form.into());
        let asked = Instant::now();
        // Whatever happened here, nothing of the call itself was sent.
        let sent = self.wire.send(request).await.map_err(|failed| Failed::unsent(failed.error));
        let Response { status, body, .. } = sent?;
        if !status.is_success() {
            let (class, message) = if status.is_server_error() || status.as_u16() == 429 {
                (Class::Transient, "Google gives no token at this time")
            } else {
                (Class::Denied, "Google gives no token for these credentials")
            };
            return Err(Failed::unsent(crate::call::CallError {
                status: Some(status.as_u16()),
                ..error(class, message)
            }));
        }
        let granted: Option<Granted> = serde_json::from_slice(&body).ok();
        let unread = || failed(Class::Transient, "Google's answer has no token");
        let granted = granted.ok_or_else(unread)?;
        let header = super::bearer(granted.access_token.expose_secret()).map_err(|_| unread())?;
        // No token lasts for longer than a day, whatever is said.
        let lasts = Duration::from_secs(granted.expires_in.min(24 * 3_600));
        Ok(Token { header, ends: asked + lasts })
    }
}
