//! Files that cannot be used: said at the start, with what would help, and by `--check`.

use std::os::unix::fs::PermissionsExt;

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

/// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -aes256 -passout pass:x`
const ENCRYPTED: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiWqWdEc8UvDQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEGY+9/stuJy1LC0PE5kLcfUEgZCQ
YAQNAI83pJxyw/gHaP63jfJ0jBta0HAXn3rKi5MhwAY+VildiI9WWS+gTxavpUJ0
7Kvoo7sigXBZyHwjG/OMjmAzhBoCarKDBIHIfJKgcQUqw0wExjh9Fzk/a5BTe0zL
sRBk6oBg1GRkeVL2yBwx7r2mWogKx2aVD6OBXl0+TMGYrmAYMN9YfCsn7fg2EZw=
-----END ENCRYPTED PRIVATE KEY-----
";

/// The same with `openssl ec` in place of `openssl pkey`: the older form, in which a line of its own says so.
const ENCRYPTED_OF_OLD: &str = "\
-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-256-CBC,12719D885ED00ABDC1641DA54A440C92

+10dre9if5D316rMkeHOpOnKeK1igiETpptYt+KOir3rrsfvZRO1eyREfX3Y3Ylo
Xbw32+2A3L9UfstMttbLF/5rarog9nFF+ChSNqMpwHhJEOyeuyZAKUYaEdF9rNbM
+rPyliD3/mO7rSNQ1I3PAT3MN6Gk1iojmLFB2i93BAU=
-----END EC PRIVATE KEY-----
";

#[test]
fn a_key_that_is_encrypted_is_told_from_one_that_is_not_there() {
    for key in [ENCRYPTED, ENCRYPTED_OF_OLD] {
        refused(
            |folder| write_key(&folder.join("server.key"), key),
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
    let checked = with(&pair).args(["--process-container", "true", "--check"]);
    open(checked.directory());
    let checked = checked.run();
    assert_eq!(checked.status.code(), Some(0), "{}", checked.text());
    assert!(checked.text().contains("has mode 0644"), "{}", checked.text());
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
