//! The store: what it holds, how it changes, and that keys change under a policy that is asked meanwhile.

use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use outrigger_protocol::Operation;
use proptest::prelude::*;

use super::*;

const KEY: &str = "a-key-of-somebody-0123456789";
const OTHER: &str = "another-key-0123456789-abcdef";

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

fn bearer(key: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
    HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
}

fn files(folder: &Path) -> KeyFiles {
    KeyFiles {
        service: KeyConfig {
            primary: None,
            secondary: None,
            file: folder.join("keys.toml"),
            surroundings: Surroundings::Machine,
        },
        store: StoreFile::new(folder.join("store.toml")),
    }
}

fn named(names: &[&str], rules: &CallerRules) -> PolicyConfig {
    let named = names.iter().map(|name| NamedCaller {
        name: (*name).into(),
        key: None,
        certificate: None,
        rules: rules.clone(),
    });
    PolicyConfig { named: named.collect(), ..PolicyConfig::default() }
}

fn edit<T>(store: &StoreFile, change: impl FnOnce(&mut KeyStore) -> T) -> T {
    store.edit(|store| Ok::<_, KeyError>(change(store))).unwrap()
}

#[test]
fn keys_are_added_made_anew_and_revoked() {
    let mut store = KeyStore::empty().unwrap();
    let made = store.add("bob", None, &secret(KEY), 100, Some(200)).unwrap().clone();
    assert_eq!((made.which, made.made, made.expires), (Which::Primary, 100, Some(200)));
    assert!(made.id.starts_with("own_") && made.id.len() == 12, "{}", made.id);
    let generated = generate_key().unwrap();
    let second = store.add("bob", None, &generated, 100, None).unwrap();
    assert_eq!(second.which, Which::Secondary);
    assert_eq!(Some(second.id.as_str()), generated.expose().split_once('.').map(|(id, _)| id));

    let both = store.add("bob", None, &secret(OTHER), 1, None).unwrap_err();
    assert_eq!(both, EditError::Both { principal: "bob".into() });
    let taken = store.add("bob", Some(Which::Primary), &secret(OTHER), 1, None).unwrap_err();
    assert_eq!(taken, EditError::Taken { principal: "bob".into(), which: Which::Primary });
    let same = store.add("eve", None, &secret(KEY), 1, None).unwrap_err();
    assert_eq!(same, EditError::Same { principal: "bob".into(), which: Which::Primary });

    let anew = store.regen("bob", Which::Primary, &secret(OTHER), 1000, Lifetime::AsBefore).unwrap();
    assert_eq!(anew.expires, Some(1100), "it lives as long as the one before");
    let anew = store.regen("bob", Which::Primary, &secret(KEY), 1000, Lifetime::Until(None)).unwrap();
    assert_eq!(anew.expires, None);
    let missing = store.regen("eve", Which::Primary, &secret(OTHER), 1, Lifetime::AsBefore).unwrap_err();
    assert_eq!(missing, EditError::Missing { principal: "eve".into(), which: Which::Primary });

    assert_eq!(store.revoke("bob", Some(Which::Secondary)).unwrap().len(), 1);
    assert_eq!(
        store.revoke("bob", Some(Which::Secondary)).unwrap_err(),
        EditError::Missing { principal: "bob".into(), which: Which::Secondary }
    );
    assert_eq!(store.revoke("bob", None).unwrap().len(), 1);
    assert_eq!(store.revoke("bob", None).unwrap_err(), EditError::None { principal: "bob".into() });
    for name in ["primary", "secondary", "anonymous", "local"] {
        assert_eq!(check_principal(name), Err(EditError::BuiltIn { name: name.into() }));
    }
    for name in ["", "Bob", "-b", "b b", "b/..", "é", &"b".repeat(64)] {
        assert_eq!(check_principal(name), Err(EditError::Name { name: name.into() }));
    }
}

#[test]
fn a_store_has_room_for_two_keys_of_each() {
    let mut store = KeyStore::empty().unwrap();
    for at in 0..MAX_STORED_KEYS {
        store.add(&format!("c{}", at / 2), None, &generate_key().unwrap(), 0, Some(u64::MAX / 2)).unwrap();
    }
    assert_eq!(store.add("more", None, &secret(KEY), 0, None).unwrap_err(), EditError::Full);
    let folder = tempfile::tempdir().unwrap();
    let file = StoreFile::new(folder.path().join("store.toml"));
    edit(&file, |kept| *kept = store.clone());
    assert_eq!(file.read().unwrap().unwrap().keys(), store.keys());
}

