//! `rowmill-provider-simulator [CONFIG.toml] [PORT]`: the simulator for clients in other languages. It writes the base URL of
//! every provider to stdout, a line each, and serves until it is stopped.

use std::io::Write;

use rowmill_provider_simulator::{Config, Provider, Simulator};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let config = match arguments.next() {
        Some(path) => toml::from_str(&std::fs::read_to_string(path)?)?,
        None => Config::default(),
    };
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let simulator = Simulator::start_on(TcpListener::bind(("127.0.0.1", port)).await?, config)?;
    let mut stdout = std::io::stdout();
    for provider in Provider::all() {
        writeln!(stdout, "{} {}", provider.name(), simulator.base(provider))?;
    }
    stdout.flush()?;
    std::future::pending().await
}
