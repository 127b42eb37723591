//! Tests of `[callers.NAME]` tables.

use outrigger_auth::{CallerRules, ModelRules};
use outrigger_protocol::{Operation, Priority};

use super::*;

const KEY: &str = "a-key-of-its-own-0123456789";
const OTHER: &str = "another-key-of-0123456789";

fn sources(callers: &str, environment: &[(&str, &str)]) -> Sources {
    let text = format!("[script]\nentry = 's.py'\n[models.digits]\npath = 'd.onnx'\n{callers}");
    let home = [("HOME", "/home/u")];
    let environment = environment.iter().chain(&home);
    Sources {
        file: Some((PathBuf::from("/o.toml"), text)),
        environment: environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        working_directory: PathBuf::from("/work"),
        ..Sources::default()
    }
}

fn policy(callers: &str, environment: &[(&str, &str)]) -> outrigger_auth::PolicyConfig {
    load(&sources(callers, environment)).unwrap().0.callers
}

fn problems(callers: &str, environment: &[(&str, &str)]) -> Vec<String> {
    load(&sources(callers, environment))
        .expect_err("must not be valid")
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn without_tables_the_service_s_keys_may_everything() {
    let config = policy("", &[]);
    assert!(!config.open && config.named.is_empty());
    assert_eq!(
        (config.primary, config.secondary),
        (CallerRules::administrator(), CallerRules::administrator())
    );
    assert!(!CallerRules::default().operations.contains(&Operation::Status));
    assert!(policy("[auth]\nenabled = false", &[]).open);
}

#[test]
fn tables_become_rules() {
    let config = policy(
        &format!(
            "[callers.bob]\nkey = '{KEY}'\noperations = ['infer', 'model_metadata']\nmodels = ['digits', 'team-*', '*']\n\
             rate = 2.5\nburst = 7\nconcurrency = 3\npriority = 'high'\n[callers.secondary]\nrate = 5\n"
        ),
        &[],
    );
    let bob = &config.named[0];
    assert_eq!((bob.name.as_str(), bob.key.as_ref().unwrap().expose()), ("bob", KEY));
    assert_eq!(bob.rules.operations, [Operation::Infer, Operation::ModelMetadata]);
    assert_eq!(bob.rules.models, ModelRules::Only(vec!["digits".into(), "team-*".into(), "*".into()]));
    let rate = bob.rules.rate.unwrap();
    assert_eq!((rate.per_second(), rate.burst()), (2.5, 7));
    assert_eq!((bob.rules.concurrency.unwrap().get(), bob.rules.priority), (3, Priority::High));
    let rate = config.secondary.rate.unwrap();
    assert_eq!((rate.per_second(), rate.burst()), (5.0, 5));
    assert_eq!(config.secondary.operations, CallerRules::administrator().operations);
}

#[test]
fn variables_beat_the_file_and_can_carry_the_key() {
    let table = "[callers.batch-jobs]\nrate = 1\n";
    let environment = [
        ("OUTRIGGER_CALLERS_BATCH_JOBS_KEY", KEY),
        ("OUTRIGGER_CALLERS_BATCH_JOBS_RATE", "3"),
        ("OUTRIGGER_CALLERS_BATCH_JOBS_OPERATIONS", "score, infer"),
        ("OUTRIGGER_CALLERS_PRIMARY_CONCURRENCY", "9"),
    ];
    let config = policy(table, &environment);
    let jobs = &config.named[0];
    assert_eq!((jobs.key.as_ref().unwrap().expose(), jobs.rules.rate.unwrap().per_second()), (KEY, 3.0));
    assert_eq!(jobs.rules.operations, [Operation::Score, Operation::Infer]);
    assert_eq!(config.primary.concurrency.unwrap().get(), 9);
    let wrong = [("OUTRIGGER_CALLERS_BATCH_JOBS_KEY", KEY), ("OUTRIGGER_CALLERS_BATCH_JOBS_RATE", "fast")];
    let rule = "`callers.batch-jobs.rate` is `fast`, expected a number from 0.001 to 1000000";
    assert_eq!(problems(table, &wrong), [format!("environment OUTRIGGER_CALLERS_BATCH_JOBS_RATE: {rule}")]);
    let slip = [("OUTRIGGER_CALLERS_BATCH_JOBS_KEY", KEY), ("OUTRIGGER_CALLERS_BATCH_JOB_RATE", "2")];
    assert!(problems(table, &slip)[0].ends_with("did you mean `OUTRIGGER_CALLERS_BATCH_JOBS_RATE`?"));
    // Who has no table is nobody, whatever variables there are.
    assert!(policy("", &environment).named.is_empty());
}

#[test]
fn each_mistake_is_said_where_it_stands() {
    let bob = |rules: &str| format!("[callers.bob]\nkey = '{KEY}'\n{rules}");
    // The table begins in line 5 and its rules in line 7.
    let table = [
        (bob("rat = 1"), "/o.toml:7: unknown key `callers.bob.rat`, did you mean `rate`?"),
        (
            bob("operations = ['scor']"),
            "/o.toml:7: `callers.bob.operations` names `scor`, did you mean `score`?; the operations are score, swagger, infer, shared_memory, \
             model_metadata, server_metadata, token, status, model_control, collect_control",
        ),
        (
            bob("operations = ['health']"),
            "/o.toml:7: `callers.bob.operations` names `health`, which is open to everybody",
        ),
        (
            bob("models = ['digts']"),
            "/o.toml:7: `callers.bob.models` names `digts`, which is not served here, did you mean `digits`?",
        ),
        (
            bob("models = ['*s']"),
            "/o.toml:7: `callers.bob.models` names `*s`, which is neither a model's name nor the beginning of one with a `*`",
        ),
        (bob("burst = 2"), "/o.toml:7: `callers.bob.burst` is set, `callers.bob.rate` is not"),
        (bob("rate = 0"), "/o.toml:7: `callers.bob.rate` is `0`, expected a number from 0.001 to 1000000"),
        (
            bob("rate = nan"),
            "/o.toml:7: `callers.bob.rate` is `nan`, expected a number from 0.001 to 1000000",
        ),
        (
            bob("concurrency = 0"),
            "/o.toml:7: `callers.bob.concurrency` is `0`, expected a whole number from 1 to 60000",
        ),
        (
            bob("priority = 'urgent'"),
            "/o.toml:7: `callers.bob.priority` is \"urgent\", expected one of high, normal, low",
        ),
        (
            bob("rate = 1\noperations = ['swagger']"),
            "/o.toml:7: `callers.bob.rate` is set, but it may neither score nor infer",
        ),
        (
            bob("models = ['digits']\noperations = ['score']"),
            "/o.toml:7: `callers.bob.models` is set, but it may neither infer nor model_metadata",
        ),
        (
            "[callers.bob]\nkey = 'short'".into(),
            "/o.toml:6: `callers.bob.key`: it has 5 characters, and 22 are the fewest",
        ),
        (
            "[callers.service]".into(),
            "/o.toml:5: `service` is what `outrigger keys` calls the service itself, whose callers are [callers.primary] and [callers.secondary]",
        ),
        ("callers.bob = 1".into(), "/o.toml:5: unknown key `models.digits.callers`"),
        (
            "[callers.Bob]".into(),
            "/o.toml:5: `Bob` is no caller's name: a lower-case letter, then lower-case letters, digits or `-`, 63 at most",
        ),
        (
            "[callers.local]".into(),
            "/o.toml:5: `local` is who comes through the Unix socket of `admin.listen`, and has no rules",
        ),
        (
            format!("[callers.primary]\nkey = '{KEY}'"),
            "/o.toml:6: `callers.primary.key`: its key is `auth.primary_key`",
        ),
        (
            "[callers.anonymous]".into(),
            "/o.toml:5: [callers.anonymous] is for `auth.enabled = false`: else callers without a key may do nothing",
        ),
        (
            format!("{}\n[auth]\nenabled = false", bob("")),
            "/o.toml:5: `auth.enabled = false`, so no key is looked at and [callers.bob] would not hold; what everybody may is in \
             [callers.anonymous]",
        ),
        (
            "[callers.anonymous]\noperations = ['status']\n[auth]\nenabled = false".into(),
            "/o.toml:6: `callers.anonymous.operations` names `status`, which always needs a key",
        ),
        (
            format!("{}\n[callers.eve]\nkey = '{KEY}'", bob("")),
            "/o.toml:9: `callers.eve.key` is the same key as `callers.bob.key`, so nobody could tell who calls",
        ),
        (
            format!("{}\n[auth]\nprimary_key = '{OTHER}'\nsecondary_key = '{KEY}'", bob("")),
            "/o.toml:6: `callers.bob.key` is the same key as `auth.secondary_key`, so nobody could tell who calls",
        ),
    ];
    for (callers, expected) in table {
        let said = problems(&callers, &[]);
        assert_eq!(said, [expected], "{callers}");
        assert!(!said.concat().contains(KEY));
    }
}

#[test]
fn there_are_a_hundred_callers_at_most() {
    let tables = |count: usize| -> String {
        (0..count).map(|at| format!("[callers.c{at}]\nkey = '{KEY}-{at}'\n")).collect()
    };
    assert_eq!(policy(&tables(100), &[]).named.len(), 100);
    let said = problems(&tables(101), &[]);
    assert_eq!(said.len(), 1);
    assert!(said[0].ends_with("101 callers are named, 100 are the most"), "{said:?}");
}

#[test]
fn a_command_that_asks_for_no_key_takes_a_service_s_configuration() {
    let mut sources = sources(&format!("[callers.bob]\nkey = '{KEY}'\nrate = 1"), &[]);
    sources.presets = vec![(key::AUTH_ENABLED, "false".into())];
    assert!(load(&sources).unwrap().0.callers.open);
}

#[test]
fn a_model_directory_that_is_served_whole_may_hold_any_model() {
    let text = format!("model_dir = 'm'\n[callers.bob]\nkey = '{KEY}'\nmodels = ['found-later']\n");
    let file = Some((PathBuf::from("/o.toml"), text));
    let environment = vec![("HOME".into(), "/home/u".into())];
    assert!(load(&Sources { file, environment, ..Sources::default() }).is_ok());
}

#[test]
fn a_certificate_names_a_caller_in_place_of_a_key() {
    let tls = "[tls]\ncertificate = 'c'\nkey = 'k'\nclient_certificates = 'optional'\nclient_ca = 'ca'\n";
    let config = policy(&format!("{tls}[callers.jobs]\ncertificate = 'dns:Jobs.Example'"), &[]);
    let jobs = &config.named[0];
    assert!(jobs.key.is_none());
    assert_eq!(jobs.certificate.as_ref().unwrap().as_str(), "dns:jobs.example");
    let both = policy(&format!("{tls}[callers.jobs]\ncertificate = 'cn:jobs'\nkey = '{KEY}'"), &[]);
    assert!(both.named[0].key.is_some() && both.named[0].certificate.is_some());
    let check = |callers: &str, part: &str| {
        let problems = problems(callers, &[]);
        assert!(problems.len() == 1 && problems[0].contains(part), "{part} not alone in {problems:?}");
    };
    check("[callers.jobs]\ncertificate = 'cn:jobs'", "nobody is asked for one");
    check(&format!("{tls}[callers.jobs]\ncertificate = 'jobs'"), "spiffe://DOMAIN/PATH, dns:NAME or cn:NAME");
    // One that has neither may have a key in the store, now or later.
    let neither = policy(&format!("{tls}[callers.jobs]\nrate = 5"), &[]);
    assert!(neither.named[0].key.is_none() && neither.named[0].certificate.is_none());
    check(&format!("{tls}[callers.primary]\ncertificate = 'cn:jobs'"), "for callers of other names");
    let two = "[callers.a]\ncertificate = 'cn:jobs'\n[callers.b]\ncertificate = 'cn:jobs'";
    check(&format!("{tls}{two}"), "`callers.b.certificate` is the same as `callers.a.certificate`");
}
