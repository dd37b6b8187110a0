//! The ledger under trouble, in virtual time, from one seed: executors with requests in flight, a store that loses writes,
//! loses answers or lets writes linger, and kills at any moment. What was billed never exceeds the cap, and little is left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Entry, Ledger, Pace, Reserve};
use crate::planted::{self, Bug};
use crate::store::{ObjectInfo, Payload, Put, Store, local::LocalStore};
use crate::{Error, Result, layout};

const FOLDER: &str = "run=k/_spend/";
const EXECUTORS: u64 = 8;
/// Seeds of each kind that a test plays.
const SEEDS: u64 = 60;

/// All chance of a seed (splitmix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.any() % (high - low + 1)
    }
}

/// What everybody shares: chance, the objects, the provider's bill.
#[derive(Debug)]
struct World {
    random: Mutex<Random>,
    objects: Mutex<BTreeMap<String, Bytes>>,
    trouble_per_mille: u64,
    cap: u64,
    most: (u64, u64),
    /// Longest a request takes, in milliseconds.
    request_ms: u64,
    billed: Mutex<u64>,
    overdrawn: Mutex<Option<u64>>,
}

impl World {
    fn between(&self, low: u64, high: u64) -> u64 {
        self.random.lock().unwrap().between(low, high)
    }

    fn chance(&self, per_mille: u64) -> bool {
        self.between(0, 999) < per_mille
    }

    /// The provider bills a request the moment it has it.
    fn bill(&self, amount: u64) {
        let mut billed = self.billed.lock().unwrap();
        *billed += amount;
        if *billed > self.cap {
            self.overdrawn.lock().unwrap().get_or_insert(*billed);
        }
    }

    fn put(&self, name: &str, bytes: Bytes) -> Put {
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(name) {
            return Put::Exists;
        }
        objects.insert(name.to_owned(), bytes);
        Put::Created
    }

    fn entries(&self) -> Vec<Entry> {
        self.objects.lock().unwrap().values().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect()
    }
}

/// A store behind a bad network.
#[derive(Debug, Clone)]
struct FarStore(Arc<World>);

impl FarStore {
    async fn travel(&self) {
        let bound = 1 << self.0.between(0, 8);
        tokio::time::sleep(Duration::from_millis(self.0.between(0, bound))).await;
    }

    async fn look<T>(&self, look: impl FnOnce(&BTreeMap<String, Bytes>) -> T) -> Result<T> {
        self.travel().await;
        if self.0.chance(self.0.trouble_per_mille) {
            return Err(no_answer());
        }
        let seen = look(&self.0.objects.lock().unwrap());
        self.travel().await;
        Ok(seen)
    }
}

fn no_answer() -> Error {
    Error::temporary("the store does not answer")
}

fn info(name: &str, bytes: &Bytes) -> ObjectInfo {
    ObjectInfo { name: name.to_owned(), bytes: bytes.len() as u64, etag: None, modified_ms: 0 }
}

#[async_trait]
impl Store for FarStore {
    fn url(&self) -> &str {
        "s3://simulated/"
    }

    async fn put_if_absent(&self, name: &str, payload: &Payload) -> Result<Put> {
        let Payload::Bytes(bytes) = payload.clone() else { return Err(Error::internal("an entry is no file")) };
        self.travel().await;
        if self.0.chance(self.0.trouble_per_mille) {
            match self.0.between(0, 2) {
                0 => {}
                1 => drop(self.0.put(name, bytes)),
                _ => {
                    let (world, name) = (Arc::clone(&self.0), name.to_owned());
                    let after = Duration::from_millis(self.0.between(0, 20_000));
                    tokio::spawn(async move {
                        tokio::time::sleep(after).await;
                        world.put(&name, bytes);
                    });
                }
            }
            return Err(no_answer());
        }
        let put = self.0.put(name, bytes);
        self.travel().await;
        Ok(put)
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.look(|objects| objects.get(name).cloned()).await
    }

    async fn get_tail(&self, _: &str, _: u64) -> Result<Bytes> {
        Err(Error::internal("nobody reads an entry's end"))
    }

    async fn head(&self, name: &str) -> Result<Option<ObjectInfo>> {
        self.look(|objects| objects.get(name).map(|bytes| info(name, bytes))).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let of_prefix = |(name, _): &(&String, &Bytes)| name.starts_with(prefix);
        self.look(|objects| objects.iter().filter(of_prefix).map(|(name, bytes)| info(name, bytes)).collect()).await
    }
}

/// Sends requests until the cap is reached, several at a time, then gives back.
async fn executor(world: Arc<World>, store: Arc<dyn Store>, name: String, in_flight: u64, pace: Pace) {
    let ledger = Ledger::new(store, FOLDER.into(), name, world.cap, pace);
    let mut requests = JoinSet::new();
    for _ in 0..in_flight {
        let (world, ledger) = (Arc::clone(&world), Arc::clone(&ledger));
        requests.spawn(async move {
            loop {
                let most = world.between(world.most.0, world.most.1);
                let reservation = match ledger.reserve(most).await {
                    Ok(Reserve::Granted(reservation)) => reservation,
                    Ok(Reserve::CapReached { left }) => {
                        assert!(left < most, "{left} is left and {most} was refused");
                        return;
                    }
                    Err(error) => {
                        assert!(error.retryable(), "{}", error.report());
                        continue;
                    }
                };
                let actual = world.between(most / 10, most);
                world.bill(actual);
                tokio::time::sleep(Duration::from_millis(world.between(0, world.request_ms))).await;
                reservation.settle(actual);
            }
        });
    }
    while let Some(request) = requests.join_next().await {
        request.unwrap();
    }
    while ledger.give_back().await.is_err() {}
}

