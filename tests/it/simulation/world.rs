//! [`World`]: one seed's world: its clock, its chance, its store and queue, the state of its processes, and what was
//! promised. Everything that happens goes through it, one thing at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rowmill_jobs::planted::Sabotage;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::objects::Objects;
use super::promises::{Breach, Broken, Promises};
use super::queue::Shards;
use super::trace::Trace;
use super::trouble::{Call, Mishap, Strike, Trouble};
use crate::random::Random;

/// Calls to store and queue that a seed makes at most; more of them lead nowhere.
const CALLS_MAX: u64 = 200_000;
/// Longest life of a process that is to be killed, in polls, as a power of two.
const LIFE_MAX: u64 = 9;

/// A process's place in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node(pub usize);

/// What happens to the world happens to no process.
const NOBODY: Node = Node(usize::MAX);

/// One seed's world.
#[derive(Debug)]
pub struct World {
    started: Instant,
    inner: Mutex<Inner>,
    /// Told when the queue has changed.
    pub queue_changed: Notify,
    /// Told when somebody ended or a promise was broken.
    ended: Notify,
}

/// What is in it.
#[derive(Debug)]
pub struct Inner {
    pub random: Random,
    pub trouble: Trouble,
    pub objects: Objects,
    pub shards: Shards,
    pub promises: Promises,
    pub trace: Trace,
    /// How often what happened.
    pub tally: BTreeMap<&'static str, u64>,
    /// Whether trouble is over.
    pub calm: bool,
    nodes: Vec<NodeState>,
    broken: Option<Broken>,
    calls: u64,
    /// Processes that are to end, and shards in hand.
    busy: usize,
}

#[derive(Debug)]
struct NodeState {
    name: &'static str,
    frozen_until: Instant,
    away_until: Instant,
    deaths: u32,
}

impl World {
    /// A world in which nothing has happened.
    pub fn new(
        random: Random,
        trouble: Trouble,
        grace: Option<Duration>,
        nodes: &[&'static str],
        room: usize,
    ) -> Arc<Self> {
        let started = Instant::now();
        let node = |name: &&'static str| NodeState { name, frozen_until: started, away_until: started, deaths: 0 };
        let inner = Inner {
            random,
            trouble,
            objects: Objects::default(),
            shards: Shards::default(),
            promises: Promises::new(grace),
            trace: Trace::new(room),
            tally: BTreeMap::new(),
            calm: false,
            nodes: nodes.iter().map(node).collect(),
            broken: None,
            calls: 0,
            busy: 0,
        };
        Arc::new(Self { started, inner: Mutex::new(inner), queue_changed: Notify::new(), ended: Notify::new() })
    }

    /// Reads or changes what is in the world.
    pub fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let arrived = inner.objects.advance(self.started.elapsed().as_millis() as i64);
        for name in arrived {
            inner.note(NOBODY, "a lingering PUT created", &name);
            inner.changed(&name);
        }
        let result = change(&mut inner);
        if inner.broken.is_some() {
            self.ended.notify_waiters();
        }
        result
    }

    /// Something happened.
    pub fn note(&self, node: Node, what: &'static str, subject: &str) {
        self.with(|inner| inner.note(node, what, subject));
    }

    /// A time up to `high` milliseconds, mostly short; short when trouble is over.
    pub fn while_ms(&self, high: u64) -> Duration {
        self.with(|inner| inner.random.mostly_short(if inner.calm { high.min(500) } else { high }))
    }

    /// The time from one look at something to the next.
    pub fn now_and_then(&self, high: u64) -> Duration {
        self.with(|inner| inner.random.millis(high / 10, high))
    }

