//! Real storage, reached by the client that models are fetched with, through a proxy.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use outrigger_testkit::faults::{Fault, On, Proxy};
use outrigger_testkit::storage::{Azurite, Environment, Moto};

/// The variables as settings: a process cannot safely write into its environment.
fn settings(environment: Environment) -> impl Iterator<Item = (String, String)> {
    environment.into_iter().map(|(name, value)| (name.to_lowercase(), value))
}

fn azure(azurite: &Azurite, proxy: &Proxy) -> impl ObjectStore {
    let mut builder = MicrosoftAzureBuilder::new().with_container_name("models");
    for (name, value) in settings(azurite.environment_at(proxy.address())) {
        builder = builder.with_config(name.parse().expect("a setting"), value);
    }
    builder.build().expect("a client")
}

fn s3(moto: &Moto, proxy: &Proxy) -> impl ObjectStore {
    let mut builder = AmazonS3Builder::new().with_bucket_name("models");
    for (name, value) in settings(moto.environment_at(proxy.address())) {
        builder = builder.with_config(name.parse().expect("a setting"), value);
    }
    builder.build().expect("a client")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What goes in comes out, also where the connection breaks; a byte that is another one is seen.
fn put_and_get(store: &impl ObjectStore, proxy: &Proxy) {
    let content: Vec<u8> = (0..300_000_u32).map(|at| (at % 253) as u8).collect();
    let path = Path::from("digits/1/weights.bin");
    let get = async || store.get(&path).await.unwrap().bytes().await.unwrap();
    runtime().block_on(async {
        store.put(&path, content.clone().into()).await.unwrap();
        assert_eq!(get().await, content);
        proxy.inject(On::get(), Fault::Reset { after: 100_000 });
        assert_eq!(get().await, content);
        proxy.inject(On::get(), Fault::Corrupt { at: 7 });
        let changed = get().await;
        assert_eq!((changed[7], changed.len()), (content[7] ^ 1, content.len()));
    });
    let counts = proxy.counts(&On::get().path("weights.bin"));
    assert_eq!((counts.faulty, counts.sent), (2, 900_000), "only what was missing was asked for again");
    assert_eq!(proxy.counts(&On::method("PUT")).received, 300_000);
    let again = proxy.counts(&On::get().range("bytes=100000-"));
    assert_eq!((again.requests, again.sent), (1, 200_000));
}

#[test]
fn azure_through_a_proxy() {
    let Some(azurite) = Azurite::found() else { return };
    azurite.create_container("models");
    let proxy = Proxy::start(azurite.address());
    let store = azure(&azurite, &proxy);
    put_and_get(&store, &proxy);
    changed_meanwhile(&store, &proxy, move |bytes| azurite.put_blob("models", "changing", bytes));
}

#[test]
fn s3_through_a_proxy() {
    let Some(moto) = Moto::found() else { return };
    moto.create_bucket("models");
    let proxy = Proxy::start(moto.address());
    let store = s3(&moto, &proxy);
    put_and_get(&store, &proxy);
    changed_meanwhile(&store, &proxy, move |bytes| moto.put_object("models", "changing", bytes));
}

/// An object that is another one when the rest of it is asked for is noticed.
fn changed_meanwhile(store: &impl ObjectStore, proxy: &Proxy, put: impl Fn(&[u8]) + Send + Sync + 'static) {
    put(&[1; 50_000]);
    proxy.inject(On::get().path("changing"), Fault::Truncate { after: 10_000 });
    proxy.before(On::get().path("changing").after(1), move |_| put(&[2; 50_000]));
    runtime().block_on(async {
        let got = store.get(&Path::from("changing")).await.unwrap().bytes().await;
        got.map(|bytes| bytes.len()).expect_err("the beginning of one and the end of another");
    });
}

#[test]
fn they_end_when_dropped() {
    let (Some(azurite), Some(moto)) = (Azurite::found(), Moto::found()) else { return };
    let addresses = [azurite.address(), moto.address()];
    drop((azurite, moto));
    for address in addresses {
        TcpStream::connect(address).expect_err("nobody listens there");
    }
}

/// Tells this program that it is the one to be killed.
const KILLED: &str = "OUTRIGGER_TEST_KILLED";

#[test]
fn they_end_with_a_test_that_is_killed() {
    let (Ok(()), Ok(())) = (Azurite::available(), Moto::available()) else {
        println!("skipped: no Azurite or no moto");
        return;
    };
    if std::env::var_os(KILLED).is_some() {
        let (azurite, moto) = (Azurite::start(), Moto::start());
        println!("\nlisten: {} {}", azurite.address(), moto.address());
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["they_end_with_a_test_that_is_killed", "--exact", "--nocapture"]).env(KILLED, "1");
    let mut program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines().map_while(Result::ok);
    let listen = lines.into_iter().find_map(|line| Some(line.strip_prefix("listen: ")?.to_owned())).unwrap();
    let connections = listen.split(' ').map(|address| TcpStream::connect(address).unwrap());
    let connections: Vec<TcpStream> = connections.collect();
    program.kill().unwrap();
    program.wait().unwrap();
    for mut connection in connections {
        connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let ended = connection.read(&mut [0]).map_err(|error| error.kind());
        assert!(matches!(ended, Ok(0) | Err(ErrorKind::ConnectionReset)), "{ended:?}");
    }
}
