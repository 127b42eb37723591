//! Whose certificates are taken of clients: those of authorities that have not expired.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{self, CryptoProvider};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::certificate::{self, Moment};
use super::error::TlsError;
use super::server::certificates;

const KEY: &str = "tls.client_ca";

/// The authorities in a file, expired ones among them.
#[derive(Clone)]
pub(super) struct Authorities {
    each: Vec<(CertificateDer<'static>, Moment)>,
}

impl Authorities {
    /// Reads what a file holds.
    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Self, TlsError> {
        let mut each = Vec::new();
        let mut roots = RootCertStore::empty();
        for (index, der) in certificates(KEY, path, bytes)?.into_iter().enumerate() {
            let wrong =
                |reason| TlsError::Certificate { key: KEY, path: path.to_owned(), number: index + 1, reason };
            let expires = certificate::read(&der).map_err(wrong)?.expires;
            roots.add(der.clone()).map_err(|error| wrong(error.to_string()))?;
            each.push((der, expires));
        }
        Ok(Self { each })
    }

    /// When the first of them expires, or has.
    pub(super) fn first_end(&self) -> Option<Moment> {
        self.each.iter().map(|(_, expires)| *expires).min()
    }

    /// Those that can be trusted now. What verifies certificates does not look at when an authority's own expires.
    pub(super) fn trusted(&self, now: SystemTime) -> Trusted {
        let mut trusted = Trusted { roots: RootCertStore::empty(), digest: blake3::hash(b""), until: None };
        let mut hasher = blake3::Hasher::new();
        for (der, expires) in self.each.iter().filter(|(_, expires)| expires.left(now).is_some()) {
            // Each was added once already.
            if trusted.roots.add(der.clone()).is_ok() {
                hasher.update(blake3::hash(der).as_bytes());
                trusted.until = Some(trusted.until.map_or(*expires, |until| until.min(*expires)));
            }
        }
        trusted.digest = hasher.finalize();
        trusted
    }
}

/// Authorities that are trusted until the first of them expires.
pub(super) struct Trusted {
    roots: RootCertStore,
    /// Tells whether there are others.
    pub(super) digest: blake3::Hash,
    /// Nothing where there are none.
    pub(super) until: Option<Moment>,
}

impl Trusted {
    /// What holds clients' certificates against them.
    pub(super) fn verifier(
        self,
        provider: &Arc<CryptoProvider>,
        is_required: bool,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        if self.roots.is_empty() {
            return Ok(Arc::new(Nobody { provider: Arc::clone(provider), is_required }));
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots), Arc::clone(provider));
        let builder = if is_required { builder } else { builder.allow_unauthenticated() };
        Ok(builder.build()?)
    }
}

/// Takes no certificate, as all authorities have expired.
#[derive(Debug)]
struct Nobody {
    provider: Arc<CryptoProvider>,
    is_required: bool,
}

impl ClientCertVerifier for Nobody {
    fn client_auth_mandatory(&self) -> bool {
        self.is_required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn authority(until: (i32, u8, u8)) -> String {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn an_authority_is_trusted_until_it_expires() {
        let (early, late) = (authority((2030, 1, 1)), authority((2031, 1, 1)));
        let both = Authorities::read(Path::new("ca.pem"), format!("{early}{late}").as_bytes()).unwrap();
        let alone = Authorities::read(Path::new("ca.pem"), late.as_bytes()).unwrap();
        let at = |year: u64| UNIX_EPOCH + Duration::from_secs((year - 1970) * 365 * 86_400 + 30 * 86_400);
        let first = both.first_end();
        assert_eq!(first.unwrap().to_string(), "2030-01-01 00:00:00 UTC");
        assert_eq!(both.trusted(at(2029)).until, first);
        let (rest, only) = (both.trusted(at(2030)), alone.trusted(at(2030)));
        assert_eq!(rest.until.unwrap().to_string(), "2031-01-01 00:00:00 UTC");
        assert_eq!((rest.digest, rest.roots.len()), (only.digest, 1));
        assert_ne!(both.trusted(at(2029)).digest, only.digest);
        let none = both.trusted(at(2031));
        assert_eq!((none.until, none.roots.len()), (None, 0));
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        for is_required in [true, false] {
            let verifier = both.trusted(at(2031)).verifier(&provider, is_required).unwrap();
            assert_eq!(verifier.client_auth_mandatory(), is_required);
            let shown = CertificateDer::from(vec![0x30, 0]);
            assert!(verifier.verify_client_cert(&shown, &[], UnixTime::now()).is_err());
        }
    }
}
