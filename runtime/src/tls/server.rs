//! From files to what connections are accepted with.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio_util::sync::CancellationToken;

use super::certificate::{self, Moment};
use super::clients::Authorities;
use super::error::TlsError;
use super::files::Files;
use crate::config::{ClientCertificates, TlsConfig, TlsListener, TlsVersion};

/// What is spoken over it, best first. Clients that name none of them, or nothing, get HTTP/1.1 or HTTP/2 by what they begin with.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// The most certificates of a chain, and of authorities.
const MOST_CERTIFICATES: usize = 1000;

/// What connections are accepted with until the files change.
pub(super) struct Ready {
    /// For listeners whose clients may be asked for a certificate.
    asking: Arc<ServerConfig>,
    /// For the others.
    silent: Arc<ServerConfig>,
    /// Whose certificate it is, for people.
    pub(super) subject: String,
    pub(super) expiry: Expiry,
    certified: Arc<SingleCertAndKey>,
    /// Those that sign clients' certificates.
    authorities: Option<Authorities>,
    /// Which of them are trusted.
    trusted: Option<blake3::Hash>,
    /// When the first of these expires.
    until: Option<Moment>,
    /// Cancelled once others are trusted: connections of clients that have shown a certificate end then.
    pub(super) clients: CancellationToken,
}

/// When what there is expires.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expiry {
    /// The first certificate of the server's chain to do so.
    pub(super) server: Moment,
    /// The first authority of clients' certificates to do so.
    pub(super) authorities: Option<Moment>,
}

impl Ready {
    /// Puts together what files hold.
    pub(super) fn load(config: &TlsConfig, files: &Files, now: SystemTime) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates("tls.certificate", &config.certificate, &files.certificate)?;
        let (subject, server) = said("tls.certificate", &config.certificate, &chain)?;
        let signing = signing_key(&provider, &config.key, &files.key)?;
        let certified = certify(config, chain, signing)?;
        let authorities = config.clients.authorities().zip(files.authorities.as_deref());
        let authorities = authorities.map(|(path, bytes)| Authorities::read(path, bytes)).transpose()?;
        Self::trusting(config, &provider, (subject, server), certified, authorities, now)
    }

    fn trusting(
        config: &TlsConfig,
        provider: &Arc<CryptoProvider>,
        (subject, server): (String, Moment),
        certified: Arc<SingleCertAndKey>,
        authorities: Option<Authorities>,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let silent = build(config, provider, &certified, None)?;
        let trusted = authorities.as_ref().map(|authorities| authorities.trusted(now));
        let (digest, until) = trusted.as_ref().map(|trusted| (trusted.digest, trusted.until)).unzip();
        let asking = match trusted {
            Some(trusted) => {
                let is_required = matches!(config.clients, ClientCertificates::Required(_));
                build(config, provider, &certified, Some(trusted.verifier(provider, is_required)?))?
            }
            None => Arc::clone(&silent),
        };
        let expiry = Expiry { server, authorities: authorities.as_ref().and_then(Authorities::first_end) };
        let (until, clients) = (until.flatten(), CancellationToken::new());
        Ok(Self { asking, silent, subject, expiry, certified, authorities, trusted: digest, until, clients })
    }

    /// How long all authorities that are trusted can be; nothing where there are none.
    pub(super) fn trusts_for(&self, now: SystemTime) -> Option<Duration> {
        self.until.map(|until| until.left(now).unwrap_or_default())
    }

    /// The same without the authorities that have expired; nothing where none has since it was put together.
    pub(super) fn without_expired(
        &self,
        config: &TlsConfig,
        now: SystemTime,
    ) -> Result<Option<Self>, TlsError> {
        if self.trusts_for(now).is_none_or(|left| !left.is_zero()) {
            return Ok(None);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (said, certified) = ((self.subject.clone(), self.expiry.server), Arc::clone(&self.certified));
        Self::trusting(config, &provider, said, certified, self.authorities.clone(), now).map(Some)
    }

    /// Comes after another: connections of clients end, unless their certificates are held against the same authorities as before.
    pub(super) fn after(self, before: &Self) -> Self {
        if self.trusted == before.trusted {
            return Self { clients: before.clients.clone(), ..self };
        }
        before.clients.cancel();
        self
    }

    /// What a listener's connections are accepted with.
    pub(super) fn of(&self, listener: TlsListener) -> Arc<ServerConfig> {
        Arc::clone(if listener.asks_clients() { &self.asking } else { &self.silent })
    }

    /// What is to be said of what expires soon, or has.
    pub(super) fn warnings(&self, config: &TlsConfig, now: SystemTime) -> Vec<String> {
        let server = Some((self.expiry.server, "`tls.certificate`", &config.certificate));
        let authorities = self.expiry.authorities.zip(config.clients.authorities());
        let authorities = authorities.map(|(moment, path)| (moment, "`tls.client_ca`", path));
        let warn = |(moment, key, path): (Moment, &str, &std::path::PathBuf)| match moment.left(now) {
            None if key == "`tls.client_ca`" => Some(format!(
                "{key}: a certificate in {} has expired: {moment}; no certificate that it signed is taken",
                path.display()
            )),
            None => Some(format!("{key}: a certificate in {} has expired: {moment}", path.display())),
            Some(left) if left <= config.expiry_warning => {
                let days = left.as_secs() / Duration::from_secs(86_400).as_secs();
                Some(format!("{key}: a certificate in {} expires in {days} days: {moment}", path.display()))
            }
            Some(_) => None,
        };
        server.into_iter().chain(authorities).filter_map(warn).collect()
    }
}

