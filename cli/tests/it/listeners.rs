//! The observe and admin listeners, and keys that are made at the first start.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use outrigger_testkit::replica::KEY;
use serde_json::Value;

use crate::support::{ECHO, client, outcome, outrigger, score};

#[tokio::test]
async fn the_busy_signal_counts_calls_exactly() {
    let launch = outrigger();
    let flag = launch.directory().join("go");
    let wait = format!(
        "    import os, time\n    while data == 'wait' and not os.path.exists({flag:?}):\n        time.sleep(0.01)\n"
    );
    let script = format!("def init():\n    pass\n\ndef run(data):\n{wait}    return data\n");
    let replica = launch.script(&script).args(["--queue-items", "1"]).start();
    let url = format!("{}/busy", replica.observe);
    let busy = async || outcome(client().get(&url).send().await.unwrap()).await.2;
    let idle = busy().await;
    assert_eq!((&idle["busy"], &idle["slots"], &idle["ready"]), (&false.into(), &1.into(), &true.into()));
    assert_eq!(idle["busy_seconds"], 0.0);

    let first = tokio::spawn(score(&replica, "wait").send());
    while busy().await["executing"] != 1 {}
    let second = tokio::spawn(score(&replica, "second").send());
    while busy().await["queued"] != 1 {}
    let (status, code, _) = outcome(score(&replica, "third").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "overloaded"));
    let full = busy().await;
    assert_eq!(
        (&full["busy"], &full["utilisation"], &full["refused"]),
        (&true.into(), &1.0.into(), &1.into())
    );
    assert!(full["oldest_wait_seconds"].as_f64().is_some(), "{full}");
    let metrics =
        client().get(format!("{}/metrics", replica.observe)).send().await.unwrap().text().await.unwrap();
    for line in
        ["outrigger_executing 1", "outrigger_queued 1", "outrigger_refused_total 1", "outrigger_busy 1"]
    {
        assert!(metrics.lines().any(|shown| shown == line), "{line} not in\n{metrics}");
    }

    std::fs::write(&flag, "").unwrap();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
    let end = busy().await;
    assert_eq!((&end["busy"], &end["arrived"], &end["answered"]), (&false.into(), &3.into(), &2.into()));
    assert!(end["busy_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(end["epoch"], idle["epoch"]);
}

#[tokio::test]
async fn probes_and_metrics_need_no_key_and_nothing_else_is_there() {
    let replica = outrigger().script(ECHO).start();
    for path in ["/", "/live", "/ready", "/v2/health/live", "/v2/health/ready", "/busy", "/metrics"] {
        assert_eq!(
            client().get(format!("{}{path}", replica.observe)).send().await.unwrap().status(),
            200,
            "{path}"
        );
    }
    for (method, path, status) in [("POST", "/score", 404), ("GET", "/status", 404), ("POST", "/busy", 405)] {
        let request = client().request(method.parse().unwrap(), format!("{}{path}", replica.observe));
        assert_eq!(request.bearer_auth(KEY).send().await.unwrap().status(), status, "{path}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_place() {
    let replica = outrigger()
        .script("import time\ndef init():\n    pass\ndef run(data):\n    time.sleep(0.3)\n    return data\n")
        .start();
    let url = format!("{}/busy", replica.observe);
    let busy = async || outcome(client().get(&url).send().await.unwrap()).await.2;
    let first = tokio::spawn(score(&replica, "x").send());
    while busy().await["executing"] != 1 {}
    let second = tokio::spawn(score(&replica, "x").send());
    while busy().await["queued"] != 1 {}
    second.abort();
    while busy().await["queued"] != 0 {}
    first.abort();
    while busy().await["busy"] == true {}
    let end = busy().await;
    // The running one cannot be called back and is counted as what it became; nobody was there to hear it.
    assert_eq!(end["cancelled"].as_u64().unwrap() + end["answered"].as_u64().unwrap(), 2, "{end}");
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
}

/// A request over a Unix socket.
fn over_socket(path: &std::path::Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn management_is_on_a_socket_of_this_user_s_alone() {
    let replica = outrigger().script(ECHO).start();
    let socket = replica.admin_socket();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let answer = over_socket(&socket, "GET /status HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let status: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&status["ready"], &status["pid"]), (&true.into(), &replica.pid().into()));
    assert!(status["workers"][0]["pid"].as_i64().unwrap() > 1);
    assert!(!body.contains(KEY), "{body}");
    let ended = replica.stop();
    assert_eq!(ended.status.code(), Some(0));
    assert!(!socket.exists(), "the socket goes with the replica");
}

#[tokio::test]
async fn management_over_tcp_needs_a_key_even_where_scoring_needs_none() {
    let replica =
        outrigger().script(ECHO).args(["--admin-listen", "127.0.0.1:0", "--auth-enabled=false"]).start();
    assert!(replica.log_text().contains("anybody who reaches score.listen can score"));
    let open = client().post(format!("{}/score", replica.score)).body("x").send().await.unwrap();
    assert_eq!(open.status(), 200);
    let url = format!("http://{}/status", replica.admin);
    assert_eq!(client().get(&url).send().await.unwrap().status(), 401);
    assert_eq!(client().get(&url).bearer_auth(KEY).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn keys_are_made_once_kept_private_and_used_again() {
    let launch = outrigger()
        .script(ECHO)
        .env_remove("OUTRIGGER_AUTH_PRIMARY_KEY")
        .env_remove("OUTRIGGER_AUTH_SECONDARY_KEY");
    let file = launch.directory().join("keys/keys.toml");
    let replica = launch.env("OUTRIGGER_AUTH_KEYS_FILE", &file).start();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    let keys: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(_, key)| key.trim().trim_matches('"'))
        .collect();
    assert_eq!(keys.len(), 2, "primary and secondary");
    for key in &keys {
        let response = client()
            .post(format!("{}/score", replica.score))
            .bearer_auth(key)
            .body("x")
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert!(!replica.log_text().contains(key), "a key must never be logged");
    }
    drop(replica);

    let again = outrigger()
        .script(ECHO)
        .env_remove("OUTRIGGER_AUTH_PRIMARY_KEY")
        .env_remove("OUTRIGGER_AUTH_SECONDARY_KEY");
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("keys.toml");
    std::fs::write(&copy, &text).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).unwrap();
    // In a container there is nobody else, and it would be a warning.
    let again = again.env("OUTRIGGER_AUTH_KEYS_FILE", &copy).args(["--process-container", "false"]);
    let ended = again.run();
    assert_eq!(ended.status.code(), Some(2), "a file that others can read is refused: {}", ended.text());
    assert!(ended.text().contains("chmod 600"), "{}", ended.text());
}
