//! What supervisors ask a service: `/livez` (it runs), `/readyz` (Redis and the store answer), and on schedulers
//! `/depth/{pool}` (how much waits, for autoscalers). Plain HTTP without secrets; it changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use rowmill_jobs::{Error, Kind, Result};
use rowmill_scheduler::service::Service;
use serde_json::json;

/// A Redis silent for this long is away: the process is not ready.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Whether a process can do its work.
#[derive(Clone)]
pub(crate) struct Health(Arc<dyn Fn() -> bool + Send + Sync>);

impl Health {
    /// Asks `ready` each time.
    pub(crate) fn new(ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(ready))
    }
}

/// Answers until it is dropped.
#[derive(Debug)]
pub(crate) struct Serving(tokio::task::JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers at an address.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) async fn serve(address: SocketAddr, health: Health, scheduler: Option<Arc<Service>>) -> Result<Serving> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        Error::new(Kind::Usage, format!("cannot listen on {address}"))
            .caused_by(error)
            .hint("choose another --health address")
    })?;
    let mut routes = Router::new().route("/livez", get(|| async { "ok\n" })).route(
        "/readyz",
        get(move || async move {
            if (health.0)() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
        }),
    );
    if let Some(scheduler) = scheduler {
        routes = routes.merge(Router::new().route("/depth/{pool}", get(depth)).with_state(scheduler));
    }
    Ok(Serving(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(error = %error, "health is not served any more");
        }
    })))
}

async fn depth(State(scheduler): State<Arc<Service>>, Path(pool): Path<String>) -> impl IntoResponse {
    match scheduler.depth(&pool).await {
        Ok(depth) => {
            let (waiting, running) = (depth.waiting, depth.running);
            (StatusCode::OK, Json(json!({ "waiting": waiting, "running": running, "total": waiting + running })))
        }
        Err(error) if error.kind() == Kind::Usage => {
            (StatusCode::NOT_FOUND, Json(json!({ "error": error.to_string() })))
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error.to_string() }))),
    }
}
