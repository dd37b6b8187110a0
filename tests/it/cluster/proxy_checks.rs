//! The proxy itself: transparent in fair weather, exact in foul. A proxy that lied would make every other test here lie.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::Duration;

use super::bucket::Bucket;
use super::http::{Framing, Head, body};
use super::processes::Cluster;
use super::proxy::{Fault, Proxy, Weather};
use crate::servers::{S3Server, SIGNED, Server};

/// All requests, or all PUTs, get this fault.
fn always(fault: &'static Fault, shares: &'static [(&'static str, u64)]) -> Weather {
    Weather::Foul { shares, faults: std::slice::from_ref(fault), silence: Duration::from_millis(50) }
}

const ALL: &[(&str, u64)] = &[("*", 1_000)];
const PUTS: &[(&str, u64)] = &[("PUT", 1_000), ("*", 0)];

/// The server, the proxy, and the bucket seen past and through it.
fn set_up() -> (Server, Proxy, Bucket, Bucket) {
    let s3 = Server::s3();
    let proxy = Proxy::start(&s3.address, 1, s3.writes());
    let (direct, through) = (Bucket::new(&s3.address, "lake"), Bucket::new(&proxy.address, "lake"));
    (s3, proxy, direct, through)
}

#[test]
fn each_fault_does_what_it_says() {
    let (_s3, proxy, direct, through) = set_up();
    let large: Vec<u8> = (0..3u32 << 20).map(|i| (i % 251) as u8).collect();
    through.put("large", &large);
    assert_eq!(direct.get("large").as_ref(), Some(&large));
    assert_eq!(through.get("large").as_ref(), Some(&large));
    assert_eq!(through.list(""), direct.list(""));
    for (fault, status, done) in [
        (&Fault::ErrorBefore, Some(500), false),
        (&Fault::SlowDown, Some(503), false),
        (&Fault::Denied, Some(403), false),
        (&Fault::ErrorAfter, Some(500), true),
        (&Fault::SilenceBefore, None, false),
        (&Fault::SilenceAfter, None, true),
        (&Fault::CutAnswer, Some(200), true),
    ] {
        proxy.set(always(fault, PUTS));
        let answer = through.try_send("PUT", &format!("/{}", fault.name()), b"x");
        assert_eq!(answer.ok().map(|(status, _)| status), status, "{fault:?}");
        assert_eq!(direct.get(fault.name()).is_some(), done, "{fault:?}");
        assert_eq!(
            through.get("large").map(|content| content.len()),
            Some(large.len()),
            "{fault:?}: only PUTs are meant"
        );
        let counted = proxy.counts().get(fault.name()).copied();
        assert_eq!(counted, (*fault != Fault::CutAnswer).then_some(1), "{fault:?}");
    }
    assert_eq!(proxy.counts()["s3_writes_hidden"], 2);
    proxy.set(always(&Fault::CutAnswer, ALL));
    assert!(through.try_send("GET", "/large", b"").is_err(), "half an answer was taken for one");
    assert_eq!(proxy.counts()[Fault::CutAnswer.name()], 1);
    proxy.set(Weather::Down);
    assert!(through.try_send("GET", "/large", b"").is_err());
    proxy.set(Weather::Fair);
    assert_eq!(through.get("large").map(|content| content.len()), Some(large.len()));
}

#[test]
fn one_connection_carries_bodies_of_every_framing() {
    let (_s3, proxy, direct, _) = set_up();
    let stream = TcpStream::connect(&proxy.address).expect("the proxy listens");
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut stream = stream;
    let mut ask = |head: &str, content: &str| {
        let request = format!("{head}\r\nHost: {}\r\nAuthorization: {SIGNED}\r\n\r\n{content}", proxy.address);
        stream.write_all(request.as_bytes()).expect("the request is sent");
        let method = head.split(' ').next().unwrap_or_default();
        loop {
            let head = Head::read(&mut reader).expect("an answer").expect("an answer");
            let framing = Framing::of_answer(method, &head).expect("a framing");
            let content = body(&mut reader, framing).expect("a body");
            if head.status() >= 200 {
                return (head.status(), content);
            }
        }
    };
    assert_eq!(ask("PUT /lake/a HTTP/1.1\r\nTransfer-Encoding: chunked", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").0, 200);
    assert_eq!(ask("PUT /lake/b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3", "xyz").0, 200);
    assert_eq!(ask("HEAD /lake/a HTTP/1.1", ""), (200, Vec::new()));
    assert_eq!(ask("GET /lake/a HTTP/1.1", ""), (200, b"abcde".to_vec()));
    assert_eq!(ask("GET /lake/none HTTP/1.1", "").0, 404);
    proxy.set(always(&Fault::ErrorBefore, ALL));
    assert_eq!(ask("HEAD /lake/a HTTP/1.1", "").0, 500);
    assert_eq!(ask("PUT /lake/c HTTP/1.1\r\nContent-Length: 3", "xyz").0, 500);
    proxy.set(Weather::Fair);
    assert_eq!(ask("GET /lake/b HTTP/1.1", ""), (200, b"xyz".to_vec()));
    assert_eq!(direct.keys(""), ["a", "b"]);
}

#[test]
fn of_racing_conditional_puts_one_wins() {
    let (_s3, proxy, _direct, _) = set_up();
    for round in 0..10 {
        let start = Barrier::new(8);
        let put = || {
            let mut stream = TcpStream::connect(&proxy.address).expect("the proxy listens");
            start.wait();
            let head = format!("PUT /lake/{round} HTTP/1.1\r\nHost: {}\r\nIf-None-Match: *\r\n", proxy.address);
            let rest = format!("Authorization: {SIGNED}\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx");
            stream.write_all(format!("{head}{rest}").as_bytes()).expect("the request is sent");
            let head = Head::read(&mut BufReader::new(stream)).expect("an answer").expect("an answer");
            head.status()
        };
        let mut statuses: Vec<u16> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8).map(|_| scope.spawn(put)).collect();
            racers.into_iter().map(|racer| racer.join().expect("a racer")).collect()
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412, 412, 412, 412, 412, 412, 412], "round {round}");
    }
}

#[test]
fn doctor_trusts_the_store_behind_the_proxy() {
    let cluster = Cluster::new("", "", 0);
    cluster.say_through_proxy("doctor").ok();
}
