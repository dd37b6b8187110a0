//! What the transport to managed models costs by itself: calls a second against a stub that answers at once, with the
//! limiter on and limits that are never reached. `infra/bench/managed/run` puts it beside openai-python on the same stub.
//!
//!   cargo bench -p rowmill-managed --bench managed               stub in a process of its own, 16, 128 and 1,024 calls at once
//!   … --bench managed -- stub                                    the stub alone; prints its URL
//!   … --bench managed -- send URL CALLS_AT_ONCE SECONDS          one measurement; prints JSON

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../../src/allocator.rs"]
mod allocator;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rowmill_jobs::allowance::{Allowance, Limit, LocalAllowance, Resource};
use rowmill_managed::call::{Call, Estimate};
use rowmill_managed::transport::{Authentication, Place, Transport, TransportOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A row's question, of about 500 bytes.
const BODY: &str = include_str!("managed/request.json");
/// An answer as OpenAI gives it.
const ANSWER: &str = include_str!("managed/answer.json");
/// A limit that is there and never reached.
const PLENTY: u64 = 1_000_000_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match arguments[..] {
        ["stub"] => runtime.block_on(stub()),
        ["send", url, at_once, seconds] => {
            let measured = runtime.block_on(measure(url, at_once.parse().unwrap(), seconds.parse().unwrap()));
            println!("{measured}");
        }
        _ => {
            let mut stub = Command::new(std::env::current_exe().unwrap());
            let mut stub = stub.arg("stub").stdout(Stdio::piped()).spawn().unwrap();
            let mut url = String::new();
            BufReader::new(stub.stdout.take().unwrap()).read_line(&mut url).unwrap();
            for at_once in [16, 128, 1_024] {
                println!("{}", runtime.block_on(measure(url.trim(), at_once, 5.0)));
            }
            stub.kill().unwrap();
            stub.wait().unwrap();
        }
    }
}

/// Sends for a while after a moment to warm up, and says how many calls were answered.
async fn measure(url: &str, at_once: usize, seconds: f64) -> String {
    let limits = [Resource::Requests, Resource::InputTokens, Resource::OutputTokens]
        .map(|resource| Limit::per_minute(resource, PLENTY));
    let allowance: Arc<dyn Allowance> = Arc::new(LocalAllowance::new(&limits).unwrap());
    let mut options = TransportOptions::new(url, Authentication::Bearer("sk-bench".to_owned().into()), allowance);
    options.place = Place::Own;
    options.concurrency_max = at_once;
    let transport = Transport::new(options).unwrap();
    let answered = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..at_once)
        .map(|_| {
            let (transport, answered) = (transport.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                loop {
                    let estimate = Estimate { input_tokens: 120, output_tokens: 20, nano_usd_max: 0 };
                    let body = Some(Bytes::from_static(BODY.as_bytes()));
                    transport.send(Call { path: "/chat/completions".into(), body, estimate }).await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, began) = (answered.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let calls = answered.load(Ordering::Relaxed) - before;
    let per_second = calls as f64 / began.elapsed().as_secs_f64();
    for worker in workers {
        worker.abort();
    }
    format!(r#"{{"client": "rowmill", "at_once": {at_once}, "calls": {calls}, "calls_per_second": {per_second:.0}}}"#)
}

/// Answers every request at once. Reads no more of HTTP than where a request ends, so that it takes little of the machine.
async fn stub() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}/v1", listener.local_addr().unwrap());
    let length = ANSWER.len();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req-1\r\n\
                x-ratelimit-limit-requests: 1000000000\r\nx-ratelimit-remaining-requests: 1000000000\r\n\
                x-ratelimit-limit-tokens: 1000000000000\r\nx-ratelimit-remaining-tokens: 1000000000000\r\n";
    let response: Arc<[u8]> = format!("{head}content-length: {length}\r\n\r\n{ANSWER}").into_bytes().into();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let response = Arc::clone(&response);
        tokio::spawn(async move { serve(stream, &response).await });
    }
}

async fn serve(mut stream: TcpStream, response: &[u8]) {
    let mut got = Vec::with_capacity(8_192);
    loop {
        while let Some(end) = end_of_request(&got) {
            got.drain(..end);
            if stream.write_all(response).await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut got).await {
            Ok(count) if count > 0 => {}
            _ => return,
        }
    }
}

/// Where the first request ends, if all of it is there.
fn end_of_request(got: &[u8]) -> Option<usize> {
    let head = got.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&got[..head]).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let end = head + length.unwrap_or(0);
    (got.len() >= end).then_some(end)
}
