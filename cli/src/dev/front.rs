//! A port whose connections are led to the replica that serves at the moment.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_runtime::config::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

/// What is answered while there is no replica.
const NONE_YET: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
outrigger-code: not_ready\r\noutrigger-retryable: true\r\nContent-Length: 61\r\nConnection: close\r\n\r\n\
{\"message\": \"the script has not come up; the log says why\"}\r\n";
/// How long a connection may stay that has nothing more to get.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the listener waits after an error of the system's, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections are led.
#[derive(Clone)]
struct Target {
    address: SocketAddr,
    /// Held by each connection that is led there.
    _open: mpsc::Sender<()>,
}

/// The connections that lead to one target.
pub(super) struct Open(mpsc::Receiver<()>);

impl Open {
    /// Waits until they have ended; not for long, for clients keep idle ones.
    pub(super) async fn ended(mut self) {
        // Nothing is ever sent: it comes back when the last one is gone.
        let _ = tokio::time::timeout(LAST_WORDS, self.0.recv()).await;
    }
}

/// A listener and where it leads to.
pub(super) struct Front {
    address: SocketAddr,
    target: watch::Sender<Option<Target>>,
    /// The connections that lead to the present target.
    open: Option<Open>,
    accepting: JoinHandle<()>,
    /// One permit for each connection there may be.
    places: Arc<Semaphore>,
    connections: u32,
}

impl Front {
    /// Serves a listener; at most `connections` at once, further ones wait in the kernel.
    pub(super) fn open(listener: TcpListener, connections: usize) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (target, follow) = watch::channel(None);
        let places = Arc::new(Semaphore::new(connections));
        let accepting = tokio::spawn(accept(listener, follow, Arc::clone(&places)));
        let connections = u32::try_from(connections).unwrap_or(u32::MAX);
        Ok(Self { address, target, open: None, accepting, places, connections })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads new connections there; gives those that are open, which stay where they are.
    pub(super) fn lead_to(&mut self, target: &Endpoint) -> Option<Open> {
        let Endpoint::Tcp(address) = *target else { return None };
        let (sender, receiver) = mpsc::channel(1);
        self.target.send_replace(Some(Target { address, _open: sender }));
        self.open.replace(Open(receiver))
    }

    /// Takes no new connections.
    pub(super) fn close(&self) {
        self.accepting.abort();
    }

    /// Waits until all connections have ended, as they do soon after the replica that they lead to; not for ever, for a client may hold
    /// its half open.
    pub(super) async fn finish(&self) {
        // Elapsed or not, there is nothing more to do.
        let _ = tokio::time::timeout(LAST_WORDS, self.places.acquire_many(self.connections)).await;
    }
}

async fn accept(listener: TcpListener, target: watch::Receiver<Option<Target>>, places: Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let target = target.borrow().clone();
        tokio::spawn(async move {
            // Clients that go away are no event of ours.
            let _ = lead(client, target).await;
            drop(place);
        });
    }
}

async fn lead(mut client: TcpStream, target: Option<Target>) -> io::Result<()> {
    let Some(target) = target else { return refuse(client).await };
    let mut replica = TcpStream::connect(target.address).await?;
    client.set_nodelay(true)?;
    replica.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut replica).await?;
    Ok(())
}

/// Says that there is nobody, once the client has begun to speak: clients take an answer that comes before for nonsense. Then reads on for
/// a moment, for a close with unread bytes would take the answer back.
async fn refuse(mut client: TcpStream) -> io::Result<()> {
    let mut rest = [0; 4096];
    let told = async {
        if client.read(&mut rest).await? > 0 {
            client.write_all(NONE_YET).await?;
            client.shutdown().await?;
            while client.read(&mut rest).await? > 0 {}
        }
        Ok(())
    };
    tokio::time::timeout(LAST_WORDS, told).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_s_length_is_right() {
        let text = std::str::from_utf8(NONE_YET).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
