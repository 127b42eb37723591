//! New certificates while the replica runs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_testkit::ReplicaProcess;
use rustls::pki_types::CertificateDer;

use super::certificates::{Authority, Pair};
use super::{Caller, asking, bare, score, score_at, with, write, write_key};
use crate::support::{PATIENCE, metric};

const EXPIRY: &str = "outrigger_tls_certificate_expiry_timestamp_seconds{certificate=\"server\"}";

/// The certificate that a new connection is shown.
fn shown(replica: &ReplicaProcess, authority: &Authority) -> CertificateDer<'static> {
    let name = "localhost".try_into().unwrap();
    let config = Arc::new(Caller::trusting(authority).config());
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut socket = std::net::TcpStream::connect(bare(&replica.score)).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).unwrap();
    }
    connection.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Waits until new connections are shown this one.
fn until_shown(replica: &ReplicaProcess, authority: &Authority, pair: &Pair) {
    let deadline = Instant::now() + PATIENCE;
    while shown(replica, authority) != pair.certificate_der {
        assert!(Instant::now() < deadline, "it does not come: {}", replica.log_text());
        std::thread::yield_now();
    }
}

async fn until(replica: &ReplicaProcess, name: &str, value: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(replica, name).await != Some(value) {
        assert!(Instant::now() < deadline, "{name} is never {value}: {}", replica.log_text());
        tokio::task::yield_now().await;
    }
}

fn reloads(outcome: &str) -> String {
    format!("outrigger_tls_reloads_total{{outcome=\"{outcome}\"}}")
}

