//! `[tls]`: which listeners speak TLS, with which certificate, and what they ask of clients.

use std::path::PathBuf;
use std::time::Duration;

use super::getter::Getter;
use super::key::{
    Key, TLS_CERTIFICATE, TLS_CLIENT_CA, TLS_CLIENT_CERTIFICATES, TLS_EXPIRY_WARNING, TLS_HANDSHAKE_TIMEOUT,
    TLS_KEY, TLS_LISTENERS, TLS_MIN_VERSION, TLS_RELOAD,
};
use super::{Mistake, Origin, Settings, suggestion};

/// `[tls]`, where there is a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The file with the certificate and those that lead to its issuer.
    pub certificate: PathBuf,
    /// The file with the certificate's private key.
    pub key: PathBuf,
    /// The listeners that speak it, each once; *admin* only where it is TCP.
    pub listeners: Vec<TlsListener>,
    /// What clients of scoring and management show.
    pub clients: ClientCertificates,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// Time limit of a handshake.
    pub handshake_timeout: Duration,
    /// How often the files are looked at; nothing if never.
    pub reload: Option<Duration>,
    /// How long before a certificate expires the log begins to say so.
    pub expiry_warning: Duration,
}

/// A listener that can speak TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsListener {
    /// `score.listen`.
    Score,
    /// `observe.listen`. It never asks for certificates of clients: probes have none.
    Observe,
    /// `admin.listen`, where it is no Unix socket.
    Admin,
}

impl TlsListener {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Score, Self::Observe, Self::Admin];

    /// Its word in `tls.listeners`, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Observe => "observe",
            Self::Admin => "admin",
        }
    }

    /// Whether clients of it may be asked for a certificate.
    pub fn asks_clients(self) -> bool {
        self != Self::Observe
    }
}

/// What clients show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked.
    Off,
    /// One that an authority of this file has signed, or none.
    Optional(PathBuf),
    /// The same, and none is not enough.
    Required(PathBuf),
}

impl ClientCertificates {
    /// The words of `tls.client_certificates`.
    pub const WORDS: &'static [&'static str] = &["off", "optional", "required"];

    /// The file with the authorities.
    pub fn authorities(&self) -> Option<&PathBuf> {
        match self {
            Self::Off => None,
            Self::Optional(file) | Self::Required(file) => Some(file),
        }
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

impl TlsConfig {
    /// Whether a listener speaks TLS.
    pub fn covers(&self, listener: TlsListener) -> bool {
        self.listeners.contains(&listener)
    }

    /// Whether nobody without a certificate comes to a listener.
    pub fn requires_clients(&self, listener: TlsListener) -> bool {
        self.covers(listener)
            && listener.asks_clients()
            && matches!(self.clients, ClientCertificates::Required(_))
    }
}

/// Whether clients of a listener are asked for certificates, for rules about what these are for.
pub(super) fn asks_clients(settings: &Settings) -> bool {
    let get = Getter { settings };
    get.path(TLS_CERTIFICATE).is_some() && get.text(TLS_CLIENT_CERTIFICATES) != "off"
}

/// Whether a listener speaks TLS, where it is TCP; looks at nothing else.
pub(super) fn covers(settings: &Settings, listener: TlsListener) -> bool {
    let get = Getter { settings };
    let names = get.list(TLS_LISTENERS);
    get.path(TLS_CERTIFICATE).is_some() && names.iter().any(|name| name == listener.as_str())
}

/// From settings, each valid by itself; nothing where there is no certificate.
pub(super) fn tls(settings: &Settings) -> Result<Option<TlsConfig>, Vec<Mistake>> {
    let mut builder = Builder { settings, get: Getter { settings }, mistakes: Vec::new() };
    let config = builder.tls();
    if builder.mistakes.is_empty() { Ok(config) } else { Err(builder.mistakes) }
}

struct Builder<'a> {
    settings: &'a Settings,
    get: Getter<'a>,
    mistakes: Vec<Mistake>,
}

