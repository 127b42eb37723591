//! Each fault, in front of a server of a few lines; and real storage behind a proxy.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::*;
use crate::http::{self, Body, Framing, Head};

/// Answers each request with bytes that tell where they are, `/chunked` in chunks, and any body with itself.
struct Upstream {
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = thread::spawn(move || {
            // A request that is none ends it.
            while let Ok((stream, _)) = listener.accept() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let Ok(Some(head)) = Head::read(&mut reader) else { break };
                let _ = answer(&head, &mut reader, &stream);
            }
        });
        Self { address, accepting: Some(accepting) }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(TcpStream::connect(self.address));
        self.accepting.take().map(JoinHandle::join);
    }
}

fn answer(head: &Head, reader: &mut BufReader<TcpStream>, mut to: &TcpStream) -> io::Result<()> {
    let sent = Body::new(reader, Framing::of_request(head)?).whole()?;
    let body = if sent.is_empty() { content() } else { sent };
    if head.first.contains("/chunked") {
        to.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for piece in body.chunks(1000) {
            to.write_all(&Framing::Chunked.framed(piece))?;
        }
        return to.write_all(Framing::Chunked.end());
    }
    write!(to, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())?;
    if head.first.starts_with("HEAD ") { Ok(()) } else { to.write_all(&body) }
}

/// More than the kernel keeps for one connection at first, and than one piece.
fn content() -> Vec<u8> {
    (0..100_000_u32).map(|at| (at % 251) as u8).collect()
}

/// A client that keeps its connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn of(proxy: &Proxy) -> Self {
        Self(BufReader::new(TcpStream::connect(proxy.address()).unwrap()))
    }

    fn ask(&mut self, method: &str, target: &str) -> io::Result<Head> {
        write!(self.0.get_mut(), "{method} {target} HTTP/1.1\r\nhost: x\r\nrange: bytes=0-9\r\n\r\n")?;
        Head::read(&mut self.0)?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    fn get(&mut self, target: &str) -> io::Result<Vec<u8>> {
        let head = self.ask("GET", target)?;
        Body::new(&mut self.0, Framing::of_answer(&head, "GET")?).whole()
    }

    /// All bytes that come after a head, and how that ended.
    fn rest(&mut self) -> (Vec<u8>, Option<ErrorKind>) {
        let mut rest = Vec::new();
        let ended = self.0.read_to_end(&mut rest);
        (rest, ended.err().map(|error| error.kind()))
    }
}

fn through(fault: Fault) -> (Upstream, Proxy, Client) {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    proxy.inject(On::get(), fault);
    let client = Client::of(&proxy);
    (upstream, proxy, client)
}

#[test]
fn without_a_fault_all_is_as_it_was() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = Client::of(&proxy);
    assert_eq!(client.get("/a?b=c").unwrap(), content());
    assert_eq!(client.get("/chunked").unwrap(), content());
    assert_eq!(client.ask("HEAD", "/a").unwrap().field("content-length"), Some("100000"));
    assert_eq!(client.get("/a").unwrap(), content());
    let answer = http::ask(proxy.address(), "PUT", "/a", &[], b"abc").unwrap();
    assert_eq!(answer.body, b"abc");

    assert_eq!(proxy.connections(), 2);
    let first = Exchange {
        connection: 0,
        method: "GET".into(),
        target: "/a?b=c".into(),
        range: Some("bytes=0-9".into()),
        status: Some(200),
        sent: 100_000,
        ..Exchange::default()
    };
    assert_eq!(proxy.exchanges()[0], first);
    let counts = |on: &On| proxy.counts(on);
    assert_eq!(counts(&On::get()), Counts { requests: 3, sent: 300_000, ..Counts::default() });
    assert_eq!(counts(&On::get().path("/a")).requests, 2);
    assert_eq!(counts(&On::method("put")), Counts { requests: 1, received: 3, sent: 3, faulty: 0 });
    assert_eq!(counts(&On::any().range("bytes=0-")).requests, 4);
    proxy.forget();
    assert_eq!((proxy.exchanges().len(), proxy.connections()), (0, 0));
}

#[test]
fn a_body_in_chunks_and_one_that_waits_to_be_asked_for_arrive() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = Client::of(&proxy);
    client
        .0
        .get_mut()
        .write_all(b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(Head::read(&mut client.0).unwrap().unwrap().status(), 100);
    client.0.get_mut().write_all(b"3\r\nabc\r\n0\r\n\r\n").unwrap();
    let head = Head::read(&mut client.0).unwrap().unwrap();
    let body = Body::new(&mut client.0, Framing::of_answer(&head, "PUT").unwrap()).whole().unwrap();
    assert_eq!(
        (head.status(), body.as_slice(), proxy.counts(&On::any()).received),
        (200, b"abc".as_slice(), 3)
    );
}

#[test]
fn reset_after_exactly_as_many_bytes() {
    for after in [0, 1, 70_000] {
        let (_upstream, proxy, mut client) = through(Fault::Reset { after });
        assert_eq!(client.ask("GET", "/").unwrap().status(), 200);
        let (body, ended) = client.rest();
        assert_eq!((body.len() as u64, ended), (after, Some(ErrorKind::ConnectionReset)));
        assert_eq!(body, content()[..after as usize]);
        assert_eq!(proxy.counts(&On::any()), Counts { requests: 1, faulty: 1, received: 0, sent: after });
        assert_eq!(Client::of(&proxy).get("/").unwrap(), content());
    }
}