/// A folder as Kubernetes mounts a secret: links to files below `..data`, which is a link itself.
fn mount(folder: &Path, version: &str, pair: &Pair) {
    let data = folder.join(format!("..{version}"));
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("tls.crt"), &pair.certificate).unwrap();
    write_key(&data.join("tls.key"), &pair.key);
    let fresh = folder.join("..data_tmp");
    std::os::unix::fs::symlink(format!("..{version}"), &fresh).unwrap();
    std::fs::rename(&fresh, folder.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        if !folder.join(name).exists() {
            std::os::unix::fs::symlink(format!("..data/{name}"), folder.join(name)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_swapped_holds_for_new_connections_and_no_request_fails() {
    let authority = Authority::new("root");
    let (first, second) = (authority.server(), authority.server_until(Duration::from_secs(3600 * 24 * 100)));
    let launch = crate::support::outrigger().script(crate::support::ECHO);
    let folder = launch.directory().join("secret");
    std::fs::create_dir_all(&folder).unwrap();
    mount(&folder, "1", &first);
    let arguments =
        ["--tls-certificate", "secret/tls.crt", "--tls-key", "secret/tls.key", "--tls-reload", "50ms"];
    let replica = launch.args(arguments).start();
    let before = metric(&replica, EXPIRY).await.unwrap();

    // Two clients go on over connections that they keep, one over new ones.
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut asking = Vec::new();
    for (kept, protocols) in [(true, &["h2"][..]), (true, &["http/1.1"]), (false, &["http/1.1"])] {
        let client = Caller { protocols, ..Caller::trusting(&authority) }.config();
        let (address, stop, made) = (replica.score.clone(), Arc::clone(&stop), Arc::clone(&made));
        asking.push(tokio::spawn(async move {
            let build = || {
                reqwest::Client::builder()
                    .no_proxy()
                    .tls_backend_preconfigured(client.clone())
                    .build()
                    .unwrap()
            };
            let mut client = build();
            while !stop.load(Ordering::Relaxed) {
                if !kept {
                    client = build();
                }
                assert_eq!(score_at(&client, &address).await.unwrap(), 200);
                made.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let some = |more: usize| {
        let (made, from) = (Arc::clone(&made), made.load(Ordering::Relaxed));
        async move {
            let deadline = Instant::now() + PATIENCE;
            while made.load(Ordering::Relaxed) < from + more {
                assert!(Instant::now() < deadline, "requests stand still");
                tokio::task::yield_now().await;
            }
        }
    };
    some(10).await;
    mount(&folder, "2", &second);
    tokio::task::block_in_place(|| until_shown(&replica, &authority, &second));
    some(10).await;
    mount(&folder, "3", &first);
    tokio::task::block_in_place(|| until_shown(&replica, &authority, &first));
    some(10).await;
    stop.store(true, Ordering::Relaxed);
    for asking in asking {
        asking.await.unwrap();
    }
    assert_eq!(metric(&replica, &reloads("taken")).await, Some(2.0));
    assert_eq!(metric(&replica, &reloads("failed")).await, Some(0.0));
    assert_eq!(metric(&replica, EXPIRY).await, Some(before));
}

#[tokio::test]
async fn a_broken_pair_keeps_the_old_one_and_is_said() {
    let authority = Authority::new("root");
    let (first, second) = (authority.server(), authority.server());
    let mut replica = with(&first).args(["--tls-reload", "50ms"]).start();
    let folder = replica.directory().to_owned();
    // A certificate whose key has not come, and does not.
    std::fs::write(folder.join("server.pem"), &second.certificate).unwrap();
    until(&replica, &reloads("failed"), 1.0).await;
    replica.wait_for_text("new TLS files cannot be used, and those before them stay");
    assert!(replica.log_text().contains("their public keys differ"), "{}", replica.log_text());
    assert_eq!(shown(&replica, &authority), first.certificate_der);
    // Files that are gone, and what is no certificate.
    std::fs::remove_file(folder.join("server.pem")).unwrap();
    until(&replica, &reloads("failed"), 2.0).await;
    std::fs::write(folder.join("server.pem"), "no certificate").unwrap();
    until(&replica, &reloads("failed"), 3.0).await;
    assert_eq!(score(&Caller::trusting(&authority).client(), &replica).await.unwrap(), 200);
    // The key comes after all.
    write(&folder, "server", &second);
    until(&replica, &reloads("taken"), 1.0).await;
    assert_eq!(shown(&replica, &authority), second.certificate_der);
    assert_eq!(metric(&replica, &reloads("failed")).await, Some(3.0));
}

#[tokio::test]
async fn new_authorities_hold_for_new_connections() {
    let (authority, old, new) = (Authority::new("root"), Authority::new("old"), Authority::new("new"));
    let replica = asking(&authority.server(), "required", &old).args(["--tls-reload", "50ms"]).start();
    let (of_old, of_new) = (old.client(&["a.example"]), new.client(&["a.example"]));
    let kept = Caller::showing(&authority, &of_old).client();
    assert_eq!(score(&kept, &replica).await.unwrap(), 200);
    assert!(score(&Caller::showing(&authority, &of_new).client(), &replica).await.is_err());
    std::fs::write(replica.directory().join("clients.pem"), new.pem()).unwrap();
    until(&replica, &reloads("taken"), 1.0).await;
    assert_eq!(score(&Caller::showing(&authority, &of_new).client(), &replica).await.unwrap(), 200);
    assert!(score(&Caller::showing(&authority, &of_old).client(), &replica).await.is_err());
    // The connection that was made before ends, and there is no other for it.
    let deadline = Instant::now() + PATIENCE;
    while score(&kept, &replica).await.is_ok() {
        assert!(Instant::now() < deadline, "it holds on");
    }
    let client_ca = "outrigger_tls_certificate_expiry_timestamp_seconds{certificate=\"client_ca\"}";
    assert!(metric(&replica, client_ca).await.unwrap() > 0.0);
}

#[tokio::test]
async fn what_expires_is_a_metric_and_is_said() {
    let authority = Authority::new("root");
    let left = Duration::from_secs(3600 * 24 * 100);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let replica = with(&authority.server_until(left)).start();
    let expires = metric(&replica, EXPIRY).await.unwrap();
    let expected = (now + left).as_secs_f64();
    assert!((expires - expected).abs() < 3600.0, "{expires} {expected}");
    assert!(!replica.log_text().contains("expires in"), "{}", replica.log_text());
    drop(replica);
    let near = authority.server_until(Duration::from_secs(3600 * 24 * 3 + 3600));
    let mut replica = with(&near).start();
    replica.wait_for_text("expires in 3 days");
    drop(replica);
    let mut replica = with(&authority.server_of_old()).start();
    replica.wait_for_text("has expired: 2020-01-01 00:00:00 UTC");
    let never = with(&near).args(["--tls-expiry-warning", "1h"]).start();
    assert!(!never.log_text().contains("expires in"), "{}", never.log_text());
}
