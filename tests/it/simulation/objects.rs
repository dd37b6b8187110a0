//! [`Objects`]: what the simulated store holds. Besides put-if-absent there is what only a collector or a planted bug does.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rowmill_jobs::store::{ObjectInfo, Put};

/// Milliseconds since 1970 at which every seed begins.
const EPOCH_MS: i64 = 1_795_000_000_000;

/// Objects by name.
#[derive(Debug, Default)]
pub struct Objects {
    objects: BTreeMap<String, Object>,
    /// Time since the seed began.
    clock_ms: i64,
    versions: u64,
    lingering: Vec<Lingering>,
}

#[derive(Debug)]
struct Object {
    bytes: Bytes,
    version: u64,
    modified_ms: i64,
}

/// A PUT on its way.
#[derive(Debug)]
struct Lingering {
    due_ms: i64,
    name: String,
    bytes: Bytes,
}

impl Objects {
    /// Creates an object unless the name is taken.
    pub fn put_if_absent(&mut self, name: &str, bytes: Bytes) -> Put {
        if self.objects.contains_key(name) {
            return Put::Exists;
        }
        self.set(name, Some(bytes));
        Put::Created
    }

    /// Makes an object, or deletes it (`None`), whatever there is. Returns whether there was one.
    pub fn set(&mut self, name: &str, bytes: Option<Bytes>) -> bool {
        self.versions += 1;
        let (version, modified_ms) = (self.versions, self.now_ms());
        match bytes {
            Some(bytes) => self.objects.insert(name.into(), Object { bytes, version, modified_ms }),
            None => self.objects.remove(name),
        }
        .is_some()
    }

    /// Time since the seed began.
    pub fn clock_ms(&self) -> i64 {
        self.clock_ms
    }

    /// The store's clock: milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        EPOCH_MS + self.clock_ms
    }

    /// A PUT that takes effect only after a while.
    pub fn linger(&mut self, name: &str, bytes: Bytes, after: Duration) {
        self.lingering.push(Lingering { due_ms: self.clock_ms + after.as_millis() as i64, name: name.into(), bytes });
    }

    /// Sets the clock, and lets PUTs whose time has come take effect. Returns the names of objects that are new.
    pub fn advance(&mut self, clock_ms: i64) -> Vec<String> {
        let mut arrived = Vec::new();
        while let Some(next) =
            self.lingering.iter().enumerate().min_by_key(|(_, put)| put.due_ms).map(|(index, _)| index)
            && self.lingering[next].due_ms <= clock_ms
        {
            let Lingering { due_ms, name, bytes } = self.lingering.remove(next);
            self.clock_ms = due_ms;
            if self.put_if_absent(&name, bytes) == Put::Created {
                arrived.push(name);
            }
        }
        self.clock_ms = clock_ms;
        arrived
    }

    /// Whether PUTs are on their way.
    pub fn has_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// An object's content.
    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.objects.get(name).map(|object| object.bytes.clone())
    }

    /// Changes whenever an object does; 0 without one.
    pub fn version(&self, name: &str) -> u64 {
        self.objects.get(name).map_or(0, |object| object.version)
    }

    /// What is known of an object.
    pub fn info(&self, name: &str) -> Option<ObjectInfo> {
        self.objects.get_key_value(name).map(describe)
    }

    /// All objects whose names start with `prefix`, sorted.
    pub fn list(&self, prefix: &str) -> Vec<ObjectInfo> {
        let from = self.objects.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.take_while(|(name, _)| name.starts_with(prefix)).map(describe).collect()
    }
}

fn describe((name, object): (&String, &Object)) -> ObjectInfo {
    ObjectInfo {
        name: name.clone(),
        bytes: object.bytes.len() as u64,
        etag: Some(format!("\"{}\"", object.version)),
        modified_ms: object.modified_ms,
    }
}
