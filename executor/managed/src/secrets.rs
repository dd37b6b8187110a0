//! Secrets by reference: what configuration and jobs hold is where a key is kept, never the key. A key exists in memory
//! only, as a `SecretString`, which prints nothing and is wiped when it goes. Nothing here is cached or written.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rowmill_jobs::{Error, Result};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// Longest secret that is taken for one: service accounts of clouds are JSON files of a few thousand bytes.
const BYTES_MAX: usize = 64 * 1024;
/// How the keys of well-known services begin. A key in the place of a reference is what people do first.
const KEY_PREFIXES: [&str; 20] = [
    "sk-",
    "sk_",
    "pk-",
    "gsk_",
    "AIza",
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "github_pat_",
    "glpat-",
    "hf_",
    "xoxb-",
    "xoxp-",
    "fw_",
    "tgp_",
    "ya29.",
    "Bearer ",
    "eyJhbGciOi",
    "-----BEGIN",
];

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretRef {
    /// `env:NAME`: an environment variable of the executor.
    Env(String),
    /// `file:/path`: a file, as orchestrators mount secrets.
    File(PathBuf),
    /// `aws-sm:NAME`: AWS Secrets Manager, by name or ARN, opened with the process's AWS credentials.
    AwsSecretsManager(String),
}

impl SecretRef {
    /// Fetches the secret.
    ///
    /// # Errors
    /// It is not there, is empty, or holds control characters (a header cannot). No message holds any of it.
    pub async fn resolve(&self) -> Result<SecretString> {
        let text = match self {
            Self::Env(name) => std::env::var(name).map(SecretString::from).map_err(|error| {
                // The error of a variable that is no text holds the variable.
                let why = if matches!(error, std::env::VarError::NotPresent) { "is not set" } else { "is no text" };
                Error::invalid(format!("the environment variable {name} {why}"))
            }),
            Self::File(path) => {
                let read = tokio::fs::read(path).await;
                let bytes =
                    read.map_err(|error| Error::invalid(format!("cannot read {}", path.display())).caused_by(error))?;
                // Without the bytes, which the error would hold.
                let text = String::from_utf8(bytes);
                text.map(SecretString::from).map_err(|_| Error::invalid(format!("{} is no text", path.display())))
            }
            Self::AwsSecretsManager(name) => rowmill_jobs::store::aws::secret(name).await.map(SecretString::from),
        };
        text.and_then(checked).map_err(|error| error.with("secret", self))
    }
}

/// A secret without white space around it: files end in a new line.
fn checked(secret: SecretString) -> Result<SecretString> {
    let text = secret.expose_secret().trim();
    if text.is_empty() {
        return Err(Error::invalid("the secret is empty"));
    }
    if text.len() > BYTES_MAX {
        return Err(Error::invalid(format!("the secret has more than {BYTES_MAX} bytes")));
    }
    // A service account is a JSON file of many lines; a key is one line.
    let is_document = text.starts_with('{');
    if !is_document && text.chars().any(char::is_control) {
        return Err(Error::invalid("the secret holds control characters, which no request can carry")
            .hint("check for a line break inside it"));
    }
    Ok(SecretString::from(text))
}

/// Whether text looks like a key itself, and not like a name of one.
pub fn looks_like_key(text: &str) -> bool {
    let text = text.trim();
    KEY_PREFIXES.iter().any(|prefix| text.len() >= prefix.len() + 8 && text.starts_with(prefix)) || is_random(text)
}

/// A long word of letters and digits mixed, as no name of anything is.
fn is_random(text: &str) -> bool {
    let count = |is: fn(&char) -> bool| text.chars().filter(is).count();
    let is_word = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    let changes =
        text.as_bytes().windows(2).filter(|pair| pair[0].is_ascii_digit() != pair[1].is_ascii_digit()).count();
    let is_mixed = count(char::is_ascii_uppercase) >= 4
        && count(char::is_ascii_lowercase) >= 4
        && count(char::is_ascii_digit) >= 4;
    is_word && text.len() >= 32 && is_mixed && changes >= 6
}

/// Refuses a key where a name or reference is expected. The message holds nothing of it.
///
/// # Errors
/// `text` looks like a key.
pub fn refuse_key(what: &str, text: &str) -> Result<()> {
    if looks_like_key(text) {
        return Err(Error::invalid(format!("{what} looks like a key itself")).hint(KEY_HINT));
    }
    Ok(())
}

