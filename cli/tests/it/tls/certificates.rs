//! Authorities and what they sign, made for one test.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Pair {
    /// PEM.
    pub(crate) certificate: String,
    /// PEM.
    pub(crate) key: String,
    pub(crate) certificate_der: CertificateDer<'static>,
    pub(crate) key_der: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(authority(name), KeyPair::generate().unwrap()).unwrap())
    }

    /// One that expires after a time, or has.
    pub(crate) fn until(name: &str, end: SystemTime) -> Self {
        let mut params = authority(name);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = end.into();
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// One that this one has signed.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        Self(CertifiedIssuer::signed_by(authority(name), KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate for a server on this machine.
    pub(crate) fn server(&self) -> Pair {
        self.sign(params(&["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// One that expires after a time.
    pub(crate) fn server_until(&self, left: Duration) -> Pair {
        let mut params = params(&["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
        params.not_after = (SystemTime::now() + left).into();
        self.sign(params)
    }

    /// One that has expired.
    pub(crate) fn server_of_old(&self) -> Pair {
        let mut params = params(&["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    /// A certificate for a client, with these names: `spiffe://...`, `cn:...`, or a host's.
    pub(crate) fn client(&self, names: &[&str]) -> Pair {
        self.sign(client(names))
    }

    /// One that has expired.
    pub(crate) fn client_of_old(&self, names: &[&str]) -> Pair {
        let mut params = client(names);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    /// One that expires after a time.
    pub(crate) fn client_until(&self, names: &[&str], end: SystemTime) -> Pair {
        let mut params = client(names);
        params.not_after = end.into();
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            certificate_der: certificate.der().clone(),
            key_der: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(names: &[&str], usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "outrigger test");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    // What Python's own checks ask for from 3.13 on.
    params.use_authority_key_identifier_extension = true;
    params
}

fn client(names: &[&str]) -> CertificateParams {
    let hosts: Vec<_> = names.iter().copied().filter(|name| !name.contains(':')).collect();
    let mut params = params(&hosts, ExtendedKeyUsagePurpose::ClientAuth);
    for name in names {
        if let Some(common) = name.strip_prefix("cn:") {
            params.distinguished_name.push(DnType::CommonName, common);
        } else if name.starts_with("spiffe:") {
            params.subject_alt_names.push(SanType::URI((*name).try_into().unwrap()));
        }
    }
    params
}