#[test]
fn hung_up() {
    let (_upstream, proxy, mut client) = through(Fault::Hangup);
    assert_eq!(client.get("/").unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.exchanges()[0].status, None);
}

#[test]
fn truncated_in_order() {
    let (_upstream, _proxy, mut client) = through(Fault::Truncate { after: 5 });
    assert_eq!(client.ask("GET", "/").unwrap().field("content-length"), Some("100000"));
    assert_eq!(client.rest(), (content()[..5].to_vec(), None));
    let (_upstream, _proxy, mut client) = through(Fault::Truncate { after: 5 });
    client.ask("GET", "/chunked").unwrap();
    assert_eq!(client.rest(), (b"5\r\n\0\x01\x02\x03\x04\r\n".to_vec(), None));
}

#[test]
fn stalled_until_the_client_leaves_or_the_proxy_ends() {
    let (_upstream, proxy, mut client) = through(Fault::Stall { after: 20_000 });
    client.ask("GET", "/").unwrap();
    let mut body = vec![0; 20_000];
    client.0.read_exact(&mut body).unwrap();
    client.0.get_ref().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(client.0.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    client.0.get_ref().set_read_timeout(None).unwrap();
    drop(proxy);
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
}

#[test]
fn paused_slow_and_late() {
    let time = Duration::from_millis(120);
    let slowly = Fault::Slow { bytes_per_second: NonZeroU32::new(800_000).unwrap() };
    for fault in [Fault::Pause { after: 10, time }, slowly, Fault::Delay(time)] {
        let (_upstream, proxy, mut client) = through(fault.clone());
        let begun = Instant::now();
        assert_eq!(client.get("/chunked").unwrap(), content());
        assert!(begun.elapsed() >= Duration::from_millis(120), "{fault:?}");
        assert_eq!(proxy.counts(&On::any()).faulty, 1);
    }
}

#[test]
fn what_takes_long_ends_with_the_proxy() {
    let long = Duration::from_secs(1000);
    for fault in [Fault::Pause { after: 10, time: long }, Fault::Delay(long)] {
        let (_upstream, proxy, client) = through(fault);
        client.0.get_ref().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        while proxy.counts(&On::any()).faulty == 0 {
            thread::yield_now();
        }
        drop(proxy);
    }
}

#[test]
fn one_bit_of_one_byte() {
    for (target, at) in [("/", 0), ("/", 99_999), ("/chunked", 1500)] {
        let (_upstream, _proxy, mut client) = through(Fault::Corrupt { at });
        let mut expected = content();
        expected[at as usize] ^= 1;
        assert_eq!(client.get(target).unwrap(), expected);
        assert_eq!(client.get(target).unwrap(), content());
    }
}

#[test]
fn answers_of_its_own() {
    let (_upstream, proxy, mut client) = through(Fault::Status { status: 503, retry_after: Some(2) });
    let head = client.ask("GET", "/").unwrap();
    assert_eq!((head.status(), head.field("retry-after")), (503, Some("2")));
    assert_eq!(client.get("/").unwrap(), content());
    assert_eq!(proxy.exchanges().iter().map(|seen| seen.status).collect::<Vec<_>>(), [Some(503), Some(200)]);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_fault_beyond_the_body_is_none() {
    let (_upstream, proxy, mut client) = through(Fault::Reset { after: 100_000 });
    assert_eq!(client.get("/").unwrap(), content());
    assert_eq!(proxy.counts(&On::any()).faulty, 0);
}

#[test]
fn the_nth_request_and_those_after_it() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let status = |status| Fault::Status { status, retry_after: None };
    proxy.inject(On::get().path("/a").after(1).times(2), status(500));
    proxy.inject(On::any().path("/a").after(1), status(501));
    proxy.inject(On::any().path("/b").always(), status(502));
    let mut client = Client::of(&proxy);
    let mut statuses = |targets: &[&str]| -> Vec<u16> {
        targets.iter().map(|target| client.ask("HEAD", target).unwrap().status()).collect()
    };
    // The first is nobody's; of `/a` the second is.
    assert_eq!(statuses(&["/c", "/a", "/a", "/a", "/b", "/b"]), [200, 200, 501, 200, 502, 502]);
    let mut client = Client::of(&proxy);
    let fails = (0..4).map(|_| client.get("/a").unwrap().is_empty());
    assert_eq!(fails.collect::<Vec<_>>(), [false, true, true, false]);
}

#[test]
fn something_is_done_before_a_request() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let (before, direct) = (Arc::new(AtomicUsize::new(0)), upstream.address);
    proxy.before(On::get().after(1), {
        let before = Arc::clone(&before);
        move |exchange| {
            assert_eq!(exchange.target, "/2");
            let answer = http::ask(direct, "PUT", "/", &[], b"changed").unwrap();
            before.fetch_add(answer.body.len(), Ordering::Relaxed);
        }
    });
    let mut client = Client::of(&proxy);
    let counts = ["/1", "/2", "/3"].map(|target| {
        client.get(target).unwrap();
        before.load(Ordering::Relaxed)
    });
    assert_eq!(counts, [0, 7, 7]);
}

#[test]
fn nobody_behind_it_is_told() {
    let upstream = Upstream::start();
    let address = upstream.address;
    drop(upstream);
    let proxy = Proxy::start(address);
    assert_eq!(http::ask(proxy.address(), "GET", "/", &[], b"").unwrap().head.status(), 502);
}