#[test]
fn a_store_on_the_disk_holds_no_key_and_is_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = StoreFile::new(folder.path().join("a/store.toml"));
    assert!(store.read().unwrap().is_none());
    edit(&store, |store| {
        store.add("bob", None, &secret(KEY), 7, None).map(drop).unwrap();
        store.add(SERVICE, None, &secret(OTHER), 8, Some(9)).map(drop).unwrap();
    });
    let text = fs::read_to_string(store.path()).unwrap();
    assert!(!text.contains(KEY) && !text.contains(OTHER), "{text}");
    assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(store.read().unwrap().unwrap().keys().len(), 2);
    // What is refused changes nothing.
    let before = FileStamp::of(store.path());
    let refused = store.edit(|store| {
        store.revoke("bob", None).map(drop).unwrap();
        Err::<(), _>(KeyError::Unwritable)
    });
    assert!(refused.is_err() && FileStamp::of(store.path()) == before);
    let set = |mode| fs::set_permissions(store.path(), fs::Permissions::from_mode(mode)).unwrap();
    set(0o644);
    assert!(store.read().unwrap_err().to_string().contains("chmod 600"));
    assert!(store.clone().within(Surroundings::Container).read().is_ok());
    // A group that has it keeps it when it is changed, and others do not get it.
    for mode in [0o640, 0o660] {
        set(mode);
        edit(&store, |_| ());
        assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, mode);
    }
    set(0o644);
    edit(&store.clone().within(Surroundings::Container), |_| ());
    assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn many_who_change_it_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = StoreFile::new(folder.path().join("store.toml"));
    std::thread::scope(|scope| {
        for at in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for which in 0..4 {
                    let name = format!("c{at}-{which}");
                    edit(store, |store| store.add(&name, None, &generate_key().unwrap(), 0, None).map(drop))
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(store.read().unwrap().unwrap().keys().len(), 32);
}

#[test]
fn what_nobody_could_read_again_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = StoreFile::new(folder.path().join("store.toml"));
    let own = |rest: &str| secret(&format!("or_00000000.{}", rest.repeat(30)));
    edit(&store, |store| store.add("bob", None, &own("a"), 1, None).map(|_| ()).unwrap());
    let error = edit(&store, |store| store.add("eve", None, &own("b"), 1, None).map(|_| ()).unwrap_err());
    assert!(matches!(error, EditError::SameId { .. }), "{error}");
    assert_eq!(store.read().unwrap().unwrap().keys().len(), 1);
}

#[test]
fn a_link_in_the_place_of_the_lock_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let store = StoreFile::new(folder.path().join("store.toml"));
    let other = folder.path().join("somebody-elses");
    fs::write(&other, "theirs").unwrap();
    std::os::unix::fs::symlink(&other, folder.path().join("store.toml.lock")).unwrap();
    let refused = store.edit(|_| Ok::<_, KeyError>(()));
    assert!(matches!(refused, Err(KeyError::Write { .. })), "{refused:?}");
    assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
}

#[test]
fn a_pipe_is_no_key_file_and_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.toml");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    assert!(matches!(StoreFile::new(&path).read(), Err(KeyError::NotAFile { .. })));
}

#[test]
fn broken_stores_are_refused_and_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let store = StoreFile::new(folder.path().join("store.toml"));
    edit(&store, |store| store.add("bob", None, &secret(KEY), 7, None).map(drop)).unwrap();
    let good = fs::read_to_string(store.path()).unwrap();
    let hash_key = good.lines().find(|line| line.starts_with("hash_key")).unwrap().to_owned();
    let (head, key) = good.split_at(good.find("[[keys]]").unwrap());
    let table = [
        (String::new(), "line 1"),
        ("version = 1\n".into(), "line 1"),
        (good.replace("version = 1", "version = 2"), "version 2"),
        (good.replace(&hash_key, "hash_key = \"c2hvcnQ\""), "hash_key"),
        (good.replace("principal = \"bob\"", "principal = \"primary\""), "principal"),
        (good.replace("hash = \"", "hash = \"0"), "hash of a key"),
        (good.replace("which = \"primary\"", "which = \"third\""), "line 7"),
        (good.replace("id = \"own_", "id = \"own "), "id of a key"),
        (format!("{good}secret = \"{KEY}\"\n"), "line"),
        (format!("{head}{key}{key}"), "twice"),
        (format!("{good}#{}", "#".repeat(300_000)), "too large"),
    ];
    for (text, expected) in table {
        fs::write(store.path(), &text).unwrap();
        let error = store.read().unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(KEY) && !error.contains(&hash_key[12..40]), "{error}");
    }
}

