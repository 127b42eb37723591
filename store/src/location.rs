//! Where models are stored: a URL, and what is behind it.

mod azure;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod profile;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::digest::Digest;
use crate::path::FilePath;

/// Longest time for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a request that got no answer, or a refusal that may not last, is made again by the client of the storage. Reading of files has retries of
/// its own, above these: see [`crate::fetch`].
const RETRIES: usize = 2;
/// How long that goes on.
const RETRY_TIME: Duration = Duration::from_secs(20);
/// What URLs of storage begin with.
const SCHEMES: &[&str] =
    &["az", "adl", "azure", "abfs", "abfss", "s3", "s3a", "gs", "http", "https", "file", "ftp"];
/// Connections that are kept while nothing is asked.
const IDLE_CONNECTIONS: usize = 64;

/// Variables of the environment that credentials are taken from: those that the makers of the storage name, such as `AZURE_STORAGE_ACCOUNT_NAME`,
/// `AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`. What has none of them asks the platform: managed identities, instance metadata.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl<Name: Into<String>, Value: Into<String>> FromIterator<(Name, Value)> for Environment {
    fn from_iter<Variables: IntoIterator<Item = (Name, Value)>>(variables: Variables) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment(***)")
    }
}

/// What names a location: a URL, or a folder. It is shown without what may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct LocationText(String);

impl LocationText {
    /// Any text; whether it names something is known when it is opened.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same, a relative folder being below `base`.
    #[must_use]
    pub fn rebased(self, base: &Path) -> Self {
        if self.0.is_empty() || self.0.contains(":/") {
            return self;
        }
        base.join(&self.0).into_os_string().into_string().map_or(self, Self)
    }
}

impl fmt::Display for LocationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&scrubbed(&self.0))
    }
}

impl fmt::Debug for LocationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", scrubbed(&self.0))
    }
}

/// A folder, or an object, in some storage. What is shown of it has no credentials.
#[derive(Clone)]
pub struct Location {
    shown: String,
    store: Arc<dyn ObjectStore>,
    /// Of what tells the storage from others: see [`storage`].
    storage: Digest,
    at: ObjectPath,
    kind: LocationKind,
}

/// What kind of storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocationKind {
    /// A folder of a file system.
    Folder,
    /// Azure Blob Storage.
    Azure,
    /// S3, or what speaks its language.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// A web server: files are read, and nothing is listed or written.
    Http,
}

/// Why there is no such storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// A text that is no URL of a kind that is known.
    #[error(
        "`{shown}` is no storage that is known: a folder, or a URL that begins with az://, s3://, gs://, https://, http:// or file://"
    )]
    Unknown {
        /// What it says, without credentials.
        shown: String,
    },
    /// A folder that is not there, or cannot be opened.
    #[error("`{}` cannot be opened: {source}", path.display())]
    Folder {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A user, or a password, in a URL.
    #[error("`{shown}`: a user or a password in the URL of a web server is not taken")]
    User {
        /// Which, without them.
        shown: String,
    },
    /// A signed URL of something that is no folder of Azure's.
    #[error("`{shown}`: what follows the `?` is not taken here, only a SAS of Azure's")]
    Query {
        /// Which, without it.
        shown: String,
    },
    /// The client of the storage refuses it: something is missing, or is not what it should be.
    #[error("`{shown}` cannot be used: {source}")]
    Client {
        /// Which.
        shown: String,
        /// Why.
        source: object_store::Error,
    },
    /// A file with credentials that cannot be read, or is of another form.
    #[error("credentials cannot be read from `{}`: {reason}", path.display())]
    Credentials {
        /// Which.
        path: std::path::PathBuf,
        /// Why: never what is in it.
        reason: String,
    },
}