/// The certificates in a file, one at least.
pub(super) fn certificates(
    key: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).take(MOST_CERTIFICATES).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(PemError::NoItemsFound) => Err(TlsError::Nothing {
            key,
            path: path.to_owned(),
            what: "certificate",
            label: "CERTIFICATE",
            binary: is_binary(bytes),
        }),
        Err(_) => Err(TlsError::Damaged { key, path: path.to_owned() }),
    }
}

/// The first subject, and when the first of them expires.
fn said(key: &'static str, path: &Path, chain: &[CertificateDer<'_>]) -> Result<(String, Moment), TlsError> {
    let mut all = None;
    for (index, certificate) in chain.iter().enumerate() {
        let said = certificate::read(certificate).map_err(|reason| TlsError::Certificate {
            key,
            path: path.to_owned(),
            number: index + 1,
            reason,
        })?;
        all = Some(match all {
            None => (said.subject, said.expires),
            Some((subject, expires)) => (subject, said.expires.min(expires)),
        });
    }
    all.ok_or_else(|| TlsError::Damaged { key, path: path.to_owned() })
}

fn signing_key(
    provider: &CryptoProvider,
    path: &Path,
    bytes: &[u8],
) -> Result<Arc<dyn SigningKey>, TlsError> {
    // Looked for in the text: what PEM calls it no reader of keys takes, and older ones are marked by a line of their own.
    let is_encrypted = [&b"BEGIN ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| bytes.windows(mark.len()).any(|part| part == *mark));
    let key = match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(key) if !is_encrypted => key,
        _ if is_encrypted => return Err(TlsError::Encrypted { path: path.to_owned() }),
        Err(PemError::NoItemsFound) => {
            return Err(TlsError::Nothing {
                key: "tls.key",
                path: path.to_owned(),
                what: "private key",
                label: "PRIVATE KEY",
                binary: is_binary(bytes),
            });
        }
        _ => return Err(TlsError::Damaged { key: "tls.key", path: path.to_owned() }),
    };
    provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| TlsError::KeyKind { path: path.to_owned(), reason: error.to_string() })
}

/// What is no text, as DER is none.
fn is_binary(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x30) || bytes.contains(&0)
}

/// Joins certificate and key, which have to belong together.
fn certify(
    config: &TlsConfig,
    chain: Vec<CertificateDer<'static>>,
    signing: Arc<dyn SigningKey>,
) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let fits = |chain: &[CertificateDer<'static>]| {
        CertifiedKey::new(chain.to_vec(), Arc::clone(&signing)).keys_match()
    };
    match fits(&chain) {
        // A key that does not tell its public one is taken as it is.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let other = chain.iter().position(|one| fits(std::slice::from_ref(one)).is_ok());
            return Err(TlsError::Mismatch {
                path: config.key.clone(),
                certificate: config.certificate.clone(),
                belongs_to: other.map(|index| index + 1),
            });
        }
        Err(error) => {
            return Err(TlsError::Certificate {
                key: "tls.certificate",
                path: config.certificate.clone(),
                number: 1,
                reason: error.to_string(),
            });
        }
    }
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signing))))
}

fn build(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
    certified: &Arc<SingleCertAndKey>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let versions: &[&SupportedProtocolVersion] = match config.min_version {
        TlsVersion::V12 => &[&TLS13, &TLS12],
        TlsVersion::V13 => &[&TLS13],
    };
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(versions)?;
    let asks = verifier.is_some();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(Arc::clone(certified) as _);
    server.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    if asks {
        // A session that is taken up again is not verified again: so a certificate would hold for longer than it says.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    Ok(Arc::new(server))
}
