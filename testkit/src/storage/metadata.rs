//! Instance metadata: what a cloud tells a machine, and only it, about itself; here what clients of its storage ask for to be let in.
//!
//! A fake: there is none where there is no cloud. What it gives is of use to [`Moto`](super::Moto), which lets everybody in whose name it can read, and to
//! [`SecureAzurite`](super::SecureAzurite).

use std::io::{self, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::Environment;
use crate::http::Head;

/// The role of the machine, by Amazon's name.
const ROLE: &str = "/latest/meta-data/iam/security-credentials/";
/// Where a token of Azure's is had.
const TOKEN: &str = "/msi/token";
/// What Azurite looks for in one, as a JWT has it: of no algorithm; for `https://storage.azure.com`, by `https://sts.windows.net/`, from 2020 to 2100.
const CLAIMS: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJhdWQiOiJodHRwczovL3N0b3JhZ2UuYXp1cmUuY29tIiwiaXNzIjoiaHR0cHM6Ly9zdHMud2luZG93cy5uZXQvMDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwLyIsImlhdCI6MTYwMDAwMDAwMCwibmJmIjoxNjAwMDAwMDAwLCJleHAiOjQxMDI0NDQ4MDB9";
/// What is a secret of what is given.
pub const SECRET: &str = "a-secret-of-the-instance";

/// A machine's metadata, as Amazon, Google and Microsoft give it.
#[derive(Debug)]
pub struct Metadata {
    address: SocketAddr,
    shared: Arc<Shared>,
    answering: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    asked: Mutex<Vec<String>>,
}

impl Metadata {
    /// Starts a server of it.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("the address of a listener");
        let shared = Arc::new(Shared::default());
        let answering = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while let Ok((client, _)) = listener.accept() {
                    if shared.is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    // Who leaves before an answer is none of our concern.
                    let _ = answer(&shared, client);
                }
            }
        });
        Self { address, shared, answering: Some(answering) }
    }

    /// Variables by which object_store finds it, for S3.
    pub fn amazon(&self) -> Environment {
        vec![("AWS_METADATA_ENDPOINT", format!("http://{}", self.address))]
    }

    /// The same for Google's storage; it reads them of its own process only.
    pub fn google(&self) -> Environment {
        vec![("GCE_METADATA_HOST", self.address.to_string())]
    }

    /// The same for Azure's, where an endpoint is named.
    pub fn microsoft(&self) -> Environment {
        vec![("IDENTITY_ENDPOINT", format!("http://{}{TOKEN}", self.address))]
    }

    /// What it was asked for: methods and paths.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // It waits for a connection: this one.
        let _ = TcpStream::connect(self.address);
        if let Some(answering) = self.answering.take() {
            let _ = answering.join();
        }
    }
}

fn answer(shared: &Shared, client: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let Some(head) = Head::read(&mut reader)? else { return Ok(()) };
    let mut words = head.first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {path}"));
    let body = match (method, path.strip_prefix(ROLE)) {
        ("GET", Some("")) => Some("replica".to_owned()),
        ("GET", Some("replica")) => Some(
            serde_json::json!({
                "AccessKeyId": "instance", "SecretAccessKey": SECRET, "Token": SECRET, "Expiration": "2100-01-01T00:00:00Z",
            })
            .to_string(),
        ),
        ("PUT", _) if path == "/latest/api/token" => Some("session".to_owned()),
        ("GET", _) if path == "/computeMetadata/v1/instance/service-accounts/default/token" => {
            // As much of a name as moto looks for in what lets somebody in.
            let token = format!("{SECRET}/20260101/us-east-1/s3/aws4_request");
            Some(serde_json::json!({ "access_token": token, "expires_in": 3600, "token_type": "Bearer" }).to_string())
        }
        ("GET", _) if path == TOKEN => {
            let token = format!("{CLAIMS}.{SECRET}");
            Some(serde_json::json!({ "access_token": token, "expires_on": "4102444800", "token_type": "Bearer" }).to_string())
        }
        _ => None,
    };
    let (status, body) = body.map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    reader.get_mut().write_all(format!("{head}{body}").as_bytes())
}
