//! Models elsewhere, through the user's boundary: a job file, an operator's rowmill.toml, and providers on this machine, each
//! in its own dialect. What leaves is what the operator allowed, and is on record; what is not allowed does not leave by a
//! byte; a cap holds, whoever computes and whoever dies.

mod again;
// Node and a package of npm are too much to ask of every machine that runs the tests: `infra/test --aimock` brings it.
#[cfg(feature = "aimock")]
mod aimock;
#[cfg(feature = "services")]
mod capped;
pub mod elsewhere;
#[cfg(feature = "services")]
mod executors;
#[cfg(feature = "services")]
mod fleet;
#[cfg(feature = "services")]
mod llama_server;
mod money;
mod overridden;
mod refused;
pub mod specification;
mod targets;
