//! A replica while its keys change.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use outrigger_testkit::replica::message;
use serde_json::Value;

use super::{done, launch, listed, status, until};
use crate::support::{ECHO, PATIENCE, client, metric, outcome, outrigger};

const BOB: &str = "[callers.bob]\nrate = 1000000\nconcurrency = 100\n[callers.eve]\n";

#[tokio::test]
async fn a_replica_follows_keys_that_are_made_anew_and_revoked() {
    let replica = launch(BOB).start();
    let state = replica.directory().join("state");
    let made: toml::Table =
        toml::from_str(&std::fs::read_to_string(state.join("keys.toml")).unwrap()).unwrap();
    let plain = made["primary"].as_str().unwrap().to_owned();
    assert_eq!(status(&replica, &plain).await, 200);
    // A caller without a key cannot come, until it has one.
    assert!(replica.log_text().contains("callers have no key"), "{}", replica.log_text());
    let first = done(&state, &["add", "bob", "--show"]);
    until(&replica, &first, 200).await;
    let second = done(&state, &["add", "bob", "--show"]);
    until(&replica, &second, 200).await;
    assert_eq!(status(&replica, &first).await, 200, "both hold");
    let third = done(&state, &["regen", "bob", "primary", "--show"]);
    until(&replica, &first, 401).await;
    assert_eq!((status(&replica, &second).await, status(&replica, &third).await), (200, 200));
    done(&state, &["revoke", "bob", "secondary"]);
    until(&replica, &second, 401).await;
    assert_eq!(status(&replica, &third).await, 200);
    // The service's own go on until they are taken into the store, and there they can be made anew.
    assert_eq!(status(&replica, &plain).await, 200);
    let said = super::refused(&state, &["regen", "service", "primary", "--show"]);
    assert!(said.contains("outrigger keys import"), "{said}");
    done(&state, &["import"]);
    assert!(!state.join("keys.toml").exists());
    let anew = done(&state, &["regen", "service", "primary", "--show"]);
    until(&replica, &anew, 200).await;
    until(&replica, &plain, 401).await;
    assert_eq!(status(&replica, made["secondary"].as_str().unwrap()).await, 200);
    let log = replica.log_text();
    for key in [&first, &second, &third, &plain, &anew] {
        assert!(!log.contains(key.split_once('.').unwrap().1), "no key is in the log");
    }
}

#[tokio::test]
async fn no_request_is_dropped_while_keys_change_and_counters_go_on() {
    let replica = launch(BOB).start();
    let state = replica.directory().join("state");
    let key = done(&state, &["add", "bob", "--show"]);
    until(&replica, &key, 200).await;
    let url = format!("{}/score", replica.score);
    let client = client();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (client, url, key, stop) = (client.clone(), url.clone(), key.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answered = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let response = client.post(&url).bearer_auth(&key).body("1").send().await.unwrap();
                    assert_eq!(response.status(), 200);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let reloads = "outrigger_key_reloads_total{outcome=\"taken\"}";
    for turn in 0..5 {
        let before = metric(&replica, reloads).await.unwrap();
        let arguments: &[&str] =
            if turn == 0 { &["add", "eve", "--show"] } else { &["regen", "eve", "primary", "--show"] };
        let state = state.clone();
        let eve = {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            tokio::task::spawn_blocking(move || {
                done(&state, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
            })
        };
        until(&replica, &eve.await.unwrap(), 200).await;
        assert!(metric(&replica, reloads).await.unwrap() > before);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.unwrap();
    }
    let granted =
        metric(&replica, "outrigger_caller_requests_total{answer=\"granted\",caller=\"bob\"}").await;
    // One more has come before, which waited for the key to hold.
    assert_eq!(granted, Some(answered as f64 + 1.0));
}

#[tokio::test]
async fn a_broken_store_keeps_the_keys_from_before() {
    let mut replica = launch(BOB).args(["--process-container", "false"]).start();
    let state = replica.directory().join("state");
    let store = state.join("key-store.toml");
    let key = done(&state, &["add", "bob", "--show"]);
    until(&replica, &key, 200).await;
    assert_eq!(metric(&replica, "outrigger_keys_broken").await, Some(0.0));
    let good = std::fs::read(&store).unwrap();
    let warned = |line: &Value| message(line).contains("keys have changed and cannot be taken");

    for (turn, broken) in ["no store at all", "version = 9\nhash_key = ''\n", ""].into_iter().enumerate() {
        std::fs::write(&store, broken).unwrap();
        replica.wait_for(warned);
        assert_eq!(status(&replica, &key).await, 200, "{broken}");
        assert_eq!(metric(&replica, "outrigger_keys_broken").await, Some(1.0));
        let broken = metric(&replica, "outrigger_key_reloads_total{outcome=\"broken\"}").await;
        assert!(broken >= Some(turn as f64 + 1.0));
    }
    std::fs::write(&store, &good).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o644)).unwrap();
    replica
        .wait_for(|line| line["fields"]["problem"].as_str().is_some_and(|text| text.contains("chmod 600")));
    std::fs::remove_file(&store).unwrap();
    replica.wait_for(|line| line["fields"]["problem"].as_str().is_some_and(|text| text.contains("is gone")));
    assert_eq!(status(&replica, &key).await, 200);

    std::fs::write(&store, &good).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o600)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while metric(&replica, "outrigger_keys_broken").await != Some(0.0) {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(status(&replica, &key).await, 200);
}

