//! Connections of clients whose certificates do not hold any more.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use rustls::{ClientConnection, StreamOwned};

use super::certificates::{Authority, Pair};
use super::{Caller, asking, bare, score, write};
use crate::support::{PATIENCE, metric};

/// For as long as the short-lived live here: a replica answers within it.
const SHORT: Duration = Duration::from_secs(8);

/// A connection that is kept.
struct Kept(StreamOwned<ClientConnection, TcpStream>);

impl Kept {
    fn open(replica: &ReplicaProcess, authority: &Authority, shows: &Pair) -> Self {
        let caller = Caller { protocols: &["http/1.1"], ..Caller::showing(authority, shows) };
        let connection =
            ClientConnection::new(Arc::new(caller.config()), "localhost".try_into().unwrap()).unwrap();
        let socket = TcpStream::connect(bare(&replica.score)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(StreamOwned::new(connection, socket))
    }

    /// The status of a call on it.
    fn score(&mut self) -> u16 {
        let request = format!(
            "POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 4\r\n\r\ngood"
        );
        self.0.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let mut part = [0; 1024];
        while !answer.ends_with("\"good\"") {
            let count = self.0.read(&mut part).unwrap();
            assert!(count > 0, "it was closed: {answer}");
            answer.push_str(std::str::from_utf8(&part[..count]).unwrap());
        }
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Waits until the replica closes it, in order.
    fn ends(mut self) {
        match self.0.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            // The connection was there no more when TLS's own farewell was to be read.
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
                "{error}"
            ),
        }
    }
}

async fn until(replica: &ReplicaProcess, name: &str, value: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(replica, name).await != Some(value) {
        assert!(Instant::now() < deadline, "{name} is never {value}: {}", replica.log_text());
        tokio::task::yield_now().await;
    }
}

const TAKEN: &str = "outrigger_tls_reloads_total{outcome=\"taken\"}";

fn handshakes(outcome: &str) -> String {
    format!("outrigger_tls_handshakes_total{{listener=\"score\",outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_was_shown_on_it() {
    let (authority, clients) = (Authority::new("root"), Authority::new("clients"));
    let replica = asking(&authority.server(), "required", &clients).start();
    let lasting = clients.client(&["a.example"]);
    let mut other = Kept::open(&replica, &authority, &lasting);
    assert_eq!(other.score(), 200);
    let end = SystemTime::now() + SHORT;
    let short = clients.client_until(&["a.example"], end);
    let mut kept = Kept::open(&replica, &authority, &short);
    assert_eq!(kept.score(), 200);
    kept.ends();
    assert!(SystemTime::now() + Duration::from_secs(1) >= end, "not before it is over");
    score(&Caller::showing(&authority, &short).client(), &replica).await.expect_err("it has expired");
    assert_eq!(metric(&replica, &handshakes("certificate_expired")).await, Some(1.0));
    assert_eq!(other.score(), 200, "others go on");
}

#[tokio::test]
async fn connections_end_when_other_authorities_are_trusted_and_not_with_a_new_certificate_of_the_server() {
    let (authority, clients, more) = (Authority::new("root"), Authority::new("clients"), Authority::new("x"));
    let replica = asking(&authority.server(), "optional", &clients).args(["--tls-reload", "50ms"]).start();
    let pair = clients.client(&["a.example"]);
    let mut kept = Kept::open(&replica, &authority, &pair);
    assert_eq!(kept.score(), 200);
    let anonymous = Caller::trusting(&authority).client();
    assert_eq!(score(&anonymous, &replica).await.unwrap(), 200);
    write(replica.directory(), "server", &authority.server());
    until(&replica, TAKEN, 1.0).await;
    assert_eq!(kept.score(), 200);
    // Another one comes beside it: who is still there connects anew, and is taken.
    std::fs::write(replica.directory().join("clients.pem"), clients.pem() + &more.pem()).unwrap();
    kept.ends();
    until(&replica, TAKEN, 2.0).await;
    let mut kept = Kept::open(&replica, &authority, &pair);
    assert_eq!(kept.score(), 200);
    // The same in another order is the same for nobody to notice but us: it is read anew, and connections may end.
    std::fs::write(replica.directory().join("clients.pem"), more.pem()).unwrap();
    kept.ends();
    score(&Caller::showing(&authority, &pair).client(), &replica).await.expect_err("nobody trusts it");
    // One that showed nothing has nothing that could end.
    let before = metric(&replica, &handshakes("ok")).await;
    assert_eq!(score(&anonymous, &replica).await.unwrap(), 200);
    assert_eq!(metric(&replica, &handshakes("ok")).await, before, "on the connection from before");
}

#[tokio::test]
async fn an_authority_is_trusted_until_it_expires() {
    let authority = Authority::new("root");
    let end = SystemTime::now() + 2 * SHORT;
    let (old, short, good) = (
        Authority::until("old", SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_836_800)),
        Authority::until("short", end),
        Authority::new("good"),
    );
    let launch = asking(&authority.server(), "required", &old);
    std::fs::write(launch.directory().join("clients.pem"), old.pem() + &short.pem() + &good.pem()).unwrap();
    // The files are not looked at for that.
    let mut replica = launch.args(["--tls-reload", "0s"]).start();
    replica.wait_for_text("has expired: 2020-01-01 00:00:00 UTC; no certificate that it signed is taken");
    let names = &["a.example"][..];
    let (of_old, of_short, of_good) = (old.client(names), short.client(names), good.client(names));
    score(&Caller::showing(&authority, &of_old).client(), &replica).await.expect_err("it has expired");
    assert_eq!(metric(&replica, &handshakes("certificate_unknown")).await, Some(1.0));
    let mut kept = Kept::open(&replica, &authority, &of_short);
    assert_eq!(kept.score(), 200);
    kept.ends();
    score(&Caller::showing(&authority, &of_short).client(), &replica)
        .await
        .expect_err("its authority expired");
    assert_eq!(score(&Caller::showing(&authority, &of_good).client(), &replica).await.unwrap(), 200);

    // Where all have, nobody comes.
    let alone = asking(&authority.server(), "required", &old).start();
    score(&Caller::showing(&authority, &of_old).client(), &alone).await.expect_err("it has expired");
    let optional = asking(&authority.server(), "optional", &old).start();
    score(&Caller::showing(&authority, &of_old).client(), &optional).await.expect_err("it has expired");
    assert_eq!(score(&Caller::trusting(&authority).client(), &optional).await.unwrap(), 200);
}
