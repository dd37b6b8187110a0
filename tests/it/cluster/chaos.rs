//! A run of 200 shards on four executors, while every two seconds something goes wrong (nemesis.rs): it must be published
//! with every row once, and readers must never see anything else. `ROWMILL_CHAOS_SEED` repeats a round;
//! `infra/bench/chaos` makes many.

use std::time::{Duration, Instant};

use super::check;
use super::nemesis::{Blow, Nemesis};
use super::processes::{Cluster, Process, run_key};
use super::proxy::{Fault, Weather};
use super::reader::Reader;

const EXECUTORS: usize = 4;
/// 200 shards of 25 rows (ten a row group), 0.4 s each; eight at once, so undisturbed it takes about 10 s.
const ROWS: i64 = 5000;
const ENGINE: &str = ", delay_ms = 16";
const JOB: &str = ", shard_rows = 25";
/// Between two blows.
const BLOW_EVERY: Duration = Duration::from_secs(2);
/// Undisturbed the run takes as long as five; with fewer than these it was not disturbed.
const BLOWS_MIN: usize = 3;
/// Twice the executors' lease: others have its shards when it goes on.
const FREEZE: Duration = Duration::from_secs(6);
const BURST: Duration = Duration::from_millis(1500);
/// How many in a thousand requests of a burst fail. There are few writes among them, and those matter most.
const BURST_SHARES: &[(&str, u64)] = &[("PUT", 700), ("*", 250)];
const SILENCE: Duration = Duration::from_millis(700);
/// A round that takes longer has come to a standstill.
const ROUND_MAX: Duration = Duration::from_secs(300);
/// Between two looks at the processes.
const TICK: Duration = Duration::from_millis(50);
/// A process younger than this may not have come far.
const YOUNG: Duration = Duration::from_secs(10);
/// A temporary failure: whoever started the process starts it again.
const TEMPORARY: Option<i32> = Some(75);

/// What a round came to, beside the blows.
#[derive(Debug, Default)]
struct Tally {
    executors_gave_up: u32,
    schedulers_gave_up: u32,
}

/// The processes of a round, and who starts them again.
struct Round<'a> {
    cluster: &'a Cluster,
    scheduler: Process,
    executors: Vec<Process>,
    burst_until: Option<Instant>,
    tally: Tally,
}

impl<'a> Round<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let executors = (0..EXECUTORS).map(|_| Self::executor(cluster)).collect();
        Self { cluster, scheduler: cluster.submit(), executors, burst_until: None, tally: Tally::default() }
    }

    fn executor(cluster: &Cluster) -> Process {
        cluster.executor(&["--slots", "2"])
    }

    /// Does what supervisors do. Returns whether the scheduler ended because the run is published.
    fn tend(&mut self) -> bool {
        if self.burst_until.is_some_and(|until| Instant::now() >= until) {
            self.cluster.proxy.set(Weather::Fair);
            self.burst_until = None;
        }
        for executor in &mut self.executors {
            executor.thaw_if_due();
            if let Some(status) = executor.ended() {
                let said = executor.said();
                assert_eq!(status.code(), TEMPORARY, "an executor ended by itself ({status}): {said:?}");
                println!("an executor gave up: {}", said.stderr);
                self.tally.executors_gave_up += 1;
                *executor = Self::executor(self.cluster);
            }
        }
        if let Some(status) = self.scheduler.ended() {
            if status.code() == Some(0) {
                return true;
            }
            let said = self.scheduler.said();
            assert_eq!(status.code(), TEMPORARY, "the scheduler ended by itself ({status}): {said:?}");
            println!("the scheduler gave up: {}", said.stderr);
            self.tally.schedulers_gave_up += 1;
            self.scheduler = self.cluster.submit();
        }
        false
    }

    fn suffer(&mut self, blow: Blow, nemesis: &mut Nemesis) {
        match blow {
            Blow::KillExecutor => {
                let chosen = nemesis.choose(&(0..EXECUTORS).collect::<Vec<_>>()).expect("executors");
                self.executors[chosen].kill();
                self.executors[chosen] = Self::executor(self.cluster);
            }
            Blow::KillScheduler => {
                self.scheduler.kill();
                self.scheduler = self.cluster.submit();
            }
            Blow::FreezeExecutor => {
                let moving: Vec<usize> = (0..EXECUTORS).filter(|i| !self.executors[*i].frozen()).collect();
                if let Some(chosen) = nemesis.choose(&moving) {
                    self.executors[chosen].freeze(FREEZE);
                }
            }
            Blow::RestartRedis => self.cluster.redis.restart(),
            Blow::FlushRedis => self.cluster.redis.flushall(),
            Blow::BreakS3 => {
                let foul = Weather::Foul { shares: BURST_SHARES, faults: &Fault::ALL, silence: SILENCE };
                self.cluster.proxy.set(foul);
                self.burst_until = Some(Instant::now() + BURST);
            }
        }
    }

    /// After the scheduler said that the run is published: fair weather, everybody moves again, the trigger fires once
    /// more, and executors are asked to go. Nobody may fail now, and what they still do must change nothing.
    fn finish(mut self) -> Tally {
        self.cluster.proxy.set(Weather::Fair);
        let told = run_key(&self.scheduler.said().summary());
        self.executors.iter_mut().for_each(Process::thaw);
        let again = self.cluster.submit().wait().ok().summary();
        assert_eq!((again["status"].as_str(), run_key(&again)), (Some("published"), told));
        for mut executor in self.executors {
            // One that just began has no handler yet: the signal ends it.
            let young = executor.age() < YOUNG;
            executor.terminate();
            let said = executor.wait();
            assert!(
                said.code == Some(0) || (young && said.code.is_none()),
                "asked to go, an executor failed: {said:?}"
            );
        }
        self.tally
    }
}