/// What to do with a key.
const KEY_HINT: &str = "keep the key in the executor's environment, a file or AWS Secrets Manager, and name it in rowmill.toml: \
                        secret = \"env:OPENAI_API_KEY\", \"file:/run/secrets/openai\" or \"aws-sm:prod/openai\"; then replace \
                        the key, since it was written down";

impl FromStr for SecretRef {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let name = text.split_once(':').map_or("", |(_, name)| name);
        // A variable is named in capitals by custom only; that it is a word tells a name from most keys.
        let is_word = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let is_key = looks_like_key(text) || (!name.starts_with('/') && looks_like_key(name));
        match text.split_once(':').map(|(scheme, _)| scheme) {
            _ if is_key => Err(format!("this looks like a key itself: {KEY_HINT}")),
            Some("env") if is_word => Ok(Self::Env(name.to_owned())),
            Some("file") if name.starts_with('/') => Ok(Self::File(name.into())),
            Some("aws-sm") if !name.is_empty() => Ok(Self::AwsSecretsManager(name.to_owned())),
            // The text may be a key that is not known as one: it is not repeated.
            _ => Err("a secret is named as env:NAME, file:/path or aws-sm:NAME".into()),
        }
    }
}

impl TryFrom<String> for SecretRef {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<SecretRef> for String {
    fn from(secret: SecretRef) -> String {
        secret.to_string()
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::AwsSecretsManager(name) => write!(f, "aws-sm:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "sk-canary-3f9A77bQ01zz";

    #[test]
    fn references_are_read_and_written_back() {
        for text in ["env:OPENAI_API_KEY", "file:/run/secrets/openai", "aws-sm:prod/openai", "aws-sm:arn:aws:sm:eu:1:x"]
        {
            assert_eq!(text.parse::<SecretRef>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn keys_in_place_of_references_are_refused_and_not_repeated() {
        for text in [
            CANARY,
            "env:sk-canary-3f9A77bQ01zz",
            "aws-sm:sk-canary-3f9A77bQ01zz",
            "Bearer canary-3f9A77bQ01zz",
            "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vWcanary",
            "canary-without-scheme",
            "env:",
            "env:canary name",
            "file:canary/relative",
            "aws-sm:",
        ] {
            let error = text.parse::<SecretRef>().unwrap_err();
            assert!(!error.contains("canary"), "{error}");
        }
        assert!(refuse_key("an option", CANARY).unwrap_err().hint_text().unwrap().contains("env:OPENAI_API_KEY"));
        for name in [
            "gpt-4o-mini-2024-07-18",
            "s3://lake/tickets/",
            "accounts/fireworks/models/llama-v3p1-405b-instruct",
            "sk-",
        ] {
            assert!(!looks_like_key(name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_file_is_trimmed_and_checked_and_nothing_of_it_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let resolve = async |content: &[u8]| {
            let path = folder.path().join("secret");
            std::fs::write(&path, content).unwrap();
            SecretRef::File(path).resolve().await
        };
        let secret = resolve(format!("  {CANARY}\r\n").as_bytes()).await.unwrap();
        assert_eq!(secret.expose_secret(), CANARY);
        assert!(!format!("{secret:?}").contains("canary"));
        assert!(resolve(b"{\n  \"type\": \"service_account\"\n}\n").await.is_ok());
        let long = "canary".repeat(BYTES_MAX);
        for bad in [&b""[..], b" \n", b"sk-canary\nsecond line", b"sk-canary\0", b"sk-canary\xff", long.as_bytes()] {
            let error = resolve(bad).await.unwrap_err();
            let everything = format!("{error:?} {}", error.report());
            assert!(!everything.contains("canary"), "{everything}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let error = SecretRef::Env("ROWMILL_NO_SUCH_SECRET".into()).resolve().await.unwrap_err();
        assert!(error.report().contains("ROWMILL_NO_SUCH_SECRET is not set"), "{}", error.report());
        let error = SecretRef::File("/no/such/secret".into()).resolve().await.unwrap_err();
        assert!(error.report().contains("/no/such/secret"), "{}", error.report());
    }
}
