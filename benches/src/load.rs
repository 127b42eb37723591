//! A closed-loop load generator: so many connections, each with one request under way, over HTTP/1.1 with keep-alive.
//!
//! It does as little as it can (fixed request bytes, a scan for the length), so that two cores serve the server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

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
pub fn post(path: &str, key: Option<&str>, body: &str) -> Vec<u8> {
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{key}Content-Length: {length}\r\n\r\n{body}")
        .into_bytes()
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

async fn connection(address: SocketAddr, request: Vec<u8>, until: Instant) -> anyhow::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(16 * 1024);
    while Instant::now() < until {
        let sent = Instant::now();
        stream.write_all(&request).await?;
        buffer.clear();
        let total = loop {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "connection closed");
            if let Some(total) = answer_length(&buffer)? {
                break total;
            }
        };
        while buffer.len() < total {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "connection closed");
        }
        latencies.push(sent.elapsed().as_secs_f64());
    }
    Ok(latencies)
}

/// The length of head and body, once the head is there.
fn answer_length(buffer: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..end]).context("head")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{head}\n{}", String::from_utf8_lossy(&buffer[end..]));
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Ok(Some(end + 4 + length.context("no content-length")?))
}
