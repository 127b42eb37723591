use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;

use http::HeaderValue;

use outrigger_protocol::CallError;

use super::*;

const PRIMARY: &str = "primary-key-0123456789-abcdef";
const SECONDARY: &str = "secondary-key-0123456789-abcd";

fn config(primary: Option<&str>, secondary: Option<&str>, file: &Path) -> KeyConfig {
    KeyConfig {
        primary: primary.map(Secret::new),
        secondary: secondary.map(Secret::new),
        file: file.into(),
        surroundings: Surroundings::Machine,
    }
}

fn ring(secondary: Option<&str>) -> KeyRing {
    let keys = KeySource::resolve(config(Some(PRIMARY), secondary, Path::new("unused"))).unwrap();
    KeyRing::new(&keys, []).unwrap()
}

fn authenticate(ring: &KeyRing, value: &str) -> Result<CallerId, AuthError> {
    ring.authenticate(Some(&HeaderValue::from_bytes(value.as_bytes()).unwrap()), 0)
}

fn write_file(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The whole text of an error, its sources and its `Debug` form included.
fn everything(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(" {error} {error:?}"));
        source = error.source();
    }
    text
}

#[test]
fn both_keys_are_valid_and_others_are_not() {
    let ring = ring(Some(SECONDARY));
    let bearer = |key: &str| authenticate(&ring, &format!("Bearer {key}"));
    assert_eq!(bearer(PRIMARY), Ok(CallerId::PRIMARY));
    assert_eq!(bearer(SECONDARY), Ok(CallerId::SECONDARY));
    let wrong = [
        PRIMARY[..PRIMARY.len() - 1].to_string(),
        format!("{PRIMARY}x"),
        PRIMARY.to_uppercase(),
        format!("{PRIMARY} {PRIMARY}"),
        format!("{PRIMARY},{SECONDARY}"),
        format!("\"{PRIMARY}\""),
        "x".into(),
        "é".repeat(20),
        "k".repeat(100_000),
    ];
    for key in wrong {
        assert_eq!(bearer(&key), Err(AuthError::WrongKey), "{key}");
    }
}

#[test]
fn the_scheme_is_bearer_in_any_case() {
    let ring = ring(None);
    let table = [
        (format!("bearer {PRIMARY}"), Ok(CallerId::PRIMARY)),
        (format!("BEARER   {PRIMARY}  "), Ok(CallerId::PRIMARY)),
        (String::new(), Err(AuthError::Scheme)),
        ("Bear".into(), Err(AuthError::Scheme)),
        ("Bearer".into(), Err(AuthError::NoKey)),
        ("Bearer   ".into(), Err(AuthError::NoKey)),
        (format!("Bearer{PRIMARY}"), Err(AuthError::Scheme)),
        (format!("Bearer\t{PRIMARY}"), Err(AuthError::Scheme)),
        (format!("Basic {PRIMARY}"), Err(AuthError::Scheme)),
        (format!("Token {PRIMARY}"), Err(AuthError::Scheme)),
        (format!(" Bearer {PRIMARY}"), Err(AuthError::Scheme)),
        (PRIMARY.to_string(), Err(AuthError::Scheme)),
    ];
    for (value, expected) in table {
        assert_eq!(authenticate(&ring, &value), expected, "{value:?}");
    }
    assert_eq!(ring.authenticate(None, 0), Err(AuthError::NoHeader));
}

#[test]
fn without_a_secondary_key_there_is_none() {
    let ring = ring(None);
    assert_eq!(authenticate(&ring, &format!("Bearer {SECONDARY}")), Err(AuthError::WrongKey));
    assert_eq!(authenticate(&ring, "Bearer "), Err(AuthError::NoKey));
}

#[test]
fn a_ring_shows_nothing() {
    assert_eq!(format!("{:?}", ring(None)), "KeyRing(***)");
}

#[test]
fn refusals_are_precise_and_hold_no_key() {
    let ring = ring(None);
    let sent = "this-is-what-was-sent-by-the-caller";
    let errors = [
        ring.authenticate(None, 0).unwrap_err(),
        authenticate(&ring, &format!("Basic {sent}")).unwrap_err(),
        authenticate(&ring, "Bearer").unwrap_err(),
        authenticate(&ring, &format!("Bearer {sent}")).unwrap_err(),
        AuthError::SeveralHeaders,
    ];
    let texts: std::collections::HashSet<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), errors.len(), "each refusal has a text of its own");
    for error in errors {
        let text = everything(&error);
        assert!(!text.contains(sent) && !text.contains(PRIMARY), "{text}");
        let call = CallError::from(Refusal::from(error));
        assert_eq!(call.code.status().as_u16(), 401);
        assert_eq!(call.message, error.to_string());
    }
}

#[test]
fn configured_keys_win_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let keys = KeySource::resolve(config(Some(PRIMARY), Some(SECONDARY), &file)).unwrap();
    assert_eq!(keys.origin, KeyOrigin::Configured);
    assert_eq!(keys.secondary.unwrap().expose(), SECONDARY);
    assert!(!file.exists());

    KeySource::resolve(config(None, None, &file)).unwrap();
    let keys = KeySource::resolve(config(Some(PRIMARY), None, &file)).unwrap();
    assert_eq!((keys.primary.expose(), keys.secondary.is_none()), (PRIMARY, true));
    assert_eq!(keys.origin, KeyOrigin::Configured);
}