impl Location {
    /// Opens a URL or, where the text has no scheme, a folder, `base` being where relative ones begin. Nothing is asked of the storage yet.
    ///
    /// # Errors
    /// If there is no such kind of storage, no such folder, or something is missing to reach it.
    pub fn open(text: &str, base: &Path, environment: &Environment) -> Result<Self, LocationError> {
        let unknown = |shown: String| LocationError::Unknown { shown };
        if !text.contains("://") {
            // `az:/container` is a URL with a slash too few, and no folder.
            return match text.split_once(":/") {
                Some((scheme, _)) if SCHEMES.contains(&scheme) => Err(unknown(scrubbed(text))),
                _ => Self::folder(&base.join(text)),
            };
        }
        let url = Url::parse(text).map_err(|_| unknown(scrubbed(text)))?;
        let shown = scrubbed(url.as_str());
        let (scheme, at) = ObjectStoreScheme::parse(&url).map_err(|_| unknown(shown.clone()))?;
        let client = |source| LocationError::Client { shown: shown.clone(), source };
        let with = |prefix: &'static str| variables(environment, prefix);
        let (kind, said, store): (_, Vec<Option<String>>, Arc<dyn ObjectStore>) = match scheme {
            ObjectStoreScheme::Local => {
                let path = url.to_file_path().map_err(|()| unknown(shown.clone()))?;
                return Self::folder(&path);
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let builder =
                    MicrosoftAzureBuilder::new().with_client_options(options()).with_retry(retries());
                let builder = azure::configure(builder, &url, environment, with("AZURE_"));
                let keys = [
                    AzureConfigKey::AccountName,
                    AzureConfigKey::Endpoint,
                    AzureConfigKey::UseEmulator,
                    AzureConfigKey::UseFabricEndpoint,
                ];
                let said = keys.iter().map(|key| builder.get_config_value(key)).collect();
                (LocationKind::Azure, said, Arc::new(builder.build().map_err(client)?))
            }
            ObjectStoreScheme::AmazonS3 => {
                let mut builder = AmazonS3Builder::new().with_client_options(options()).with_retry(retries());
                for (name, value) in profile::credentials(environment)?.into_iter().chain(with("AWS_")) {
                    if let Ok(key) = name.parse() {
                        builder = builder.with_config(key, value);
                    }
                }
                let keys =
                    [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Region];
                let said = keys.iter().map(|key| builder.get_config_value(key)).collect();
                (LocationKind::S3, said, Arc::new(builder.with_url(bare(&url)).build().map_err(client)?))
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let mut builder =
                    GoogleCloudStorageBuilder::new().with_client_options(options()).with_retry(retries());
                for (name, value) in with("GOOGLE_") {
                    if let Ok(key) = name.parse() {
                        builder = builder.with_config(key, value);
                    }
                }
                let said = vec![builder.get_config_value(&GoogleConfigKey::BaseUrl)];
                (LocationKind::Gcs, said, Arc::new(builder.with_url(bare(&url)).build().map_err(client)?))
            }
            ObjectStoreScheme::Http if !url.username().is_empty() || url.password().is_some() => {
                return Err(LocationError::User { shown });
            }
            ObjectStoreScheme::Http if url.query().is_some() => return Err(LocationError::Query { shown }),
            ObjectStoreScheme::Http => {
                let host = &url[..url::Position::BeforePath];
                let options = options().with_allow_http(url.scheme() == "http");
                let builder = HttpBuilder::new().with_client_options(options).with_retry(retries());
                (LocationKind::Http, Vec::new(), Arc::new(builder.with_url(host).build().map_err(client)?))
            }
            _ => return Err(unknown(shown)),
        };
        Ok(Self { shown, store, storage: storage(&bare(&url), &said), at, kind })
    }

    /// A folder of a file system.
    fn folder(path: &Path) -> Result<Self, LocationError> {
        let shown = path.display().to_string();
        let path =
            path.canonicalize().map_err(|source| LocationError::Folder { path: path.to_owned(), source })?;
        // Of the whole file system, so that a file can be a location of its own.
        let at = ObjectPath::from_absolute_path(&path)
            .map_err(|error| LocationError::Client { shown: shown.clone(), source: error.into() })?;
        let store = Arc::new(LocalFileSystem::new().with_fsync(true));
        Ok(Self { shown, store, storage: storage("file:", &[]), at, kind: LocationKind::Folder })
    }

