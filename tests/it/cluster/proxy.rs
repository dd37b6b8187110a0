//! [`Proxy`]: stands in front of the S3 server and makes it fail as S3 and networks do, in particular after a write took
//! effect. With fair weather it changes nothing that a client can see, except that it repairs what moto lacks: before
//! such a server, it lets one write through at a time and no reading beside it, so that a conditional PUT is as atomic as S3's.
//!
//! A request is read whole before it is passed on: whoever dies while sending has written nothing, as with S3, and "before"
//! and "after it took effect" are exact. Answers are passed on as they come.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use super::http::{Framing, Head, body, each_piece};
use crate::random::Random;
use crate::servers::Writes;

/// What can happen to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 500, and nothing was done.
    ErrorBefore,
    /// 503 SlowDown, and nothing was done.
    SlowDown,
    /// 403 AccessDenied, and nothing was done: nobody's weather, but what a wrong key meets.
    Denied,
    /// Done, but the answer says 500.
    ErrorAfter,
    /// No answer: the connection ends after a while, and nothing was done.
    SilenceBefore,
    /// No answer: the connection ends after a while, but it was done.
    SilenceAfter,
    /// The connection ends in the middle of the answer's body. Answers without one are left alone.
    CutAnswer,
}

impl Fault {
    /// Those that pass.
    pub const ALL: [Self; 6] =
        [Self::ErrorBefore, Self::SlowDown, Self::ErrorAfter, Self::SilenceBefore, Self::SilenceAfter, Self::CutAnswer];

    /// As the report names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ErrorBefore => "s3_500_before",
            Self::SlowDown => "s3_503",
            Self::Denied => "s3_403",
            Self::ErrorAfter => "s3_500_after",
            Self::SilenceBefore => "s3_silent_before",
            Self::SilenceAfter => "s3_silent_after",
            Self::CutAnswer => "s3_cut",
        }
    }
}

/// What the proxy does to requests from now on.
#[derive(Debug, Clone)]
pub enum Weather {
    /// Passes everything on.
    Fair,
    /// Gives a random share of requests one of these faults.
    Foul {
        /// How many in a thousand of each method; the first that fits counts, and `*` fits all.
        shares: &'static [(&'static str, u64)],
        /// Which; one of them is drawn each time.
        faults: &'static [Fault],
        /// How long a silence lasts.
        silence: Duration,
    },
    /// Ends every connection without an answer.
    Down,
}

/// What was done, by name; `s3_requests` counts all requests, `s3_writes_hidden` successful writes whose answer was
/// withheld.
pub type Counts = BTreeMap<&'static str, u64>;

/// What is shared with the threads that serve.
#[derive(Debug)]
struct Shared {
    upstream: String,
    writes: Writes,
    weather: Mutex<(Weather, Random)>,
    counts: Mutex<Counts>,
    /// Held by requests while the server works on them; by writes alone, if they take two steps.
    server: RwLock<()>,
    stopped: AtomicBool,
}

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// `host:port`.
    pub address: String,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.set(Weather::Down);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(&self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Proxy {
    /// A proxy in front of the server at `upstream` (`host:port`), with fair weather.
    pub fn start(upstream: &str, seed: u64, writes: Writes) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            writes,
            weather: Mutex::new((Weather::Fair, Random::new(seed))),
            counts: Mutex::default(),
            server: RwLock::new(()),
            stopped: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let serving = Arc::clone(&serving);
                // A client that ends its connection is no trouble of ours.
                std::thread::spawn(move || drop(serving.serve(client)));
            }
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    /// Changes the weather for all requests from now on.
    pub fn set(&self, weather: Weather) {
        self.shared.weather.lock().unwrap_or_else(PoisonError::into_inner).0 = weather;
    }

    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().expect("the counts").clone()
    }
}

/// What the weather does to one request.
enum Drawn {
    Pass,
    Fault(Fault, Duration),
    Down,
}

/// A request, whole.
struct Request {
    head: Head,
    content: Vec<u8>,
}

/// The server's answer, of which the head was read.
struct Answer {
    head: Head,
    framing: Framing,
    rest: BufReader<TcpStream>,
}