#[test]
fn configured_keys_follow_the_rules() {
    let file = Path::new("unused");
    let resolve = |primary, secondary| KeySource::resolve(config(primary, secondary, file)).unwrap_err();
    let short = resolve(Some("swordfish"), None);
    assert_eq!(
        short.to_string(),
        "the configured primary key is not usable: it has 9 characters, and 22 are the fewest"
    );
    assert!(!everything(&short).contains("swordfish"));
    let newline = resolve(Some(PRIMARY), Some("secondary-key-0123456789\n"));
    assert_eq!(
        newline.to_string(),
        "the configured secondary key is not usable: its character 25 is not a visible ASCII character"
    );
    assert!(matches!(resolve(None, Some(SECONDARY)), KeyError::SecondaryAlone));
}

#[test]
fn keys_are_made_once_and_then_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a/b/keys.toml");
    let made = KeySource::resolve(config(None, None, &file)).unwrap();
    assert_eq!(made.origin, KeyOrigin::Generated(file.clone()));
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&folder.path().join("a")), 0o700);
    assert_eq!(mode(&folder.path().join("a/b")), 0o700);
    assert_ne!(made.primary.expose(), made.secondary.as_ref().unwrap().expose());

    let read = KeySource::resolve(config(None, None, &file)).unwrap();
    assert_eq!(read.origin, KeyOrigin::FromFile(file.clone()));
    assert_eq!(read.primary.expose(), made.primary.expose());
    assert_eq!(read.secondary.unwrap().expose(), made.secondary.unwrap().expose());
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside the file");
}

#[test]
fn threads_that_race_agree_on_the_keys() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/keys.toml");
        let start = Barrier::new(8);
        let resolved: Vec<_> = std::thread::scope(|scope| {
            let resolve = || {
                start.wait();
                KeySource::resolve(config(None, None, &file)).unwrap()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(resolve)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let first = &resolved[0];
        for keys in &resolved {
            assert_eq!(keys.primary.expose(), first.primary.expose());
            assert_eq!(keys.secondary.as_ref().unwrap().expose(), first.secondary.as_ref().unwrap().expose());
        }
        let made = resolved.iter().filter(|keys| matches!(keys.origin, KeyOrigin::Generated(_))).count();
        assert_eq!(made, 1);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}

#[test]
fn files_open_to_others_are_refused_with_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let text = format!("primary = \"{PRIMARY}\"\n");
    for open in [0o644, 0o604, 0o602, 0o666, 0o777] {
        write_file(&file, &text, open);
        let error = KeySource::resolve(config(None, None, &file)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("{open:04o}")), "{text}");
        assert!(text.contains(&format!("run `chmod 600 {}`, or 640", file.display())), "{text}");
        assert!(text.contains("`defaultMode: 0440`"), "{text}");
        // In a container it is nobody else's, and said.
        let contained = KeyConfig { surroundings: Surroundings::Container, ..config(None, None, &file) };
        assert_eq!(KeySource::resolve(contained).unwrap().primary.expose(), PRIMARY);
        assert_eq!(open_to_others(&file), Some(open));
    }
    // A group that was given it may have it: what Kubernetes mounts with `fsGroup` is its owner's and a group's.
    for closed in [0o600, 0o400, 0o440, 0o640, 0o660] {
        write_file(&file, &text, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(closed)).unwrap();
        let keys = KeySource::resolve(config(None, None, &file)).unwrap();
        assert_eq!((keys.primary.expose(), keys.secondary.is_none()), (PRIMARY, true));
        assert_eq!(open_to_others(&file), None);
    }
}

#[test]
fn files_of_another_form_are_refused_and_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let hidden = "0123456789012345678901234567890";
    let table = [
        (String::new(), "line 1"),
        (format!("# a comment\nprimary = {hidden}\n"), "line 2"),
        (format!("primary = \"{PRIMARY}\"\nsecondry = \"{hidden}\"\n"), "line 2"),
        (format!("primary = \"{PRIMARY}\"\n{hidden}\n"), "line 2"),
        (format!("primary = \"{hidden}\nsecondary = 1"), "line 1"),
        (format!("primary = [\"{hidden}\"]"), "line 1"),
        (format!("primary = \"{}\"", &hidden[..12]), "the primary key"),
        (format!("primary = \"{PRIMARY}\"\nsecondary = \"\""), "the secondary key"),
        (format!("primary = \"{PRIMARY}\"\n{}", "#".repeat(70_000)), "too large"),
    ];
    for (text, expected) in table {
        write_file(&file, &text, 0o600);
        let error = KeySource::resolve(config(None, None, &file)).unwrap_err();
        let shown = everything(&error);
        assert!(shown.contains(expected), "{shown}");
        assert!(!shown.contains(&hidden[..12]) && !shown.contains(PRIMARY), "{shown}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn paths_that_hold_no_file_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = KeySource::resolve(config(None, None, folder.path())).unwrap_err();
    assert!(matches!(error, KeyError::NotAFile { .. }), "{error:?}");
    let plain = folder.path().join("plain");
    write_file(&plain, "", 0o600);
    let error = KeySource::resolve(config(None, None, &plain.join("keys.toml"))).unwrap_err();
    assert!(matches!(error, KeyError::Read { .. }), "{error:?}");
}
