//! A Redis that is highly available: a master, its replica, three Sentinels. The master dies in the middle of a run, and a
//! Sentinel with it; the others promote the replica, and the run goes on where nobody starts anything again.

use super::check;
use super::processes::{Cluster, Process};
use super::tls::Authority;
use crate::servers::{Redis, wait_until};

/// What the Sentinels call the master.
const NAME: &str = "shards";
/// Sentinels that must agree, of three.
const QUORUM: usize = 2;
/// Eighty shards of 0.2 s, ten a row group.
const ENGINE: &str = ", delay_ms = 8";
const JOB: &str = ", shard_rows = 25";
const ROWS: i64 = 2000;
const SHARDS: usize = 80;

/// A master, its replica, and who watches them.
struct Watched {
    master: Redis,
    replica: Redis,
    sentinels: Vec<Redis>,
    encrypted: bool,
}

impl Watched {
    /// Over TLS, if somebody vouches for them.
    fn new(authority: Option<&Authority>) -> Self {
        let settings = |port: u16| match authority {
            Some(authority) => authority.settings(port, "127.0.0.1"),
            None => vec![format!("port {port}")],
        };
        let start = |more: &str| Redis::with("redis", |port| [settings(port), vec![more.to_owned()]].concat());
        let master = start("repl-diskless-sync-delay 0");
        let replica = start(&format!("replicaof 127.0.0.1 {}", master.port));
        wait_until("the replica's link", || replica.info("master_link_status").as_deref() == Some("up"));
        let watch = format!(
            "sentinel monitor {NAME} 127.0.0.1 {} {QUORUM}\nsentinel down-after-milliseconds {NAME} 1000\n\
             sentinel failover-timeout {NAME} 5000",
            master.port
        );
        let sentinels: Vec<Redis> = (0..3).map(|_| start(&watch)).collect();
        for sentinel in &sentinels {
            wait_until("Sentinels that know one another and the replica", || {
                sentinel
                    .info("master0")
                    .is_some_and(|known| known.contains("status=ok") && known.ends_with("slaves=1,sentinels=3"))
            });
        }
        Self { master, replica, sentinels, encrypted: authority.is_some() }
    }

    /// What clients are given.
    fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        let scheme = if self.encrypted { "rediss" } else { "redis" };
        format!("{scheme}+sentinel://{}/{NAME}", hosts.join(","))
    }

    /// The master dies, and the Sentinel that clients ask first.
    fn lose_master(&self) {
        self.sentinels[0].stop();
        self.master.stop();
    }
}

/// Waits until this many parts exist; a process that ends before is the failure.
fn wait_for_parts(cluster: &Cluster, count: usize, processes: &mut [Process]) {
    wait_until(&format!("{count} parts"), || {
        for process in &mut *processes {
            assert!(process.ended().is_none(), "it ended too early: {:?}", process.said());
        }
        cluster.keys_with("/part-").len() >= count
    });
}

#[test]
fn a_run_goes_on_when_the_replica_takes_over() {
    let watched = Watched::new(None);
    let mut cluster = Cluster::new(ENGINE, JOB, 0).with_rows(ROWS);
    cluster.redis_url = watched.url();
    let mut processes = vec![cluster.submit(), cluster.executor(&[]), cluster.executor(&[])];
    wait_for_parts(&cluster, 8, &mut processes);
    assert_eq!(watched.replica.info("role").as_deref(), Some("slave"));
    watched.lose_master();
    wait_until("the promotion", || watched.replica.info("role").as_deref() == Some("master"));
    let before = cluster.keys_with("/part-").len();
    println!("{before} of {SHARDS} parts when the replica was promoted");
    assert!(before < SHARDS, "the run was over before the replica took over");
    processes.remove(0).wait().ok();
    check::echoed(&cluster, ROWS);
    // The same processes: nobody had to start them again.
    for mut executor in processes {
        assert!(executor.ended().is_none(), "{:?}", executor.said());
        executor.terminate();
        executor.wait().ok();
    }
}

#[test]
fn sentinels_and_their_redis_are_reached_over_tls() {
    let authority = Authority::new("ours");
    let watched = Watched::new(Some(&authority));
    let mut cluster = Cluster::new("", ", shard_rows = 20", 0).with_rows(100);
    cluster.redis_url = watched.url();
    cluster.environment.push(("SSL_CERT_FILE", authority.file()));
    let _executor = cluster.executor(&[]);
    cluster.submit().wait().ok();
    check::echoed(&cluster, 100);
}
