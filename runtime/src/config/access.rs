//! How a replica is managed, for a command that asks it.

use std::path::PathBuf;

use outrigger_auth::{AuthMode, KeyFiles};

use super::getter::Getter;
use super::key::{self, TLS_CERTIFICATE};
use super::tls::TlsListener;
use super::value::Endpoint;
use super::{Mistake, Sources, auth, layers, tls, tokens};

/// How a replica is managed.
#[derive(Debug)]
pub struct AdminAccess {
    /// Where. On a Unix socket the system says who asks.
    pub endpoint: Endpoint,
    /// Over TLS, if so.
    pub tls: Option<AdminTls>,
    /// What is taken there that says who asks.
    pub mode: AuthMode,
    /// Where keys are.
    pub keys: KeyFiles,
}

/// TLS of an admin listener.
#[derive(Debug)]
pub struct AdminTls {
    /// The file with its certificate.
    pub certificate: PathBuf,
    /// Whether nobody comes in without one.
    pub requires_clients: bool,
}

/// Where a replica is managed. A rule that other keys break does not matter to it.
///
/// # Errors
/// Every mistake in a layer; that there is no directory for its state.
pub fn admin_access(sources: &Sources) -> Result<AdminAccess, Vec<Mistake>> {
    let (settings, mistakes) = layers::read(sources);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let get = Getter { settings: &settings };
    let state_dir = match (auth::state_dir(&settings, sources), get.value(key::ADMIN_LISTEN)) {
        (Ok(state_dir), _) => state_dir,
        // One that is managed at an address needs none to be asked there; its keys are in files of their own, or nowhere.
        (Err(_), Some(_)) => PathBuf::from("/"),
        (Err(mistake), None) => return Err(vec![mistake]),
    };
    let endpoint = auth::admin(&settings, &state_dir);
    let keys = auth::files(&settings, sources, &state_dir);
    let tls = get
        .path(TLS_CERTIFICATE)
        .filter(|_| matches!(endpoint, Endpoint::Tcp(_)) && tls::covers(&settings, TlsListener::Admin));
    let requires_clients = get.text(key::TLS_CLIENT_CERTIFICATES) == "required";
    Ok(AdminAccess {
        tls: tls.map(|certificate| AdminTls { certificate, requires_clients }),
        mode: tokens::mode(&settings),
        endpoint,
        keys,
    })
}