#[tokio::test]
async fn a_key_ends_at_its_time_and_that_is_said_before() {
    let mut replica = launch(BOB).args(["--auth-key-notice", "1h"]).start();
    let state = replica.directory().join("state");
    let far = done(&state, &["add", "eve", "--show", "--expires", "2h"]);
    let near = done(&state, &["add", "bob", "--show", "--expires", "3s"]);
    until(&replica, &far, 200).await;
    let line = replica.wait_for(|line| message(line) == "a key ends");
    assert_eq!((&line["fields"]["principal"], &line["fields"]["which"]), (&"bob".into(), &"primary".into()));
    until(&replica, &near, 401).await;
    let expired = "outrigger_auth_refusals_total{reason=\"expired_key\"}";
    assert!(metric(&replica, expired).await >= Some(1.0));
    let line = replica.wait_for(|line| line["fields"]["reason"] == "expired_key");
    assert!(line["fields"]["request"].is_string() && line["fields"]["operation"] == "score", "{line}");
    let states = async |state: &str| metric(&replica, &format!("outrigger_keys{{state=\"{state}\"}}")).await;
    assert_eq!((states("valid").await, states("expired").await), (Some(3.0), Some(1.0)));
    let end = metric(&replica, "outrigger_key_end_timestamp_seconds").await.unwrap();
    assert!(listed(&state).iter().any(|key| key["expires"].as_f64() == Some(end)));
    // Outside it is one that is not valid, as any other.
    let request = client().post(format!("{}/score", replica.score)).body("1");
    let response = request.try_clone().unwrap().bearer_auth(&near).send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let expired = outcome(response).await;
    assert_eq!(expired, outcome(request.bearer_auth(format!("{near}x")).send().await.unwrap()).await);
}

#[tokio::test]
async fn when_keys_were_last_used_is_told_and_kept() {
    let replica = launch(BOB).start();
    let state = replica.directory().join("state");
    let key = done(&state, &["add", "bob", "--show"]);
    let used = |state: &std::path::Path| {
        let listed = listed(state);
        let bob = listed.iter().find(|key| key["principal"] == "bob").unwrap();
        bob["last_used"].as_u64()
    };
    assert_eq!(used(&state), None);
    until(&replica, &key, 200).await;
    let told = used(&state);
    assert!(told.is_some(), "the replica is asked");
    let ended = replica.stop_keeping();
    assert!(used(&ended.path().join("state")) >= told, "it is written down by the end");
}

