//! What the policy answers, and in which order it looks.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use outrigger_protocol::{CallError, ErrorCode, Operation, Priority};

use super::*;

const PRIMARY: &str = "primary-key-0123456789-abcdef";
const SECONDARY: &str = "secondary-key-0123456789-abcd";
const BOB: &str = "bob-s-own-key-0123456789-abcd";

fn keys() -> ResolvedKeys {
    let config = KeyConfig {
        primary: Some(Secret::new(PRIMARY)),
        secondary: Some(Secret::new(SECONDARY)),
        file: Path::new("unused").into(),
        surroundings: Surroundings::Machine,
    };
    KeySource::resolve(config).unwrap()
}

fn bearer(key: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
    HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
}

fn with_bob(rules: CallerRules) -> PolicyConfig {
    let bob = NamedCaller { name: "bob".into(), key: Some(Secret::new(BOB)), certificate: None, rules };
    PolicyConfig { named: vec![bob], ..PolicyConfig::default() }
}

fn policy(config: &PolicyConfig) -> (Policy, Instant) {
    let start = Instant::now();
    (Policy::new(Some(&keys()), config, start).unwrap(), start)
}

#[test]
fn only_public_operations_pass_without_a_key() {
    let (policy, now) = policy(&PolicyConfig::default());
    let (nothing, wrong, right) = (HeaderMap::new(), bearer("wrong"), bearer(PRIMARY));
    let mut twice = right.clone();
    twice.append("authorization", HeaderValue::from_static("Bearer wrong"));
    for &operation in Operation::ALL {
        for model in [None, Some("digits")] {
            let ask =
                |headers: &HeaderMap| policy.ask(headers, operation, model, now).map(|grant| grant.caller());
            if operation.public() {
                for headers in [&nothing, &wrong, &right, &twice] {
                    assert_eq!(ask(headers), Ok(CallerId::ANONYMOUS), "{operation}");
                }
            } else {
                let refused = |error| Err(Refusal::Unauthenticated(error));
                assert_eq!(ask(&nothing), refused(AuthError::NoHeader), "{operation}");
                assert_eq!(ask(&wrong), refused(AuthError::WrongKey), "{operation}");
                assert_eq!(ask(&right), Ok(CallerId::PRIMARY), "{operation}");
                assert_eq!(ask(&bearer(SECONDARY)), Ok(CallerId::SECONDARY), "{operation}");
                assert_eq!(ask(&twice), refused(AuthError::SeveralHeaders), "{operation}");
            }
        }
    }
}

#[test]
fn with_keys_off_everybody_may_all_but_manage() {
    let open = PolicyConfig { open: true, ..PolicyConfig::default() };
    let (keyed, now) = policy(&open);
    let keyless = Policy::new(None, &open, now).unwrap();
    for &operation in Operation::ALL {
        for headers in [HeaderMap::new(), bearer("wrong")] {
            for policy in [&keyed, &keyless] {
                let answer = policy.ask(&headers, operation, None, now);
                if operation.administrative() {
                    assert!(answer.is_err(), "{operation}");
                } else {
                    assert_eq!(answer.unwrap().caller(), CallerId::ANONYMOUS, "{operation}");
                }
            }
        }
    }
    assert_eq!(keyed.ask(&bearer(PRIMARY), Operation::Status, None, now).unwrap().name(), "primary");
    assert_eq!(keyless.local(Operation::Status).unwrap().name(), "local");
    assert_eq!(keyless.local(Operation::Score).unwrap_err(), Refusal::Forbidden);
}

#[test]
fn a_named_caller_may_what_its_rules_say_and_learns_nothing_of_models() {
    let rules = CallerRules {
        operations: vec![Operation::Infer, Operation::ServerMetadata],
        models: ModelRules::Only(vec!["digits".into(), "team-*".into()]),
        ..CallerRules::default()
    };
    let (policy, now) = policy(&with_bob(rules));
    let headers = bearer(BOB);
    let table = [
        (Operation::Infer, Some("digits"), true),
        (Operation::Infer, Some("team-a"), true),
        (Operation::Infer, Some("team-"), true),
        (Operation::Infer, Some("team"), false),
        (Operation::Infer, Some("digits2"), false),
        (Operation::Infer, Some("Digits"), false),
        (Operation::Infer, Some(""), false),
        (Operation::Infer, Some("*"), false),
        (Operation::Infer, None, false),
        (Operation::ServerMetadata, None, true),
        (Operation::ModelMetadata, Some("digits"), false),
        (Operation::Score, None, false),
        (Operation::Swagger, None, false),
        (Operation::Status, None, false),
        (Operation::Health, None, true),
    ];
    for (operation, model, allowed) in table {
        let answer = policy.ask(&headers, operation, model, now);
        match answer {
            Ok(_) => assert!(allowed, "{operation} {model:?}"),
            Err(refusal) => {
                assert_eq!((refusal, allowed), (Refusal::Forbidden, false), "{operation} {model:?}")
            }
        }
    }
    let grant = policy.ask(&headers, Operation::Infer, Some("digits"), now).unwrap();
    assert_eq!((grant.caller().index(), grant.name()), (BUILT_IN.len(), "bob"));
    assert!(grant.allow_model("team-b").is_ok() && grant.allow_model("other").is_err());
    assert!(format!("{grant:?} {policy:?}").contains("bob"));
    assert!(!format!("{grant:?} {policy:?} {:?}", with_bob(CallerRules::default())).contains(BOB));
}