#[test]
fn the_key_file_is_made_only_where_there_is_no_key_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let keys = files.start().unwrap();
    assert!(keys.is_made() && keys.store.is_none());
    // Both hold side by side.
    edit(&files.store, |store| store.add("bob", None, &secret(KEY), 7, None).map(drop)).unwrap();
    let keys = files.again(&keys).unwrap();
    assert!(keys.service.is_some() && keys.store.is_some());
    // Nobody meant to take away the service's keys who is just changing the file.
    let away = folder.path().join("away.toml");
    fs::rename(&files.service.file, &away).unwrap();
    assert!(matches!(files.again(&keys), Err(KeyError::Gone { what: "file", .. })));
    fs::rename(&away, &files.service.file).unwrap();
    // They may go when they are in the store.
    files.import::<Box<dyn std::error::Error>>(7).unwrap();
    let keys = files.again(&keys).unwrap();
    assert!(keys.service.is_none() && files.start().unwrap().service.is_none());
    assert!(!files.service.file.exists());
    // The store may not.
    fs::remove_file(files.store.path()).unwrap();
    assert!(matches!(files.again(&keys), Err(KeyError::Gone { what: "store", .. })));
}

#[test]
fn keys_of_the_file_are_taken_into_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let made = files.start().unwrap().service.unwrap();
    // One that was broken off has taken the first.
    edit(&files.store, |store| store.add(SERVICE, None, &made.primary, 3, None).map(drop)).unwrap();
    let taken = files.import::<Box<dyn std::error::Error>>(7).unwrap();
    assert_eq!(taken.iter().map(|key| (key.which, key.made)).collect::<Vec<_>>(), [(Which::Secondary, 7)]);
    assert!(!files.service.file.exists());
    let keys = files.start().unwrap();
    let policy = Policy::with_keys(&keys, &PolicyConfig::default(), Instant::now()).unwrap();
    for (key, name) in [(&made.primary, "primary"), (made.secondary.as_ref().unwrap(), "secondary")] {
        let grant = policy.ask(&bearer(key.expose()), Operation::Status, None, Instant::now()).unwrap();
        assert_eq!(grant.name(), name);
    }
    // Where a link leads to the file, what it leads to is what has the keys.
    let (link, target) = (folder.path().join("link.toml"), folder.path().join("elsewhere.toml"));
    fs::write(&target, "primary = 'a-key-behind-a-link-0123456789'").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let linked = KeyFiles {
        service: KeyConfig { file: link.clone(), ..files.service.clone() },
        store: StoreFile::new(folder.path().join("other-store.toml")),
    };
    assert_eq!(linked.import::<Box<dyn std::error::Error>>(7).unwrap().len(), 1);
    assert!(!target.exists() && fs::symlink_metadata(&link).is_err());
    // Others are not replaced by it.
    fs::write(&files.service.file, format!("primary = '{OTHER}'")).unwrap();
    fs::set_permissions(&files.service.file, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = files.import::<Box<dyn std::error::Error>>(7).unwrap_err().to_string();
    assert!(refused.contains("`service` has a primary key") && files.service.file.exists(), "{refused}");
}

#[test]
fn stamps_tell_every_change() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let mut seen = vec![files.stamps()];
    let mut changed = |files: &KeyFiles| {
        let stamps = files.stamps();
        assert_ne!(seen.last(), Some(&stamps));
        seen.push(stamps);
    };
    files.start().unwrap();
    changed(&files);
    edit(&files.store, |store| store.add("bob", None, &secret(KEY), 7, None).map(drop)).unwrap();
    changed(&files);
    edit(&files.store, |_| ());
    changed(&files);
    fs::set_permissions(files.store.path(), fs::Permissions::from_mode(0o644)).unwrap();
    changed(&files);
    assert_eq!(files.stamps(), files.stamps());
}

