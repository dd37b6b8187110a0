//! Errors in each provider's own shape.

use serde_json::{Value, json};

use crate::provider::{Errors, Provider};
use crate::reply::Reply;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Trouble {
    /// Too many requests or tokens; comes again in so many milliseconds.
    Throttled { wait_ms: i64 },
    /// No money.
    Billing,
    /// The server is full.
    Overloaded,
    /// The flex tier has no room.
    NoRoom,
    /// A defect of the server.
    Broken,
    /// No key, or a wrong one.
    Unauthorized,
    /// The request is wrong.
    Invalid(String),
    /// The content filter refuses the prompt.
    Filtered,
    /// No such thing.
    NotFound,
    /// Too many bytes.
    TooLarge,
}

impl Trouble {
    fn status(&self, provider: Provider) -> u16 {
        match self {
            Trouble::Throttled { .. } => 429,
            Trouble::Billing if provider == Provider::Deepseek => 402,
            Trouble::Billing if provider == Provider::Anthropic => 400,
            Trouble::Billing => 429,
            Trouble::NoRoom if provider == Provider::Gemini => 503,
            Trouble::NoRoom if provider == Provider::Groq => 498,
            Trouble::NoRoom => 429,
            Trouble::Overloaded if provider == Provider::Anthropic => 529,
            Trouble::Overloaded if provider == Provider::Tei => 429,
            Trouble::Overloaded => 503,
            Trouble::Broken if provider == Provider::Tei => 424,
            Trouble::Broken => 500,
            Trouble::Unauthorized if provider == Provider::Gemini => 400,
            Trouble::Unauthorized if provider == Provider::Bedrock => 403,
            Trouble::Unauthorized => 401,
            Trouble::Invalid(_) if matches!(provider, Provider::Mistral | Provider::Tgi | Provider::Tei) => 422,
            Trouble::Invalid(_) | Trouble::Filtered => 400,
            Trouble::NotFound => 404,
            Trouble::TooLarge => 413,
        }
    }

    fn message(&self) -> String {
        match self {
            Trouble::Throttled { .. } => "Rate limit reached, try again later".into(),
            Trouble::Billing => {
                "You exceeded your current quota: your credit balance is too low, check plan and billing".into()
            }
            Trouble::Overloaded => "The model is overloaded".into(),
            Trouble::NoRoom => "Resource unavailable".into(),
            Trouble::Broken => "The server had an error while processing your request".into(),
            Trouble::Unauthorized => "Incorrect API key provided".into(),
            Trouble::Invalid(what) => what.clone(),
            Trouble::Filtered => "The prompt was filtered by the content management policy".into(),
            Trouble::NotFound => "The requested resource does not exist".into(),
            Trouble::TooLarge => "The request is too large".into(),
        }
    }

    /// Names of the kind as OpenAI, Anthropic, Google and AWS write them.
    fn names(&self) -> [&'static str; 4] {
        match self {
            Trouble::Throttled { .. } => {
                ["rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED", "ThrottlingException"]
            }
            Trouble::Billing => {
                ["insufficient_quota", "invalid_request_error", "RESOURCE_EXHAUSTED", "ServiceQuotaExceededException"]
            }
            Trouble::Overloaded => {
                ["server_overloaded", "overloaded_error", "UNAVAILABLE", "ServiceUnavailableException"]
            }
            Trouble::NoRoom => {
                ["resource_unavailable", "overloaded_error", "UNAVAILABLE", "ServiceUnavailableException"]
            }
            Trouble::Broken => ["server_error", "api_error", "INTERNAL", "InternalServerException"],
            Trouble::Unauthorized => {
                ["invalid_api_key", "authentication_error", "UNAUTHENTICATED", "AccessDeniedException"]
            }
            Trouble::Invalid(_) => {
                ["invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT", "ValidationException"]
            }
            Trouble::Filtered => ["content_filter", "invalid_request_error", "INVALID_ARGUMENT", "ValidationException"],
            Trouble::NotFound => ["not_found", "not_found_error", "NOT_FOUND", "ResourceNotFoundException"],
            Trouble::TooLarge => ["request_too_large", "request_too_large", "INVALID_ARGUMENT", "ValidationException"],
        }
    }
}

/// The answer that says so.
pub(crate) fn reply(provider: Provider, trouble: &Trouble) -> Reply {
    let traits = provider.traits();
    let status = trouble.status(provider);
    let (message, [openai, anthropic, _, aws]) = (trouble.message(), trouble.names());
    let body = match traits.errors {
        Errors::Openai => {
            let kind = if *trouble == Trouble::Billing { "insufficient_quota" } else { "requests" };
            json!({"error": {"message": message, "type": kind, "param": null, "code": openai}})
        }
        Errors::NumberCode => json!({"error": {"message": message, "type": openai, "param": null, "code": status}}),
        Errors::Azure => {
            let code = if *trouble == Trouble::Filtered { openai.to_owned() } else { status.to_string() };
            json!({"error": {"code": code, "message": message}})
        }
        Errors::Anthropic => {
            json!({"type": "error", "error": {"type": anthropic, "message": message}, "request_id": "req_simulated"})
        }
        Errors::Google => google(trouble, status, &message),
        Errors::Aws => json!({"message": message}),
        Errors::Mistral if matches!(trouble, Trouble::Throttled { .. }) => json!({"message": message}),
        Errors::Mistral if matches!(trouble, Trouble::Invalid(_)) => {
            json!({"detail": [{"type": "value_error", "loc": ["body"], "msg": message}]})
        }
        Errors::Mistral => {
            json!({"object": "error", "message": message, "type": openai, "param": null, "code": "1000"})
        }
        Errors::Tgi => json!({"error": message, "error_type": openai}),
        Errors::Tei => json!({"message": message, "code": status, "type": openai}),
        Errors::Ollama => json!({"error": message}),
    };
    let reply = Reply::json(status, &body).retry(provider, trouble);
    if traits.errors == Errors::Aws { reply.header("x-amzn-errortype", aws) } else { reply }
}

fn google(trouble: &Trouble, status: u16, message: &str) -> Value {
    let mut error = json!({"code": status, "message": message, "status": trouble.names()[2], "details": []});
    if let Trouble::Throttled { wait_ms } = trouble {
        let wait = format!("{}s", *wait_ms as f64 / 1000.0);
        error["details"] = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": wait}]);
    }
    json!({ "error": error })
}

impl Reply {
    /// When to come again, for the providers that say so in a header.
    fn retry(self, provider: Provider, trouble: &Trouble) -> Reply {
        let Trouble::Throttled { wait_ms } = trouble else { return self };
        let seconds = ((*wait_ms).max(1) + 999) / 1000;
        match provider {
            Provider::Gemini | Provider::Vertex | Provider::Bedrock | Provider::Deepseek | Provider::Tei => self,
            Provider::Azure => {
                self.header("retry-after-ms", wait_ms.to_string()).header("retry-after", seconds.to_string())
            }
            _ => self.header("retry-after", seconds.to_string()),
        }
    }
}

/// What a proxy in front of a provider says when it is full.
pub(crate) fn html() -> Reply {
    Reply::new(529, "text/html", "<html><body><h1>529</h1>site is overloaded</body></html>")
}
