//! [`SimStore`]: a process's way to the simulated store. The store itself is perfect, as S3 is: one writer of a name wins,
//! and everybody sees what was written. What goes wrong is on the way.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rowmill_jobs::store::{ObjectInfo, Payload, Put, Store};
use rowmill_jobs::{Error, Result};
use rowmill_scheduler::gc::Eraser;
use tokio::time::sleep;

use super::trouble::{Call, Mishap};
use super::world::{Inner, Node, World};

/// Where the simulated output is.
pub const URL: &str = "s3://simulated/out/";

/// A process's way to the store.
#[derive(Debug, Clone)]
pub struct SimStore {
    world: Arc<World>,
    node: Node,
}

impl SimStore {
    /// The way of process `node`.
    pub fn new(world: &Arc<World>, node: Node) -> Self {
        Self { world: Arc::clone(world), node }
    }

    /// The way back to a process, which may stand still meanwhile.
    async fn back(&self, call: Call) {
        if !call.back.is_zero() {
            sleep(call.back).await;
            self.world.thaw(self.node).await;
        }
    }

    /// A call that changes nothing.
    async fn look<T>(&self, what: &'static str, name: &str, look: impl FnOnce(&mut Inner) -> Result<T>) -> Result<T> {
        let call = self.world.call(self.node, false).await;
        there(call).await;
        let seen = self.world.with(|inner| {
            if call.mishap.is_some() || inner.is_away(self.node) {
                inner.note(self.node, what, &format!("{name}: no answer"));
                return Err(no_answer());
            }
            look(inner)
        });
        self.back(call).await;
        seen
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<Put> {
        let call = self.world.call(self.node, true).await;
        there(call).await;
        let put = self.world.with(|inner| {
            match call.mishap {
                Some(Mishap::Lost) => {
                    inner.note(self.node, "PUT lost", name);
                    return Err(no_answer());
                }
                Some(Mishap::Lingers(after)) => {
                    inner.count("lingering PUTs");
                    inner.note(self.node, "PUT lingers", name);
                    inner.objects.linger(name, bytes, after);
                    return Err(no_answer());
                }
                Some(Mishap::Unanswered) | None => {}
            }
            let put = inner.objects.put_if_absent(name, bytes);
            let lost = call.mishap.is_some();
            inner.note(self.node, word(put, lost), name);
            match put {
                Put::Created => inner.changed(name),
                Put::Exists if name.ends_with("_plan.json") => inner.count("plans adopted"),
                Put::Exists if name.ends_with("_outcome.json") => inner.count("outcomes too late"),
                Put::Exists => {}
            }
            if lost {
                inner.count("unanswered PUTs");
                return Err(no_answer());
            }
            Ok(put)
        });
        self.back(call).await;
        put
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let call = self.world.call(self.node, true).await;
        there(call).await;
        let deleted = self.world.with(|inner| {
            if let Some(Mishap::Lost | Mishap::Lingers(_)) = call.mishap {
                return Err(no_answer());
            }
            inner.count("objects collected");
            inner.note(self.node, "deletes", name);
            if inner.objects.set(name, None) {
                inner.changed(name);
            }
            if call.mishap.is_some() { Err(no_answer()) } else { Ok(()) }
        });
        self.back(call).await;
        deleted
    }
}

/// The way to the store.
async fn there(call: Call) {
    if !call.there.is_zero() {
        sleep(call.there).await;
    }
}

fn no_answer() -> Error {
    Error::temporary("the simulated store does not answer")
}

fn word(put: Put, lost: bool) -> &'static str {
    match (put, lost) {
        (Put::Created, false) => "PUT created",
        (Put::Created, true) => "PUT created, unanswered",
        (Put::Exists, false) => "PUT exists",
        (Put::Exists, true) => "PUT exists, unanswered",
    }
}

#[async_trait]
impl Store for SimStore {
    fn url(&self) -> &str {
        URL
    }

    async fn put_if_absent(&self, name: &str, payload: &Payload) -> Result<Put> {
        match payload {
            Payload::Bytes(bytes) => self.put(name, bytes.clone()).await,
            Payload::File(_) => Err(Error::internal("a simulated part is no file")),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.look("GET", name, |inner| Ok(inner.objects.get(name))).await
    }

    async fn get_tail(&self, name: &str, bytes_max: u64) -> Result<Bytes> {
        let tail = |inner: &mut Inner| {
            // As S3 says it: a 404 is not tried again.
            let bytes = inner.objects.get(name).ok_or_else(|| Error::invalid(format!("cannot read {URL}{name}")))?;
            Ok(bytes.slice(bytes.len().saturating_sub(bytes_max as usize)..))
        };
        self.look("GET the end of", name, tail).await
    }

    async fn head(&self, name: &str) -> Result<Option<ObjectInfo>> {
        self.look("HEAD", name, |inner| Ok(inner.objects.info(name))).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.look("LIST", prefix, |inner| Ok(inner.objects.list(prefix))).await
    }
}

#[async_trait]
impl Eraser for SimStore {
    async fn erase(&self, name: &str) -> Result<()> {
        self.delete(name).await
    }
}