    /// What kind of storage it is.
    pub fn kind(&self) -> LocationKind {
        self.kind
    }

    /// What is asked.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Where in the storage it is.
    pub fn at(&self) -> &ObjectPath {
        &self.at
    }

    /// What tells it from every other location: the same URL is another one where the environment says so. Nothing of it can be read.
    pub(crate) fn identity(&self) -> Digest {
        Digest::of_all([self.storage.to_string().as_bytes(), self.at.as_ref().as_bytes()])
    }

    /// A folder or an object below it, by one name.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        let shown = format!("{}/{name}", self.shown.trim_end_matches('/'));
        let at = if self.at.as_ref().is_empty() { name.to_owned() } else { format!("{}/{name}", self.at) };
        // What is looked at before it comes here is taken as it is; anything else is encoded until it is a path.
        let at = ObjectPath::parse(&at).unwrap_or_else(|_| ObjectPath::from(at));
        Self { shown, at, ..self.clone() }
    }

    /// A file below it.
    #[must_use]
    pub fn file(&self, path: &FilePath) -> Self {
        self.below(path.as_str())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.shown)
    }
}

/// A text in which URLs have neither user and password nor query: both may be secrets.
pub(crate) fn scrubbed(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for (index, word) in text.split(' ').enumerate() {
        if index > 0 {
            clean.push(' ');
        }
        let Some((scheme, rest)) = word.split_once("://") else {
            clean.push_str(word);
            continue;
        };
        let (rest, query) = match rest.split_once(['?', '#']) {
            Some((rest, _)) => (rest, "?***"),
            None => (rest, ""),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // In `az://container@account/…` what comes before the `@` is no user.
        let is_web = scheme.ends_with("http") || scheme.ends_with("https");
        let authority = match authority.rsplit_once('@') {
            Some((user, host)) if is_web || user.contains(':') => format!("***@{host}"),
            _ => authority.to_owned(),
        };
        clean.push_str(&format!("{scheme}://{authority}{path}{query}"));
    }
    clean
}

/// What tells a storage from others: its URL, and what the environment says of where it is, be it an account, an endpoint, or a region. Credentials, which
/// come and go, are not in it, and a digest is all that is kept of it.
fn storage(url: &str, said: &[Option<String>]) -> Digest {
    let said = said.iter().map(|value| value.as_deref().unwrap_or_default().as_bytes());
    Digest::of_all(std::iter::once(url.as_bytes()).chain(said))
}

/// A URL without its query, which is a SAS or nothing that is known.
fn bare(url: &Url) -> String {
    url[..url::Position::AfterPath].to_owned()
}

/// The variables with a prefix, by their names in lower case.
fn variables(environment: &Environment, prefix: &'static str) -> impl Iterator<Item = (String, String)> {
    let variables = environment.0.iter().filter(move |(name, _)| name.starts_with(prefix));
    variables.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
}

fn options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        // How long a file may take depends on its size. Who reads it looks at whether anything comes.
        .with_timeout_disabled()
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS)
        .with_user_agent(http::HeaderValue::from_static(concat!("outrigger/", env!("CARGO_PKG_VERSION"))))
}

