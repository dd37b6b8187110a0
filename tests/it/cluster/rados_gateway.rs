//! [`RadosGateway`]: Ceph's S3 server, which checks signatures and takes conditional writes as S3 does; with the least of
//! Ceph that it needs: one monitor, one OSD that keeps everything in memory. Each test starts its own on free ports; all of
//! it ends when it is dropped. It refuses to do without Ceph: what is not installed fails the test.

use std::fs::File;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::bucket::Bucket;
use crate::servers::{ACCESS_KEY, LOOK_EVERY, PATIENCE, S3Server, SECRET_KEY, Writes, end, free_port, text};

/// Starts before Ceph is said not to start: somebody else may take a port that was free.
const STARTS: usize = 3;

/// A Ceph for one test.
#[derive(Debug)]
pub struct RadosGateway {
    address: String,
    monitor: String,
    /// In the order of their starts.
    running: Vec<Child>,
    folder: tempfile::TempDir,
}

impl Drop for RadosGateway {
    fn drop(&mut self) {
        self.running.iter_mut().rev().for_each(end);
    }
}

impl S3Server for RadosGateway {
    fn address(&self) -> &str {
        &self.address
    }

    fn writes(&self) -> Writes {
        Writes::Atomic
    }
}

impl RadosGateway {
    /// RadosGW with the empty bucket `lake`.
    pub fn new() -> Self {
        let mut last = String::new();
        for _ in 0..STARTS {
            let mut gateway = Self {
                address: format!("127.0.0.1:{}", free_port()),
                monitor: format!("[v2:127.0.0.1:{}]", free_port()),
                running: Vec::new(),
                folder: tempfile::tempdir().expect("a temporary folder"),
            };
            match gateway.start() {
                Ok(()) => {
                    Bucket::new(&gateway.address, "lake").create();
                    return gateway;
                }
                Err(error) => last = format!("{error}\n{}", gateway.log()),
            }
        }
        panic!("Ceph does not start: {last}");
    }

    fn start(&mut self) -> Result<(), String> {
        let (cluster, disk) = (unique(), unique());
        std::fs::write(self.path("ceph.conf"), self.settings(&cluster)).expect("its configuration is written");
        for folder in ["mon", "osd", "rgw"] {
            std::fs::create_dir(self.path(folder)).expect("a folder");
        }
        File::create(self.path("keyring")).expect("a file");
        let (map, monitor) = (self.path("monmap"), self.monitor.clone());
        self.finish("monmaptool", &["--create", "--fsid", &cluster, "--addv", "a", &monitor, &map])?;
        self.finish("ceph-mon", &["--id", "a", "--mkfs", "--monmap", &map])?;
        self.run("ceph-mon", &["--id", "a", "-f"]);
        self.finish("ceph", &["osd", "new", &disk])?;
        self.finish("ceph-osd", &["--id", "0", "--mkfs", "--osd-uuid", &disk])?;
        self.run("ceph-osd", &["--id", "0", "-f"]);
        let keys = [format!("--access-key={ACCESS_KEY}"), format!("--secret={SECRET_KEY}")];
        self.finish("radosgw-admin", &["user", "create", "--uid=tests", "--display-name=tests", &keys[0], &keys[1]])?;
        // With Nagle's algorithm, each answer would take 40 ms longer.
        let frontend = format!("beast endpoint={} tcp_nodelay=1", self.address);
        self.run("radosgw", &["--name", "client.rgw.a", "-f", "--rgw-frontends", &frontend]);
        self.until("the gateway listens", |gateway| TcpStream::connect(&gateway.address).is_ok())
    }

    /// No keys between Ceph's own parts, so no encryption either; one copy of everything; no pauses for the sake of larger
    /// clusters. A monitor writes a few megabytes here, and must not end because a large disk is 95 % full.
    fn settings(&self, cluster: &str) -> String {
        let folder = text(self.folder.path());
        format!(
            "[global]\nfsid = {cluster}\nmon host = {}\npublic addr = 127.0.0.1\n\
             auth cluster required = none\nauth service required = none\nauth client required = none\n\
             ms cluster mode = crc\nms service mode = crc\nms client mode = crc\n\
             ms mon cluster mode = crc\nms mon service mode = crc\nms mon client mode = crc\n\
             run dir = {folder}\nlog file = {folder}/$name.log\ncrash dir = {folder}\nkeyring = {folder}/keyring\n\
             admin socket =\npid file =\n\
             mon data = {folder}/mon\nosd data = {folder}/osd\nrgw data = {folder}/rgw\n\
             osd objectstore = memstore\nosd crush chooseleaf type = 0\nmon allow pool size one = true\n\
             osd pool default size = 1\nosd pool default min size = 1\n\
             osd pool default pg num = 4\nosd pool default pgp num = 4\nosd pool default pg autoscale mode = off\n\
             paxos propose interval = 0.02\npaxos min wait = 0.01\n\
             mon data avail crit = 0\nmon data avail warn = 0\n",
            self.monitor
        )
    }

    /// Starts what goes on until the end.
    fn run(&mut self, program: &str, args: &[&str]) {
        let process = self.spawn(program, args);
        self.running.push(process);
    }

    /// Runs a program to its end.
    fn finish(&mut self, program: &str, args: &[&str]) -> Result<(), String> {
        let mut process = self.spawn(program, args);
        let mut code = None;
        let ended = self.until(program, |_| {
            code = process.try_wait().expect("its state");
            code.is_some()
        });
        end(&mut process);
        ended?;
        if code.is_some_and(|code| code.success()) { Ok(()) } else { Err(format!("{program} {args:?} failed")) }
    }

    /// Waits until `condition` holds, while everything that was started runs.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) -> Result<(), String> {
        let started = Instant::now();
        while !condition(self) {
            if self.running.iter_mut().any(|process| process.try_wait().expect("its state").is_some()) {
                return Err(format!("{what}: a part of Ceph ended"));
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("{what}: not within {PATIENCE:?}"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn spawn(&self, program: &str, args: &[&str]) -> Child {
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log file");
        let mut command = Command::new(program);
        command.args(["--conf", &self.path("ceph.conf")]).args(args).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("the log file")).stderr(log);
        command.spawn().unwrap_or_else(|error| {
            panic!("{program} does not start ({error}): infra/test --rados installs it; or install Ceph with RadosGW")
        })
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).to_owned()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

/// What nothing else is called.
fn unique() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("Linux").trim().to_owned()
}
