//! Azurite: Azure Blob Storage as Microsoft plays it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Environment, Server};
use crate::{http, repository};

/// Its only account, and that account's key: Microsoft publishes both, for this.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Most that all blobs together may take of its memory, in MB.
const MEMORY: &str = "4096";

/// Azurite, with no container in it.
///
/// A client that is not told to use an emulator reaches it by [`Azurite::environment`] as it would reach Azure.
#[derive(Debug)]
pub struct Azurite(Server);

impl Azurite {
    /// A shared access signature, as a query: permits everything on every container until 2100, signed with the published key.
    ///
    /// Made in Python from the fields of an account's signature, in the order that Microsoft's *Create an account SAS* gives:
    /// ```text
    /// text = "\n".join(["devstoreaccount1", "rwdlac", "b", "sco", "", "2100-01-01T00:00:00Z", "", "", "2019-12-12", ""])
    /// quote(b64encode(hmac.new(b64decode(KEY), text.encode(), sha256).digest()), safe="")
    /// ```
    pub const SIGNATURE: &str = "sv=2019-12-12&ss=b&srt=sco&sp=rwdlac&se=2100-01-01T00:00:00Z&sig=6Px4DBl9EbhM9UYKYthc2apX3i0oLhrUr2ObbvoSsGs%3D";

    /// Whether it can be started.
    ///
    /// # Errors
    /// Why not, as a test says when it is skipped.
    pub fn available() -> Result<(), String> {
        if !repository().join(".node-azurite/outrigger-setup.txt").is_file() {
            return Err("no Azurite in .node-azurite: `cargo xtask setup` makes it".into());
        }
        let node = Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        match node {
            Ok(status) if status.success() => Ok(()),
            _ => Err("no Azurite: there is no Node.js to run it".into()),
        }
    }

    /// Starts one; where it cannot be, says `skipped` with the reason.
    ///
    /// # Panics
    /// As [`Azurite::start`].
    pub fn found() -> Option<Self> {
        Self::available().map_err(|reason| println!("skipped: {reason}")).ok().map(|()| Self::start())
    }

    /// Starts one, and returns when it listens.
    ///
    /// # Panics
    /// If it does not come up; the message has what it said.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let mut node = Command::new("node");
        node.arg("--require").arg(repository().join("testkit/storage/azurite/ends_with_its_parent.js"));
        node.arg(repository().join(".node-azurite/node_modules/azurite/dist/src/blob/main.js"));
        node.args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--silent", "--disableTelemetry"]);
        node.args(["--inMemoryPersistence", "--extentMemoryLimit", MEMORY]).args(arguments);
        // Nothing of the developer's own settings reaches it.
        for name in ["NODE_OPTIONS", "AZURITE_ACCOUNTS", "AZURITE_DB"] {
            node.env_remove(name);
        }
        Self(Server::start(node))
    }

    /// Where it listens, for a proxy in front of it.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Variables by which a client finds it: those that object_store's `MicrosoftAzureBuilder` reads.
    pub fn environment(&self) -> Environment {
        self.environment_at(self.address())
    }

    /// The same where it is reached through a proxy.
    pub fn environment_at(&self, address: SocketAddr) -> Environment {
        vec![
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.into()),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY.into()),
            ("AZURE_STORAGE_ENDPOINT", format!("http://{address}/{ACCOUNT}")),
            ("AZURE_ALLOW_HTTP", "true".into()),
        ]
    }

    /// Makes an empty container. Names are in lower case, of 3 letters and more.
    ///
    /// # Panics
    /// If it is not made: there is one of that name, or it is none.
    pub fn create_container(&self, name: &str) {
        self.put(&format!("{name}?restype=container&{}", Self::SIGNATURE), &[], &[]);
    }

    /// Puts a blob, in place of what was there.
    ///
    /// # Panics
    /// If there is no such container.
    pub fn put_blob(&self, container: &str, path: &str, bytes: &[u8]) {
        let target = format!("{container}/{path}?{}", Self::SIGNATURE);
        self.put(&target, &[("x-ms-blob-type", "BlockBlob")], bytes);
    }

    fn put(&self, target: &str, fields: &[(&str, &str)], bytes: &[u8]) {
        let target = format!("/{ACCOUNT}/{target}");
        let answer = http::ask(self.address(), "PUT", &target, fields, bytes).expect("Azurite answers");
        let said = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.head.status(), 201, "PUT {target}: {said}");
    }
}

/// Azurite that is spoken to by TLS, and lets in who has a token of an identity ([`super::Metadata`]). It looks at what a token says, and at no signature.
#[derive(Debug)]
pub struct SecureAzurite {
    azurite: Azurite,
    folder: TempDir,
}

impl SecureAzurite {
    /// Starts one; where it cannot be, says `skipped` with the reason.
    ///
    /// # Panics
    /// As [`Azurite::start`].
    pub fn found() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let started = Azurite::available().and_then(|()| certify(folder.path()));
        started.map_err(|reason| println!("skipped: {reason}")).ok()?;
        let path = |name: &str| folder.path().join(name).to_str().expect("a path of text").to_owned();
        let (certificate, key) = (path(CERTIFICATE), path(PRIVATE));
        let azurite = Azurite::start_with(&["--oauth", "basic", "--cert", &certificate, "--key", &key]);
        Some(Self { azurite, folder })
    }

    /// Variables by which a client finds it, and trusts it; not as whom it is let in.
    pub fn environment(&self) -> Environment {
        let certificate = self.folder.path().join(CERTIFICATE);
        vec![
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.into()),
            ("AZURE_STORAGE_ENDPOINT", format!("https://{}/{ACCOUNT}", self.azurite.address())),
            ("SSL_CERT_FILE", certificate.to_str().expect("a path of text").into()),
        ]
    }

    /// Makes an empty container.
    ///
    /// # Panics
    /// If it is not made.
    pub fn create_container(&self, name: &str) {
        let url = format!(
            "https://{}/{ACCOUNT}/{name}?restype=container&{}",
            self.azurite.address(),
            Azurite::SIGNATURE
        );
        let mut python = Command::new(crate::python());
        python.args(["-I", "-c", ASK, &url]).arg(self.folder.path().join(CERTIFICATE));
        let done = python.output().expect("Python");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Names of files.
const CERTIFICATE: &str = "certificate.pem";
const PRIVATE: &str = "key.pem";
/// `PUT`s nothing to a URL whose server has a certificate.
const ASK: &str = "
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
request = urllib.request.Request(sys.argv[1], data=b'', method='PUT')
assert urllib.request.urlopen(request, context=context, timeout=60).status == 201
";

/// Makes a certificate for a server of this machine, and its key.
fn certify(folder: &Path) -> Result<(), String> {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-out").arg(folder.join(CERTIFICATE)).arg("-keyout").arg(folder.join(PRIVATE));
    match openssl.stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("no certificate: openssl ended with {status}")),
        Err(error) => Err(format!("no certificate: there is no openssl: {error}")),
    }
}
