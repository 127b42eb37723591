//! Why files cannot be had, and whether it is worth trying again.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::archive::ArchiveError;
use crate::cache::RoomError;
use crate::digest::Digest;
use crate::location::scrubbed;
use crate::manifest::ManifestError;

/// Why a file, or a model, cannot be had. No message has credentials in it, whatever the storage said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The storage has no such object.
    #[error("`{at}` is not there")]
    NotFound {
        /// Where.
        at: String,
    },
    /// The storage does not let us.
    #[error("access to `{at}` is refused: {said}")]
    Denied {
        /// Where.
        at: String,
        /// What the storage says.
        said: String,
    },
    /// The storage, or the way to it, fails.
    #[error("`{at}`: {said}")]
    Storage {
        /// Where.
        at: String,
        /// What it says.
        said: String,
    },
    /// It is asked for something that it, or its client, does not know; the same request will not do later either.
    #[error("`{at}` cannot be asked for: {said}")]
    Refused {
        /// Where.
        at: String,
        /// What it says.
        said: String,
    },
    /// Nothing came for too long.
    #[error("`{at}` stopped coming: nothing for {seconds} s")]
    Stalled {
        /// Where.
        at: String,
        /// For how long.
        seconds: u64,
    },
    /// It is larger than a piece, and whoever has it gives parts of it at one time and as a whole only at another.
    #[error(
        "`{at}` comes from a server that does not always give parts of files; use a server or proxy that does, or raise store.piece above the size of the file"
    )]
    NoRanges {
        /// Where.
        at: String,
    },
    /// It is another object than when its first piece was read.
    #[error("`{at}` was changed while it was read")]
    Changed {
        /// Where.
        at: String,
    },
    /// It is larger or smaller than its manifest says.
    #[error("`{at}` has {found} bytes, and {wanted} according to its manifest")]
    Size {
        /// Where.
        at: String,
        /// Bytes that it has.
        found: u64,
        /// Bytes that it should have.
        wanted: u64,
    },
    /// Two manifests, or two files of one, state different sizes for the same bytes.
    #[error(
        "`{at}` has {size} bytes according to its manifest, and {other} according to another with the same SHA-256 {sha256}"
    )]
    Sizes {
        /// Where.
        at: String,
        /// Of both.
        sha256: Digest,
        /// Bytes that it should have.
        size: u64,
        /// Bytes that the other should have.
        other: u64,
    },
    /// Its bytes are not those of its manifest, however often they are read.
    #[error("`{at}` has the SHA-256 {found}, and {wanted} according to its manifest")]
    Digest {
        /// Where.
        at: String,
        /// What came.
        found: Digest,
        /// What should have come.
        wanted: Digest,
    },
    /// Its manifest is none.
    #[error("`{at}`: {source}")]
    Manifest {
        /// Where.
        at: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// Its manifest is not signed by somebody who is trusted.
    #[error("`{at}`: {source}")]
    Signature {
        /// Where.
        at: String,
        /// What is wrong with it.
        source: crate::signature::SignatureError,
    },
    /// It is an archive that cannot be unpacked.
    #[error("`{at}` cannot be unpacked: {}", chain(source))]
    Archive {
        /// Where.
        at: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// It is an archive that is removed from the cache, each time before it is unpacked.
    #[error("`{at}` makes way in the cache before it can be unpacked; raise store.cache_size")]
    Evicted {
        /// Where.
        at: String,
    },
    /// Two files of a model would lie in one place once its archives are unpacked.
    #[error("`{path}` is in the model twice, once its archives are unpacked")]
    Clash {
        /// Where.
        path: String,
    },
    /// The cache has no room.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The file system of the cache fails.
    #[error("the cache `{}`: {source}", root.display())]
    Cache {
        /// Which.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A label holds what is no version.
    #[error("`{at}` does not say which version it stands for")]
    Label {
        /// Where.
        at: String,
        /// What it holds.
        source: crate::id::NoModel,
    },
    /// It needs what a plain web server lacks.
    #[error("`{at}` cannot be listed or written: it is a web server")]
    Web {
        /// Where.
        at: String,
    },
}

impl FetchError {
    /// What the client of a storage says of an object.
    pub(crate) fn of(at: impl fmt::Display, error: &object_store::Error) -> Self {
        use object_store::Error;
        let at = at.to_string();
        match error {
            Error::NotFound { .. } => Self::NotFound { at },
            Error::Precondition { .. } => Self::Changed { at },
            // Its client says so of an answer that has all of it; nothing else that is asked of it is not supported anywhere.
            Error::NotSupported { .. } => Self::NoRanges { at },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Self::Denied { at, said: said(error) }
            }
            Error::InvalidPath { .. }
            | Error::NotImplemented { .. }
            | Error::UnknownConfigurationKey { .. } => Self::Refused { at, said: said(error) },
            _ => Self::Storage { at, said: said(error) },
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Storage { .. } | Self::Stalled { .. })
    }
}

/// Longest text of others in a message, characters.
const MAX_SAID: usize = 400;

/// An error of a storage's, in one line, and without what in URLs may be a secret.
fn said(error: &object_store::Error) -> String {
    let line = chain(error).split_whitespace().collect::<Vec<_>>().join(" ");
    scrubbed(&line).chars().filter(|character| !character.is_control()).take(MAX_SAID).collect()
}

/// An error with all that is below it, none of it twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_signatures_of_urls() {
        let source = "Error performing GET https://a.example/c/x?sv=1&sig=hush in 1s\n - (https://a.example/?sig=hush)".into();
        let error = object_store::Error::Generic { store: "MicrosoftAzure", source };
        let error = FetchError::of("az://c/x", &error);
        assert!(error.may_pass());
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("`az://c/x`: Generic MicrosoftAzure error: Error performing GET https://a.example/c/x?*** in 1s"), "{text}");
    }

    #[test]
    fn what_cannot_be_asked_for_is_not_asked_for_again() {
        let error = object_store::Error::NotImplemented { operation: "x".into(), implementer: "y".into() };
        let error = FetchError::of("a", &error);
        assert!(matches!(error, FetchError::Refused { .. }) && !error.may_pass(), "{error}");
        let error = object_store::Error::UnknownConfigurationKey { store: "S3", key: "x".into() };
        assert!(!FetchError::of("a", &error).may_pass());
    }

    #[test]
    fn long_texts_of_others_are_cut() {
        let source = "x".repeat(100_000).into();
        let error = object_store::Error::Generic { store: "S3", source };
        assert!(FetchError::of("a", &error).to_string().len() < 500);
    }
}
