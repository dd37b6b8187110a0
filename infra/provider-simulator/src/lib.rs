//! Providers of language models, simulated: one server on this machine that speaks each provider's dialect with its own
//! errors, rate-limit headers and batch API, has limits that are enforced, goes wrong as it is told to, and tells what came
//! in. No model answers: output is drawn from a hash of the prompt and of the schema that it must fit.
//!
//! It refuses to be any test's judge of quality, and what it does not know of a provider it does not make up: streaming,
//! images, Vertex's batch jobs and the verification of AWS signatures are left out. Bedrock's batch jobs read and write folders
//! of this machine, which stand for buckets.

mod access;
mod answer;
mod batch;
pub mod config;
mod dialect;
mod fault;
pub mod journal;
mod limit;
pub mod provider;
mod random;
mod rates;
mod reply;
mod schema;
mod serve;
pub mod time;
mod token;
mod trouble;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use crate::config::Config;
pub use crate::journal::{Bill, Journal};
pub use crate::provider::Provider;
pub use crate::time::Time;

/// A running simulator. It ends when this is dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    state: Arc<serve::State>,
    server: JoinHandle<()>,
}

impl Simulator {
    /// Starts a simulator on a free port of this machine.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn start(config: Config) -> io::Result<Self> {
        Self::start_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?, config)
    }

    /// Starts a simulator on a listener.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn start_on(listener: TcpListener, config: Config) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let state = Arc::new(serve::State::new(config));
        let router = Router::new().fallback(serve::handle).with_state(Arc::clone(&state));
        let server = tokio::spawn(async move {
            // An error would be one of `accept`, which axum tries again by itself.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, state, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL to give to a client of this provider: `http://127.0.0.1:4321/openai/v1`.
    pub fn base(&self, provider: Provider) -> String {
        format!("{}{}", self.root(provider), provider.traits().base)
    }

    /// The URL that stands for the provider's host: `http://127.0.0.1:4321/openai`.
    pub fn root(&self, provider: Provider) -> String {
        format!("http://{}/{}", self.address, provider.name())
    }

    /// The URL that Vertex's credentials get their access tokens from.
    pub fn token_url(&self) -> String {
        format!("{}{}", self.root(Provider::Vertex), token::PATH)
    }

    /// What came in.
    pub fn journal(&self) -> &Journal {
        &self.state.journal
    }

    /// The clock that limits and batches go by.
    pub fn time(&self) -> &Time {
        &self.state.time
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.server.abort();
    }
}
