//! Request bodies that came compressed: inflated piece by piece, within limits of size and of ratio.

use std::sync::Arc;

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_protocol::error::{CallError, ErrorCode};

use crate::apart::apart;
use crate::busy::{Busy, Reserved};
use crate::config::LimitsConfig;

/// Memory is taken in steps of so many bytes.
const STEP: usize = 64 * 1024;
/// Short bodies may have any ratio: so much costs nobody anything.
const FREE: usize = 64 * 1024;

/// How a body was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 1950, as `deflate` is defined in HTTP.
    Zlib,
}

impl Coding {
    /// What a header says: `Content-Encoding`, or gRPC's.
    ///
    /// # Errors
    /// `unsupported_media_type` for another coding, and for several.
    pub(super) fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Self, CallError> {
        let mut values = headers.get_all(name).iter();
        let (first, second) = (values.next(), values.next());
        match first.map(HeaderValue::as_bytes) {
            _ if second.is_some() => {}
            None | Some(b"identity" | b"") => return Ok(Self::Identity),
            Some(name) if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") => {
                return Ok(Self::Gzip);
            }
            Some(name) if name.eq_ignore_ascii_case(b"deflate") => return Ok(Self::Zlib),
            Some(_) => {}
        }
        let text = format!("`{name}` is none of identity, gzip and deflate");
        Err(CallError::new(ErrorCode::UnsupportedMediaType, text))
    }
}

/// Inflates a body, to `most` bytes at most. The memory of the result is counted for as long as the second value lives.
///
/// # Errors
/// `bad_request` for what is not compressed so, `body_too_large` for what becomes more than that, or more than `limits.inflate`
/// times as long, `overloaded` when all bodies together hold too much.
pub(super) fn inflate(
    coding: Coding,
    body: &[u8],
    most: usize,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
) -> Result<(Bytes, Reserved), CallError> {
    let bounds = Bounds { bytes: most, ratio: limits.inflate, all: limits.bodies };
    apart(body.len().saturating_mul(8), || inflate_here(coding, body, bounds, busy))
}

/// What a body may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// So many bytes.
    pub(crate) bytes: usize,
    /// So many times as long as it came.
    pub(crate) ratio: usize,
    /// So many bytes with all other bodies.
    pub(crate) all: usize,
}

pub(crate) fn inflate_here(
    coding: Coding,
    body: &[u8],
    bounds: Bounds,
    busy: &Arc<Busy>,
) -> Result<(Bytes, Reserved), CallError> {
    let wrong = || CallError::new(ErrorCode::BadRequest, "the body is not compressed as its header says");
    let mut inflater = match coding {
        Coding::Identity => return Err(wrong()),
        Coding::Gzip => Decompress::new_gzip(15),
        Coding::Zlib => Decompress::new(true),
    };
    let most = body.len().saturating_mul(bounds.ratio).max(FREE).min(bounds.bytes);
    let mut reserved = busy.reserve(0, bounds.all).ok_or_else(|| super::body::full(busy))?;
    let mut inflated = Vec::new();
    loop {
        let before = (inflater.total_in(), inflater.total_out());
        if inflated.len() == inflated.capacity() {
            // One more than is allowed is asked for, to see whether there is more.
            let step = STEP.max(inflated.len()).min(most.saturating_sub(inflated.len())) + 1;
            if !reserved.grow_to(inflated.len() + step, bounds.all) {
                return Err(super::body::full(busy));
            }
            inflated.try_reserve_exact(step).map_err(|_| super::body::full(busy))?;
        }
        let rest = usize::try_from(before.0).ok().and_then(|taken| body.get(taken..)).unwrap_or_default();
        let status =
            inflater.decompress_vec(rest, &mut inflated, FlushDecompress::None).map_err(|_| wrong())?;
        if inflated.len() > most {
            let text = if most == bounds.bytes {
                format!("the body becomes larger than {most} bytes, the limit")
            } else {
                format!("the body becomes more than {} times as long, limits.inflate", bounds.ratio)
            };
            return Err(CallError::new(ErrorCode::BodyTooLarge, text));
        }
        match status {
            Status::StreamEnd if inflater.total_in() == body.len() as u64 => {
                return Ok((Bytes::from(inflated), reserved));
            }
            // Something follows its end.
            Status::StreamEnd => return Err(wrong()),
            // It is cut short.
            _ if (inflater.total_in(), inflater.total_out()) == before => return Err(wrong()),
            _ => {}
        }
    }
}

