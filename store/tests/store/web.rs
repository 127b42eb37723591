//! A plain web server: Python's, which knows no ranges.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use outrigger_store::{Environment, FetchError, Fetcher, Location, Registry};

use crate::place::{Place, bytes, content, options};

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(folder: &std::path::Path) -> Self {
        let mut command = Command::new(outrigger_testkit::python());
        command.args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]).current_dir(folder);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("Python");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it was asked for");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.split('(').nth(1).and_then(|rest| rest.split('/').nth(2)).expect("an address");
        Self { address: address.to_owned(), child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn models_come_from_a_server_that_knows_no_ranges() {
    let place = Place::folder();
    let large = bytes(300_000, 7);
    let folder = place.write("digits", &[("model.onnx", &large), ("a b.txt", b"text")]);
    let manifest = place.push("digits", &folder).await.expect("pushed");
    let server = Server::start(&place.folder.path().join("registry"));
    let url = format!("http://{}/", server.address);
    let at = Location::open(&url, std::path::Path::new("/"), &Environment::default()).expect("a location");
    let registry = Registry::new(at);
    let fetched = registry.manifest(manifest.id(), &[]).await.expect("a manifest");
    assert_eq!(fetched, manifest);
    let fetcher = Fetcher::new(place.cache("cache"), options());
    let set = fetcher.model(&registry.folder(manifest.id()), &manifest, &()).await.expect("it is fetched");
    assert_eq!(content(fetcher.cache(), &set, "digits/model.onnx"), large);
    assert_eq!(content(fetcher.cache(), &set, "digits/a b.txt"), b"text");
    let error = registry.list().await.expect_err("nothing is listed");
    assert!(matches!(error, FetchError::Web { .. }), "{error}");
    assert!(error.to_string().contains("cannot be listed or written"), "{error}");
    let missing = registry.manifest(&"digits:2".parse().expect("an id"), &[]).await.expect_err("not there");
    assert!(matches!(missing, FetchError::NotFound { .. }), "{missing}");
}
