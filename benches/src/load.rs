//! A closed-loop load generator: so many connections, each with one request under way, over HTTP/1.1 with keep-alive where the
//! server has it.
//!
//! It does as little as it can (fixed request bytes, a scan for the length), so that two cores serve the server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::answer::{self, Framing, Head};

/// What a stretch of load came to.
#[derive(Debug)]
pub struct Run {
    /// Requests answered with 200.
    pub requests: u64,
    /// How long it took.
    pub took: Duration,
    /// Each request's latency in seconds.
    pub latencies: Vec<f64>,
}

/// A request as bytes.
pub fn post(path: &str, key: Option<&str>, content_type: &str, body: &[u8]) -> Vec<u8> {
    post_with(path, key, &[("Content-Type", content_type)], body)
}

/// The same with these headers.
pub fn post_with(path: &str, key: Option<&str>, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: bench\r\n{headers}{key}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Sends `request` over `connections` connections for `duration`.
///
/// # Errors
/// The first answer that is not 200, or a connection that breaks.
pub async fn run(
    address: SocketAddr,
    request: &[u8],
    connections: usize,
    duration: Duration,
) -> anyhow::Result<Run> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(connection(address, request.to_vec(), begun + duration));
    }
    let mut latencies = Vec::new();
    while let Some(one) = tasks.join_next().await {
        latencies.extend(one??);
    }
    Ok(Run { requests: latencies.len() as u64, took: begun.elapsed(), latencies })
}

/// Sends `request` once, and returns the body of the answer.
///
/// # Errors
/// As [`run`].
pub async fn once(address: SocketAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = connect(address).await?;
    let mut buffer = Vec::new();
    let head = exchange(&mut stream, request, &mut buffer).await?;
    let body = buffer.split_off(head.size);
    Ok(match head.framing {
        Framing::Length(_) => body,
        Framing::Chunked => answer::chunks(&body)?.body,
    })
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connection(address: SocketAddr, request: Vec<u8>, until: Instant) -> anyhow::Result<Vec<f64>> {
    let mut open = Some(connect(address).await?);
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(16 * 1024);
    while Instant::now() < until {
        let sent = Instant::now();
        let mut stream = match open.take() {
            Some(stream) => stream,
            None => connect(address).await?,
        };
        let head = exchange(&mut stream, &request, &mut buffer).await?;
        latencies.push(sent.elapsed().as_secs_f64());
        if !head.closes {
            open = Some(stream);
        }
    }
    Ok(latencies)
}

/// Sends the request and reads the whole answer into `buffer`.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> anyhow::Result<Head> {
    stream.write_all(request).await?;
    buffer.clear();
    let head = loop {
        ensure!(stream.read_buf(buffer).await? > 0, "connection closed");
        if let Some(head) = answer::head(buffer)? {
            break head;
        }
    };
    while !head.framing.is_complete(&buffer[head.size..])? {
        ensure!(stream.read_buf(buffer).await? > 0, "connection closed");
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each request with one of `answers`, and closes the connection after those that say so; returns how many
    /// connections there were.
    async fn serve(listener: TcpListener, answers: &[&str]) -> usize {
        let (mut connections, mut open) = (0, None);
        for answer in answers {
            let mut stream = match open.take() {
                Some(stream) => stream,
                None => {
                    connections += 1;
                    listener.accept().await.unwrap().0
                }
            };
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            open = (!answer.contains("close")).then_some(stream);
        }
        connections
    }

    const KEPT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const CLOSED: &str =
        "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    const FULL: &str = "HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn a_connection_is_kept_until_the_server_closes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let request = post("/score", None, "application/json", b"{}");
        let client = run(address, &request, 1, Duration::from_secs(3600));
        // The fifth answer ends what would take an hour.
        let answers = [KEPT, KEPT, CLOSED, KEPT, FULL];
        let (client, connections) = tokio::join!(client, serve(listener, &answers));
        assert!(client.unwrap_err().to_string().contains("503 Full"));
        assert_eq!(connections, 2);
    }

    #[tokio::test]
    async fn the_body_of_one_answer() {
        for answer in [KEPT, CLOSED] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let request = post("/score", Some("key"), "application/json", b"{}");
            let answers = [answer];
            let (body, _) = tokio::join!(once(address, &request), serve(listener, &answers));
            assert_eq!(body.unwrap(), b"ok");
        }
    }

    #[test]
    fn a_request_as_bytes() {
        let request = String::from_utf8(post("/score", Some("secret"), "text/plain", b"hello")).unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /score HTTP/1.1\r\n") && head.contains("\r\nContent-Length: 5"));
        assert!(head.contains("\r\nAuthorization: Bearer secret\r\n"));
        assert_eq!(body, "hello");
    }
}