/// What a seed left.
struct Left {
    entries: Vec<Entry>,
    billed: u64,
    cap: u64,
    most: u64,
    killed: Vec<String>,
}

/// Plays a seed. `kills` executors are killed, and others take their place.
fn play(seed: u64, kills: u64) -> std::result::Result<Left, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut random = Random(seed);
        let most = [(100, 100), (50, 1_000), (1, 100)][random.between(0, 2) as usize];
        let world = Arc::new(World {
            cap: most.1 * [1, 8, 60, 700][random.between(0, 3) as usize] + random.between(0, most.1),
            most,
            trouble_per_mille: [0, 30, 200][random.between(0, 2) as usize],
            request_ms: [10, 2_000, 90_000][random.between(0, 2) as usize],
            random: Mutex::new(random),
            objects: Mutex::default(),
            billed: Mutex::default(),
            overdrawn: Mutex::default(),
        });
        let store: Arc<dyn Store> = Arc::new(FarStore(Arc::clone(&world)));
        let in_flight = world.between(1, 6);
        let mut executors = JoinSet::new();
        let mut names = BTreeMap::new();
        let mut killed = Vec::new();
        for number in 0..EXECUTORS + kills {
            if number >= EXECUTORS {
                tokio::time::sleep(Duration::from_millis(world.between(0, 2 * world.request_ms))).await;
                let victim = world.between(0, number - 1);
                if let Some((name, handle)) = names.remove(&victim) {
                    let handle: tokio::task::AbortHandle = handle;
                    handle.abort();
                    killed.push(name);
                }
            }
            let name = format!("e{number}");
            let task = executor(Arc::clone(&world), Arc::clone(&store), name.clone(), in_flight, Pace::default());
            names.insert(number, (name, executors.spawn(task)));
        }
        while let Some(ended) = executors.join_next().await {
            if let Err(error) = ended
                && !error.is_cancelled()
            {
                return Err(format!("seed {seed}: {error}"));
            }
        }
        // What lingers has landed.
        tokio::time::sleep(Duration::from_secs(30)).await;
        if let Some(billed) = *world.overdrawn.lock().unwrap() {
            return Err(format!("seed {seed}: {billed} was billed over a cap of {}", world.cap));
        }
        let billed = *world.billed.lock().unwrap();
        Ok(Left { entries: world.entries(), billed, cap: world.cap, most: most.1, killed })
    })
}

/// The log is one chain, and at no point is more out than the cap.
fn check_chain(entries: &[Entry], cap: u64) {
    let mut out = 0;
    for (entry, seq) in entries.iter().zip(1..) {
        assert_eq!(entry.seq, seq);
        out = out + entry.leased - entry.returned;
        assert_eq!(entry.out, out);
        assert!(out <= cap, "{out} is out of {cap}");
    }
}

#[test]
fn without_kills_less_than_one_request_is_left_and_all_else_is_billed() {
    for seed in 0..SEEDS {
        let left = play(seed, 0).unwrap();
        check_chain(&left.entries, left.cap);
        let out = left.entries.last().map_or(0, |entry| entry.out);
        assert_eq!(out, left.billed, "seed {seed}");
        assert!(left.cap - left.billed < left.most, "seed {seed}: {} of {} left", left.cap - left.billed, left.cap);
    }
}

#[test]
fn kills_never_overdraw_and_lose_no_more_than_the_dead_held() {
    let mut deaths = 0;
    for seed in 1_000..1_000 + SEEDS {
        let left = play(seed, 6).unwrap();
        check_chain(&left.entries, left.cap);
        let last = left.entries.last().cloned().unwrap_or_default();
        deaths += left.killed.len();
        let with_the_dead: u64 = left.killed.iter().filter_map(|name| last.held.get(name)).sum();
        assert!(
            last.held.keys().all(|name| left.killed.contains(name)),
            "seed {seed}: the living hold {:?}",
            last.held
        );
        assert!(last.out - left.billed <= with_the_dead, "seed {seed}");
        assert!(left.cap - last.out < left.most, "seed {seed}: {} of {} left", left.cap - last.out, left.cap);
    }
    assert!(deaths as u64 > 4 * SEEDS, "{deaths} deaths");
}

