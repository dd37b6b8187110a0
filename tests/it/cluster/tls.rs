//! Redis over TLS, with certificates of an authority that the test makes. Processes trust what the system trusts; the
//! variable that says so for all programs (`SSL_CERT_FILE`) names the authority here.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::check;
use super::processes::Cluster;
use crate::servers::{Redis, text};

/// Where clients look for Redis.
const HERE: &str = "127.0.0.1";

/// Somebody who vouches for servers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let authority = Self { issuer: Issuer::new(params, key), folder: tempfile::tempdir().expect("a folder") };
        authority.keep("authority.pem", &certificate.pem());
        authority
    }

    /// What whoever trusts it is given.
    pub fn file(&self) -> String {
        text(&self.folder.path().join("authority.pem")).to_owned()
    }

    /// Lines of a Redis' configuration that make it speak TLS alone, on `port`, as `host`.
    pub fn settings(&self, port: u16, host: &str) -> Vec<String> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([host.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = self.keep(&format!("{port}.key"), &key.serialize_pem());
        let certificate = self.keep(&format!("{port}.pem"), &certificate.pem());
        vec![
            format!("port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no"),
            format!("tls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {}", self.file()),
        ]
    }

    /// A Redis that it vouches for, if it is asked for as `host`.
    fn redis(&self, host: &str) -> Redis {
        Redis::with("rediss", |port| self.settings(port, host))
    }

    fn keep(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        text(&path).to_owned()
    }
}

/// A job whose processes are given `redis` and trust `authority`.
fn cluster(redis: Redis, authority: &Authority) -> Cluster {
    let mut cluster = Cluster::new("", ", shard_rows = 20", 0).with_rows(100);
    cluster.redis_url = redis.url();
    cluster.redis = redis;
    cluster.environment.push(("SSL_CERT_FILE", authority.file()));
    cluster
}

#[test]
fn a_run_goes_over_tls() {
    let authority = Authority::new("ours");
    let cluster = cluster(authority.redis(HERE), &authority);
    let _executors = [(); 2].map(|()| cluster.executor(&[]));
    cluster.submit().wait().ok();
    check::echoed(&cluster, 100);
}

#[test]
fn a_redis_that_cannot_prove_who_it_is_is_refused() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    for (redis, reason) in
        [(theirs.redis(HERE), "UnknownIssuer"), (ours.redis("redis.example"), "not valid for name \"127.0.0.1\"")]
    {
        let cluster = cluster(redis, &ours);
        let job = cluster.path();
        for mut process in [cluster.start(&["submit", &job]), cluster.executor(&["--patience", "1"])] {
            let said = process.wait();
            assert!(said.code.is_some_and(|code| code != 0), "{said:?}");
            for word in [&cluster.redis_url, "invalid peer certificate", reason, "hint"] {
                assert!(said.stderr.contains(word), "{word:?} is missing in\n{}", said.stderr);
            }
        }
    }
}

#[test]
fn plain_text_finds_no_way_into_a_redis_over_tls() {
    let authority = Authority::new("ours");
    let mut cluster = cluster(authority.redis(HERE), &authority);
    cluster.redis_url = cluster.redis_url.replace("rediss:", "redis:");
    let said = cluster.start(&["submit", &cluster.path()]).wait();
    assert!(said.code.is_some_and(|code| code != 0) && said.stderr.contains(&cluster.redis_url), "{said:?}");
}
