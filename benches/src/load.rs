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
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n{key}Content-Length: {length}\r\n\r\n"
    );
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
