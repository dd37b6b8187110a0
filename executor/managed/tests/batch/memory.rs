//! A store in memory, and the death of whoever uses it: [`Mortal`] counts what a process does to the world and lets it get
//! no further than that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use rowmill_jobs::Result;
use rowmill_jobs::store::{ObjectInfo, Payload, Put, Store};
use rowmill_managed::batch::{BatchCall, BatchRef, BatchWire, RowResult};
use rowmill_managed::call::{CallError, Reply};
use tokio::sync::Notify;

use crate::wire::PlainWire;

/// Objects by name.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<BTreeMap<String, Bytes>>);

impl MemoryStore {
    pub fn names(&self) -> Vec<String> {
        self.0.lock().expect("a lock").keys().cloned().collect()
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.0.lock().expect("a lock")[name].to_vec()).expect("UTF-8")
    }
}

fn info(name: &str, bytes: &Bytes) -> ObjectInfo {
    ObjectInfo { name: name.into(), bytes: bytes.len() as u64, etag: None, modified_ms: 0 }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> &str {
        "memory:/"
    }

    async fn put_if_absent(&self, name: &str, payload: &Payload) -> Result<Put> {
        let Payload::Bytes(bytes) = payload else { panic!("the lane writes no files") };
        // Others get their turn before and after.
        tokio::task::yield_now().await;
        let mut objects = self.0.lock().expect("a lock");
        if objects.contains_key(name) {
            return Ok(Put::Exists);
        }
        objects.insert(name.into(), bytes.clone());
        Ok(Put::Created)
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        tokio::task::yield_now().await;
        Ok(self.0.lock().expect("a lock").get(name).cloned())
    }

    async fn get_tail(&self, name: &str, _: u64) -> Result<Bytes> {
        panic!("the lane reads no tail: {name}")
    }

    async fn head(&self, name: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.0.lock().expect("a lock").get(name).map(|bytes| info(name, bytes)))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        tokio::task::yield_now().await;
        let objects = self.0.lock().expect("a lock");
        let found = objects.iter().filter(|(name, _)| name.starts_with(prefix));
        Ok(found.map(|(name, bytes)| info(name, bytes)).collect())
    }
}

/// When a process dies, within the operation that is its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing was done.
    Before,
    /// It was done, and the process never knew.
    After,
}

/// A process's life.
#[derive(Debug)]
pub struct Life {
    left: AtomicI64,
    moment: Moment,
    ended: Notify,
}

impl Life {
    /// A life of so many operations before the last one.
    pub fn of(operations: i64, moment: Moment) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(operations), moment, ended: Notify::new() })
    }

    pub fn endless() -> Arc<Self> {
        Self::of(i64::MAX, Moment::Before)
    }

    /// How many operations of an endless life were done.
    pub fn done(&self) -> i64 {
        i64::MAX - self.left.load(Ordering::SeqCst)
    }

    /// Ends when the process is dead.
    pub async fn end(&self) {
        self.ended.notified().await;
    }

    async fn live<T>(&self, act: impl Future<Output = T>) -> T {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            return act.await;
        }
        if left == 0 && self.moment == Moment::After {
            act.await;
        }
        self.ended.notify_one();
        std::future::pending().await
    }
}

/// A store, or a wire, as a process sees it that will die.
#[derive(Debug)]
pub struct Mortal<T> {
    pub life: Arc<Life>,
    pub inner: Arc<T>,
}

#[async_trait]
impl Store for Mortal<MemoryStore> {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn put_if_absent(&self, name: &str, payload: &Payload) -> Result<Put> {
        self.life.live(self.inner.put_if_absent(name, payload)).await
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        // Reading changes nothing: dying there is dying before the next write.
        self.inner.get(name).await
    }

    async fn get_tail(&self, name: &str, bytes_max: u64) -> Result<Bytes> {
        self.inner.get_tail(name, bytes_max).await
    }

    async fn head(&self, name: &str) -> Result<Option<ObjectInfo>> {
        self.inner.head(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.inner.list(prefix).await
    }
}

#[async_trait]
impl BatchWire for Mortal<PlainWire> {
    async fn send(&self, call: BatchCall) -> std::result::Result<Reply, CallError> {
        if let Some(batch) = &call.of {
            self.life.live(async { self.inner.set_aside(batch) }).await;
        }
        self.life.live(self.inner.send(call)).await
    }

    async fn settle(&self, batch: &BatchRef, results: &[RowResult]) -> Result<()> {
        self.life.live(self.inner.settle(batch, results)).await
    }

    async fn settled(&self, batch: &BatchRef, results: &[RowResult]) {
        self.life.live(self.inner.settled(batch, results)).await
    }
}
