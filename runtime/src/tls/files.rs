//! The files as they are now: bounded in size, and what their modes say.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::error::TlsError;
use crate::config::TlsConfig;

/// Larger than any chain, key or bundle of authorities; those of a whole system have a fifth of it.
const LIMIT: u64 = 1 << 20;
/// Permissions of everybody's to read and to write.
const OTHERS: u32 = 0o006;

/// What the files hold.
pub(super) struct Files {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) authorities: Option<Vec<u8>>,
    /// What is to be said of them although they are used.
    pub(super) warnings: Vec<String>,
}

impl Files {
    /// Reads them. Links are followed: what a secret of Kubernetes' is mounted as.
    pub(super) fn read(config: &TlsConfig, container: bool) -> Result<Self, TlsError> {
        let (certificate, _) = read("tls.certificate", &config.certificate)?;
        let (key, mode) = read("tls.key", &config.key)?;
        let mut warnings = Vec::new();
        if mode & OTHERS != 0 {
            // A container has no other people in it, and what is mounted is 0644 unless somebody has thought of it.
            if !container {
                return Err(TlsError::OpenToOthers { path: config.key.clone(), mode: mode & 0o777 });
            }
            warnings.push(format!(
                "`tls.key`: {} has mode {:04o}, so every process in this container can read or change it; `defaultMode: 0440` of the volume, with `fsGroup`, \
                 would keep it to the group",
                config.key.display(),
                mode & 0o777
            ));
        }
        let authorities = config.clients.authorities();
        let authorities = authorities.map(|path| read("tls.client_ca", path)).transpose()?;
        Ok(Self { certificate, key, authorities: authorities.map(|(bytes, _)| bytes), warnings })
    }

    /// A number that changes with what they hold. It tells nothing of the key.
    pub(super) fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [Some(&self.certificate), Some(&self.key), self.authorities.as_ref()] {
            let part = part.map(Vec::as_slice);
            hasher.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            hasher.update(part.unwrap_or_default());
        }
        hasher.finalize()
    }
}

/// A file's bytes and mode.
fn read(key: &'static str, path: &Path) -> Result<(Vec<u8>, u32), TlsError> {
    let failed = |source| TlsError::Read { key, path: path.to_owned(), source };
    // A pipe would keep whoever opens it waiting.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(TlsError::NotAFile { key, path: path.to_owned() });
    }
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LIMIT {
        return Err(TlsError::TooLarge { key, path: path.to_owned(), limit: LIMIT });
    }
    Ok((bytes, mode))
}
