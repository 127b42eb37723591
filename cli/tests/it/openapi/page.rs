//! The page at `/docs`: what it is made of, and in a browser.

use std::path::PathBuf;

use outrigger_backend::DataType;
use outrigger_testkit::onnx::Dim;
use outrigger_testkit::replica::KEY;
use outrigger_testkit::{ReplicaProcess, onnx};

use super::{listeners, looked_at, models, one};
use crate::support::{ECHO, client, header, outrigger};

#[tokio::test]
async fn the_page_stands_alone_and_needs_no_key() {
    let replica = outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0"]).start();
    for (listener, base) in listeners(&replica) {
        let get = |coding: &'static str| {
            client().get(format!("{base}/docs")).header("accept-encoding", coding).send()
        };
        let plain = get("identity").await.unwrap();
        assert_eq!(plain.status(), 200, "{listener}");
        let policy = header(&plain, "content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("vary", "Accept-Encoding"),
            ("content-encoding", ""),
        ] {
            assert_eq!(header(&plain, name), value, "{listener}");
        }
        let plain = plain.text().await.unwrap();
        for foreign in ["http:", "https:", " src=", "@import", "url("] {
            assert!(!plain.contains(foreign), "{foreign}");
        }
        assert!(!plain.contains("ML service"), "nothing of the service is in it");
        let compressed = get("br, gzip;q=0.8").await.unwrap();
        assert_eq!(header(&compressed, "content-encoding"), "gzip");
        let compressed = compressed.bytes().await.unwrap();
        assert!(compressed.len() < plain.len() / 2, "{} of {}", compressed.len(), plain.len());
    }
}

/// A Chromium: the one that is named, or one that is installed.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("OUTRIGGER_TEST_CHROMIUM").map(PathBuf::from);
    let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let installed = ["chromium", "chromium-headless-shell", "google-chrome"];
    let mut installed = installed.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    named.or_else(|| installed.find(|path| path.exists()))
}

/// Has a Chromium use the page of a listener, as a case of `page.py` says.
fn browse(replica: &ReplicaProcess, base: &str, case: &str, arguments: &[&str]) {
    let Some(chromium) = chromium() else {
        println!("skipped: no Chromium");
        return;
    };
    let chromium = chromium.to_string_lossy();
    let page = [&*chromium, case, base.trim_start_matches("http://"), KEY];
    looked_at(replica, "page.py", page.into_iter().chain(arguments.iter().copied()));
}

#[test]
fn the_page_works_in_a_browser() {
    let replica = one().start();
    let pictures = std::env::var("OUTRIGGER_TEST_PICTURES").ok();
    let arguments: Vec<_> = std::iter::once("add").chain(pictures.as_deref()).collect();
    browse(&replica, &replica.score, "use", &arguments);
}

#[test]
fn hostile_names_are_text_in_a_browser() {
    let input = "<script>violations.push('input')</script>";
    let output = "\"><img src=x onerror=\"violations.push('output')\">'; exit 1; `exit 1` $(exit 1) \\";
    let extent = "<b onclick='violations.push(1)'>extent</b>";
    let service = "</title><svg onload=\"violations.push('service')\">'$(exit 1)";
    let mut graph = onnx::Graph::default();
    let shape = [Dim::Named(extent), Dim::Fixed(2)];
    graph.input(input, DataType::Fp32, &shape);
    graph.input(output, DataType::Fp32, &shape);
    graph.output("sum", DataType::Fp32, &shape);
    graph.node("Add", &[input, output], &["sum"]);
    // All that the name of a model may have.
    let model = "0-a.b_C";
    let launch = outrigger().file("m.onnx", graph.model()).args(["--model", &format!("{model}=m.onnx")]);
    let replica = launch.args(["--service-name", service]).start();
    browse(&replica, &replica.score, "hostile", &[model, input, output, extent, service]);
}

#[test]
fn of_a_long_answer_the_beginning_is_shown_in_a_browser() {
    let replica = models().start();
    browse(&replica, &replica.score, "long", &[]);
}

#[test]
fn an_answer_without_end_is_stopped_in_a_browser() {
    let replica = outrigger().script(ECHO).start();
    browse(&replica, &replica.observe, "endless", &[]);
}
