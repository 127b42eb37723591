//! Who is at the other end of a connection, by the certificate that was verified when it was made.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// The longest name that a configuration can have, and that is looked for in a certificate.
pub const MAX_NAME_CHARS: usize = 512;
/// The most names of one certificate that are looked at.
pub const MAX_NAMES: usize = 32;

/// A name that a certificate has: `spiffe://...`, `dns:...` in lower case, or `cn:...`.
///
/// The three never mean each other: a common name that looks like a host's is none.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CertificateName(String);

/// A text that is no name of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no name that a certificate has: spiffe://DOMAIN/PATH, dns:NAME or cn:NAME, {MAX_NAME_CHARS} characters at most"
)]
pub struct CertificateNameFault;

impl CertificateName {
    /// Reads what a configuration says.
    ///
    /// # Errors
    /// [`CertificateNameFault`] for any other form.
    pub fn parse(text: &str) -> Result<Self, CertificateNameFault> {
        let name = match text.split_once(':') {
            Some(("spiffe", rest)) if rest.len() > 2 && rest.starts_with("//") => Self::uri(text),
            // A pattern would be taken for a name.
            Some(("dns", name)) if !name.contains('*') => Self::dns(name),
            Some(("cn", name)) => Self::common(name),
            _ => None,
        };
        name.ok_or(CertificateNameFault)
    }

    /// A URI among a certificate's alternative names; those of SPIFFE alone name somebody.
    pub fn uri(uri: &str) -> Option<Self> {
        (uri.starts_with("spiffe://") && is_plain(uri)).then(|| Self(uri.to_owned()))
    }

    /// A host's name among them.
    pub fn dns(name: &str) -> Option<Self> {
        is_plain(name).then(|| Self(format!("dns:{}", name.to_ascii_lowercase())))
    }

    /// The common name of its subject.
    pub fn common(name: &str) -> Option<Self> {
        let is_text = !name.is_empty() && !name.chars().any(char::is_control);
        (is_text && name.len() <= MAX_NAME_CHARS).then(|| Self(format!("cn:{name}")))
    }

    /// The text, as a configuration has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME_CHARS && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A client's certificate that an authority of ours has signed and that was valid when the connection was made.
#[derive(Debug, Default)]
pub struct PeerCertificate {
    names: Vec<CertificateName>,
    /// Seconds since 1970; nothing where that is not known.
    until: Option<u64>,
    withdrawn: AtomicBool,
}

impl PeerCertificate {
    /// What it is called, [`MAX_NAMES`] at most; those beyond are not looked at.
    pub fn new(names: impl IntoIterator<Item = CertificateName>) -> Self {
        Self { names: names.into_iter().take(MAX_NAMES).collect(), ..Self::default() }
    }

    /// The same that does not hold any more from then on, in seconds since 1970.
    #[must_use]
    pub fn holding_until(self, until: u64) -> Self {
        Self { until: Some(until), ..self }
    }

    /// From when on it does not hold any more, in seconds since 1970, where that is known.
    pub fn until(&self) -> Option<u64> {
        self.until
    }

    /// Has it name nobody any more.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Relaxed);
    }

    /// Whether it still says who is at the other end.
    pub(crate) fn holds(&self, now: u64) -> bool {
        !self.withdrawn.load(Ordering::Relaxed) && self.until.is_none_or(|until| now < until)
    }

    /// Its names.
    pub fn names(&self) -> &[CertificateName] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_three_forms() {
        let check = |text: &str, expected: Option<&str>| {
            let name = CertificateName::parse(text).ok();
            assert_eq!(name.as_ref().map(CertificateName::as_str), expected, "{text}");
        };
        check("spiffe://example.org/ns/a/sa/b", Some("spiffe://example.org/ns/a/sa/b"));
        check("dns:Client.Example", Some("dns:client.example"));
        check("cn:Batch jobs, Ltd.", Some("cn:Batch jobs, Ltd."));
        for wrong in [
            "",
            "bob",
            "dns:",
            "cn:",
            "spiffe://",
            "https://a.example/",
            "dns:*.example",
            "dns:a b",
            "cn:a\nb",
            "DNS:a",
            "uri:x",
        ] {
            check(wrong, None);
        }
        check(&format!("cn:{}", "a".repeat(MAX_NAME_CHARS + 1)), None);
    }

    #[test]
    fn kinds_of_names_do_not_mean_each_other() {
        assert_ne!(CertificateName::dns("a.example"), CertificateName::common("a.example"));
        assert_eq!(CertificateName::uri("https://a.example/"), None, "it names a place");
        let many = (0..100).filter_map(|number| CertificateName::dns(&format!("h{number}")));
        assert_eq!(PeerCertificate::new(many).names().len(), MAX_NAMES);
    }
}