impl Builder<'_> {
    fn mistake(&mut self, key: &Key, problem: String) {
        let origin = self.settings.keys.get(key.name).map(|setting| setting.origin.clone());
        let origin = origin.unwrap_or(Origin::Default).to_string();
        self.mistakes.push(Mistake { origin, problem });
    }

    fn tls(&mut self) -> Option<TlsConfig> {
        let (certificate, key) = match (self.get.path(TLS_CERTIFICATE), self.get.path(TLS_KEY)) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => {
                self.in_vain();
                return None;
            }
            (Some(_), None) => {
                self.mistake(TLS_CERTIFICATE, "`tls.certificate` is set, `tls.key` is not".into());
                return None;
            }
            (None, Some(_)) => {
                self.mistake(TLS_KEY, "`tls.key` is set, `tls.certificate` is not".into());
                return None;
            }
        };
        let listeners = self.listeners();
        let clients = self.clients();
        if clients != ClientCertificates::Off && !listeners.iter().any(|listener| listener.asks_clients()) {
            let problem = "`tls.client_certificates` is for the listeners score and admin, and `tls.listeners` names neither";
            self.mistake(TLS_CLIENT_CERTIFICATES, problem.into());
        }
        let reload = self.get.duration(TLS_RELOAD);
        Some(TlsConfig {
            certificate,
            key,
            listeners,
            clients,
            min_version: match self.get.text(TLS_MIN_VERSION).as_str() {
                "1.3" => TlsVersion::V13,
                _ => TlsVersion::V12,
            },
            handshake_timeout: self.get.duration(TLS_HANDSHAKE_TIMEOUT),
            reload: Some(reload).filter(|every| !every.is_zero()),
            expiry_warning: self.get.duration(TLS_EXPIRY_WARNING),
        })
    }

    /// What is asked for and would not hold, as there is no certificate.
    fn in_vain(&mut self) {
        for key in [TLS_LISTENERS, TLS_CLIENT_CERTIFICATES, TLS_CLIENT_CA, TLS_MIN_VERSION] {
            // What is shown as in force can be used as a file, so a default that is written down is none of these.
            if self.get.value(key) != key.kind.parse(key.default).as_ref().filter(|_| !key.default.is_empty())
            {
                let problem = format!(
                    "`{}` is set, `tls.certificate` is not, so no listener speaks TLS: set `tls.certificate` and `tls.key`",
                    key.name
                );
                self.mistake(key, problem);
            }
        }
    }

    fn listeners(&mut self) -> Vec<TlsListener> {
        let mut listeners = Vec::new();
        let names = self.get.list(TLS_LISTENERS).to_vec();
        for name in &names {
            match TlsListener::ALL.into_iter().find(|listener| listener.as_str() == name) {
                Some(listener) if listeners.contains(&listener) => {}
                Some(listener) => listeners.push(listener),
                None => {
                    let near = suggestion(name, TlsListener::ALL.into_iter().map(TlsListener::as_str));
                    let problem = format!(
                        "`tls.listeners` names `{name}`{near}; the listeners are score, observe, admin"
                    );
                    self.mistake(TLS_LISTENERS, problem);
                }
            }
        }
        if names.is_empty() {
            let problem = "`tls.listeners` is empty, so no listener speaks TLS: leave `tls.certificate` and `tls.key` out if that is meant";
            self.mistake(TLS_LISTENERS, problem.into());
        }
        listeners
    }

    fn clients(&mut self) -> ClientCertificates {
        let file = self.get.path(TLS_CLIENT_CA);
        match (self.get.text(TLS_CLIENT_CERTIFICATES).as_str(), file) {
            ("optional", Some(file)) => ClientCertificates::Optional(file),
            ("required", Some(file)) => ClientCertificates::Required(file),
            ("off", None) => ClientCertificates::Off,
            ("off", Some(_)) => {
                let problem = "`tls.client_ca` is set and nobody is asked for a certificate: set `tls.client_certificates` to optional or required";
                self.mistake(TLS_CLIENT_CA, problem.into());
                ClientCertificates::Off
            }
            (word, None) => {
                let problem = format!(
                    "`tls.client_certificates` is {word}, and `tls.client_ca` does not say whose certificates are taken"
                );
                self.mistake(TLS_CLIENT_CERTIFICATES, problem);
                ClientCertificates::Off
            }
            // The kind of the key takes no other word.
            (_, Some(file)) => ClientCertificates::Required(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Sources, load};
    use super::*;

    const PAIR: &str = "certificate = 'c.pem'\nkey = 'k.pem'\n";

    fn sources(tls: &str) -> Sources {
        let text = format!("[script]\nentry = 'score.py'\n[tls]\n{tls}");
        let environment = vec![("HOME".into(), "/home/u".into())];
        Sources { file: Some(("/etc/o.toml".into(), text)), environment, ..Sources::default() }
    }

    #[test]
    fn a_pair_of_files_is_enough() {
        let config = load(&sources(PAIR)).unwrap().0.tls.unwrap();
        assert_eq!(config.certificate, std::path::Path::new("/etc/c.pem"), "relative to the file");
        assert_eq!(config.listeners, [TlsListener::Score], "management is on a Unix socket");
        assert_eq!((config.clients, config.min_version), (ClientCertificates::Off, TlsVersion::V12));
        assert_eq!(config.reload, Some(Duration::from_secs(5)));
        let mut tcp = sources(PAIR);
        tcp.environment.push(("OUTRIGGER_ADMIN_LISTEN".into(), "127.0.0.1:1".into()));
        let listeners = load(&tcp).unwrap().0.tls.unwrap().listeners;
        assert_eq!(listeners, [TlsListener::Score, TlsListener::Admin]);
        assert!(load(&sources("")).unwrap().0.tls.is_none());
        let never =
            load(&sources(&format!("{PAIR}reload = '0s'\nmin_version = '1.3'"))).unwrap().0.tls.unwrap();
        assert_eq!((never.reload, never.min_version), (None, TlsVersion::V13));
    }

    #[test]
    fn what_would_not_hold_is_a_mistake() {
        let check = |tls: &str, part: &str| {
            let problems: Vec<_> =
                load(&sources(tls)).expect_err(tls).iter().map(ToString::to_string).collect();
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part} not in {problems:?}");
        };
        let pair = |rest: &str| format!("{PAIR}{rest}");
        check("certificate = 'c.pem'", "`tls.certificate` is set, `tls.key` is not");
        check("key = 'k.pem'", "`tls.key` is set, `tls.certificate` is not");
        check("client_certificates = 'required'", "set `tls.certificate` and `tls.key`");
        check("min_version = '1.3'", "no listener speaks TLS");
        check("min_version = '1.1'", "one of 1.2, 1.3");
        check(&pair("client_certificates = 'required'"), "`tls.client_ca` does not say");
        check(&pair("client_ca = 'ca.pem'"), "nobody is asked");
        check(&pair("listeners = ['score', 'observer']"), "did you mean `observe`?");
        check(&pair("listeners = []"), "is empty");
        let observed = "listeners = ['observe']\nclient_ca = 'ca.pem'\nclient_certificates = 'optional'";
        check(&pair(observed), "names neither");
        check(&pair("handshake_timeout = '0s'"), "more than 0");
    }
}