/// The seed of this round: `ROWMILL_CHAOS_SEED`, or a new one.
fn seed() -> u64 {
    match std::env::var("ROWMILL_CHAOS_SEED") {
        Ok(seed) => seed.parse().expect("ROWMILL_CHAOS_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
            u64::from(now.subsec_nanos())
        }
    }
}

/// A round on the S3 server that `cluster` makes a job with; it is given the engine's options, the job's, and a seed.
#[expect(clippy::print_stderr, reason = "infra/bench/chaos reads the last line")]
pub fn check_round(cluster: impl FnOnce(&str, &str, u64) -> Cluster) {
    let seed = seed();
    println!("ROWMILL_CHAOS_SEED={seed}");
    let cluster = cluster(ENGINE, JOB, seed).with_rows(ROWS);
    let reader = Reader::start(cluster.bucket(), cluster.resolve());
    let mut nemesis = Nemesis::new(seed);
    let started = Instant::now();
    let mut round = Round::start(&cluster);
    let mut blow_at = started + BLOW_EVERY;
    while !round.tend() && !reader.found_something() {
        if started.elapsed() > ROUND_MAX {
            let parts = cluster.keys_with("/part-").len();
            panic!("seed {seed}: a standstill at {parts} parts, {nemesis}\n{}", cluster.last_words());
        }
        if Instant::now() >= blow_at {
            let blow = nemesis.next();
            println!("{:.1} s, {} parts: {blow:?}", started.elapsed().as_secs_f32(), cluster.keys_with("/part-").len());
            round.suffer(blow, &mut nemesis);
            blow_at += BLOW_EVERY;
        }
        std::thread::sleep(TICK);
    }
    let seconds = started.elapsed().as_secs_f32();
    let seen = |violation| panic!("seed {seed}, {nemesis}: a reader saw: {violation}\n{}", cluster.last_words());
    if reader.found_something() {
        reader.finish().map_or_else(seen, |looks| panic!("seed {seed}: the reader stopped: {looks:?}"));
        return;
    }
    let tally = round.finish();
    let looks = reader.finish().unwrap_or_else(seen);
    let facts = check::echoed(&cluster, ROWS);
    assert!(looks.before > 0 && looks.after > 0, "seed {seed}: {looks:?}");
    assert!(nemesis.dealt() >= BLOWS_MIN, "seed {seed}: only {} blows, {nemesis}", nemesis.dealt());
    let counts: Vec<String> = cluster.proxy.counts().iter().map(|(name, count)| format!("{name}={count}")).collect();
    eprintln!(
        "chaos seed={seed} seconds={seconds:.1} blows={} {nemesis} executors_gave_up={} schedulers_gave_up={} parts={} \
         attempts={} looks={} {}",
        nemesis.dealt(),
        tally.executors_gave_up,
        tally.schedulers_gave_up,
        facts.parts,
        facts.attempts,
        looks.before + looks.after + looks.resolved,
        counts.join(" ")
    );
}

#[test]
fn a_run_under_all_faults_is_published_whole_and_once() {
    check_round(Cluster::new);
}