#[tokio::test]
async fn the_admin_listener_tells_of_keys_and_of_none_itself() {
    let replica = launch(BOB).args(["--admin-listen", "127.0.0.1:0"]).start();
    let state = replica.directory().join("state");
    let service = done_plain(&state);
    let key = done(&state, &["add", "bob", "--show"]);
    until(&replica, &key, 200).await;
    let url = format!("http://{}/keys", replica.admin);
    let request = client().get(&url).bearer_auth(&key).send().await.unwrap();
    assert_eq!(request.status(), 403);
    let (status, _, answer) = outcome(client().get(&url).bearer_auth(&service).send().await.unwrap()).await;
    assert_eq!((status, &answer["broken"]), (200, &Value::Null));
    let bob = answer["keys"].as_array().unwrap().iter().find(|key| key["principal"] == "bob").unwrap();
    assert_eq!((&bob["which"], &bob["place"]), (&"primary".into(), &"store".into()));
    assert!(bob["last_used"].is_u64() && bob["made"].is_u64() && bob["expires"].is_null(), "{bob}");
    assert!(!answer.to_string().contains(key.split_once('.').unwrap().1));
}

#[tokio::test]
async fn keys_are_taken_as_secrets_are_mounted() {
    let mounted = |container: &str, mode: u32| {
        let launch = launch(BOB).args(["--process-container", container, "--auth-keys-file", "secret.toml"]);
        let file = launch.directory().join("secret.toml");
        std::fs::write(&file, "primary = 'a-key-that-is-mounted-0123456789'\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        launch
    };
    let said = "every process in this container can read or change a file of secrets";
    for (container, mode, is_warned) in
        [("false", 0o440, false), ("true", 0o440, false), ("true", 0o444, true)]
    {
        let replica = mounted(container, mode).start();
        assert_eq!(status(&replica, "a-key-that-is-mounted-0123456789").await, 200, "{container} {mode:o}");
        assert_eq!(replica.log_text().contains(said), is_warned, "{container} {mode:o}");
    }
    let ended = mounted("false", 0o444).run();
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        ended.text().contains("mode 0444") && ended.text().contains("`defaultMode: 0440`"),
        "{}",
        ended.text()
    );
}

fn done_plain(state: &std::path::Path) -> String {
    let made: toml::Table =
        toml::from_str(&std::fs::read_to_string(state.join("keys.toml")).unwrap()).unwrap();
    made["primary"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_service_whose_keys_are_in_the_store_makes_no_file() {
    let launch = launch("");
    let state = launch.directory().join("state");
    let key = done(&state, &["add", "service", "--show"]);
    let replica = launch.start();
    assert_eq!(status(&replica, &key).await, 200);
    assert!(!state.join("keys.toml").exists());
    assert!(replica.log_text().contains("hashes of 1 in"), "{}", replica.log_text());
}

#[tokio::test]
async fn refusals_are_counted_and_only_some_are_lines() {
    let replica = outrigger().script(ECHO).args(["--log-rate", "1"]).start();
    let url = format!("{}/score", replica.score);
    let begun = Instant::now();
    for at in 0..200 {
        let key = format!("wrong-key-0123456789-{at:04}");
        let response = client().post(&url).bearer_auth(key).body("1").send().await.unwrap();
        assert_eq!(response.status(), 401);
    }
    let lines = replica.log_text().matches("\"reason\":\"wrong_key\"").count();
    let seconds = begun.elapsed().as_secs() as usize;
    assert!((1..=seconds + 2).contains(&lines), "{lines} lines in {seconds} s");
    assert_eq!(metric(&replica, "outrigger_auth_refusals_total{reason=\"wrong_key\"}").await, Some(200.0));
    assert!(!replica.log_text().contains("wrong-key-"), "what was sent is not in the log");
    let plain = client().post(&url).body("1").send().await.unwrap();
    assert_eq!(plain.status(), 401);
    assert_eq!(metric(&replica, "outrigger_auth_refusals_total{reason=\"no_header\"}").await, Some(1.0));
}
