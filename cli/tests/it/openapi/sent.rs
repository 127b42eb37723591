//! How a description is sent: compressed, its head alone, not at all, and to how many at once.

use std::io::Read as _;

use outrigger_testkit::replica::KEY;
use reqwest::Method;

use super::listeners;
use crate::support::{ECHO, client, header, outrigger};

#[tokio::test]
async fn a_description_is_compressed_for_who_takes_that() {
    let replica = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]).start();
    for (listener, base) in listeners(&replica) {
        let get = |method: Method, coding: &'static str| {
            let request = client().request(method, format!("{base}/openapi.json")).bearer_auth(KEY);
            request.header("accept-encoding", coding).send()
        };
        let plain = get(Method::GET, "identity").await.unwrap();
        assert_eq!(
            (header(&plain, "content-encoding"), header(&plain, "vary")),
            ("".into(), "Accept-Encoding".into())
        );
        let plain = plain.bytes().await.unwrap();
        let compressed = get(Method::GET, "br, gzip").await.unwrap();
        assert_eq!(header(&compressed, "content-encoding"), "gzip", "{listener}");
        assert_eq!(header(&compressed, "vary"), "Accept-Encoding");
        let head = get(Method::HEAD, "gzip").await.unwrap();
        assert_eq!(header(&head, "content-encoding"), "gzip", "{listener}");
        let compressed = compressed.bytes().await.unwrap();
        assert!(compressed.len() < plain.len() / 2, "{} of {}", compressed.len(), plain.len());
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, plain, "{listener}");
    }
}

#[tokio::test]
async fn head_has_the_head_of_get_and_no_body() {
    let replica = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]).start();
    for (listener, base) in listeners(&replica) {
        let head = client().head(format!("{base}/openapi.json")).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(head.status(), 200, "{listener}");
        assert_eq!(header(&head, "content-type"), "application/json", "{listener}");
        assert_eq!(header(&head, "content-length"), "", "no length is said: {listener}");
        assert_eq!(head.bytes().await.unwrap().len(), 0, "{listener}");
    }
}

#[tokio::test]
async fn page_and_description_can_be_switched_off() {
    let status = async |base: &str, path: &str| {
        client().get(format!("{base}{path}")).bearer_auth(KEY).send().await.unwrap().status().as_u16()
    };
    for (flags, expected) in [
        (vec!["--openapi-page=false"], [200, 404]),
        (vec!["--openapi-enabled=false"], [404, 404]),
        (vec!["--compat"], [404, 404]),
        (vec!["--compat", "--openapi-enabled=true"], [200, 200]),
    ] {
        let launch = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]);
        let replica = launch.args(flags.iter().copied()).start();
        for (listener, base) in listeners(&replica) {
            let got = [status(&base, "/openapi.json").await, status(&base, "/docs").await];
            assert_eq!(got, expected, "{flags:?} on {listener}");
        }
    }
}

#[tokio::test]
async fn many_who_ask_at_once_get_the_description_or_are_told_to_come_again() {
    let replica = outrigger().script(ECHO).args(["--openapi-at-once", "1"]).start();
    let ask = || client().get(format!("{}/openapi.json", replica.score)).bearer_auth(KEY).send();
    let asked: Vec<_> = (0..32).map(|_| tokio::spawn(ask())).collect();
    for answer in asked {
        let answer = answer.await.unwrap().unwrap();
        if answer.status() != 200 {
            assert_eq!((answer.status().as_u16(), header(&answer, "retry-after")), (503, "1".into()));
            assert_eq!(header(&answer, "outrigger-code"), "overloaded");
        }
    }
    assert_eq!(ask().await.unwrap().status(), 200);
}
