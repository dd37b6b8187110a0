//! Many processes, one run: schedulers and executors of the real binary on a real Redis and a real S3 server, while
//! processes die, freeze and start twice, Redis forgets and S3 fails. What is checked is always the same: every row once,
//! published whole or not at all.

mod bucket;
mod cancel;
mod chaos;
mod check;
mod http;
mod nemesis;
mod poison;
pub mod processes;
mod proxy;
mod proxy_checks;
pub mod queue;
// A Ceph cluster is too much to ask of every machine that runs the tests: `infra/test --rados` brings it.
#[cfg(feature = "rados")]
mod rados;
#[cfg(feature = "rados")]
mod rados_gateway;
mod reader;
mod sentinel;
mod signature;
mod tls;
mod triggers;