impl Shared {
    /// Serves one connection to its end.
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client.try_clone()?);
        let mut client = client;
        while let Some(head) = Head::read(&mut reader)? {
            if head.says("Expect", "100-continue") {
                client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let content = body(&mut reader, Framing::of_request(&head)?)?;
            let request = Request { head, content };
            if !self.answer(&request, &mut client)? || request.head.says("Connection", "close") {
                break;
            }
        }
        client.shutdown(Shutdown::Both)
    }

    /// Answers a request. Returns whether the connection goes on.
    fn answer(&self, request: &Request, client: &mut TcpStream) -> io::Result<bool> {
        self.count("s3_requests");
        let (fault, silence) = match self.draw(request.head.method()) {
            Drawn::Pass => return self.pass(request, client, false),
            Drawn::Down => return Ok(false),
            Drawn::Fault(fault, silence) => (fault, silence),
        };
        match fault {
            Fault::ErrorBefore => refuse(client, request, "500 Internal Server Error", "InternalError")?,
            Fault::SlowDown => refuse(client, request, "503 Slow Down", "SlowDown")?,
            Fault::Denied => refuse(client, request, "403 Forbidden", "AccessDenied")?,
            Fault::ErrorAfter => {
                self.hide(request)?;
                refuse(client, request, "500 Internal Server Error", "InternalError")?;
            }
            Fault::SilenceBefore => std::thread::sleep(silence),
            Fault::SilenceAfter => {
                self.hide(request)?;
                std::thread::sleep(silence);
            }
            Fault::CutAnswer => return self.pass(request, client, true),
        }
        self.count(fault.name());
        Ok(matches!(fault, Fault::ErrorBefore | Fault::SlowDown | Fault::Denied | Fault::ErrorAfter))
    }

    fn draw(&self, method: &str) -> Drawn {
        let mut guard = self.weather.lock().unwrap_or_else(PoisonError::into_inner);
        let (weather, random) = &mut *guard;
        match weather {
            Weather::Fair => Drawn::Pass,
            Weather::Down => Drawn::Down,
            Weather::Foul { shares, faults, silence } => {
                let fits = |(other, _): &&(&str, u64)| *other == "*" || *other == method;
                let share = shares.iter().find(fits).map_or(0, |(_, share)| *share);
                if random.chance(share) {
                    Drawn::Fault(faults[random.below(faults.len())], *silence)
                } else {
                    Drawn::Pass
                }
            }
        }
    }

    /// Lets the server do what is asked, and keeps the answer back.
    fn hide(&self, request: &Request) -> io::Result<()> {
        let mut answer = self.ask(request)?;
        if answer.head.status() < 300 && !reads(request) {
            self.count("s3_writes_hidden");
        }
        each_piece(&mut answer.rest, answer.framing, |_| Ok(()))
    }

    /// Passes a request and its answer on; half of the answer's body, if it is to be cut.
    fn pass(&self, request: &Request, client: &mut TcpStream, cut: bool) -> io::Result<bool> {
        let Answer { mut head, framing, mut rest } = match self.ask(request) {
            Ok(answer) => answer,
            Err(_) => {
                refuse(client, request, "502 Bad Gateway", "BadGateway")?;
                return Ok(true);
            }
        };
        head.remove("Connection");
        // Without a length, the end of the connection ends the body.
        let goes_on = framing != Framing::UntilEnd;
        if !goes_on {
            head.set("Connection", "close");
        }
        head.write(client)?;
        let sent_max = match framing {
            Framing::Length(length) if cut && length > 0 => Some(length / 2),
            _ => None,
        };
        if let Some(length) = sent_max {
            each_piece(&mut rest, Framing::Length(length), |piece| client.write_all(piece))?;
            self.count(Fault::CutAnswer.name());
            return Ok(false);
        }
        let chunked = framing == Framing::Chunked;
        each_piece(&mut rest, framing, |piece| {
            if chunked {
                write!(client, "{:x}\r\n", piece.len())?;
            }
            client.write_all(piece)?;
            if chunked { client.write_all(b"\r\n") } else { Ok(()) }
        })?;
        if chunked {
            client.write_all(b"0\r\n\r\n")?;
        }
        Ok(goes_on)
    }

    /// Asks the server, on a connection of its own.
    fn ask(&self, request: &Request) -> io::Result<Answer> {
        let mut head = request.head.clone();
        for name in ["Expect", "Transfer-Encoding", "Connection"] {
            head.remove(name);
        }
        head.set("Connection", "close");
        if !request.content.is_empty() || head.get("Content-Length").is_some() || !reads(request) {
            head.set("Content-Length", request.content.len());
        }
        let (_reading, _writing) = if self.writes == Writes::Atomic || reads(request) {
            (Some(self.server.read().unwrap_or_else(PoisonError::into_inner)), None)
        } else {
            (None, Some(self.server.write().unwrap_or_else(PoisonError::into_inner)))
        };
        let mut server = TcpStream::connect(&self.upstream)?;
        head.write(&mut server)?;
        server.write_all(&request.content)?;
        let mut rest = BufReader::new(server);
        let head = loop {
            let head = Head::read(&mut rest)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if head.status() >= 200 {
                break head;
            }
        };
        let framing = Framing::of_answer(request.head.method(), &head)?;
        Ok(Answer { head, framing, rest })
    }

    fn count(&self, name: &'static str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
}

fn reads(request: &Request) -> bool {
    matches!(request.head.method(), "GET" | "HEAD")
}

/// Answers with an error of S3.
fn refuse(client: &mut TcpStream, request: &Request, status: &str, code: &str) -> io::Result<()> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>Injected.</Message></Error>"
    );
    let mut head = Head::new(format!("HTTP/1.1 {status}"));
    head.set("Content-Type", "application/xml");
    head.set("Content-Length", text.len());
    head.write(client)?;
    if request.head.method() == "HEAD" { Ok(()) } else { client.write_all(text.as_bytes()) }
}