fn retries() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_TIME }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Location, LocationError> {
        let environment: Environment = [
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
            ("TIMEOUT", "not for us"),
        ]
        .into_iter()
        .collect();
        assert!(!format!("{environment:?}").contains("secret"));
        Location::open(text, Path::new("/"), &environment)
    }

    #[test]
    fn urls_of_all_kinds_are_opened() {
        for (text, kind, at) in [
            ("az://models/a/b", LocationKind::Azure, "a/b"),
            ("https://account.blob.core.windows.net/models/a", LocationKind::Azure, "a"),
            ("s3://bucket/a", LocationKind::S3, "a"),
            ("gs://bucket/", LocationKind::Gcs, ""),
            ("https://example.com/a/b.onnx", LocationKind::Http, "a/b.onnx"),
            ("file:///usr", LocationKind::Folder, "usr"),
            ("usr", LocationKind::Folder, "usr"),
        ] {
            let location = open(text).expect("a location");
            assert_eq!((location.kind(), location.at().as_ref()), (kind, at), "{text}");
        }
    }

    #[test]
    fn others_are_refused_by_name() {
        for text in ["ftp://example.com/a", "memory:///", "az:///a", "://", "s3://", "az:/models", "s3:/a"] {
            assert!(open(text).is_err(), "{text}");
        }
        let error = open("/no/such/folder").expect_err("no folder").to_string();
        assert!(error.starts_with("`/no/such/folder` cannot be opened"), "{error}");
    }

    #[test]
    fn what_is_shown_has_no_credentials() {
        for text in [
            "https://account.blob.core.windows.net/models/a?sv=2024&sig=hush",
            "https://user:hush@example.com/models/a",
            "https://hush@example.com/a#hush",
            "https://example.com/a?X-Amz-Signature=hush",
            "https://user:hush@exa mple.com/a",
            "gopher://me:hush@example.com/?hush",
        ] {
            let said = match open(text) {
                Ok(location) => format!("{location} {location:?} {}", location.below("b")),
                Err(error) => format!("{error} {error:?}"),
            };
            let said = format!("{said} {0} {0:?}", LocationText::new(text));
            assert!(!said.contains("hush"), "{said}");
            assert!(said.contains("e"), "{said}");
        }
    }

    #[test]
    fn one_location_is_told_from_another_whoever_asks() {
        let identity = |text: &str, more: &[(&str, &str)]| {
            let given = [
                ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
                ("AWS_ACCESS_KEY_ID", "id"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                ("GOOGLE_SKIP_SIGNATURE", "true"),
            ];
            let environment: Environment = given.iter().chain(more).copied().collect();
            Location::open(text, Path::new("/"), &environment).expect("a location").identity()
        };
        for (text, same, other) in [
            ("az://models/a", ("AZURE_STORAGE_ACCOUNT_KEY", "b3RoZXI="), ("AZURE_STORAGE_ACCOUNT_NAME", "b")),
            (
                "az://models/a",
                ("AZURE_STORAGE_SAS_KEY", "sig=a"),
                ("AZURE_STORAGE_ENDPOINT", "https://a.example"),
            ),
            ("s3://bucket/a", ("AWS_SESSION_TOKEN", "t"), ("AWS_ENDPOINT_URL", "https://a.example")),
            ("s3://bucket/a", ("AWS_SECRET_ACCESS_KEY", "t"), ("AWS_REGION", "cn-north-1")),
            ("gs://bucket/a", ("SSL_CERT_FILE", "t"), ("GOOGLE_BASE_URL", "https://a.example")),
        ] {
            let here = identity(text, &[]);
            assert_eq!(identity(text, &[same]), here, "{same:?}");
            assert_ne!(identity(text, &[other]), here, "{other:?}");
            assert_ne!(identity(&format!("{text}/b"), &[]), here);
        }
        let signed = |signature| {
            identity(&format!("https://account.blob.core.windows.net/models/a?sig={signature}"), &[])
        };
        assert_eq!(signed("one"), signed("two"));
        let folder = open("usr").expect("a location");
        assert_ne!(folder.identity(), folder.below("bin").identity());
    }

    #[test]
    fn names_below_are_kept_as_they_are() {
        let location = open("s3://bucket/models").expect("a location");
        let file = location.file(&FilePath::new("a b/~é%20#.onnx").expect("a path"));
        assert_eq!(file.at().as_ref(), "models/a b/~é%20#.onnx");
        assert_eq!(open("s3://bucket").expect("a location").below("x").at().as_ref(), "x");
    }
}