#[test]
fn keys_change_and_what_callers_have_used_stays() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    edit(&files.store, |store| {
        store.add("bob", None, &secret(KEY), 7, None).map(drop).unwrap();
        store.add("stranger", None, &secret("a-key-of-a-stranger-0123456789"), 7, None).map(drop).unwrap();
    });
    let keys = files.start().unwrap();
    let rules = CallerRules {
        rate: Rate::new(0.01, Some(3)),
        concurrency: NonZeroU32::new(2),
        ..CallerRules::default()
    };
    let (config, now) = (named(&["bob", "eve"], &rules), Instant::now());
    let policy = Policy::with_keys(&keys, &config, now).unwrap();
    assert_eq!(policy.keyless(), ["eve"]);
    let ask = |key: &str| policy.ask(&bearer(key), Operation::Infer, Some("m"), now);
    assert_eq!(
        ask("a-key-of-a-stranger-0123456789").unwrap_err(),
        Refusal::Unauthenticated(AuthError::WrongKey)
    );
    let first = ask(KEY).unwrap();
    assert_eq!(first.name(), "bob");

    // The other key of the same caller has the same rate and the same places.
    edit(&files.store, |store| {
        store.add("bob", None, &secret(OTHER), 7, None).map(drop).unwrap();
        store.revoke("bob", Some(Which::Primary)).map(drop).unwrap();
    });
    let keys = files.again(&keys).unwrap();
    policy.renew(&keys, &config).unwrap();
    assert_eq!(ask(KEY).unwrap_err(), Refusal::Unauthenticated(AuthError::WrongKey));
    let second = ask(OTHER).unwrap();
    assert_eq!(ask(OTHER).unwrap_err(), Refusal::TooManyCalls);
    drop(first);
    let third = ask(OTHER).unwrap();
    drop((second, third));
    assert!(matches!(ask(OTHER).unwrap_err(), Refusal::RateLimited(_)));
    let counts = policy.callers().find(|(name, _)| *name == "bob").unwrap().1;
    assert_eq!((counts.granted, counts.calls), (3, Some(0)));
    let refused: Vec<_> = policy.refused().filter(|(_, count)| *count > 0).collect();
    assert_eq!(refused, [("wrong_key", 2)]);

    // Keys that nobody could be told by are not taken, and those from before stay.
    let twice = PolicyConfig {
        named: config
            .named
            .iter()
            .cloned()
            .map(|bob| NamedCaller { key: Some(secret("the-same-0123456789-abcdef")), ..bob })
            .collect(),
        ..PolicyConfig::default()
    };
    assert!(matches!(policy.renew(&keys, &twice), Err(KeyError::Double { .. })));
    assert!(matches!(ask(OTHER).unwrap_err(), Refusal::RateLimited(_)));
}

#[test]
fn a_key_holds_until_its_end_and_its_last_use_is_known() {
    let mut store = KeyStore::empty().unwrap();
    store.add("bob", None, &secret(KEY), 100, Some(200)).unwrap();
    let bob = CallerId::new(4);
    let ring = |store: &KeyStore| KeyRing::of(None, Some(store), [], |_| bob).unwrap();
    let first = ring(&store);
    let ask = |ring: &KeyRing, now| ring.authenticate(bearer(KEY).get("authorization"), now);
    let used = |ring: &KeyRing| ring.keys().next().unwrap().used;
    assert_eq!((ask(&first, 0), used(&first)), (Ok(bob.unwrap()), None));
    assert_eq!((ask(&first, 199), used(&first)), (Ok(bob.unwrap()), Some(199)));
    assert_eq!((ask(&first, 200), used(&first)), (Err(AuthError::ExpiredKey), Some(199)));
    // It goes on in the ring that takes its place, whichever of the two is asked.
    let lives = store.regen("bob", Which::Primary, &secret(OTHER), 100, Lifetime::Until(None)).map(drop);
    lives.unwrap();
    let before = ring(&store);
    let ask = |ring: &KeyRing, now| ring.authenticate(bearer(OTHER).get("authorization"), now);
    ask(&before, 300).unwrap();
    let mut after = ring(&store);
    after.inherit(&before);
    assert_eq!(used(&after), Some(300));
    ask(&before, 310).unwrap();
    assert_eq!(used(&after), Some(310));
    ask(&after, 320).unwrap();
    ask(&before, 150).unwrap();
    assert_eq!((used(&before), used(&after)), (Some(320), Some(320)), "it only grows");
    // Another key in that place has not been used.
    let mut other = ring(&{
        let mut store = store.clone();
        store.regen("bob", Which::Primary, &secret(KEY), 400, Lifetime::AsBefore).map(drop).unwrap();
        store
    });
    other.inherit(&after);
    assert_eq!(used(&other), None);
}

