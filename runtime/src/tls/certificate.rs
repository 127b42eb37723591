//! What a certificate says: whose it is, and until when it holds.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_auth::{CertificateName, PeerCertificate};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Longest part of a subject that is shown.
const SHOWN: usize = 128;

/// A moment at which something expires, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    /// How long until then; nothing if it is past.
    pub(super) fn left(self, now: SystemTime) -> Option<Duration> {
        let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
        let left = u64::try_from(self.0).ok()?.checked_sub(now)?;
        Some(Duration::from_secs(left)).filter(|left| !left.is_zero())
    }
}

/// As `2027-01-31 12:00:00 UTC`.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A certificate may say what no calendar has.
        let Ok(time) = OffsetDateTime::from_unix_timestamp(self.0) else {
            return write!(f, "{} s after 1970", self.0);
        };
        let (date, hour, minute, second) = (time.date(), time.hour(), time.minute(), time.second());
        write!(f, "{date} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// What is told of a certificate of ours.
pub(super) struct Said {
    /// For people.
    pub(super) subject: String,
    /// When it expires.
    pub(super) expires: Moment,
}

/// Reads a certificate.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Said, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let mut subject = parsed.subject().to_string();
    if subject.is_empty() {
        subject = names(&parsed).first().map(ToString::to_string).unwrap_or_default();
    }
    let subject = subject.chars().filter(|letter| !letter.is_control()).take(SHOWN).collect();
    Ok(Said { subject, expires: Moment(parsed.validity().not_after.timestamp()) })
}

/// Who shows a certificate that has been verified. One that cannot be read has no names.
pub(super) fn peer(certificate: &CertificateDer<'_>) -> PeerCertificate {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return PeerCertificate::default() };
    // Its last second is one in which it holds.
    let end = parsed.validity().not_after.timestamp().saturating_add(1);
    PeerCertificate::new(names(&parsed)).holding_until(u64::try_from(end).unwrap_or_default())
}

fn names(certificate: &X509Certificate<'_>) -> Vec<CertificateName> {
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let alternatives =
        alternatives.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let alternatives = alternatives.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => CertificateName::dns(name),
        GeneralName::URI(uri) => CertificateName::uri(uri),
        _ => None,
    });
    let common = certificate.subject().iter_common_name();
    let common = common.filter_map(|name| CertificateName::common(name.as_str().ok()?));
    // The subject first, of which there is little: so that a long list of the others keeps none of it out.
    common.chain(alternatives).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_times_are_read() {
        let mut params = rcgen::CertificateParams::new(vec!["Client.Example".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "batch jobs");
        let uri = "spiffe://example.org/jobs".try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        params.not_after = rcgen::date_time_ymd(2031, 2, 28);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let names: Vec<_> = peer(certificate.der()).names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["cn:batch jobs", "dns:client.example", "spiffe://example.org/jobs"]);
        assert_eq!(peer(certificate.der()).until(), Some(1_930_003_201));
        let said = read(certificate.der()).unwrap();
        assert!(said.subject.contains("batch jobs"), "{}", said.subject);
        assert_eq!(said.expires.to_string(), "2031-02-28 00:00:00 UTC");
        assert!(peer(&CertificateDer::from(vec![0x30, 0x82])).names().is_empty());
        assert!(read(&CertificateDer::from(Vec::new())).is_err());
    }

    proptest::proptest! {
        /// What authorities sign is theirs to choose: whatever it is, it is read or it is not.
        #[test]
        fn nothing_that_is_read_panics(at in 0usize..600, with: u8, cut in 0usize..600) {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            let mut bytes = params.self_signed(&key).unwrap().der().to_vec();
            bytes.truncate(bytes.len().max(1) - cut % bytes.len());
            let index = at % bytes.len();
            bytes[index] = with;
            let certificate = CertificateDer::from(bytes);
            let _ = (peer(&certificate), read(&certificate).map(|said| said.expires.to_string()));
        }
    }

    #[test]
    fn moments_are_shown_and_compared() {
        let check = |seconds: i64, expected: &str| assert_eq!(Moment(seconds).to_string(), expected);
        check(0, "1970-01-01 00:00:00 UTC");
        check(951_782_399, "2000-02-28 23:59:59 UTC");
        check(951_782_400, "2000-02-29 00:00:00 UTC");
        check(4_102_444_800, "2100-01-01 00:00:00 UTC");
        check(-1, "1969-12-31 23:59:59 UTC");
        let now = UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(Moment(160).left(now), Some(Duration::from_secs(60)));
        assert_eq!((Moment(100).left(now), Moment(-5).left(now)), (None, None));
    }
}
