//! Tests of a configuration as a whole; here, of its layers.

mod compat;
mod devices;
mod rules;

use std::path::Path;

use super::*;

fn sources(file: &str, environment: &[(&str, &str)]) -> Sources {
    let mut environment: Vec<(String, String)> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    environment.push(("HOME".into(), "/home/u".into()));
    Sources {
        file: Some((PathBuf::from("/etc/outrigger.toml"), file.to_owned())),
        environment,
        working_directory: PathBuf::from("/work"),
        ..Sources::default()
    }
}

fn problems(sources: &Sources) -> Vec<String> {
    load(sources).expect_err("must not be valid").iter().map(ToString::to_string).collect()
}

#[test]
fn flags_have_lists_with_commas_but_for_arguments() {
    let mut sources = sources("[script]\nentry = 'score.py'", &[]);
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    sources.flags = vec![
        (key::SCORE_CONTRACTS, texts(&["aml, oip", "grpc"])),
        (key::SCRIPT_ARGS, texts(&["--sizes=1,2", "x y"])),
    ];
    let (config, settings) = load(&sources).unwrap();
    assert_eq!(config.script.unwrap().args, ["--sizes=1,2", "x y"]);
    let Some(Value::List(items)) = settings.keys.get(key::SCORE_CONTRACTS.name).map(|set| &set.value) else {
        panic!("{:?}", settings.keys)
    };
    assert_eq!(*items, ["aml", "oip", "grpc"]);
}

#[test]
fn every_default_parses_and_makes_a_configuration() {
    for key in key::KEYS {
        assert!(key.default.is_empty() || key.kind.parse(key.default).is_some(), "{}", key.name);
    }
    let (config, _) = load(&sources("[script]\nentry = 'score.py'", &[])).unwrap();
    assert_eq!(config.listen.score.to_string(), "127.0.0.1:5001");
    assert_eq!(config.limits.body, 100 << 20);
    assert_eq!(config.limits.of_calls(), call::Limits::default());
    assert_eq!(config.shutdown.drain, Duration::from_secs(30));
    assert_eq!(config.state_dir, Path::new("/home/u/.local/state/outrigger"));
    assert_eq!(config.auth.keys.service.file, Path::new("/home/u/.local/state/outrigger/keys.toml"));
    let script = config.script.unwrap();
    assert_eq!((script.workers, script.timeout), (1, Duration::from_secs(60)));
    assert_eq!(script.entry, Path::new("/etc/score.py"), "relative to the file it stands in");
    assert_eq!(script.app_root, Path::new("/etc"));
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = "[script]\nentry = 'score.py'\nworkers = 2\ntimeout = '2s'";
    let mut sources = sources(file, &[("OUTRIGGER_SCRIPT_WORKERS", "3"), ("WORKER_COUNT", "9")]);
    let workers = |sources: &Sources| {
        let (config, settings) = load(sources).unwrap();
        (config.script.unwrap().workers, settings.keys["script.workers"].origin.to_string())
    };
    assert_eq!(workers(&sources), (3, "environment OUTRIGGER_SCRIPT_WORKERS".into()));
    sources.flags = vec![(key::SCRIPT_WORKERS, vec!["4".into()])];
    assert_eq!(workers(&sources), (4, "flag --script-workers".into()));
    sources.flags.clear();
    sources.environment.retain(|(name, _)| name != "OUTRIGGER_SCRIPT_WORKERS");
    assert_eq!(workers(&sources), (9, "environment WORKER_COUNT".into()));
    sources.environment.clear();
    sources.environment.push(("HOME".into(), "/home/u".into()));
    assert_eq!(workers(&sources), (2, "/etc/outrigger.toml:3".into()));
}

#[test]
fn all_mistakes_are_reported_at_once_with_the_nearest_name() {
    let file = "\
[script]
entry = 'score.py'
wokers = 2
timeout = 60
[scrpit]
x = 1
[queue]
items = -1
[models.bad]
pth = 'x'
[models.'../etc']
path = 'x'
[auth]
primary_key = 'short'
";
    let problems =
        problems(&sources(file, &[("OUTRIGGER_QUEUE_WIAT", "1s"), ("OUTRIGGER_LIMITS_BODY", "big")]));
    let expected = [
        "/etc/outrigger.toml:3: unknown key `script.wokers`, did you mean `script.workers`?",
        "/etc/outrigger.toml:4: `script.timeout` is `60`, expected a time with its unit",
        "/etc/outrigger.toml:5: unknown key `scrpit`, did you mean `script`?",
        "/etc/outrigger.toml:8: `queue.items` is `-1`, expected a whole number from 0 to 60000",
        "/etc/outrigger.toml:10: unknown key `models.bad.pth`, did you mean `path`?",
        "/etc/outrigger.toml:9: `models.bad.path` is missing",
        "/etc/outrigger.toml:11: `../etc` is no model name",
        "environment OUTRIGGER_QUEUE_WIAT: unknown variable `OUTRIGGER_QUEUE_WIAT`, did you mean `OUTRIGGER_QUEUE_WAIT`?",
        "environment OUTRIGGER_LIMITS_BODY: `limits.body` is `big`, expected a size",
    ];
    for text in expected {
        assert!(problems.iter().any(|problem| problem.starts_with(text)), "{text}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn variables_of_kubernetes_are_no_mistakes() {
    let environment = [("OUTRIGGER_PORT_5001_TCP_ADDR", "10.0.0.1"), ("OUTRIGGER_SERVICE_HOST", "10.0.0.1")];
    let (_, settings) = load(&sources("model_dir = '/m'", &environment)).unwrap();
    assert_eq!(settings.strangers.len(), 2);
}

#[test]
fn malformed_toml_names_the_line() {
    let problems = problems(&sources("model_dir = '/m'\n[script\n", &[]));
    assert!(problems[0].starts_with("/etc/outrigger.toml:2: "), "{problems:?}");
}

#[test]
fn the_effective_configuration_is_itself_a_valid_file_and_hides_secrets() {
    let mut sources = sources(
        "[auth]\nprimary_key = 'abcdefghijklmnopqrstuvwxyz'\n[models.digits]\npath = 'd.onnx'\n[script]\nentry='s.py'\nargs=['a','b c']",
        &[],
    );
    let (_, settings) = load(&sources).unwrap();
    let shown = settings.show();
    assert!(!shown.contains("abcdefghijklmnopqrstuvwxyz"), "{shown}");
    assert!(shown.contains("path = \"/etc/d.onnx\""), "{shown}");
    sources.file =
        Some((PathBuf::from("/etc/again.toml"), shown.replace("\"***\"", "\"zyxwvutsrqponmlkjihgfedcba\"")));
    let (config, _) = load(&sources).unwrap();
    assert_eq!(config.script.unwrap().args, ["a", "b c"]);
}

#[test]
fn a_program_is_a_name_or_a_path_relative_to_where_it_stands() {
    let python = |sources: &Sources| load(sources).unwrap().0.script.unwrap().python;
    let file = |python: &str| format!("[script]\nentry = 's.py'\npython = '{python}'");
    assert_eq!(python(&sources(&file("python3"), &[])), "python3");
    assert_eq!(python(&sources(&file(".venv/bin/python"), &[])), "/etc/.venv/bin/python");
    assert_eq!(
        python(&sources(&file("x"), &[("OUTRIGGER_SCRIPT_PYTHON", "bin/python")])),
        "/work/bin/python"
    );
}
