//! Access tokens of Google's OAuth: what a service account's signed assertion is exchanged for. The assertion's form is
//! checked; its signature is not, since the simulator has no account's key.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::provider::Provider;
use crate::reply::Reply;
use crate::serve::Incoming;

/// Where tokens are asked for, after the provider's name.
pub(crate) const PATH: &str = "/token";
/// Name of the key that is given out as the token, if keys are listed.
const KEY_NAME: &str = "vertex";
/// The token, if no keys are listed.
const TOKEN: &str = "ya29.simulated";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

pub(crate) fn is_asked_for(incoming: &Incoming) -> bool {
    incoming.provider == Provider::Vertex && incoming.path == PATH
}

/// The answer to a request for a token.
pub(crate) fn reply(body: &[u8], keys: &BTreeMap<String, String>) -> Reply {
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    let is_asserted = form.get("grant_type").is_some_and(|grant| grant == GRANT)
        && form.get("assertion").is_some_and(|assertion| is_assertion(assertion));
    let token = keys.get(KEY_NAME).map(String::as_str).or(keys.is_empty().then_some(TOKEN));
    match token.filter(|_| is_asserted) {
        Some(token) => Reply::ok(&json!({"access_token": token, "expires_in": 3_599, "token_type": "Bearer"})),
        None => Reply::json(400, &json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."})),
    }
}

/// Whether a text is a JSON Web Token that says who asks for what, until when.
fn is_assertion(text: &str) -> bool {
    let parts: Vec<Option<Vec<u8>>> = text.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).ok()).collect();
    let [Some(header), Some(claims), Some(signature)] = &parts[..] else { return false };
    let read = |part: &[u8]| serde_json::from_slice::<Value>(part).unwrap_or_default();
    let (header, claims) = (read(header), read(claims));
    header["alg"] == "RS256"
        && ["iss", "scope", "aud"].iter().all(|name| claims[*name].is_string())
        && claims["exp"].as_i64() > claims["iat"].as_i64()
        && !signature.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(header: &Value, grant: &str) -> String {
        let claims = json!({"iss": "robot@project", "scope": "s", "aud": "u", "iat": 1, "exp": 2});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let assertion = format!("{}.{}.{}", part(header), part(&claims), URL_SAFE_NO_PAD.encode("signed"));
        url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", grant)
            .append_pair("assertion", &assertion)
            .finish()
    }

    #[test]
    fn a_token_is_given_for_an_assertion_alone_and_is_the_key_that_is_listed() {
        let header = json!({"alg": "RS256", "typ": "JWT"});
        let keys = BTreeMap::from([(KEY_NAME.to_owned(), "ya29.listed".to_owned())]);
        let token = |body: &str, keys: &BTreeMap<String, String>| {
            let reply = reply(body.as_bytes(), keys);
            serde_json::from_slice::<Value>(&reply.body).unwrap()["access_token"].as_str().map(str::to_owned)
        };
        assert_eq!(token(&form(&header, GRANT), &keys).as_deref(), Some("ya29.listed"));
        assert_eq!(token(&form(&header, GRANT), &BTreeMap::new()).as_deref(), Some(TOKEN));
        assert_eq!(token(&form(&header, "refresh_token"), &keys), None);
        assert_eq!(token(&form(&json!({"alg": "none"}), GRANT), &keys), None);
        assert_eq!(token("grant_type=x", &keys), None);
    }
}
