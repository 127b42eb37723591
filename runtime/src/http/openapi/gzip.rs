//! Answers as gzip, for who takes that: descriptions are long, and the same words again and again.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// The bytes as gzip.
///
/// # Errors
/// None in memory.
pub(super) fn gzip(bytes: &[u8], level: Compression) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes)?;
    encoder.finish().map(Bytes::from)
}

/// Whether an answer may be gzip: it is named, or all are, and its weight is not nought.
pub(super) fn takes_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut named = None;
    for part in values.flat_map(|value| value.split(',')) {
        let mut pieces = part.split(';').map(str::trim);
        let coding = pieces.next().unwrap_or_default();
        let mut weights = pieces.filter_map(|piece| piece.split_once('='));
        let weight = weights.find(|(name, _)| name.trim_end().eq_ignore_ascii_case("q"));
        // One that is no number is not a wish for it.
        let taken = weight.is_none_or(|(_, weight)| weight.trim().parse::<f32>().is_ok_and(|of| of > 0.0));
        if coding.eq_ignore_ascii_case("gzip") {
            return taken;
        }
        if coding == "*" {
            named = Some(taken);
        }
    }
    named.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn who_takes_gzip_gets_it() {
        let of = |value: &'static str| {
            takes_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        assert!(of("gzip") && of("br, GZIP;q=0.5") && of("*") && of("identity, *;q=0.1"));
        assert!(!of("gzip;Q=0") && !of("gzip ; q = 0.000") && !of("gzip;a=b;q=0.") && !of("*;Q=0"));
        assert!(
            !of("") && !of("br") && !of("gzip;q=0") && !of("*, gzip;q=0") && !takes_gzip(&HeaderMap::new())
        );
    }
}