#[test]
fn by_default_a_named_caller_does_not_manage() {
    let (policy, now) = policy(&with_bob(CallerRules::default()));
    for &operation in Operation::ALL {
        let answer = policy.ask(&bearer(BOB), operation, Some("m"), now);
        assert_eq!(answer.is_ok(), !operation.administrative(), "{operation}");
    }
}

#[test]
fn rates_and_places_count_work_alone_and_refusals_cost_nothing() {
    let rules = CallerRules {
        rate: Rate::new(0.5, Some(2)),
        concurrency: NonZeroU32::new(1),
        models: ModelRules::Only(vec!["digits".into()]),
        ..CallerRules::default()
    };
    let (policy, start) = policy(&with_bob(rules));
    let headers = bearer(BOB);
    let infer = |model, now| policy.ask(&headers, Operation::Infer, Some(model), now);
    for _ in 0..100 {
        for operation in [Operation::Health, Operation::ServerMetadata, Operation::Swagger] {
            assert!(policy.ask(&headers, operation, None, start).unwrap().permit().is_none());
        }
        assert_eq!(infer("other", start).unwrap_err(), Refusal::Forbidden);
    }
    let first = infer("digits", start).unwrap();
    for _ in 0..100 {
        assert_eq!(infer("digits", start).unwrap_err(), Refusal::TooManyCalls);
    }
    // A permit outlives its grant, and the place is free with the last of them.
    let (permit, again) = (first.permit(), first.permit());
    drop(first);
    drop(permit);
    assert_eq!(infer("digits", start).unwrap_err(), Refusal::TooManyCalls);
    drop(again);
    drop(infer("digits", start).unwrap());
    let refused = infer("digits", start + Duration::from_millis(700)).unwrap_err();
    assert_eq!(refused, Refusal::RateLimited(Duration::from_millis(1300)));
    assert!(policy.ask(&bearer(PRIMARY), Operation::Score, None, start).unwrap().permit().is_none());
    let second = infer("digits", start + Duration::from_secs(2)).unwrap();
    let counts: Vec<_> =
        policy.callers().filter(|(name, _)| *name == "bob").map(|(_, counts)| counts).collect();
    let expected =
        CallerCounts { granted: 203, forbidden: 100, rate_limited: 1, too_many_calls: 101, calls: Some(1) };
    assert_eq!(counts, [expected]);
    drop(second);
}

#[test]
fn refusals_become_codes_with_the_time_to_come_back() {
    let table = [
        (Refusal::Unauthenticated(AuthError::NoHeader), ErrorCode::Unauthenticated, None),
        (Refusal::Forbidden, ErrorCode::Forbidden, None),
        (
            Refusal::RateLimited(Duration::from_millis(1300)),
            ErrorCode::RateLimited,
            Some(Duration::from_millis(1300)),
        ),
        (Refusal::TooManyCalls, ErrorCode::TooManyCalls, Some(Duration::from_secs(1))),
    ];
    for (refusal, code, retry_after) in table {
        let error = CallError::from(refusal);
        assert_eq!((error.code, error.retry_after), (code, retry_after));
        assert_eq!(error.message, refusal.to_string());
    }
}

#[test]
fn nobody_asks_for_more_urgency_than_they_have() {
    let rules = CallerRules { priority: Priority::Normal, ..CallerRules::default() };
    let (policy, now) = policy(&with_bob(rules));
    let grant = policy.ask(&bearer(BOB), Operation::Score, None, now).unwrap();
    assert_eq!(grant.priority(None), Priority::Normal);
    assert_eq!(grant.priority(Some(Priority::High)), Priority::Normal);
    assert_eq!(grant.priority(Some(Priority::Low)), Priority::Low);
}