    /// Returns once a process is not frozen.
    pub async fn thaw(&self, node: Node) {
        loop {
            let until = self.with(|inner| inner.nodes[node.0].frozen_until);
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// How a call of a process to the store goes.
    pub async fn call(&self, node: Node, is_put: bool) -> Call {
        loop {
            match self.with(|inner| inner.call(node, is_put)) {
                Next::Call(call) => return call,
                Next::FrozenUntil(until) => sleep_until(until).await,
                Next::Nowhere => std::future::pending().await,
            }
        }
    }

    /// For how many polls a process lives from now on.
    pub fn life(&self, node: Node) -> u64 {
        self.with(|inner| {
            if inner.calm || inner.nodes[node.0].deaths >= inner.trouble.deaths_max || inner.random.chance(400) {
                return u64::MAX;
            }
            let bound = inner.random.between(0, LIFE_MAX);
            inner.random.between(1, 1 << bound)
        })
    }

    /// A process was killed.
    pub fn died(&self, node: Node) {
        self.with(|inner| {
            inner.nodes[node.0].deaths += 1;
            inner.count("killed");
            inner.note(node, "is killed", "");
        });
    }

    /// Counts what has to end before the seed does, until it is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.with(|inner| inner.busy += 1);
        Busy(Arc::clone(self))
    }

    /// Returns once a promise was broken.
    pub async fn broken_promise(&self) {
        loop {
            let ended = self.ended.notified();
            if self.broken().is_some() {
                return;
            }
            ended.await;
        }
    }

    /// Returns once nobody is busy or a promise was broken.
    pub async fn settled(&self) {
        loop {
            let ended = self.ended.notified();
            if self.with(|inner| inner.busy == 0 && !inner.objects.has_lingering() || inner.broken.is_some()) {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_secs(5), ended).await;
        }
    }

    /// Something from outside hits a process, or all.
    pub fn strike(&self, strike: Strike) {
        let now = Instant::now();
        self.with(|inner| {
            let all = inner.nodes.len();
            let hit = inner.random.below(all);
            match strike {
                Strike::Freeze(time) => {
                    inner.note(Node(hit), "stands still for", &format!("{time:?}"));
                    inner.nodes[hit].frozen_until = now + time;
                    inner.shards.silent(Node(hit));
                }
                Strike::Outage(time) => {
                    let everybody = inner.random.chance(400);
                    inner.note(
                        Node(hit),
                        if everybody { "and all are cut off for" } else { "is cut off for" },
                        &format!("{time:?}"),
                    );
                    let hit = if everybody { 0..all } else { hit..hit + 1 };
                    inner.nodes[hit].iter_mut().for_each(|node| node.away_until = now + time);
                }
                Strike::Forget => {
                    inner.note(NOBODY, "the queue forgets everything", "");
                    inner.shards.forget();
                }
            }
        });
        self.queue_changed.notify_waiters();
    }

    /// A process stands still.
    pub fn freeze(&self, node: Node, time: Duration) {
        self.with(|inner| {
            inner.count("zombies");
            inner.note(node, "stands still with a finished part for", &format!("{time:?}"));
            inner.nodes[node.0].frozen_until = Instant::now() + time;
            inner.shards.silent(node);
        });
        self.queue_changed.notify_waiters();
    }

    /// All trouble is over.
    pub fn calm(&self) {
        let now = Instant::now();
        self.with(|inner| {
            inner.calm = true;
            inner.trouble = Trouble::default();
            inner.note(NOBODY, "trouble is over", "");
            for node in &mut inner.nodes {
                (node.frozen_until, node.away_until) = (now, now);
            }
        });
        self.queue_changed.notify_waiters();
    }

    /// The promise that was broken, if one was.
    pub fn broken(&self) -> Option<Broken> {
        self.with(|inner| inner.broken.clone())
    }

    /// What a planted bug does to the store.
    pub fn sabotage(self: &Arc<Self>) -> Sabotage {
        let world = Arc::clone(self);
        Box::new(move |name, content: Option<Bytes>| {
            world.with(|inner| {
                let what = if content.is_some() { "the bug overwrites" } else { "the bug deletes" };
                if inner.objects.set(name, content) {
                    inner.note(NOBODY, what, name);
                }
                inner.changed(name);
            });
        })
    }
}

impl Inner {
    /// Something happened.
    pub fn note(&mut self, node: Node, what: &'static str, subject: &str) {
        let at_ms = self.objects.clock_ms();
        let name = self.nodes.get(node.0).map_or("", |node| node.name);
        self.trace.note(at_ms, name, what, subject);
    }

    /// Counts something that the seeds are meant to meet.
    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// A promise holds, or the seed has failed. Returns what was told, or the least there is.
    pub fn hold<T: Default>(&mut self, kept: Result<T, Broken>) -> T {
        kept.unwrap_or_else(|broken| {
            if self.broken.is_none() {
                self.note(NOBODY, "BROKEN:", &format!("{:?}: {}", broken.0, broken.1));
                self.broken = Some(broken);
            }
            T::default()
        })
    }

    /// An object was created, overwritten or deleted.
    pub fn changed(&mut self, name: &str) {
        if let Some(run_key) = name.strip_prefix("run=").and_then(|name| name.strip_suffix("/_SUCCESS"))
            && self.objects.version(name) > 0
        {
            let kept = self.promises.marked(&self.objects, run_key);
            self.hold(kept);
        }
        if name.starts_with("_published/") {
            let all = self.objects.list("_published/");
            if all.last().is_some_and(|last| last.name != name) {
                self.count("published after its replacement");
            } else if all.len() > 1 {
                self.count("replaced");
            }
        }
        let diagnosis = ["/_attempts/", "/_failures/", "/_plan.json"].iter().any(|part| name.contains(part));
        if !diagnosis && !name.starts_with("_gc/") && !name.starts_with("_doctor/") {
            let kept = self.promises.look(&self.objects);
            self.hold(kept);
        }
    }

    /// Whether a process is cut off.
    pub fn is_away(&self, node: Node) -> bool {
        self.nodes[node.0].away_until > Instant::now()
    }

    fn call(&mut self, node: Node, is_put: bool) -> Next {
        let frozen_until = self.nodes[node.0].frozen_until;
        if frozen_until > Instant::now() {
            return Next::FrozenUntil(frozen_until);
        }
        self.calls += 1;
        if self.calls > CALLS_MAX {
            self.hold::<()>(Err((Breach::Stuck, format!("{CALLS_MAX} calls"))));
            return Next::Nowhere;
        }
        let mut call = self.trouble.call(&mut self.random, is_put);
        if self.is_away(node) {
            call.mishap = Some(Mishap::Lost);
        }
        Next::Call(call)
    }
}

/// What becomes of a process that calls the store.
enum Next {
    Call(Call),
    FrozenUntil(Instant),
    /// Nothing that it does leads anywhere.
    Nowhere,
}

/// Keeps a seed from ending.
#[derive(Debug)]
pub struct Busy(Arc<World>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.with(|inner| inner.busy -= 1);
        self.0.ended.notify_waiters();
    }
}
