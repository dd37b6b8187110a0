//! A provider for tests: a plain socket that says what a test tells it to, byte for byte, and notes what it was sent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// What the stub does with a request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Sends these bytes, then closes.
    Say(String),
    /// Sends these bytes, then closes.
    SayBytes(&'static [u8]),
    /// Sends pieces with pauses between them, then closes.
    Drip(Vec<&'static str>, Duration),
    /// Says nothing, and keeps the connection.
    Hang,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) head: String,
    pub(super) body: String,
    pub(super) at: Instant,
}

/// A stub and what it was sent.
#[derive(Debug, Clone)]
pub(super) struct Stub {
    pub(super) url: String,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Stub {
    /// Acts in order; the last act is repeated.
    pub(super) async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let stub = Self { url, got: Arc::default() };
        let acts = Arc::new(Mutex::new(VecDeque::from(acts)));
        let shared = stub.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (stub, acts) = (shared.clone(), Arc::clone(&acts));
                tokio::spawn(async move { stub.serve(stream, &acts).await });
            }
        });
        stub
    }

    async fn serve(&self, mut stream: TcpStream, acts: &Mutex<VecDeque<Act>>) {
        let Some(got) = read(&mut stream).await else { return };
        self.got.lock().unwrap().push(got);
        let act = {
            let mut acts = acts.lock().unwrap();
            if acts.len() > 1 { acts.pop_front() } else { acts.front().cloned() }
        };
        match act {
            Some(Act::Say(text)) => drop(stream.write_all(text.as_bytes()).await),
            Some(Act::SayBytes(bytes)) => drop(stream.write_all(bytes).await),
            Some(Act::Drip(pieces, pause)) => {
                for piece in pieces {
                    if stream.write_all(piece.as_bytes()).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
            Some(Act::Hang) | None => {
                let mut rest = [0; 1];
                let _ = stream.read(&mut rest).await;
            }
        }
        let _ = stream.shutdown().await;
    }

    /// Everything it was sent.
    pub(super) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

async fn read(stream: &mut TcpStream) -> Option<Got> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(Got { head: head.to_owned(), body: body.to_owned(), at: Instant::now() });
        }
    }
}

/// A response with a JSON body.
pub(super) fn json(status: u16, headers: &str, body: &str) -> Act {
    let length = body.len();
    Act::Say(format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    ))
}

/// An answer as most providers give it.
pub(super) fn answer() -> Act {
    json(200, "x-request-id: req-7\r\n", r#"{"id":"1","usage":{"prompt_tokens":10,"completion_tokens":2}}"#)
}