/// The same for a body that may be not compressed at all, and then stays as it is.
///
/// # Errors
/// As [`inflate`].
pub(super) fn inflated(
    coding: Coding,
    (body, reserved): (Bytes, Reserved),
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
) -> Result<(Bytes, Reserved), CallError> {
    match coding {
        Coding::Identity => Ok((body, reserved)),
        coding => inflate(coding, &body, limits.body, limits, busy),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn limits() -> LimitsConfig {
        let sources = crate::config::Sources {
            environment: vec![("HOME".into(), "/home/u".into())],
            file: Some(("/o.toml".into(), "model_dir = '/m'".into())),
            ..Default::default()
        };
        crate::config::load(&sources).unwrap().0.limits
    }

    fn read(coding: Coding, body: &[u8], limits: &LimitsConfig) -> Result<Vec<u8>, ErrorCode> {
        let busy = Busy::new(1);
        let read = inflate(coding, body, limits.body, limits, &busy).map_err(|error| error.code);
        let (bytes, reserved) = read?;
        assert!(busy.bodies() >= bytes.len() as u64, "it is counted");
        drop((bytes.clone(), reserved));
        assert_eq!(busy.bodies(), 0);
        Ok(bytes.to_vec())
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let limits = limits();
        let long: Vec<u8> =
            (0..300_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for bytes in [&b""[..], b"x", &long] {
            assert_eq!(read(Coding::Gzip, &gzip(bytes), &limits).unwrap(), bytes);
            assert_eq!(read(Coding::Zlib, &zlib(bytes), &limits).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_such_stream_is_refused() {
        let (limits, good) = (limits(), gzip(b"some text that is long enough"));
        for wrong in [&b""[..], b"some text", &good[..good.len() - 1], &[&good[..], b"more"].concat()] {
            assert_eq!(read(Coding::Gzip, wrong, &limits), Err(ErrorCode::BadRequest));
        }
        let mut damaged = good.clone();
        damaged[14] ^= 0x55;
        assert_eq!(read(Coding::Gzip, &damaged, &limits), Err(ErrorCode::BadRequest));
        assert_eq!(read(Coding::Zlib, &good, &limits), Err(ErrorCode::BadRequest));
    }

    #[test]
    fn nothing_becomes_larger_than_it_may() {
        let zeros = vec![0; 10 << 20];
        let bomb = gzip(&zeros);
        assert_eq!(read(Coding::Gzip, &bomb, &limits()), Err(ErrorCode::BodyTooLarge), "1000 times as long");
        let ratio = LimitsConfig { inflate: 10_000, ..limits() };
        assert_eq!(read(Coding::Gzip, &bomb, &ratio).unwrap().len(), zeros.len());
        for (body, fits) in [(zeros.len(), true), (zeros.len() - 1, false)] {
            let limits = LimitsConfig { body, ..ratio.clone() };
            assert_eq!(read(Coding::Gzip, &bomb, &limits).is_ok(), fits);
        }
        let all = LimitsConfig { bodies: 1 << 20, ..ratio };
        assert_eq!(read(Coding::Gzip, &bomb, &all), Err(ErrorCode::Overloaded));
        // What is short costs nobody anything.
        assert_eq!(read(Coding::Gzip, &gzip(&[0; 64 * 1024]), &limits()).unwrap().len(), 64 * 1024);
    }

    #[test]
    fn codings_have_names() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-encoding", HeaderValue::from_static(value));
            Coding::of(&headers, &http::header::CONTENT_ENCODING).map_err(|error| error.code)
        };
        assert_eq!(
            (of("gzip"), of("GZip"), of("x-gzip")),
            (Ok(Coding::Gzip), Ok(Coding::Gzip), Ok(Coding::Gzip))
        );
        assert_eq!((of("deflate"), of("identity")), (Ok(Coding::Zlib), Ok(Coding::Identity)));
        assert_eq!(of("br"), Err(ErrorCode::UnsupportedMediaType));
        assert_eq!(of("gzip, gzip"), Err(ErrorCode::UnsupportedMediaType));
    }
}
