//! Small objects: manifests, signatures, labels.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use futures_util::TryStreamExt as _;
use object_store::{GetOptions, ObjectStore as _};

use super::tagged::Tag;
use crate::fetch::FetchError;
use crate::location::Location;
use crate::manifest::ManifestError;

/// How often such an object is asked for before it counts as failed, beside what the client of the storage does by itself...
const ATTEMPTS: usize = 4;
/// ...and the first pause in between; it doubles.
const PAUSE: Duration = Duration::from_millis(300);
/// Longest time for one attempt.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An object that fits into memory.
pub(super) struct Small {
    pub(super) bytes: Vec<u8>,
    /// What the answer says that its state is.
    pub(super) tag: Option<Tag>,
}

/// Reads one, in several attempts where something may pass.
pub(super) async fn small(at: &Location, at_most: u64) -> Result<Small, FetchError> {
    let pauses =
        ExponentialBuilder::default().with_min_delay(PAUSE).with_max_times(ATTEMPTS - 1).with_jitter();
    (|| read_small(at, at_most)).retry(pauses).when(FetchError::may_pass).await
}

/// The same, once: no more than `at_most` bytes of it are read.
async fn read_small(at: &Location, at_most: u64) -> Result<Small, FetchError> {
    let read = async {
        let error = |error: object_store::Error| FetchError::of(at, &error);
        let answer = at.store().get_opts(at.at(), GetOptions::default()).await.map_err(error)?;
        let too_large = |size| {
            let source = ManifestError::Large { size };
            FetchError::Manifest { at: at.to_string(), source }
        };
        if answer.meta.size > at_most {
            return Err(too_large(answer.meta.size));
        }
        let tag = Tag::of(&answer.meta);
        let mut stream = answer.into_stream();
        let mut bytes = Vec::new();
        while let Some(more) = stream.try_next().await.map_err(error)? {
            bytes.extend_from_slice(&more);
            if bytes.len() as u64 > at_most {
                return Err(too_large(bytes.len() as u64));
            }
        }
        Ok(Small { bytes, tag })
    };
    let stalled = |_| FetchError::Stalled { at: at.to_string(), seconds: TIMEOUT.as_secs() };
    tokio::time::timeout(TIMEOUT, read).await.map_err(stalled)?
}
