//! Google's tokens against a stub: who asks and how, renewing, and many callers at once.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData};
use rustls::SignatureScheme;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::super::stub::{Act, Stub, json as say};
use super::super::{Place, Timeouts};
use super::*;
use crate::call::Class;

/// A service account's key. RSA keys take a while to make, so all tests share one.
static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());

fn token(value: &str, seconds: u64) -> Act {
    say(200, "", &json!({"access_token": value, "expires_in": seconds, "token_type": "Bearer"}).to_string())
}

fn tokens(file: &Value) -> GoogleTokens {
    let credentials = GoogleCredentials::parse(&SecretString::from(file.to_string()), Place::Own).unwrap();
    GoogleTokens::new(Arc::new(credentials), Reach::Private, Timeouts::default()).unwrap()
}

fn service_account(stub: &Stub) -> GoogleTokens {
    tokens(&json!({
        "type": "service_account", "client_email": "robot@project.iam.gserviceaccount.com", "private_key": KEY.serialize_pem(),
        "private_key_id": "k1", "token_uri": stub.url, "universe_domain": "googleapis.com",
    }))
}

fn user(stub: &Stub) -> GoogleTokens {
    tokens(&json!({
        "type": "authorized_user", "client_id": "id", "client_secret": "se&cret", "refresh_token": "r",
        "token_uri": stub.url,
    }))
}

#[tokio::test]
async fn a_service_account_signs_who_it_is() {
    let stub = Stub::start(vec![token("t1", 3_600)]).await;
    let tokens = service_account(&stub);
    assert_eq!(tokens.header().await.unwrap(), "Bearer t1");
    assert_eq!(tokens.header().await.unwrap(), "Bearer t1");
    let got = stub.got();
    assert_eq!(got.len(), 1, "a token is kept");
    let form: Vec<(String, String)> = url::form_urlencoded::parse(got[0].body.as_bytes()).into_owned().collect();
    assert_eq!(form[0].1, "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let parts: Vec<&str> = form[1].1.split('.').collect();
    let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).unwrap();
    let header: Value = serde_json::from_slice(&decode(parts[0])).unwrap();
    let claims: Value = serde_json::from_slice(&decode(parts[1])).unwrap();
    assert_eq!(header, json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
    assert_eq!(claims["iss"], "robot@project.iam.gserviceaccount.com");
    assert_eq!(claims["aud"], stub.url);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3_600);
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let (_, algorithms) =
        algorithms.mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::RSA_PKCS1_SHA256).unwrap();
    let signed = format!("{}.{}", parts[0], parts[1]);
    algorithms[0].verify_signature(KEY.der_bytes(), signed.as_bytes(), &decode(parts[2])).unwrap();
}

#[tokio::test]
async fn a_users_token_is_renewed_ahead_of_its_end_and_when_it_is_refused() {
    let stub = Stub::start(vec![token("short", 200), token("next", 3_600), token("last", 3_600)]).await;
    let tokens = user(&stub);
    assert_eq!(tokens.header().await.unwrap(), "Bearer short");
    assert_eq!(tokens.header().await.unwrap(), "Bearer next", "200 s are too few");
    assert_eq!(tokens.header().await.unwrap(), "Bearer next");
    tokens.forget();
    assert_eq!(tokens.header().await.unwrap(), "Bearer last");
    assert_eq!(stub.got()[0].body, "grant_type=refresh_token&client_id=id&client_secret=se%26cret&refresh_token=r");
}

#[tokio::test]
async fn one_caller_renews_for_all() {
    let stub = Stub::start(vec![token("t", 3_600)]).await;
    let tokens = user(&stub);
    let headers = futures::future::join_all((0..50).map(|_| tokens.header())).await;
    assert!(headers.into_iter().all(|header| header.unwrap() == "Bearer t"));
    assert_eq!(stub.got().len(), 1);
}

#[tokio::test]
async fn a_token_that_still_serves_outlives_a_failing_renewal() {
    let stub = Stub::start(vec![token("short", 200), say(503, "", "")]).await;
    let tokens = user(&stub);
    for _ in 0..3 {
        assert_eq!(tokens.header().await.unwrap(), "Bearer short");
    }
}

#[tokio::test]
async fn refusals_say_what_to_do_and_nothing_else() {
    let refused = |status, body| async move {
        let stub = Stub::start(vec![say(status, "", body)]).await;
        user(&stub).header().await.unwrap_err().error
    };
    let error = refused(400, r#"{"error":"invalid_grant","error_description":"canary"}"#).await;
    assert_eq!((error.class, error.status), (Class::Denied, Some(400)));
    assert!(!format!("{error:?}").contains("canary"));
    assert_eq!(refused(503, "").await.class, Class::Transient);
    assert_eq!(refused(200, r#"{"access_token":"a\nb","expires_in":1}"#).await.class, Class::Transient);
    assert_eq!(refused(200, "<html>").await.class, Class::Transient);
}

#[test]
fn credentials_that_are_none_are_refused_and_never_shown() {
    let parse = |file: Value, place| GoogleCredentials::parse(&SecretString::from(file.to_string()), place);
    let account = |key: &str, uri: &str| json!({"type": "service_account", "client_email": "e", "private_key": key, "token_uri": uri});
    let googles = "https://oauth2.googleapis.com/token";
    assert!(parse(account(&KEY.serialize_pem(), googles), Place::Provider).is_ok());
    for (file, place) in [
        (account("canary", googles), Place::Provider),
        (account(&KEY.serialize_pem(), "https://evil.example/token"), Place::Provider),
        (account(&KEY.serialize_pem(), "http://oauth2.googleapis.com/token"), Place::Provider),
        (json!({"type": "external_account", "canary": 1}), Place::Provider),
        (json!("canary"), Place::Own),
    ] {
        let error = parse(file.clone(), place).unwrap_err();
        assert!(!error.report().contains("canary"), "{}", error.report());
    }
    assert!(!format!("{:?}", parse(account(&KEY.serialize_pem(), googles), Place::Provider)).contains("PRIVATE"));
}

#[tokio::test]
async fn a_call_with_a_token_that_is_not_accepted_any_more_is_sent_again() {
    use super::super::{Transport, TransportOptions};
    let google = Stub::start(vec![token("old", 3_600), token("new", 3_600)]).await;
    let provider = Stub::start(vec![say(401, "", "{}"), say(200, "", "{}")]).await;
    let file = json!({"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r",
        "token_uri": google.url});
    let credentials = GoogleCredentials::parse(&SecretString::from(file.to_string()), Place::Own).unwrap();
    let allowance = Arc::new(rowmill_jobs::allowance::LocalAllowance::new(&[]).unwrap());
    let mut options = TransportOptions::new(&provider.url, Authentication::Google(Arc::new(credentials)), allowance);
    options.place = Place::Own;
    options.timeouts.call = Duration::from_secs(20);
    let call = crate::call::Call { path: "/x".into(), body: Some("{}".into()), estimate: Default::default() };
    Transport::new(options).unwrap().send(call).await.unwrap();
    let tokens: Vec<bool> = provider.got().iter().map(|got| got.head.contains("Bearer new")).collect();
    assert_eq!(tokens, [false, true]);
}
