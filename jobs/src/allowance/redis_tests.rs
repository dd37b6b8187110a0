//! [`RedisAllowance`] on a real Redis that each test starts for itself.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::contract::{check, eventually};
use super::*;
use crate::queue::redis_server::{Plaintext, RedisServer};

/// A Redis that keeps nothing.
struct Server {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        for _ in 0..5 {
            // Somebody else may take the port before Redis does.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let folder = tempfile::tempdir().unwrap();
            let mut server = Self { process: Self::spawn(port, &folder), port, folder };
            if server.answers().await {
                return server;
            }
            server.stop();
        }
        panic!("redis-server does not start");
    }

    fn spawn(port: u16, folder: &tempfile::TempDir) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(folder.path())
            .args(["--maxmemory-policy", "noeviction"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server: run infra/test, which installs it, or install it yourself")
    }

    async fn answers(&mut self) -> bool {
        let server = self.server();
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until && self.process.try_wait().unwrap().is_none() {
            if server.connect().await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn server(&self) -> Arc<RedisServer> {
        Arc::new(RedisServer::new(&format!("redis://127.0.0.1:{}", self.port), Plaintext::Refused).unwrap())
    }

    fn allowance(&self, key: &str, limits: &[Limit]) -> RedisAllowance {
        RedisAllowance::new(self.server(), key, limits).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

const CALL: Charge = Charge { requests: 1, input_tokens: 0, output_tokens: 0 };
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn keeps_the_contract() {
    let server = Server::start().await;
    let keys = AtomicUsize::new(0);
    check(async |limits| {
        let key = keys.fetch_add(1, Ordering::Relaxed).to_string();
        Arc::new(server.allowance(&key, limits)) as Arc<dyn Allowance>
    })
    .await
    .unwrap();
}

/// Grants of four executors together, in 4 s: what was saved up and what refills, and hardly less.
#[tokio::test]
async fn executors_share_a_limit() {
    let server = Server::start().await;
    let limits = [Limit::per_minute(Resource::Requests, 1_200)];
    let executors: Vec<_> = (0..4).map(|_| server.allowance("shared", &limits)).collect();
    let until = Instant::now() + Duration::from_secs(4);
    let serve = async |executor: &RedisAllowance| {
        let mut served = 0_usize;
        while let Grant::After(wait) = executor.reserve(CALL, MINUTE).await {
            tokio::time::sleep(wait).await;
            if Instant::now() > until {
                break;
            }
            served += 1;
            executor.settle(CALL, CALL);
        }
        served
    };
    let served: Vec<usize> = futures::future::join_all(executors.iter().map(serve)).await;
    let all: usize = served.iter().sum();
    assert!((150..=184).contains(&all), "{served:?} of 100 + 4 · 20");
    assert!(executors.iter().all(RedisAllowance::is_shared));
}

#[tokio::test]
async fn a_pause_and_a_learned_limit_are_everybodys() {
    let server = Server::start().await;
    let (one, other) = (server.allowance("k", &[]), server.allowance("k", &[]));
    one.pause(Duration::from_secs(30));
    eventually("the other pauses", async || {
        other.settle(CALL, CALL);
        other.paused() > Duration::from_secs(20)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn without_redis_each_keeps_to_its_share() {
    let mut server = Server::start().await;
    let limits = [Limit::per_minute(Resource::Requests, 600)];
    let (one, other) = (server.allowance("k", &limits), server.allowance("k", &limits));
    for executor in [&one, &other, &one] {
        assert!(matches!(executor.reserve(CALL, MINUTE).await, Grant::After(_)));
        executor.settle(CALL, CALL);
    }
    eventually("both are known", async || {
        one.settle(CALL, CALL);
        one.shared_by() == 2
    })
    .await
    .unwrap();
    server.stop();
    eventually("the loss is noticed", async || {
        let _ = one.reserve(CALL, MINUTE).await;
        !one.is_shared()
    })
    .await
    .unwrap();
    let mut at_once = 0;
    while one.reserve(CALL, Duration::ZERO).await == Grant::After(Duration::ZERO) {
        at_once += 1;
    }
    assert!((20..=30).contains(&at_once), "{at_once} at once instead of half of 50");
    server.process = Server::spawn(server.port, &server.folder);
    assert!(server.answers().await);
    eventually("Redis is used again", async || {
        let _ = one.reserve(CALL, MINUTE).await;
        one.is_shared()
    })
    .await
    .unwrap();
}

/// The user that infra/README.md tells operators to make for Rowmill.
#[tokio::test]
async fn the_documented_rights_suffice() {
    let readme = include_str!("../../../infra/README.md");
    let user = readme.lines().find_map(|line| line.strip_prefix("user rowmill on ")).expect("the user");
    let server = Server::start().await;
    let mut connection = server.server().connect().await.unwrap();
    let mut make = ::redis::cmd("ACL");
    make.arg("SETUSER").arg("rowmill").arg("on").arg(user.split_whitespace().collect::<Vec<_>>());
    make.exec_async(&mut connection).await.unwrap();
    let url = format!("redis://rowmill:PASSWORD@127.0.0.1:{}", server.port);
    let reached = Arc::new(RedisServer::new(&url, Plaintext::Refused).unwrap());
    let limits = [Limit::per_minute(Resource::Requests, 600)];
    let allowance = RedisAllowance::new(reached, "k", &limits).unwrap();
    assert!(matches!(allowance.reserve(CALL, MINUTE).await, Grant::After(_)));
    assert!(allowance.is_shared(), "Redis refuses the script to this user");
}

#[tokio::test]
async fn a_lease_saves_round_trips() {
    let server = Server::start().await;
    let allowance = server.allowance("k", &[Limit::per_minute(Resource::Requests, 600_000)]);
    let mut connection = server.server().connect().await.unwrap();
    let mut scripts = async || -> u64 {
        let info: String = ::redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
        let calls = |name: &str| -> u64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.split(',').next()?.parse().ok());
            line.unwrap_or(0)
        };
        calls("cmdstat_evalsha:calls=") + calls("cmdstat_eval:calls=")
    };
    let (before, began) = (scripts().await, Instant::now());
    for _ in 0..10_000 {
        assert_eq!(allowance.reserve(CALL, Duration::ZERO).await, Grant::After(Duration::ZERO));
        allowance.settle(CALL, CALL);
    }
    let trips = scripts().await - before;
    // Leases of 1,000 calls, and what is settled is told ten times a second.
    let expected = 12 + began.elapsed().as_millis() / 100;
    assert!(u128::from(trips) <= expected && trips < 1_000, "{trips} round trips for 10,000 calls, not {expected}");
}
