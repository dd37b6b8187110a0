//! [`Reply`]: an answer before it is sent, and how it is sent: whole, late, cut off, or after blank lines.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::Value;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) delivery: Delivery,
}

/// How an answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Delivery {
    #[default]
    Whole,
    /// First byte after this time.
    Late(Duration),
    /// Half of the body, then the end of the connection.
    Cut,
    /// Blank lines first, as DeepSeek keeps connections open.
    BlankLines,
    /// Nothing, ever.
    Never,
}

/// Blank lines before a body, and the time between them.
const BLANK_LINES: u64 = 3;
const BETWEEN_BLANK_LINES: Duration = Duration::from_millis(2);

/// Time between the half of a body and the end of its connection.
const BEFORE_THE_CUT: Duration = Duration::from_millis(5);

impl Reply {
    pub(crate) fn new(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { status, headers, body: body.into(), delivery: Delivery::Whole }
    }

    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    pub(crate) fn ok(body: &Value) -> Self {
        Self::json(200, body)
    }

    pub(crate) fn lines(body: impl Into<Bytes>) -> Self {
        Self::new(200, "application/octet-stream", body)
    }

    /// With a header, in place of any of that name. One that HTTP cannot carry is left out.
    pub(crate) fn header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    pub(crate) fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Sends it.
    pub(crate) async fn deliver(self) -> Response {
        let whole = self.body;
        let length = whole.len();
        let body = match self.delivery {
            Delivery::Never => return std::future::pending().await,
            Delivery::Whole => Body::from(whole),
            Delivery::Late(wait) => {
                tokio::time::sleep(wait).await;
                Body::from(whole)
            }
            Delivery::Cut => {
                let half = whole.slice(..length / 2);
                let end = async {
                    // What came before must have left before the connection ends.
                    tokio::time::sleep(BEFORE_THE_CUT).await;
                    Err(std::io::Error::other("cut off, as configured"))
                };
                Body::from_stream(futures::stream::iter([Ok(half)]).chain(futures::stream::once(end)))
            }
            Delivery::BlankLines => {
                let blank = futures::stream::iter(0..BLANK_LINES).then(async |_| {
                    tokio::time::sleep(BETWEEN_BLANK_LINES).await;
                    Ok::<_, std::io::Error>(Bytes::from_static(b"\n"))
                });
                Body::from_stream(blank.chain(futures::stream::once(async move { Ok(whole) })))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = self.headers;
        if self.delivery == Delivery::Cut {
            // At least one byte is missing, even of an empty body.
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length.max(1)));
        }
        response
    }
}
