//! How handshakes end: one of a few words, for metrics and the log.

use std::io;

use rustls::{CertificateError, Error, PeerIncompatible, PeerMisbehaved};

/// What came of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The connection is there.
    Ok,
    /// It took longer than `tls.handshake_timeout`.
    Timeout,
    /// The client went away.
    Closed,
    /// What came is no TLS, such as plain HTTP.
    NotTls,
    /// The client speaks no version that we do.
    Version,
    /// It speaks it with no algorithm that we do, or with no protocol above it.
    Parameters,
    /// It showed no certificate where one is required.
    NoCertificate,
    /// Its certificate has expired, or does not hold yet.
    CertificateExpired,
    /// Its certificate is of no authority of ours.
    CertificateUnknown,
    /// Something else is wrong with its certificate.
    CertificateInvalid,
    /// It took something amiss, our certificate for the most part.
    RefusedByClient,
    /// The replica ended first.
    Draining,
    /// Anything else.
    Other,
}

impl Outcome {
    pub(super) const ALL: [Self; 13] = [
        Self::Ok,
        Self::Timeout,
        Self::Closed,
        Self::NotTls,
        Self::Version,
        Self::Parameters,
        Self::NoCertificate,
        Self::CertificateExpired,
        Self::CertificateUnknown,
        Self::CertificateInvalid,
        Self::RefusedByClient,
        Self::Draining,
        Self::Other,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::Version => "version",
            Self::Parameters => "parameters",
            Self::NoCertificate => "no_certificate",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateUnknown => "certificate_unknown",
            Self::CertificateInvalid => "certificate_invalid",
            Self::RefusedByClient => "refused_by_client",
            Self::Draining => "draining",
            Self::Other => "other",
        }
    }

    /// What an error of a handshake means.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::of_tls(error),
            None => match error.kind() {
                io::ErrorKind::TimedOut => Self::Timeout,
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Self::Closed,
                _ => Self::Other,
            },
        }
    }

    fn of_tls(error: &Error) -> Self {
        match error {
            Error::InvalidMessage(_) => Self::NotTls,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::CertificateExpired,
                CertificateError::UnknownIssuer => Self::CertificateUnknown,
                _ => Self::CertificateInvalid,
            },
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::Version,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Parameters,
            Error::PeerMisbehaved(PeerMisbehaved::OfferedEarlyDataWithOldProtocolVersion) => Self::Version,
            Error::AlertReceived(_) => Self::RefusedByClient,
            _ => Self::Other,
        }
    }
}
