//! `outrigger keys` by itself.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use super::{command, done, keys, listed, refused};

const OWN: &str = "a-key-of-my-own-0123456789-abcdef";

#[test]
fn keys_are_made_shown_once_listed_made_anew_and_revoked() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path();
    let first = done(state, &["add", "bob", "--show", "--expires", "90d"]);
    let second = done(state, &["add", "bob", "--show"]);
    for key in [&first, &second] {
        let (id, secret) = key.split_once('.').unwrap();
        assert!(id.starts_with("or_") && id.len() == 11 && secret.len() == 43, "{key}");
    }
    let service = done(state, &["add", "service", "--show", "--which", "secondary"]);
    let rows: Vec<_> = listed(state);
    let told: Vec<_> = rows.iter().map(|key| (key["principal"].as_str(), key["which"].as_str())).collect();
    let expected =
        [("service", "secondary"), ("bob", "primary"), ("bob", "secondary")].map(|(p, w)| (Some(p), Some(w)));
    assert_eq!(told, expected);
    let lifetime = rows[1]["expires"].as_u64().unwrap() - rows[1]["made"].as_u64().unwrap();
    assert_eq!((lifetime, rows[2]["expires"].is_null()), (90 * 86_400, true));
    assert_eq!(rows[1]["id"].as_str(), first.split_once('.').map(|(id, _)| id));

    let table = done(state, &["list"]);
    assert!(table.starts_with("KEY") && table.contains("never") && table.contains("store"), "{table}");
    let file = std::fs::read_to_string(state.join("key-store.toml")).unwrap();
    for key in [&first, &second, &service] {
        let secret = key.split_once('.').unwrap().1;
        assert!(!table.contains(secret) && !file.contains(secret));
    }

    let third = done(state, &["regen", "bob", "primary", "--show"]);
    assert_ne!(first, third);
    let rows = listed(state);
    assert_eq!(rows[1]["id"].as_str(), third.split_once('.').map(|(id, _)| id));
    let lifetime = rows[1]["expires"].as_u64().unwrap() - rows[1]["made"].as_u64().unwrap();
    assert_eq!(lifetime, 90 * 86_400, "it lives as long as the one before");
    done(state, &["revoke", "bob", "primary"]);
    assert_eq!(listed(state).len(), 2);
    done(state, &["revoke", "bob"]);
    done(state, &["revoke", "service"]);
    assert!(listed(state).is_empty());
}

#[test]
fn what_cannot_be_is_said_and_changes_nothing() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path();
    done(state, &["add", "bob", "--show"]);
    done(state, &["add", "bob", "--show"]);
    let before = std::fs::read(state.join("key-store.toml")).unwrap();
    for (arguments, expected) in [
        (&["add", "eve"][..], "stdout is no terminal: add --show"),
        (&["add", "bob", "--show"], "`bob` has a primary and a secondary key"),
        (&["add", "bob", "--which", "primary", "--show"], "`bob` has a primary key"),
        (&["add", "Bob", "--show"], "`Bob` is no caller's name"),
        (&["add", "../bob", "--show"], "is no caller's name"),
        (&["add", "primary", "--show"], "the service's two are those of `service`"),
        (&["add", "eve", "--show", "--expires", "soon"], "`soon` is no lifetime"),
        (&["add", "eve", "--show", "--expires", "0d"], "`0d` is no lifetime"),
        (&["regen", "eve", "primary", "--show"], "`eve` has no primary key in the store"),
        (&["regen", "bob", "primary"], "stdout is no terminal"),
        (&["revoke", "eve"], "`eve` has no key in the store"),
        (&["add", "eve", "--key-file", "/no/such/file"], "cannot be read from /no/such/file"),
        (&["import"], "there is no"),
    ] {
        let said = refused(state, arguments);
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    assert_eq!(std::fs::read(state.join("key-store.toml")).unwrap(), before);
    let wrong = keys(state, &["regen", "bob", "third", "--show"]);
    assert_eq!(wrong.status.code(), Some(2));
    for help in ["add", "regen", "revoke", "list", "import"] {
        assert!(done(state, &[help, "--help"]).contains("--auth-key-store"));
    }
}

#[test]
fn keys_of_ones_own_come_from_a_file_or_stdin_and_are_not_shown() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path();
    let file = state.join("own");
    let from_file = |key: &str, name: &str| {
        std::fs::write(&file, key).unwrap();
        keys(state, &["add", name, "--key-file", file.to_str().unwrap()])
    };
    let taken = from_file(&format!("{OWN}\n"), "bob");
    assert!(taken.status.success() && taken.stdout.is_empty(), "{taken:?}");
    assert!(!String::from_utf8_lossy(&taken.stderr).contains(OWN));
    for (key, expected) in [
        (OWN.to_owned(), "already the primary key of `bob`"),
        ("short".into(), "it has 5 characters, and 22 are the fewest"),
        ("with a space 0123456789 abcdef".into(), "is not a visible ASCII character"),
        ("k".repeat(10_000), "the most"),
        ("abababababababababababab".into(), "too few different characters"),
    ] {
        let output = from_file(&key, "eve");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{said}");
        assert!(!said.contains(&key), "{said}");
    }
    let mut command = command(state, &["add", "eve", "--key-file", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"another-key-of-my-own-0123456789\r\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(listed(state).len(), 2);
}

#[test]
fn keys_of_the_configuration_are_listed_beside_those_of_the_store() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path();
    let file = state.join("o.toml");
    std::fs::write(&file, format!("[callers.eve]\nkey = '{OWN}'\n[callers.bob]\n")).unwrap();
    done(state, &["add", "bob", "--show"]);
    let listed = done(state, &["list", "--json", "--config", file.to_str().unwrap()]);
    assert!(!listed.contains(OWN));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let told = listed["keys"].as_array().unwrap().iter();
    let told: Vec<_> = told.map(|key| (key["principal"].as_str(), key["place"].as_str())).collect();
    assert_eq!(told, [(Some("bob"), Some("store")), (Some("eve"), Some("configuration"))]);
}

#[test]
fn many_commands_at_once_lose_nothing() {
    let state = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..16).map(|at| format!("c{at}")).collect();
    let running: Vec<_> = names
        .iter()
        .map(|name| {
            let mut command = command(state.path(), &["add", name, "--show"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(listed(state.path()).len(), names.len());
    let mode = std::fs::metadata(state.path().join("key-store.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
