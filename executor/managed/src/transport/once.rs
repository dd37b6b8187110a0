//! Requests about batches and files: sent once through the same layers but for retrying, because a creation that is sent
//! again may be done twice. Their answers are not looked into: an error within one is a row's or a batch's, and the tokens
//! that it tells of were never taken from the limits of a minute.

use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use http::Method;
use http::header::CONTENT_TYPE;
use reqwest::multipart::{Form, Part};
use tokio::time::{Instant, timeout_at};

use super::Transport;
use super::stack::{Answer, Facts, Failed, Layered, error};
use crate::batch::BatchBody;
use crate::call::{CallError, Class, Left, Reply};

impl Transport {
    /// Sends a request once. It has to be over at `deadline`. Whoever calls this has the operator's permit, has written the
    /// audit record and set the money aside.
    ///
    /// # Errors
    /// There is no answer; with it, whether anything was sent.
    pub(crate) async fn send_once(
        &self,
        path: &str,
        body: BatchBody,
        deadline: Instant,
    ) -> Result<Reply, (CallError, Left)> {
        if !path.starts_with('/') {
            return Err((error(Class::Refused, "the request's path is none"), Left::Nothing));
        }
        let facts = Facts::of_batch(deadline);
        let call = timeout_at(deadline, self.once.call(self.factory(path, body)));
        let late = || Err(Failed::unanswered(error(Class::Transient, "the provider did not answer in time")));
        let answer: Result<Answer, Box<Failed>> = facts.run(call).await.unwrap_or_else(|_| late());
        let answer = answer.map_err(|failed| (failed.error, failed.left))?;
        Ok(Reply { body: answer.body, request_id: answer.request_id, first_byte: answer.first_byte })
    }

    /// What makes the request; a body of many megabytes is shared, not copied.
    fn factory(&self, path: &str, body: BatchBody) -> HttpRequestFactory {
        let (client, config) = (self.requests.clone(), self.client.config());
        let (url, headers) = (format!("{}{path}", config.base), config.headers.clone());
        HttpRequestFactory::new(move || {
            let method = if matches!(body, BatchBody::Get) { Method::GET } else { Method::POST };
            let request = client.request(method, &url).headers(headers.clone());
            let request = match &body {
                BatchBody::Get | BatchBody::Empty => Ok(request),
                BatchBody::Json(json) => Ok(request.header(CONTENT_TYPE, "application/json").body(json.clone())),
                BatchBody::Put(_) | BatchBody::Read => {
                    Err(OpenAIError::InvalidArgument("objects are no requests to a provider".to_owned()))
                }
                BatchBody::Form { fields, name, content } => {
                    let bytes = content.len() as u64;
                    let file = Part::stream_with_length(content.clone(), bytes).file_name(name.clone());
                    let file = file.mime_str("application/jsonl").map_err(OpenAIError::Reqwest);
                    file.map(|file| {
                        let fields =
                            fields.iter().fold(Form::new(), |form, (name, value)| form.text(*name, value.clone()));
                        request.multipart(fields.part("file", file))
                    })
                }
            };
            let built = request.and_then(|request| request.build().map_err(OpenAIError::Reqwest));
            std::future::ready(built)
        })
    }
}