#[test]
fn the_simulation_finds_a_lease_that_belongs_to_another() {
    planted::plant(Some((Bug::ForeignLease, Box::new(|_, _| ()))));
    let found = (0..50).find_map(|seed| play(seed, 0).err());
    planted::plant(None);
    assert!(found.is_some_and(|found| found.contains("billed over a cap")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_executors_on_a_folder_stop_within_one_request_of_the_cap() {
    let folder = tempfile::tempdir().unwrap();
    let pace = Pace { wait_min: Duration::from_millis(1), wait_max: Duration::from_millis(10), ..Pace::default() };
    let world = Arc::new(World {
        cap: 20_050,
        most: (100, 100),
        trouble_per_mille: 0,
        request_ms: 2,
        random: Mutex::new(Random(7)),
        objects: Mutex::default(),
        billed: Mutex::default(),
        overdrawn: Mutex::default(),
    });
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_path_buf()));
    let mut executors = JoinSet::new();
    for number in 0..EXECUTORS {
        executors.spawn(executor(Arc::clone(&world), Arc::clone(&store), format!("e{number}"), 4, pace));
    }
    while let Some(ended) = executors.join_next().await {
        ended.unwrap();
    }
    let billed = *world.billed.lock().unwrap();
    assert!(billed <= world.cap && world.cap - billed < 100, "{billed} of {}", world.cap);
    let last = super::last(store.as_ref(), FOLDER).await.unwrap().unwrap();
    assert_eq!((last.out, last.spent_at_least()), (billed, billed));
    println!("{billed} of {} billed, {} entries in the log", world.cap, last.seq);
    assert!(store.head(&layout::spend_entry(FOLDER, last.seq)).await.unwrap().is_some());
}

#[tokio::test]
async fn the_store_is_asked_a_few_times_a_second() {
    const REQUESTS: u32 = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_path_buf()));
    let pace = Pace { look_every: Duration::from_secs(3_600), ..Pace::default() };
    let ledger = Ledger::new(Arc::clone(&store), FOLDER.into(), "e".into(), u64::from(REQUESTS) * 64 * 10, pace);
    let started = std::time::Instant::now();
    for _ in 0..REQUESTS {
        let Reserve::Granted(reservation) = ledger.reserve(10).await.unwrap() else { panic!("the cap is far") };
        reservation.settle(3);
    }
    let seconds = started.elapsed().as_secs_f64();
    let entries = super::last(store.as_ref(), FOLDER).await.unwrap().unwrap().seq;
    println!("{:.0} reserved and settled a second, {entries} entries", f64::from(REQUESTS) / seconds);
    // Leases double until they last a quarter of a second.
    assert!(entries as f64 <= 40.0 + seconds * 8.0, "{entries} entries in {seconds} s");
    assert_eq!(ledger.spent(), 3 * u64::from(REQUESTS));
    ledger.give_back().await.unwrap();
    let last = super::last(store.as_ref(), FOLDER).await.unwrap().unwrap();
    assert_eq!((last.seq, last.out, last.held.len()), (entries + 1, 3 * u64::from(REQUESTS), 0));
}

#[tokio::test]
async fn a_cap_that_is_raised_or_lowered_holds_for_those_who_are_at_it() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_path_buf()));
    let ledger = Ledger::new(Arc::clone(&store), FOLDER.into(), "e".into(), 100, Pace::default());
    async fn spend(ledger: &Arc<Ledger>, amount: u64) -> bool {
        match ledger.reserve(amount).await.unwrap() {
            Reserve::Granted(reservation) => {
                reservation.settle(amount);
                true
            }
            Reserve::CapReached { .. } => false,
        }
    }
    assert!(spend(&ledger, 80).await && !spend(&ledger, 30).await);
    super::set_cap(store.as_ref(), FOLDER, "somebody", 120).await.unwrap();
    assert!(spend(&ledger, 30).await && !spend(&ledger, 30).await);
    // An executor that knows only the plan's cap learns the new one.
    let later = Ledger::new(Arc::clone(&store), FOLDER.into(), "f".into(), 1_000_000, Pace::default());
    ledger.give_back().await.unwrap();
    assert!(!spend(&later, 11).await && spend(&later, 10).await);
    super::set_cap(store.as_ref(), FOLDER, "somebody", 60).await.unwrap();
    assert!(!spend(&later, 1).await, "a lowered cap lets nothing more through");
    let entries = super::last(store.as_ref(), FOLDER).await.unwrap().unwrap().seq;
    super::set_cap(store.as_ref(), FOLDER, "another", 60).await.unwrap();
    let last = super::last(store.as_ref(), FOLDER).await.unwrap().unwrap();
    assert_eq!((last.seq, last.out, last.cap), (entries, 120, Some(60)), "the same cap is not written twice");
}

#[tokio::test]
async fn a_run_without_a_cap_has_a_ledger_once_somebody_sets_one() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_path_buf()));
    assert!(Ledger::if_capped(&store, "k", "e", None).await.unwrap().is_none());
    super::set_cap(store.as_ref(), &layout::spend("k"), "somebody", 5).await.unwrap();
    let ledger = Ledger::if_capped(&store, "k", "e", None).await.unwrap().unwrap();
    assert!(matches!(ledger.reserve(6).await.unwrap(), Reserve::CapReached { left: 5 }));
    assert!(matches!(ledger.reserve(5).await.unwrap(), Reserve::Granted(_)));
}
