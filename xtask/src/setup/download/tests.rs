//! Downloads from a tiny HTTP server on this machine that misbehaves on purpose.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use super::*;

const BODY: &[u8] = b"a wheel is a zip archive under another name";

/// SHA-256 of [`BODY`].
const BODY_SHA256: &str = "b5c39f8dfb2a415589ad97663527f2beb141fa5ed90f4828e99892cdae831618";

/// How the server treats one connection.
enum Treatment {
    /// Promises the whole rest of the file and closes after this many bytes.
    CutAfter(usize),
    /// Serves what was asked.
    Serve,
    /// Ignores the range and serves everything from the start.
    ServeAll,
    /// Answers with a status and no body.
    Status(u16),
}

/// Serves one connection per treatment; returns the URL and the ranges that were asked for.
fn serve(treatments: Vec<Treatment>) -> (String, mpsc::Receiver<Option<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/wheel", listener.local_addr().expect("bound"));
    let (asked, ranges) = mpsc::channel();
    thread::spawn(move || {
        for treatment in treatments {
            let (stream, _) = listener.accept().expect("a client");
            let offset = requested_offset(&stream);
            asked.send(offset).expect("the test listens");
            answer(stream, &treatment, offset);
        }
    });
    (url, ranges)
}

fn requested_offset(stream: &TcpStream) -> Option<usize> {
    let mut offset = None;
    for line in BufReader::new(stream).lines() {
        let line = line.expect("a request");
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            offset = range.trim_end_matches('-').parse().ok();
        }
    }
    offset
}

fn answer(mut stream: TcpStream, treatment: &Treatment, offset: Option<usize>) {
    let from = match treatment {
        Treatment::ServeAll => 0,
        _ => offset.unwrap_or(0),
    };
    let body = &BODY[from..];
    let (status, sent) = match treatment {
        Treatment::Status(status) => (*status, &body[..0]),
        Treatment::CutAfter(bytes) => (if from > 0 { 206 } else { 200 }, &body[..*bytes]),
        _ => (if from > 0 { 206 } else { 200 }, body),
    };
    let promised = if matches!(treatment, Treatment::Status(_)) { 0 } else { body.len() };
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {promised}\r\nConnection: close\r\n\r\n");
    // The client may have gone already; that is its choice.
    stream.write_all(head.as_bytes()).ok();
    stream.write_all(sent).ok();
}

fn fetch(
    treatments: Vec<Treatment>,
    sha256: &'static str,
) -> (Result<Vec<u8>>, Vec<Option<usize>>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().join("wheel");
    let (url, ranges) = serve(treatments);
    let source = Source { retry_delay: Duration::ZERO, ..Source::new() };
    let pin = Pin { sha256, bytes: BODY.len() as u64 };
    let fetched = source.fetch(&url, &place, &pin).map(|()| fs::read(&place).expect("it is there"));
    if fetched.is_err() {
        assert!(!place.exists(), "a failed download must not look finished");
    }
    (fetched, ranges.try_iter().collect())
}

#[test]
fn a_cut_connection_is_resumed_where_it_was_cut() {
    let (body, ranges) =
        fetch(vec![Treatment::CutAfter(10), Treatment::CutAfter(7), Treatment::Serve], BODY_SHA256);
    assert_eq!(body.expect("it completes"), BODY);
    assert_eq!(ranges, [None, Some(10), Some(17)]);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (body, ranges) = fetch(vec![Treatment::CutAfter(10), Treatment::ServeAll], BODY_SHA256);
    assert_eq!(body.expect("it completes"), BODY);
    assert_eq!(ranges, [None, Some(10)]);
}

#[test]
fn a_busy_server_is_asked_again() {
    let (body, _) = fetch(vec![Treatment::Status(503), Treatment::Serve], BODY_SHA256);
    assert_eq!(body.expect("it completes"), BODY);
}

#[test]
fn a_server_that_never_delivers_is_given_up_with_a_remedy() {
    let refusals = (0..FRUITLESS_ATTEMPTS_MAX).map(|_| Treatment::Status(404)).collect();
    let (outcome, ranges) = fetch(refusals, BODY_SHA256);
    let message = format!("{:#}", outcome.expect_err("nothing came"));
    assert!(message.contains("check the network") && message.contains("404"), "{message}");
    assert_eq!(ranges.len(), FRUITLESS_ATTEMPTS_MAX as usize);
}

#[test]
fn another_file_is_refused() {
    let zeros = "0000000000000000000000000000000000000000000000000000000000000000";
    let (outcome, _) = fetch(vec![Treatment::Serve], zeros);
    let message = format!("{:#}", outcome.expect_err("the hash differs"));
    assert!(message.contains("SHA-256 differs"), "{message}");
}
