//! A server that answers as a test says, byte for byte.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Barrier, Condvar, Mutex},
    thread,
    time::Duration,
};

use serde_json::Value;

/// Bounds a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Null where there is none.
    pub(crate) body: Value,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Sent one after another.
    pub(crate) pieces: Vec<String>,
    pub(crate) end: End,
    /// Where the test is waited for before the last piece.
    pub(crate) gate: Option<Arc<Barrier>>,
}

/// What comes after the pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The answer is whole.
    Whole,
    /// The connection breaks.
    Cut,
    /// Nothing, for as long as the client waits.
    Silence,
}

/// The server. Its threads end with the test's process.
pub(crate) struct Double {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    log: Mutex<Log>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct Log {
    asked: Vec<Asked>,
    /// Clients that left a silent answer.
    departed: usize,
}

type Answering = dyn FnMut(&Asked) -> Reply + Send;

impl Reply {
    pub(crate) fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, pieces: vec![text.into()], end: End::Whole, gate: None }
    }
}

impl Double {
    pub(crate) fn start(answering: impl FnMut(&Asked) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let shared = Arc::<Shared>::default();
        let answering: Arc<Mutex<Box<Answering>>> = Arc::new(Mutex::new(Box::new(answering)));
        let log = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answering) = (Arc::clone(&log), Arc::clone(&answering));
                thread::spawn(move || serve(&stream.expect("a connection"), &log, &answering));
            }
        });
        Self { url, shared }
    }

    /// Everything asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.log.lock().expect("no panic").asked.clone()
    }

    /// How often `path` was asked for so far.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path == path).count()
    }

    /// Waits until so many clients have left silent answers.
    pub(crate) fn wait_for_departures(&self, count: usize) {
        let log = self.shared.log.lock().expect("no panic");
        let too_few = |log: &mut Log| log.departed < count;
        let (log, timeout) =
            self.shared.changed.wait_timeout_while(log, PATIENCE, too_few).expect("no panic");
        assert!(!timeout.timed_out(), "{} of {count} clients left", log.departed);
    }
}

fn serve(stream: &TcpStream, shared: &Shared, answering: &Mutex<Box<Answering>>) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let Some(asked) = read(stream) else { return };
    shared.log.lock().expect("no panic").asked.push(asked.clone());
    let reply = (answering.lock().expect("no panic"))(&asked);
    if write(stream, &reply).is_err() || reply.end != End::Silence {
        return;
    }
    // A client that leaves closes the connection.
    let mut stream = stream;
    while stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    shared.log.lock().expect("no panic").departed += 1;
    shared.changed.notify_all();
}

/// `None` when the client left before it asked.
fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|count| *count > 0)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Asked { method, path, body })
}

fn write(mut stream: &TcpStream, reply: &Reply) -> std::io::Result<()> {
    let head = "Transfer-Encoding: chunked\r\nConnection: close";
    write!(stream, "HTTP/1.1 {} X\r\n{head}\r\n\r\n", reply.status)?;
    let count = reply.pieces.len();
    for (at, piece) in reply.pieces.iter().enumerate().filter(|(_, piece)| !piece.is_empty()) {
        if let Some(gate) = reply.gate.as_ref().filter(|_| at + 1 == count) {
            gate.wait();
        }
        write!(stream, "{:x}\r\n{piece}\r\n", piece.len())?;
        stream.flush()?;
    }
    if reply.end == End::Whole {
        write!(stream, "0\r\n\r\n")?;
    }
    Ok(())
}
