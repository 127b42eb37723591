//! Models in blob storage, and their files on disk.
//!
//! ```text
//! location   a URL, and what is behind it
//! manifest   what the files of a version are: written last, signed if wanted (`signature`)
//! registry   which models there are in a location: list, push
//! fetch      files out of storage into the cache, each held against its digest
//! cache      files by their digests, shared by all who run on the machine
//! archive    tar and zip, read with bounds
//! tree       a model's files where its users look for them
//! ```

pub mod archive;
pub mod cache;
pub mod digest;
pub mod fetch;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod id;
pub mod location;
pub mod manifest;
pub mod path;
pub mod registry;
pub mod signature;
pub mod tree;

pub use cache::{Cache, Member};
pub use digest::Digest;
pub use fetch::{FetchError, FetchOptions, Fetcher, FileSet, Watch};
pub use id::{Label, ModelId, ModelName, ModelWish, NoModel, Which};
pub use location::{Environment, Location, LocationError, LocationKind, LocationText};
pub use manifest::{Manifest, ManifestError, ManifestFile};
pub use path::{FilePath, PathError};
pub use registry::Registry;
