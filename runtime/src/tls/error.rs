//! Why TLS cannot be spoken with the files that there are: the key of the configuration, the file, the cause, and what would help.

use std::io;
use std::path::PathBuf;

/// Files of `[tls]` that cannot be used. No text holds any of a private key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("`{key}`: {} cannot be read", .path.display())]
    Read {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something at the path that is no file.
    #[error("`{key}`: {} is no file", .path.display())]
    NotAFile {
        /// The configuration's key.
        key: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The file is larger than any such file.
    #[error("`{key}`: {} is larger than {limit} bytes, which no such file is", .path.display())]
    TooLarge {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The most.
        limit: u64,
    },
    /// The private key may be read or written by everybody on the machine.
    #[error(
        "`tls.key`: {path} has mode {mode:04o}, so others can read or change the private key: run `chmod 600 {path}`, or 640 where it is its group's",
        path = .path.display()
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file has none of what it is for.
    #[error("`{key}`: {} holds no {what}: it has to be PEM, with a line `-----BEGIN {label}-----`{}", .path.display(), hint(*.binary))]
    Nothing {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What PEM calls that.
        label: &'static str,
        /// Whether it is no text at all.
        binary: bool,
    },
    /// The file is cut off, or not what it says it is.
    #[error("`{key}`: {} is damaged: a part of it begins and is no PEM; write it anew", .path.display())]
    Damaged {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The private key is encrypted.
    #[error(
        "`tls.key`: {path} is encrypted, and there is nobody to ask for its passphrase: write it without one (`openssl pkey -in {path} -out plain.pem`) and keep that \
         file from others",
        path = .path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The private key is of a kind that is not known.
    #[error("`tls.key`: {} holds a key that cannot be used ({reason}): RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, and Ed25519 can", .path.display())]
    KeyKind {
        /// The file.
        path: PathBuf,
        /// What is said of it.
        reason: String,
    },
    /// A certificate cannot be read.
    #[error("`{key}`: certificate {number} in {} cannot be used: {reason}", .path.display())]
    Certificate {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Which one, the first being 1.
        number: usize,
        /// Why.
        reason: String,
    },
    /// The key is not that of the certificate.
    #[error("`tls.key`: {} does not belong to the first certificate in {}: {}", .path.display(), .certificate.display(), belongs(*.belongs_to))]
    Mismatch {
        /// The file of the key.
        path: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
        /// Which certificate it belongs to, the first being 1, if any.
        belongs_to: Option<usize>,
    },
    /// What cannot be put together for another reason.
    #[error("TLS cannot be spoken")]
    Setup(#[from] rustls::Error),
    /// Authorities that cannot be used together.
    #[error("`tls.client_ca`: clients' certificates cannot be checked")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// Two metrics have one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

fn hint(binary: bool) -> &'static str {
    if binary {
        "; it looks like DER, which `openssl x509 -inform der` or `openssl pkey -inform der` turns into PEM"
    } else {
        ""
    }
}

fn belongs(number: Option<usize>) -> String {
    match number {
        Some(number) => format!("it is that of certificate {number}, and the server's own has to come first"),
        None => "their public keys differ, so one of the two is of another pair".to_owned(),
    }
}
