//! TLS on the listeners: through real clients, with certificates that are made for each test.

pub(crate) mod certificates;
mod clients;
mod ending;
mod exposure;
mod handshakes;
mod managed;
mod peers;
mod reload;
mod start;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{Launch, ReplicaProcess};
use reqwest::Client;
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::support::{ECHO, outrigger};
use certificates::{Authority, Pair};

/// Writes a pair of files, the key for this user alone, as `NAME.pem` and `NAME.key`.
fn write(folder: &Path, name: &str, pair: &Pair) {
    std::fs::write(folder.join(format!("{name}.pem")), &pair.certificate).unwrap();
    write_key(&folder.join(format!("{name}.key")), &pair.key);
}

fn write_key(path: &Path, key: &str) {
    std::fs::write(path, key).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A replica of an echo that is to speak TLS with this pair, on the score and the admin listener.
fn with(pair: &Pair) -> Launch {
    let launch = outrigger().script(ECHO);
    write(launch.directory(), "server", pair);
    launch.args(["--tls-certificate", "server.pem", "--tls-key", "server.key"])
}

/// The same, which asks clients for certificates of an authority.
pub(crate) fn asking(pair: &Pair, word: &str, clients: &Authority) -> Launch {
    let launch = with(pair).file("clients.pem", clients.pem());
    launch.args(["--tls-client-certificates", word, "--tls-client-ca", "clients.pem"])
}

type Versions = &'static [&'static SupportedProtocolVersion];

const BOTH: Versions = &[&TLS13, &TLS12];
const OLD: Versions = &[&TLS12];
const NEW: Versions = &[&TLS13];

/// What a client speaks TLS with.
pub(crate) struct Caller<'a> {
    trusts: &'a Authority,
    versions: Versions,
    protocols: &'static [&'static str],
    shows: Option<&'a Pair>,
}

impl<'a> Caller<'a> {
    fn trusting(trusts: &'a Authority) -> Self {
        Self { trusts, versions: BOTH, protocols: &["h2", "http/1.1"], shows: None }
    }

    pub(crate) fn showing(trusts: &'a Authority, shows: &'a Pair) -> Self {
        Self { shows: Some(shows), ..Self::trusting(trusts) }
    }

    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.trusts.der()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(self.versions).unwrap().with_root_certificates(roots);
        let mut config = match self.shows {
            Some(pair) => builder
                .with_client_auth_cert(vec![pair.certificate_der.clone()], pair.key_der.clone_key())
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }

    pub(crate) fn client(&self) -> Client {
        Client::builder().no_proxy().tls_backend_preconfigured(self.config()).build().unwrap()
    }
}

/// An address of a replica's, to be asked over TLS.
pub(crate) fn over_tls(address: &str) -> String {
    format!("https://{}", bare(address))
}

fn bare(address: &str) -> &str {
    address.trim_start_matches("http://")
}

/// `POST /score` with the primary key over TLS: the status, or why there is none.
async fn score(client: &Client, replica: &ReplicaProcess) -> Result<u16, reqwest::Error> {
    score_at(client, &replica.score).await
}

async fn score_at(client: &Client, address: &str) -> Result<u16, reqwest::Error> {
    let url = format!("{}/score", over_tls(address));
    let answer = client.post(url).bearer_auth(KEY).body("good").send().await?;
    let status = answer.status().as_u16();
    assert_eq!(answer.text().await?, "\"good\"");
    Ok(status)
}
