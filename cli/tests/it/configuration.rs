//! The command line: `--check`, mistakes, addresses that are taken.

use std::process::Command;

use outrigger_runtime::config::key;

use crate::support::{ECHO, outrigger};

fn outrigger_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.env_clear().env("HOME", "/nonexistent").env("PATH", std::env::var_os("PATH").unwrap());
    command
}

#[test]
fn check_prints_every_value_with_its_origin_and_hides_keys() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("score.py"), "").unwrap();
    let file = dir.path().join("o.toml");
    std::fs::write(&file, "[script]\nentry = \"score.py\"\nworkers = 2\n").unwrap();
    let output = outrigger_command()
        .args(["serve", "--check", "--score-listen", "127.0.0.1:9", "--config"])
        .arg(&file)
        .env("OUTRIGGER_AUTH_PRIMARY_KEY", "very-secret-very-secret-very-secret")
        .env("SCORING_TIMEOUT_MS", "1500")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = |line: &str| {
        let (value, origin) = line.split_once('#').unwrap();
        assert!(
            text.lines().any(|shown| shown
                .split_once('#')
                .is_some_and(|(v, o)| v.trim() == value.trim() && o.trim() == origin.trim())),
            "{line} not in\n{text}"
        );
    };
    shown("listen = \"127.0.0.1:9\" # flag --score-listen");
    shown("timeout = \"1500ms\" # environment SCORING_TIMEOUT_MS");
    shown(&format!("workers = 2 # {}:3", file.display()));
    shown("primary_key = \"***\" # environment OUTRIGGER_AUTH_PRIMARY_KEY");
    shown("body = \"100MiB\" # default");
    shown("keys_file = \"/nonexistent/.local/state/outrigger/keys.toml\" # default");
    assert!(!text.contains("very-secret"));
}

#[test]
fn mistakes_end_with_2_and_all_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("o.toml");
    std::fs::write(&file, "[script]\nentri = \"score.py\"\nworkers = 0\n[limts]\nbody = 1\n").unwrap();
    let output =
        outrigger_command().args(["serve", "--queue-wait", "soon", "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    for part in [
        "did you mean `script.entry`?",
        "o.toml:3: `script.workers` is `0`",
        "did you mean `limits`?",
        "flag --queue-wait: `queue.wait` is `soon`",
    ] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
    let output = outrigger_command().args(["serve", "--config", "/no/such.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/no/such.toml"));
    let output =
        outrigger_command().args(["serve", "--check", "--script-entry", "/no/such.py"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = outrigger_command().args(["serve", "--auth-primary-key", "x"]).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(2),
        "keys are not taken from the command line, which everybody can read"
    );
}

#[test]
fn help_names_every_key_with_its_variable() {
    let output = outrigger_command().args(["serve", "--help"]).env("COLUMNS", "200").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "--script-workers",
        "OUTRIGGER_SCRIPT_WORKERS",
        "WORKER_COUNT",
        "--limits-body",
        "[default: 100MiB]",
        "Exit codes",
    ] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
    for (table, keys) in [
        ("models", key::MODEL_KEYS),
        ("backends", key::BACKEND_KEYS),
        ("callers", key::CALLER_KEYS),
        ("collections", key::COLLECTION_KEYS),
        ("tokens.issuers", key::ISSUER_KEYS),
    ] {
        let (_, of_table) = text.split_once(&format!("[{table}.NAME]:\n")).unwrap();
        let of_table = of_table.split(".NAME]:\n").next().unwrap();
        for key in keys {
            assert!(of_table.contains(&format!("  {} = ", key.name)), "{table}.NAME.{}\n{text}", key.name);
        }
    }
}

#[test]
fn an_address_that_is_taken_ends_with_2_and_names_the_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = outrigger().script(ECHO).env("OUTRIGGER_OBSERVE_LISTEN", &address).run();
    assert_eq!(ended.status.code(), Some(2));
    let text = ended.text();
    assert!(
        text.contains(&address) && text.contains("observe.listen") && text.contains("another process"),
        "{text}"
    );
}

#[test]
fn two_replicas_do_not_share_a_state_directory_s_socket() {
    let state = tempfile::tempdir().unwrap();
    let first = outrigger().script(ECHO).env("OUTRIGGER_STATE_DIR", state.path()).start();
    let second = outrigger().script(ECHO).env("OUTRIGGER_STATE_DIR", state.path()).run();
    assert_eq!(second.status.code(), Some(2), "{}", second.text());
    assert!(second.text().contains("admin.listen"), "{}", second.text());
    // One that was killed leaves its socket; the next takes the path over.
    first.signal("KILL");
    first.wait();
    let third = outrigger().script(ECHO).env("OUTRIGGER_STATE_DIR", state.path()).start();
    assert_eq!(third.stop().status.code(), Some(0));
}

#[test]
fn a_file_in_the_socket_s_place_is_never_removed() {
    let launch = outrigger().file("precious.txt", "data").script(ECHO);
    let file = launch.directory().join("precious.txt");
    let kept = tempfile::tempdir().unwrap();
    let copy = kept.path().join("precious.txt");
    std::fs::copy(&file, &copy).unwrap();
    let ended = launch.args(["--admin-listen", &format!("unix:{}", copy.display())]).run();
    assert_eq!(ended.status.code(), Some(2), "{}", ended.text());
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "data");
}

/// The table of keys in the docs, as the table of keys in the code has it.
fn key_table() -> String {
    let mut table = String::from("| key | default | meaning |\n|---|---|---|\n");
    for key in key::KEYS {
        let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
        let aliases: String = key.aliases.iter().map(|alias| format!(" (`{}`)", alias.variable)).collect();
        table += &format!("| `{}`{aliases} | {default} | {} |\n", key.name, key.doc.replace('|', "\\|"));
    }
    table
}

/// `OUTRIGGER_TEST_UPDATE=1` writes the tables instead of comparing them.
#[test]
fn the_docs_show_every_key_and_limit() {
    let tables = [
        ("configuration.md", "keys", key_table()),
        ("configuration.md", "model keys", table(key::MODEL_KEYS)),
        ("configuration.md", "backend keys", table(key::BACKEND_KEYS)),
        ("callers.md", "caller keys", table(key::CALLER_KEYS)),
        ("collection.md", "collection keys", table(key::COLLECTION_KEYS)),
        ("tokens.md", "issuer keys", table(key::ISSUER_KEYS)),
        ("limits.md", "limits", crate::limits::table()),
    ];
    for (page, place, table) in tables {
        let path = outrigger_testkit::repository().join("docs").join(page);
        let there = std::fs::read_to_string(&path).unwrap();
        let (begin, end) = (format!("<!-- {place} -->\n"), format!("<!-- /{place} -->"));
        let (before, rest) = there.split_once(&begin).unwrap();
        let (_, after) = rest.split_once(&end).unwrap();
        let fresh = format!("{before}{begin}{table}{end}{after}");
        if std::env::var_os("OUTRIGGER_TEST_UPDATE").is_some() {
            std::fs::write(&path, fresh).unwrap();
        } else {
            assert!(
                there == fresh,
                "the table of {place} in docs/{page} is not the code's: OUTRIGGER_TEST_UPDATE=1 cargo test -p outrigger --test it the_docs_show"
            );
        }
    }
}

/// The keys of a table whose name is the operator's.
fn table(keys: &[&key::Key]) -> String {
    let mut table = String::from("| key | default | meaning |\n|---|---|---|\n");
    for key in keys {
        let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
        table.push_str(&format!("| `{}` | {default} | {} |\n", key.name, key.doc));
    }
    table
}
