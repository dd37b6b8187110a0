//! AWS Signature Version 4. The signature is the AWS SDK's; credentials are the process's one chain.

use std::time::SystemTime;

use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign as signature};
use aws_sigv4::sign::v4::SigningParams;
use http::{HeaderName, HeaderValue};
use rowmill_jobs::store::aws::{Credentials, credentials};

use super::super::stack::{Failed, error};
use crate::call::Class;

/// Signs a request with the process's credentials.
pub(super) async fn sign(request: &mut reqwest::Request, region: &str, service: &str) -> Result<(), Box<Failed>> {
    let credentials = credentials().await.map_err(|cause| {
        let class = if cause.retryable() { Class::Transient } else { Class::Denied };
        // AWS's own words, which name no secret, go to the log and not into a row's error.
        tracing::warn!(error = %cause, "no AWS credentials");
        Failed::unsent(error(class, "there are no AWS credentials to sign with"))
    })?;
    let unsigned = || Failed::unsent(error(Class::Refused, "the request cannot be signed"));
    sign_with(request, credentials, (region, service), SystemTime::now()).ok_or_else(unsigned)
}

/// Signs for a region and service; `None` if the request cannot be signed.
fn sign_with(
    request: &mut reqwest::Request,
    credentials: Credentials,
    (region, service): (&str, &str),
    time: SystemTime,
) -> Option<()> {
    let identity = credentials.into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(time)
        .settings(SigningSettings::default())
        .build()
        .ok()?;
    let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let body = request.body().map_or(Some(&[][..]), |body| body.as_bytes())?;
    let signable =
        SignableRequest::new(request.method().as_str(), request.url().as_str(), headers, SignableBody::Bytes(body));
    let (instructions, _) = signature(signable.ok()?, &params.into()).ok()?.into_parts();
    let (headers, _) = instructions.into_parts();
    for header in headers {
        let mut value = HeaderValue::from_str(header.value()).ok()?;
        value.set_sensitive(true);
        request.headers_mut().insert(HeaderName::from_static(header.name()), value);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// The signature is what botocore 1.44.5 makes of the same request, keys and time.
    #[test]
    fn signs_as_botocore_does() {
        let url = "https://bedrock-runtime.us-east-1.amazonaws.com/model/anthropic.claude-3%3A0/invoke";
        let mut request = reqwest::Request::new(http::Method::POST, url.parse().unwrap());
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        *request.body_mut() = Some(r#"{"a":1}"#.into());
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            Some("tok".into()),
            None,
            "test",
        );
        let time = UNIX_EPOCH + Duration::from_secs(1_793_534_400);
        sign_with(&mut request, credentials, ("us-east-1", "bedrock"), time).unwrap();
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        assert_eq!(header("x-amz-date"), "20261101T120000Z");
        assert_eq!(header("x-amz-security-token"), "tok");
        assert_eq!(header("authorization"), EXPECTED);
        assert!(request.headers()["authorization"].is_sensitive());
    }

    const EXPECTED: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261101/us-east-1/bedrock/aws4_request, \
         SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, \
         Signature=184f764c8803cec55b8b06788251da09e0ba486c5edff4cd8afa54db54d67df6";
}
