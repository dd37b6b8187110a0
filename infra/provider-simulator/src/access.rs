//! Who asks: the key of a request by its name, or nobody. Values of keys stay here.

use std::collections::BTreeMap;

use http::HeaderMap;

use crate::provider::{Auth, Provider};
use crate::random;

/// Hexadecimal digits of an AWS signature.
const SIGNATURE_DIGITS: usize = 64;

/// The name of the key that a request shows; `None` if it shows none, or one that is not known.
pub(crate) fn key_name(
    provider: Provider,
    headers: &HeaderMap,
    query: &BTreeMap<String, String>,
    keys: &BTreeMap<String, String>,
) -> Option<String> {
    // The second half of an upload to Gemini is known by its number alone.
    if provider == Provider::Gemini && query.contains_key("upload_id") {
        return Some("upload".into());
    }
    let bearer = || text(headers, "authorization")?.strip_prefix("Bearer ");
    let shown = match provider.traits().auth {
        Auth::Bearer => bearer()?,
        Auth::HeaderOrBearer(name) => {
            text(headers, name).or_else(bearer).or_else(|| query.get("key").map(String::as_str))?
        }
        Auth::Optional => match bearer() {
            Some(key) => key,
            None if keys.is_empty() => return Some("nobody".into()),
            None => return None,
        },
        // Secret keys of AWS are not in the request: the access key's id stands for them, unless keys are listed.
        Auth::Signature => match bearer() {
            Some(key) => key,
            None => signer(headers)?,
        },
    };
    if keys.is_empty() {
        return Some(format!("key-{:08x}", random::of(shown) as u32));
    }
    keys.iter().find(|(_, value)| *value == shown).map(|(name, _)| name.clone())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The access key's id in a well-formed signature of version 4; the signature itself is not checked.
fn signer(headers: &HeaderMap) -> Option<&str> {
    let fields = text(headers, "authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let field = |name: &str| fields.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
    let date = text(headers, "x-amz-date")?;
    let scope: Vec<&str> = field("Credential")?.split('/').collect();
    let [id, day, _region, service, "aws4_request"] = scope[..] else { return None };
    let signed: Vec<&str> = field("SignedHeaders")?.split(';').collect();
    let signature = field("Signature")?;
    let is_whole = date.starts_with(day)
        && date.len() == "20260101T000000Z".len()
        && service == "bedrock"
        && ["host", "x-amz-date"].iter().all(|name| signed.contains(name))
        && signature.len() == SIGNATURE_DIGITS
        && signature.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_whole.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_must_be_whole() {
        let mut headers = HeaderMap::new();
        let name = |headers: &HeaderMap| key_name(Provider::Bedrock, headers, &BTreeMap::new(), &BTreeMap::new());
        headers.insert("x-amz-date", "20261122T120000Z".parse().unwrap());
        assert_eq!(name(&headers), None);
        let signed = |headers: &str, digits: usize| {
            let signature = "a".repeat(digits);
            format!(
                "AWS4-HMAC-SHA256 Credential=AKID/20261122/us-east-1/bedrock/aws4_request, SignedHeaders={headers}, \
                 Signature={signature}"
            )
        };
        headers.insert("authorization", signed("host;x-amz-date", 64).parse().unwrap());
        assert!(name(&headers).is_some());
        for broken in [signed("host", 64), signed("host;x-amz-date", 63)] {
            headers.insert("authorization", broken.parse().unwrap());
            assert_eq!(name(&headers), None, "{broken}");
        }
    }

    #[test]
    fn listed_keys_alone_are_known_and_by_name() {
        let keys = BTreeMap::from([("team-a".to_owned(), "sk-secret".to_owned())]);
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer sk-secret".parse().unwrap());
        assert_eq!(key_name(Provider::Openai, &headers, &BTreeMap::new(), &keys).as_deref(), Some("team-a"));
        headers.insert("authorization", "Bearer sk-other".parse().unwrap());
        assert_eq!(key_name(Provider::Openai, &headers, &BTreeMap::new(), &keys), None);
    }
}
