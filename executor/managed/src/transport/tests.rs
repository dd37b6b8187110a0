//! The transport against a stub that misbehaves in the ways providers do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rowmill_jobs::allowance::{Allowance, Charge, Grant, Limit, LocalAllowance, Resource, Seen};
use secrecy::SecretString;
use tokio::time::Instant;

use super::stub::{Act, Stub, answer, json};
use super::*;
use crate::batch::BatchBody;
use crate::call::{Estimate, Left};

const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"canary-cell-4111"}]}"#;

fn call() -> Call {
    let estimate = Estimate { input_tokens: 100, output_tokens: 50, nano_usd_max: 0 };
    Call { path: "/chat/completions".into(), body: Some(Bytes::from_static(BODY.as_bytes())), estimate }
}

const GZIP: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n\
    \x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\xca\x4c\x51\xb2\x52\x32\x54\xaa\x05\x00\xf3\xc8\x18\xf6\x0a\x00\x00\x00";

/// An allowance without limits that notes what is done with it.
#[derive(Debug, Default)]
struct Notes {
    settled: Mutex<Vec<(Charge, Charge)>>,
    seen: Mutex<Vec<Seen>>,
    paused: Mutex<Vec<Duration>>,
}

#[async_trait]
impl Allowance for Notes {
    async fn reserve(&self, _: Charge, _: Duration) -> Grant {
        Grant::After(Duration::ZERO)
    }

    fn settle(&self, reserved: Charge, used: Charge) {
        self.settled.lock().unwrap().push((reserved, used));
    }

    fn correct(&self, seen: &[Seen]) {
        self.seen.lock().unwrap().extend_from_slice(seen);
    }

    fn pause(&self, time: Duration) {
        self.paused.lock().unwrap().push(time);
    }

    fn paused(&self) -> Duration {
        Duration::ZERO
    }
}

fn key() -> Authentication {
    Authentication::Bearer(SecretString::from("canary-key\n"))
}

/// A transport to the stub that waits for nothing long.
fn options(stub: &Stub, allowance: Arc<dyn Allowance>) -> TransportOptions {
    let mut options = TransportOptions::new(&stub.url, key(), allowance);
    options.place = Place::Own;
    options.retry.backoff = (Duration::from_millis(1), Duration::from_millis(5));
    options.timeouts.call = Duration::from_secs(60);
    options
}

/// What one call to a stub gives, with everything that was noted.
async fn send(acts: Vec<Act>) -> (Result<Reply, CallError>, Stub, Arc<Notes>) {
    let stub = Stub::start(acts).await;
    let notes = Arc::new(Notes::default());
    let transport = Transport::new(options(&stub, notes.clone())).unwrap();
    let reply = transport.send(call()).await;
    if let Err(error) = &reply {
        let text = format!("{error:?} {error}");
        assert!(!text.contains("canary"), "{text}");
    }
    (reply, stub, notes)
}