#[test]
fn one_key_in_two_places_is_one_callers() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let keys = files.start().unwrap();
    let primary = keys.service.as_ref().unwrap().primary.clone();
    edit(&files.store, |store| {
        store.add(SERVICE, None, &primary, 7, None).map(drop).unwrap();
        store.add("bob", None, &secret(KEY), 7, None).map(drop).unwrap();
    });
    let keys = files.again(&keys).unwrap();
    let policy = Policy::with_keys(&keys, &named(&["bob"], &CallerRules::default()), Instant::now()).unwrap();
    let who = |key: &str| {
        policy.ask(&bearer(key), Operation::Score, None, Instant::now()).unwrap().name().to_owned()
    };
    assert_eq!((who(primary.expose()), who(KEY)), ("primary".into(), "bob".into()));
}

#[test]
fn last_uses_are_merged_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let used = UsedFile::beside(&folder.path().join("store.toml"));
    assert!(used.read().is_empty());
    used.merge(&LastUsed::from([("a".into(), 5), ("b".into(), 9)])).unwrap();
    used.merge(&LastUsed::from([("a".into(), 7), ("b".into(), 8)])).unwrap();
    assert_eq!(used.read(), LastUsed::from([("a".into(), 7), ("b".into(), 9)]));
    used.merge(&(0..2000).map(|at| (format!("k{at}"), at)).collect()).unwrap();
    let kept = used.read();
    assert_eq!((kept.len(), kept.values().min()), (1000, Some(&1000)));
    fs::write(folder.path().join("store.toml.used"), "no TOML").unwrap();
    assert!(used.read().is_empty());
}

/// Of 202 keys each is found, and the cost of a wrong one is what it is of a right one. The figure is in `benches`.
#[test]
fn each_of_many_keys_is_its_callers() {
    let mut store = KeyStore::empty().unwrap();
    let keys: Vec<_> = (0..200).map(|_| generate_key().unwrap()).collect();
    for (at, key) in keys.iter().enumerate() {
        store.add(&format!("c{}", at / 2), None, key, 0, None).unwrap();
    }
    let find = |name: &str| CallerId::new(4 + name[1..].parse::<usize>().ok()?);
    let ring = KeyRing::of(None, Some(&store), [], find).unwrap();
    for (at, key) in keys.iter().enumerate() {
        let caller = ring.authenticate(bearer(key.expose()).get("authorization"), 1);
        assert_eq!(caller, Ok(CallerId::new(4 + at / 2).unwrap()));
    }
    let begun = Instant::now();
    assert!(ring.authenticate(bearer(KEY).get("authorization"), 1).is_err());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

proptest! {
    /// Whatever is done to a store, what is read back is what was written.
    #[test]
    fn what_is_written_is_read_back(steps in prop::collection::vec((0u8..3, 0u8..4, any::<bool>(), any::<Option<u32>>()), 0..40)) {
        let folder = tempfile::tempdir().unwrap();
        let file = StoreFile::new(folder.path().join("store.toml"));
        let mut expected = KeyStore::empty().unwrap();
        for (step, name, second, expires) in steps {
            let (name, which) = (format!("c{name}"), if second { Which::Secondary } else { Which::Primary });
            let expires = expires.map(u64::from);
            let _ = match step {
                0 => expected.add(&name, Some(which), &generate_key().unwrap(), 1, expires).map(drop),
                1 => expected.regen(&name, which, &generate_key().unwrap(), 2, Lifetime::Until(expires)).map(drop),
                _ => expected.revoke(&name, Some(which)).map(drop),
            };
        }
        edit(&file, |store| *store = expected.clone());
        let read = file.read().unwrap().unwrap();
        prop_assert_eq!(read.keys(), expected.keys());
        prop_assert_eq!(read.hash_key(), expected.hash_key());
    }
}
