//! Files that cannot be used: said at the start, with what would help, and by `--check`.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::certificates::Authority;
use super::{with, write_key};
use crate::support::{ECHO, outrigger};

/// Both ways of starting end with 2 and say all of this. What is done to the files of a good pair is given.
fn refused(prepare: impl Fn(&std::path::Path), arguments: &[&str], parts: &[&str]) {
    let pair = Authority::new("root").server();
    for check in [&[][..], &["--check"]] {
        let launch = with(&pair).args(["--process-container", "false"]);
        prepare(launch.directory());
        let ended = launch.args(arguments.iter().chain(check).copied()).run();
        let text = ended.text();
        assert_eq!(ended.status.code(), Some(2), "{parts:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{part} not in {text}");
        }
        for secret in pair.key.lines().filter(|line| !line.starts_with('-')) {
            assert!(!text.contains(secret), "a key must never be logged: {text}");
        }
    }
}

#[test]
fn what_is_wrong_with_the_files_is_said_with_its_cure() {
    let others = Authority::new("other").server();
    refused(
        |folder| std::fs::remove_file(folder.join("server.pem")).unwrap(),
        &[],
        &["`tls.certificate`", "server.pem", "No such file"],
    );
    refused(
        |folder| write_key(&folder.join("server.key"), &others.key),
        &[],
        &["`tls.key`", "server.key", "server.pem", "their public keys differ"],
    );
    refused(
        |folder| {
            let own = std::fs::read_to_string(folder.join("server.pem")).unwrap();
            std::fs::write(folder.join("server.pem"), others.certificate.clone() + &own).unwrap();
        },
        &[],
        &["that of certificate 2", "has to come first"],
    );
    refused(
        |folder| std::fs::write(folder.join("server.pem"), others.certificate_der.as_ref()).unwrap(),
        &[],
        &["`tls.certificate`", "holds no certificate", "BEGIN CERTIFICATE", "looks like DER"],
    );
    refused(
        |folder| std::fs::write(folder.join("server.key"), &others.certificate).unwrap(),
        &[],
        &["`tls.key`", "holds no private key", "BEGIN PRIVATE KEY"],
    );
    refused(
        |folder| std::fs::write(folder.join("server.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap(),
        &[],
        &["`tls.certificate`", "is damaged"],
    );
    refused(
        |folder| std::fs::write(folder.join("server.pem"), vec![b'a'; (1 << 20) + 1]).unwrap(),
        &[],
        &["`tls.certificate`", "larger than 1048576 bytes"],
    );
    refused(
        |folder| {
            let key = "-----BEGIN PRIVATE KEY-----\nMAoCAQAwBQYDKgMEAA==\n-----END PRIVATE KEY-----\n";
            write_key(&folder.join("server.key"), key);
        },
        &[],
        &["`tls.key`", "cannot be used", "Ed25519"],
    );
    refused(
        |folder| std::fs::create_dir(folder.join("authorities")).unwrap(),
        &["--tls-client-certificates", "required", "--tls-client-ca", "authorities"],
        &["`tls.client_ca`", "is no file"],
    );
    refused(
        |folder| std::fs::write(folder.join("authorities.pem"), "").unwrap(),
        &["--tls-client-certificates", "required", "--tls-client-ca", "authorities.pem"],
        &["`tls.client_ca`", "holds no certificate"],
    );
    refused(|_| {}, &["--tls-client-certificates", "required"], &["`tls.client_ca` does not say"]);
}

#[test]
fn a_key_that_is_encrypted_is_told_from_one_that_is_not_there() {
    let key = Authority::new("root").server().key;
    let folder = tempfile::tempdir().unwrap();
    write_key(&folder.path().join("plain.key"), &key);
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command
            .current_dir(folder.path())
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("openssl is missing: {error}"))
    };
    let form = ["pkey", "-in", "plain.key", "-aes256", "-passout", "pass:x", "-out", "new.key"];
    assert!(openssl(&form).status.success());
    let form = ["ec", "-in", "plain.key", "-aes256", "-passout", "pass:x", "-out", "old.key"];
    assert!(openssl(&form).status.success());
    for (name, mark) in [("new.key", "BEGIN ENCRYPTED PRIVATE KEY"), ("old.key", "BEGIN ")] {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(text.contains(mark), "{text}");
        refused(
            |folder| write_key(&folder.join("server.key"), &text),
            &[],
            &["`tls.key`", "is encrypted", "openssl pkey"],
        );
    }
}

#[test]
fn a_key_that_others_can_read_is_refused_where_there_are_others() {
    let open = |folder: &std::path::Path| {
        std::fs::set_permissions(folder.join("server.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    };
    refused(open, &[], &["`tls.key`", "mode 0644", "chmod 600"]);
    let pair = Authority::new("root").server();
    // What secrets are mounted as.
    let contained = with(&pair).args(["--process-container", "true"]);
    open(contained.directory());
    let mut replica = contained.start();
    replica.wait_for_text("has mode 0644");
    let group = with(&pair).args(["--process-container", "false"]);
    let path = group.directory().join("server.key");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(!group.start().log_text().contains("has mode"));
}

#[test]
fn check_is_content_with_a_good_pair_and_says_what_expires() {
    let authority = Authority::new("root");
    let ended = with(&authority.server()).args(["--check"]).run();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    let ended = with(&authority.server_of_old()).args(["--check"]).run();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    assert!(ended.text().contains("has expired: 2020-01-01"), "{}", ended.text());
}

#[test]
fn a_key_that_scripts_can_read_is_said() {
    let pair = Authority::new("root").server();
    let launch = outrigger().script(ECHO);
    super::write(&launch.directory().join("app"), "server", &pair);
    let arguments = ["--tls-certificate", "app/server.pem", "--tls-key", "app/server.key", "--check"];
    let ended = launch.args(arguments).run();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    assert!(ended.text().contains("scripts can read it"), "{}", ended.text());
}
