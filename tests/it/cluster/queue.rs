//! The queue on a real Redis: it keeps the queue's contract, stays in a lane while there is work, leaves nothing behind,
//! and says how deep it is to whoever scales executors.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rowmill_jobs::queue::redis::{RedisOptions, RedisQueue};
use rowmill_jobs::queue::redis_server::{Plaintext, RedisServer};
use rowmill_jobs::queue::register::RegisteredRun;
use rowmill_jobs::queue::{Depth, RunRef, ShardHandler, ShardQueue, ShardRef, contract};
use serde_json::Value;

use super::processes::Cluster;
use crate::servers::{Redis, wait_until};

fn queue(redis: &Redis) -> Arc<RedisQueue> {
    let server = RedisServer::new(&redis.url(), Plaintext::Refused).expect("a URL");
    let options = RedisOptions { lease: Duration::from_secs(3), ..RedisOptions::default() };
    Arc::new(RedisQueue::new(Arc::new(server), options).expect("a queue"))
}

/// What the queue on this server holds.
pub fn depth(redis: &Redis) -> Depth {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { queue(redis).depth().await.expect("an answer") })
}

fn shard(lane: &str, shard: u32) -> ShardRef {
    ShardRef { run: RunRef { output: "file:///out/".into(), run_key: "k".into(), lane: lane.into() }, shard, copy: 0 }
}

/// Keys of Redis that belong to jobs, not to the queue itself.
fn job_keys(redis: &Redis) -> usize {
    let keys = |pattern: &str| redis.command(&["EVAL", &format!("return #redis.call('KEYS', '{pattern}')"), "0"]);
    keys("*:meta:*").parse().expect("a number")
}

#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<ShardRef>>);

#[async_trait]
impl ShardHandler for Recorder {
    async fn handle(&self, shard: ShardRef) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.0.lock().expect("the record").push(shard);
    }
}

impl Recorder {
    async fn has(&self, count: usize) {
        for _ in 0..3_000 {
            if self.0.lock().expect("the record").len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("only {:?}", self.0.lock());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_on_redis_keeps_the_contract_and_leaves_nothing_behind() {
    let redis = Redis::new();
    let shared = queue(&redis);
    contract::check(|| async { Ok(Arc::clone(&shared) as Arc<dyn ShardQueue>) }).await.expect("the contract");
    assert_eq!(queue(&redis).depth().await.expect("an answer"), Depth::default());
    assert_eq!(job_keys(&redis), 0, "finished jobs stay in Redis");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_stays_with_its_models_while_their_shards_wait() {
    let redis = Redis::new();
    let queue = queue(&redis);
    for index in 0..30 {
        queue.push(vec![shard("aa", index), shard("bb", index)]).await.expect("queued");
    }
    let recorder = Arc::new(Recorder::default());
    let serving = tokio::spawn({
        let (queue, recorder) = (Arc::clone(&queue), Arc::clone(&recorder));
        async move { queue.serve(2, recorder).await }
    });
    recorder.has(60).await;
    queue.close();
    serving.await.expect("serving ends").expect("and well");
    let lanes: Vec<String> =
        recorder.0.lock().expect("the record").iter().map(|shard| shard.run.lane.clone()).collect();
    let changes = lanes.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(changes, 1, "{lanes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_shards_than_apalis_can_take_at_once_do_not_brick_the_queue() {
    // Several runs fill their windows while no executor is up.
    let redis = Redis::new();
    let queue = queue(&redis);
    let shards: Vec<ShardRef> = (0..12_000).map(|index| shard("aa", index)).collect();
    queue.push(shards).await.expect("queued");
    let recorder = Arc::new(Recorder::default());
    let serving = tokio::spawn({
        let (queue, recorder) = (Arc::clone(&queue), Arc::clone(&recorder));
        async move { queue.serve(64, recorder).await }
    });
    recorder.has(12_000).await;
    queue.close();
    serving.await.expect("serving ends").expect("and well");
    let mut seen: Vec<u32> = recorder.0.lock().expect("the record").iter().map(|shard| shard.shard).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..12_000), "each shard comes, and comes once");
}

#[tokio::test]
async fn a_redis_that_forgot_is_told_of_every_run_however_often_it_fails_meanwhile() {
    let redis = Redis::new();
    let queue = queue(&redis);
    let run = |key: &str| RegisteredRun { output: "file:///out/".into(), run_key: key.into(), pool: "p".into() };
    let driven = [run("a"), run("b"), run("c")];
    let registered = async || queue.registered().await.expect("an answer");
    queue.remind("service", driven.iter()).await.expect("told");
    assert_eq!(registered().await, driven);
    // What somebody else takes off stays off.
    queue.unregister("b").await.expect("taken off");
    queue.remind("service", driven.iter()).await.expect("known");
    assert_eq!(registered().await, [run("a"), run("c")]);
    redis.flushall();
    // Nothing can be registered under this key.
    redis.command(&["SET", "rowmill:runs", "in the way"]);
    queue.remind("service", driven.iter()).await.expect_err("no run can be registered");
    redis.command(&["DEL", "rowmill:runs"]);
    queue.remind("service", driven.iter()).await.expect("told again");
    assert_eq!(registered().await, driven);
}

fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.rsplit("\r\n\r\n").next()?.to_owned()))
}

#[test]
fn services_say_whether_they_are_ready_and_how_much_waits() {
    let cluster = Cluster::new("", ", shard_rows = 10", 1).with_rows(100);
    let free = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("its address").to_string()
    };
    let (scheduler_at, executor_at) = (free(), free());
    let _scheduler = cluster.start(&["serve", "--health", &scheduler_at]);
    cluster.start(&["submit", &cluster.path()]).wait().ok();
    let total = |expected: u64| {
        let depth = get(&scheduler_at, "/depth/default").filter(|(status, _)| *status == 200);
        depth.is_some_and(|(_, body)| serde_json::from_str::<Value>(&body).expect("JSON")["total"] == expected)
    };
    wait_until("ten shards wait", || total(10));
    assert_eq!(get(&scheduler_at, "/livez").map(|(status, _)| status), Some(200));
    assert_eq!(get(&scheduler_at, "/depth/no:pool").map(|(status, _)| status), Some(404));
    let _executor = cluster.start(&["work", "--health", &executor_at]);
    wait_until("the executor is ready", || get(&executor_at, "/readyz").is_some_and(|(status, _)| status == 200));
    wait_until("nothing waits any more", || total(0));
    cluster.redis.stop();
    wait_until("without Redis nobody is ready", || {
        [&scheduler_at, &executor_at]
            .iter()
            .all(|address| get(address, "/readyz").is_some_and(|(status, _)| status == 503))
    });
    assert_eq!(get(&executor_at, "/livez").map(|(status, _)| status), Some(200));
}