#[tokio::test]
async fn an_answer_comes_whole_and_settles_what_was_used() {
    let headers = "x-request-id: req-7\r\nx-ratelimit-limit-requests: 600\r\nx-ratelimit-remaining-requests: 599\r\n";
    let body = r#"{"id":"1","usage":{"prompt_tokens":10,"completion_tokens":2}}"#;
    let (reply, stub, notes) = send(vec![json(200, headers, body)]).await;
    let reply = reply.unwrap();
    assert_eq!((reply.body, reply.request_id.as_deref()), (Bytes::from(body), Some("req-7")));
    assert!(reply.first_byte > Duration::ZERO);
    let got = &stub.got()[0];
    assert!(got.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", got.head);
    let head = got.head.to_lowercase();
    for header in ["authorization: bearer canary-key", "content-type: application/json", "accept-encoding: gzip"] {
        assert!(head.lines().any(|line| line == header), "{header} is not in {head}");
    }
    assert_eq!(got.body, BODY);
    let reserved = Charge { requests: 1, input_tokens: 100, output_tokens: 50 };
    let used = Charge { requests: 1, input_tokens: 10, output_tokens: 2 };
    assert_eq!(*notes.settled.lock().unwrap(), [(reserved, used)]);
    assert_eq!(notes.seen.lock().unwrap()[0].limit, Some(600));
}

#[tokio::test]
async fn files_are_read_as_they_are() {
    let lines = "{\"custom_id\":\"1\"}\n{\"custom_id\":\"2\"}\n";
    let stub = Stub::start(vec![json(200, "", lines)]).await;
    let transport = Transport::new(options(&stub, Arc::new(Notes::default()))).unwrap();
    let get = Call { path: "/files/f1/content?limit=2".into(), body: None, estimate: Estimate::default() };
    assert_eq!(transport.send(get).await.unwrap().body, lines);
    assert!(stub.got()[0].head.starts_with("GET /v1/files/f1/content?limit=2 HTTP/1.1"));
}

#[tokio::test]
async fn a_request_about_batches_is_sent_once_and_takes_no_tokens_of_a_minute() {
    let answer = r#"{"id":"file-1","error":{"code":"of a row"},"usage":{"prompt_tokens":900,"completion_tokens":9}}"#;
    let stub = Stub::start(vec![json(500, "", "{}"), json(200, "x-request-id: req-7\r\n", answer)]).await;
    let notes = Arc::new(Notes::default());
    let transport = Transport::new(options(&stub, notes.clone())).unwrap();
    let form = || BatchBody::Form {
        fields: vec![("purpose", "batch".to_owned())],
        name: "b.jsonl".to_owned(),
        content: Bytes::from_static(b"{\"row\":1}\n"),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let (error, left) = transport.send_once("/files", form(), deadline).await.unwrap_err();
    assert_eq!((error.class, error.status, left), (Class::Transient, Some(500), Left::Something));
    assert_eq!(stub.got().len(), 1, "a creation that is sent again may be done twice");
    let reply = transport.send_once("/files", form(), deadline).await.unwrap();
    assert_eq!((reply.body, reply.request_id.as_deref()), (Bytes::from(answer), Some("req-7")));
    let got = &stub.got()[1];
    assert!(got.head.starts_with("POST /v1/files HTTP/1.1"), "{}", got.head);
    let head = got.head.to_lowercase();
    assert!(
        head.contains("authorization: bearer canary-key") && head.contains("multipart/form-data; boundary="),
        "{head}"
    );
    for part in ["name=\"purpose\"", "batch", "filename=\"b.jsonl\"", "{\"row\":1}"] {
        assert!(got.body.contains(part), "{part} is not in {}", got.body);
    }
    let request = Charge { requests: 1, ..Charge::default() };
    assert_eq!(*notes.settled.lock().unwrap(), [(request, request), (request, request)]);
    let empty = transport.send_once("/batches/b/cancel", BatchBody::Empty, deadline).await.unwrap();
    assert_eq!(empty.body, answer);
    assert!(stub.got()[2].head.starts_with("POST /v1/batches/b/cancel HTTP/1.1"));
}

#[tokio::test]
async fn packed_answers_are_unpacked() {
    // `printf '{"id":"1"}' | gzip -n`
    let (reply, _, _) = send(vec![Act::SayBytes(GZIP)]).await;
    assert_eq!(reply.unwrap().body, r#"{"id":"1"}"#);
}

#[tokio::test]
async fn a_storm_of_429_is_waited_out() {
    let storm = json(429, "retry-after: 0.05\r\n", r#"{"error":{"code":429,"message":"canary slow down"}}"#);
    let mut acts = vec![storm; 4];
    acts.push(answer());
    let (reply, stub, notes) = send(acts).await;
    reply.unwrap();
    let got = stub.got();
    assert_eq!(got.len(), 5);
    for pair in got.windows(2) {
        assert!(pair[1].at - pair[0].at >= Duration::from_millis(50), "Retry-After was not kept");
    }
    assert_eq!(*notes.paused.lock().unwrap(), [Duration::from_millis(50); 4]);
    let settled = notes.settled.lock().unwrap();
    let used: Vec<u64> = settled.iter().map(|(_, used)| used.input_tokens).collect();
    assert_eq!(used, [0, 0, 0, 0, 10], "what was throttled used no tokens");
}

#[tokio::test]
async fn a_long_retry_after_is_told_and_not_slept_through() {
    let began = Instant::now();
    let (reply, stub, notes) = send(vec![json(429, "retry-after: 86400\r\n", "{}")]).await;
    let error = reply.unwrap_err();
    assert_eq!((error.class, error.retry_after), (Class::Throttled, Some(Duration::from_secs(86_400))));
    assert_eq!(stub.got().len(), 1);
    assert_eq!(*notes.paused.lock().unwrap(), [Duration::from_secs(86_400)]);
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn passing_trouble_is_tried_five_times_and_no_more() {
    let html = "HTTP/1.1 529 X\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html>canary overloaded</html>";
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 500\r\nconnection: close\r\n\r\n{\"id\":\"canary";
    let inside = json(200, "", r#"{"error":{"code":502,"message":"canary"}}"#);
    for trouble in
        [Act::Say(html.into()), Act::Say(cut.into()), inside, json(500, "", "canary"), Act::Say(String::new())]
    {
        let (reply, stub, _) = send(vec![trouble.clone(), trouble.clone(), answer()]).await;
        assert!(reply.is_ok(), "{trouble:?}: {reply:?}");
        assert_eq!(stub.got().len(), 3);
    }
    let (reply, stub, _) = send(vec![Act::Say(cut.into())]).await;
    let error = reply.unwrap_err();
    assert_eq!((error.class, stub.got().len()), (Class::Transient, 5));
    assert_eq!(error.message, "the provider's answer was cut");
}

#[tokio::test]
async fn what_is_final_is_tried_once() {
    for (status, body, class) in [
        (400, r#"{"error":{"code":400,"message":"canary"}}"#, Class::Refused),
        (401, r#"{"error":{"message":"canary-key is wrong","code":"invalid_api_key"}}"#, Class::Denied),
        (429, r#"{"error":{"message":"…","code":"insufficient_quota"}}"#, Class::Billing),
        (400, r#"{"error":{"message":"…","code":"context_length_exceeded"}}"#, Class::TooLong),
    ] {
        let (reply, stub, _) = send(vec![json(status, "x-request-id: r\r\n", body)]).await;
        let error = reply.unwrap_err();
        assert_eq!((error.class, error.status, stub.got().len()), (class, Some(status), 1));
        assert_eq!(error.request_id.as_deref(), Some("r"));
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_left() {
    let stub = Stub::start(vec![Act::Hang]).await;
    let notes = Arc::new(Notes::default());
    let mut options = options(&stub, notes.clone());
    options.timeouts.idle = Duration::from_millis(100);
    options.retry.attempts_max = 2;
    let error = Transport::new(options).unwrap().send(call()).await.unwrap_err();
    assert_eq!((error.class, error.message.as_str()), (Class::Transient, "the provider did not answer in time"));
    assert_eq!(stub.got().len(), 2);
    let (reserved, used) = notes.settled.lock().unwrap()[0];
    assert_eq!(reserved, used, "nobody knows whether it was counted");
}

#[tokio::test]
async fn blank_lines_keep_a_connection_and_not_for_ever() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    let pause = Duration::from_millis(60);
    let stub = Stub::start(vec![Act::Drip(vec![head, "\n", "\n", "\n", "{\"id\":\"1\"}\n"], pause)]).await;
    let mut short = options(&stub, Arc::new(Notes::default()));
    short.timeouts.idle = Duration::from_millis(5_000);
    assert_eq!(Transport::new(short.clone()).unwrap().send(call()).await.unwrap().body, "{\"id\":\"1\"}");
    short.timeouts.attempt = Duration::from_millis(100);
    short.retry.attempts_max = 1;
    let error = Transport::new(short).unwrap().send(call()).await.unwrap_err();
    assert_eq!(error.class, Class::Transient);
}

#[tokio::test]
async fn a_deadline_ends_everything() {
    for act in [Act::Hang, json(500, "", "")] {
        let stub = Stub::start(vec![act]).await;
        let mut options = options(&stub, Arc::new(Notes::default()));
        options.retry.attempts_max = u32::MAX;
        let transport = Transport::new(options).unwrap();
        let deadline = Instant::now() + Duration::from_millis(200);
        let error = transport.send_by(call(), deadline, None).await.unwrap_err();
        assert!(matches!(error.class, Class::Stopped | Class::Transient | Class::Throttled), "{error:?}");
        assert!(Instant::now() < deadline + Duration::from_secs(10));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Stub::start(vec![answer()]).await;
    for target in ["http://169.254.169.254/latest/meta-data/", elsewhere.url.as_str()] {
        for status in [301, 302, 307, 308] {
            let (reply, stub, _) = send(vec![json(status, &format!("location: {target}\r\n"), "")]).await;
            let error = reply.unwrap_err();
            assert_eq!((error.class, error.status), (Class::Denied, Some(status)));
            assert_eq!(stub.got().len(), 1);
        }
    }
    assert!(elsewhere.got().is_empty());
}

#[tokio::test]
async fn what_must_not_be_reached_is_not_set_up() {
    let allowance: Arc<dyn Allowance> = Arc::new(Notes::default());
    for url in ["http://169.254.169.254/v1", "http://api.openai.com/v1", "https://127.0.0.1/v1"] {
        assert!(Transport::new(TransportOptions::new(url, key(), Arc::clone(&allowance))).is_err(), "{url}");
    }
    let broken = Authentication::Bearer(SecretString::from("sk-1\nsk-2"));
    let error = Transport::new(TransportOptions::new("https://api.openai.com/v1", broken, Arc::clone(&allowance)));
    assert!(error.unwrap_err().report().contains("position 5"));
    // A name that leads into the machine is not a provider.
    let mut options = TransportOptions::new("https://localhost:1/v1", key(), allowance);
    options.retry.attempts_max = 5;
    let error = Transport::new(options).unwrap().send(call()).await.unwrap_err();
    assert_eq!(error.class, Class::Denied, "{error:?}");
}

#[tokio::test]
async fn a_path_cannot_change_the_host() {
    let stub = Stub::start(vec![answer()]).await;
    let mut options = options(&stub, Arc::new(Notes::default()));
    options.base_url = stub.url.replace("/v1", "");
    let transport = Transport::new(options).unwrap();
    for path in ["@evil.example/", ".evil.example/", "chat", ""] {
        let error = transport.send(Call { path: path.into(), ..call() }).await.unwrap_err();
        assert_eq!(error.class, Class::Refused, "{path}");
    }
    assert!(stub.got().is_empty());
}

#[tokio::test]
async fn answers_have_a_bound() {
    for headers in ["content-length: 100000\r\n", ""] {
        let text = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{headers}\r\n\"{}\"", "a".repeat(99_998));
        let stub = Stub::start(vec![Act::Say(text)]).await;
        let mut options = options(&stub, Arc::new(Notes::default()));
        options.answer_max = 50_000;
        let error = Transport::new(options).unwrap().send(call()).await.unwrap_err();
        assert_eq!(error.class, Class::Refused);
        assert_eq!(stub.got().len(), 1);
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_settles() {
    let stub = Stub::start(vec![Act::Hang]).await;
    let notes = Arc::new(Notes::default());
    let transport = Transport::new(options(&stub, notes.clone())).unwrap();
    let sending = tokio::spawn(async move { transport.send(call()).await });
    while stub.got().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sending.abort();
    assert!(sending.await.unwrap_err().is_cancelled());
    assert_eq!(notes.settled.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_limits_are_kept_and_a_failing_provider_is_left_alone() {
    let stub = Stub::start(vec![answer()]).await;
    let allowance = Arc::new(LocalAllowance::new(&[Limit::per_minute(Resource::Requests, 1_200)]).unwrap());
    let transport = Transport::new(options(&stub, allowance)).unwrap();
    let began = Instant::now();
    let calls = (0..120).map(|_| transport.send(call()));
    for reply in futures::future::join_all(calls).await {
        reply.unwrap();
    }
    // A hundred at once, and 20 a second.
    assert!(began.elapsed() >= Duration::from_millis(950), "{:?}", began.elapsed());

    let stub = Stub::start(vec![json(500, "", "")]).await;
    let mut options = options(&stub, Arc::new(Notes::default()));
    options.retry.attempts_max = 100;
    options.retry.throttled_max = Duration::from_millis(500);
    let transport = Transport::new(options).unwrap();
    let error = transport.send(call()).await.unwrap_err();
    assert_eq!((error.class, stub.got().len()), (Class::Throttled, 5), "five failures open the breaker: {error:?}");
    assert!(error.retry_after.is_some());
}

#[tokio::test]
async fn nothing_of_rows_answers_and_keys_is_logged_at_any_level() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let writer = Arc::new(log.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(writer).finish();
    // This test's runtime has one thread, so that everything the transport does is heard.
    let listening = tracing::subscriber::set_default(subscriber);
    let refusal = r#"{"error":{"message":"canary prompt","code":"canary word"}}"#;
    for act in [
        json(200, "", r#"{"id":"canary"}"#),
        json(500, "", "canary"),
        json(400, "", refusal),
        json(200, "", refusal),
        json(200, "", "canary, no JSON"),
        json(302, "location: http://canary.example/\r\n", ""),
        Act::Say("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"canary".into()),
        Act::Say("canary, no HTTP".into()),
    ] {
        let _ = send(vec![act]).await;
    }
    drop(listening);
    let text = String::from_utf8_lossy(&std::fs::read(log.path()).unwrap()).into_owned();
    assert!(text.contains("TRACE"), "nothing is heard");
    let told: Vec<&str> = text.lines().filter(|line| line.contains("canary")).collect();
    assert!(told.is_empty(), "{told:#?}");
}