#[test]
fn keys_of_two_callers_and_too_many_callers_are_errors() {
    let now = Instant::now();
    let named = |count: usize, key: &dyn Fn(usize) -> String| {
        let caller = |at| NamedCaller {
            name: format!("c{at}"),
            key: Some(Secret::new(key(at))),
            certificate: None,
            rules: CallerRules::default(),
        };
        PolicyConfig { named: (0..count).map(caller).collect(), ..PolicyConfig::default() }
    };
    let own = |at: usize| format!("a-key-of-its-own-0123456789-{at}");
    let full = Policy::new(Some(&keys()), &named(MAX_CALLERS, &own), now).unwrap();
    let last = full.ask(&bearer(&own(MAX_CALLERS - 1)), Operation::Score, None, now).unwrap();
    assert_eq!(last.caller().index(), CallerId::COUNT - 1);
    let error = Policy::new(Some(&keys()), &named(MAX_CALLERS + 1, &own), now).unwrap_err();
    assert!(matches!(error, KeyError::TooManyCallers), "{error}");
    let error = Policy::new(Some(&keys()), &named(1, &|_| SECONDARY.to_owned()), now).unwrap_err();
    assert_eq!(error.to_string(), "`secondary` and `c0` have the same key, so nobody could tell who calls");
    let error = Policy::new(Some(&keys()), &named(2, &|_| BOB.to_owned()), now).unwrap_err();
    assert!(error.to_string().starts_with("`c0` and `c1`"), "{error}");
    assert_eq!(doubles(&["a", "b", "a", "b", "a"].map(Secret::new)), [(0, 2), (1, 3), (0, 4)]);
}

#[test]
fn a_verified_certificate_names_a_caller_where_no_key_does() {
    let named = |name: &str, certificate: &str| NamedCaller {
        name: name.into(),
        key: None,
        certificate: Some(CertificateName::parse(certificate).unwrap()),
        rules: CallerRules::default(),
    };
    let jobs = named("jobs", "spiffe://example.org/jobs");
    let config =
        PolicyConfig { named: vec![jobs, named("web", "dns:web.example")], ..PolicyConfig::default() };
    let (policy, now) = policy(&config);
    let certificate =
        |names: &[&str]| PeerCertificate::new(names.iter().map(|name| CertificateName::parse(name).unwrap()));
    let ask = |headers: &HeaderMap, names: &[&str]| {
        let certificate = certificate(names);
        let credentials = Credentials { headers, certificate: Some(&certificate) };
        let checked =
            policy.check(credentials, Operation::Score, |_| {}).map_err(|refusal| refusal.to_string());
        let asked = policy.ask(credentials, Operation::Score, None, now);
        assert_eq!(checked.is_ok(), asked.is_ok());
        asked.map(|grant| grant.name().to_owned())
    };
    let none = HeaderMap::new();
    let refused = |fault: AuthError| Err(Refusal::Unauthenticated(fault));
    assert_eq!(ask(&none, &["cn:x", "spiffe://example.org/jobs"]), Ok("jobs".into()));
    assert_eq!(ask(&none, &["dns:WEB.example", "dns:web.example"]), Ok("web".into()));
    assert_eq!(ask(&none, &["cn:web.example"]), refused(AuthError::StrangeCertificate));
    assert_eq!(ask(&none, &[]), refused(AuthError::StrangeCertificate));
    // One that was withdrawn, and one that has ended, name nobody any more.
    let jobs = || certificate(&["spiffe://example.org/jobs"]);
    let withdrawn = jobs();
    withdrawn.withdraw();
    let now_s = wall_clock();
    for (certificate, expected) in [
        (withdrawn, refused(AuthError::EndedCertificate)),
        (jobs().holding_until(now_s), refused(AuthError::EndedCertificate)),
        (jobs().holding_until(now_s + 3600), Ok("jobs".into())),
    ] {
        let credentials = Credentials { headers: &none, certificate: Some(&certificate) };
        let asked = policy.ask(credentials, Operation::Score, None, now);
        assert_eq!(asked.map(|grant| grant.name().to_owned()), expected);
    }
    let both = ["dns:web.example", "spiffe://example.org/jobs"];
    assert_eq!(ask(&none, &both), refused(AuthError::SeveralCallers));
    // A key goes before it, also one that is wrong.
    assert_eq!(ask(&bearer(PRIMARY), &["dns:web.example"]), Ok("primary".into()));
    assert_eq!(
        ask(&bearer("no-key-of-anybody-0123456789"), &["dns:web.example"]),
        refused(AuthError::WrongKey)
    );
    let without = policy.ask(&none, Operation::Score, None, now).map(|grant| grant.name().to_owned());
    assert_eq!(without, refused(AuthError::NoHeader));
}
