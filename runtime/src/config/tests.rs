//! Tests of the layers and of the rules across keys.

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
fn azureml_names_are_honoured() {
    let environment = [
        ("AZUREML_ENTRY_SCRIPT", "code/score.py"),
        ("AML_APP_ROOT", "/var/azureml-app"),
        ("AZUREML_SOURCE_DIRECTORY", "code"),
        ("AZUREML_MODEL_DIR", "/models"),
        ("SCORING_TIMEOUT_MS", "1500"),
        ("WORKER_COUNT", "2"),
        ("SERVICE_NAME", ""),
    ];
    let (config, _) = load(&sources("", &environment)).unwrap();
    let script = config.script.unwrap();
    assert_eq!(script.entry, Path::new("/var/azureml-app/code/score.py"));
    assert_eq!(script.source_directory.as_deref(), Some("code"));
    assert_eq!(script.timeout, Duration::from_millis(1500));
    assert_eq!(script.workers, 2);
    assert_eq!(config.model_dir.as_deref(), Some(Path::new("/models")));
    assert_eq!(config.service.name, "ML service", "an empty variable of AzureML's counts as not set");
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
fn rules_across_keys_are_checked_together() {
    let file = "\
[score]
listen = '0.0.0.0:5001'
[admin]
listen = '10.0.0.1:1'
[auth]
enabled = false
secondary_key = 'shortshort'
[limits]
body = '2GiB'
";
    let text = problems(&sources(file, &[])).join("\n");
    assert!(text.contains("limits.body"), "{text}");
    let text = problems(&sources(
        &file.replace("2GiB", "1GiB").replace("[limits]", "[limits]\nbodies = '1MiB'"),
        &[],
    ))
    .join("\n");
    for part in [
        "auth.allow_open",
        "loopback or a Unix socket",
        "auth.primary_key",
        "nothing to serve",
        "limits.bodies",
    ] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
}

#[test]
fn a_connection_has_room_for_all_its_streams() {
    let window = |limits: &str| {
        let loaded = load(&sources(&format!("model_dir = '/m'\n[limits]\n{limits}"), &[]));
        loaded.map(|(config, _)| config.limits.connection_window).map_err(|mistakes| mistakes[0].to_string())
    };
    assert_eq!(window(""), Ok(64 << 20));
    assert_eq!(window("streams = 512\nstream_window = '1MiB'"), Ok(512 << 20));
    assert_eq!(window("streams = 8\nstream_window = '1MiB'\nconnection_window = '8MiB'"), Ok(8 << 20));
    assert_eq!(window("streams = 8\nstream_window = '1MiB'\nconnection_window = '9MiB'"), Ok(9 << 20));
    let less = window("streams = 8\nstream_window = '1MiB'\nconnection_window = '8388607B'").unwrap_err();
    assert!(
        less.contains("`limits.connection_window` is smaller than") && less.contains("8388608"),
        "{less}"
    );
    let too_much = window("streams = 2048\nstream_window = '1MiB'").unwrap_err();
    assert!(too_much.contains("2147483648 bytes"), "{too_much}");
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

/// Sources with `compat`, and a `config.json`.
fn compat(config_json: &str, environment: &[(&str, &str)]) -> Sources {
    let mut sources = sources("compat = true\n[script]\nentry = 'score.py'", environment);
    sources.config_json = Some((PathBuf::from("/app/config.json"), config_json.to_owned()));
    sources
}

#[test]
fn compat_has_defaults_of_its_own_which_everything_else_beats() {
    let (strict, _) = load(&sources("[script]\nentry = 'score.py'", &[])).unwrap();
    assert_eq!(
        (strict.compat, strict.log.format, strict.log.requests),
        (false, LogFormat::Auto, LogRequests::Errors)
    );
    assert_eq!(strict.score.server_version.unwrap(), format!("outrigger/{}", env!("CARGO_PKG_VERSION")));

    assert!(problems(&compat("{", &[]))[0].starts_with("/app/config.json: invalid JSON"));
    let (config, settings) = load(&compat("{}", &[])).unwrap();
    assert_eq!(
        (config.compat, config.log.format, config.log.requests),
        (true, LogFormat::AzureMl, LogRequests::All)
    );
    assert_eq!(config.score.server_version.unwrap(), "azmlinfsrv/1.5.1");
    assert_eq!(config.script.unwrap().timeout, Duration::from_secs(3600));
    assert_eq!(settings.keys["script.timeout"].origin.to_string(), "default with compat");

    let (config, _) =
        load(&compat("{}", &[("OUTRIGGER_LOG_FORMAT", "json"), ("SCORING_TIMEOUT_MS", "5")])).unwrap();
    assert_eq!(
        (config.log.format, config.script.unwrap().timeout),
        (LogFormat::Json, Duration::from_millis(5))
    );
}

#[test]
fn flag_beats_environment_beats_config_json_beats_the_command_s_default() {
    let json = r#"{"SCORING_TIMEOUT_MS": 1000, "SERVICE_NAME": "of the file", "AML_CORS_ORIGINS": "https://a, https://b",
        "AZUREML_MODEL_DIR": "models", "SERVICE_VERSION": null}"#;
    let timeout = |sources: &Sources| {
        let (config, settings) = load(sources).unwrap();
        (config.script.unwrap().timeout.as_millis(), settings.keys["script.timeout"].origin.to_string())
    };
    let mut sources = compat(json, &[]);
    sources.presets = vec![(key::SCRIPT_TIMEOUT, "9s".into()), (key::SERVICE_NAME, "preset".into())];
    assert_eq!(timeout(&sources), (1000, "/app/config.json: SCORING_TIMEOUT_MS".into()));
    sources.environment.push(("SCORING_TIMEOUT_MS".into(), "2000".into()));
    assert_eq!(timeout(&sources), (2000, "environment SCORING_TIMEOUT_MS".into()));
    sources.flags = vec![(key::SCRIPT_TIMEOUT, vec!["3s".into()])];
    assert_eq!(timeout(&sources), (3000, "flag --script-timeout".into()));
    let (config, _) = load(&sources).unwrap();
    assert_eq!((config.service.name.as_str(), config.service.version.as_str()), ("of the file", "1.0"));
    assert_eq!(config.score.cors_origins, ["https://a", "https://b"]);
    assert_eq!(
        config.model_dir.as_deref(),
        Some(Path::new("/work/models")),
        "as an environment variable has it"
    );
    sources.config_json = None;
    let (config, settings) = load(&sources).unwrap();
    assert_eq!(config.service.name, "preset");
    assert_eq!(settings.keys["service.name"].origin.to_string(), "default of this command");
}

#[test]
fn config_json_counts_only_with_compat() {
    let mut sources = compat(r#"{"SERVICE_NAME": "of the file"}"#, &[]);
    assert!(is_compat(&sources));
    sources.flags = vec![(key::COMPAT, vec!["false".into()])];
    assert!(!is_compat(&sources));
    assert_eq!(load(&sources).unwrap().0.service.name, "ML service");
    assert!(azureml::candidates(&sources).is_empty());
}

#[test]
fn config_json_is_looked_for_where_azureml_looks() {
    let places = |environment: &[(&str, &str)]| -> Vec<String> {
        let sources = compat("{}", environment);
        azureml::candidates(&sources).iter().map(|path| path.display().to_string()).collect()
    };
    assert_eq!(places(&[]), ["/etc/config.json", "/etc/config.json"], "beside the script, which is its root");
    assert_eq!(places(&[("AML_APP_ROOT", "app")])[0], "/work/app/config.json");
    let mut no_script = compat("{}", &[("AML_APP_ROOT", "/app")]);
    no_script.file = Some((PathBuf::from("/etc/o.toml"), "compat = true".into()));
    assert_eq!(
        azureml::candidates(&no_script),
        [Path::new("/app/config.json")],
        "the file may name the script"
    );
    assert_eq!(
        places(&[
            ("AZUREML_CONFIG_FILE", "my.json"),
            ("AML_APP_ROOT", "/app"),
            ("AZUREML_ENTRY_SCRIPT", "/code/score.py")
        ]),
        ["/work/my.json", "/app/config.json", "/code/config.json"]
    );
}

#[test]
fn keys_of_config_json_that_mean_nothing_are_said_with_the_nearest_name() {
    let json = r#"{"SCORING_TIMEOUT_SM": 1, "WORKSPACE_NAME": "w", "HOSTNAME": "h", "AML_APP_INSIGHTS_ENABLED": true}"#;
    let (_, settings) = load(&compat(json, &[])).unwrap();
    let notices = settings.notices.join("\n");
    assert_eq!(settings.notices.len(), 2, "{notices}");
    assert!(
        notices.contains(
            "/app/config.json: unknown key `SCORING_TIMEOUT_SM` has no effect, did you mean `SCORING_TIMEOUT_MS`?"
        ),
        "{notices}"
    );
    assert!(notices.contains("AML_APP_INSIGHTS_ENABLED has no effect"), "{notices}");
    for (json, part) in [
        ("[1]", "expected a JSON object"),
        (r#"{"SCORING_TIMEOUT_MS": "soon"}"#, "`script.timeout` is `soonms`, expected a time"),
        (r#"{"SERVICE_NAME": {}}"#, "`SERVICE_NAME` is an array or an object"),
    ] {
        let problems = problems(&compat(json, &[])).join("\n");
        assert!(problems.contains(part) && problems.contains("/app/config.json"), "{problems}");
    }
}

#[test]
fn the_version_header_can_be_switched_off() {
    let version = |environment: &[(&str, &str)]| {
        let (config, _) = load(&compat("{}", environment)).unwrap();
        config.score.server_version.map(|value| value.to_str().unwrap().to_owned())
    };
    let switch = "SERVER_VERSION_LOG_RESPONSE_ENABLED";
    let default = Some("azmlinfsrv/1.5.1".to_owned());
    for (value, expected) in
        [("", &default), ("true", &default), ("TRUE", &default), ("false", &None), ("1", &None)]
    {
        assert_eq!(version(&[(switch, value)]), *expected, "{value}");
    }
    assert_eq!(version(&[("HTTP_X_MS_SERVER_VERSION", "mine/1")]).as_deref(), Some("mine/1"));
    assert_eq!(version(&[("HTTP_X_MS_SERVER_VERSION", "mine/1"), (switch, "no")]), None);
    let text = problems(&compat("{}", &[("HTTP_X_MS_SERVER_VERSION", "a\r\nb: c")])).join("");
    assert!(text.contains("score.server_version"), "{text}");
    let (config, _) =
        load(&sources("[score]\nserver_version = ''\n[script]\nentry = 'score.py'", &[])).unwrap();
    assert_eq!(config.score.server_version, None);
}

#[test]
fn the_worker_s_time_limit_of_azureml_is_an_upper_bound() {
    let timeout =
        |environment: &[(&str, &str)]| load(&compat("{}", environment)).unwrap().0.script.unwrap().timeout;
    assert_eq!(timeout(&[("WORKER_TIMEOUT", "300")]), Duration::from_secs(300));
    assert_eq!(timeout(&[("WORKER_TIMEOUT", "300"), ("SCORING_TIMEOUT_MS", "1000")]), Duration::from_secs(1));
    assert_eq!(timeout(&[("WORKER_TIMEOUT", "0")]), Duration::from_secs(3600), "0 is none");
}

#[test]
fn variables_without_effect_are_said() {
    let environment = [
        ("AML_DBG_MODEL_INFO", "1"),
        ("WORKER_PRELOAD", "True"),
        ("AML_MODEL_DC_STORAGE_ENABLED", "false"),
        ("AZUREML_DEBUG_PORT", "5678"),
    ];
    let (config, settings) = load(&compat("{}", &environment)).unwrap();
    assert_eq!(settings.notices.len(), 2, "{:?}", settings.notices);
    let script = config.script.unwrap();
    assert_eq!(script.debug_port, Some(5678));
    assert_eq!(script.environment, [("AZUREML_DEBUG_PORT".to_owned(), "5678".to_owned())]);
}

#[test]
fn origins_must_be_fit_for_a_header() {
    let text = problems(&compat("{}", &[("AML_CORS_ORIGINS", "https://a,b\u{7}")])).join("");
    assert!(text.contains("score.cors_origins"), "{text}");
}

#[test]
fn probes_are_found_in_a_configuration_that_serves_nothing() {
    let mut sources = sources("[observe]\nlisten = '0.0.0.0:7'", &[]);
    assert_eq!(observe_address(&sources).unwrap().0.to_string(), "0.0.0.0:7");
    sources.environment.push(("OUTRIGGER_OBSERVE_LISTEN".into(), "x".into()));
    assert!(observe_address(&sources).is_err());
}

#[test]
fn what_scripts_may_reach_is_off_on_or_ports() {
    use outrigger_sandbox::Network;
    let network = |said: &str, environment: &[(&str, &str)]| {
        let file = format!("[script]\nentry = 'score.py'\n{said}");
        load(&sources(&file, environment)).map(|(config, _)| config.script.unwrap().sandbox.network)
    };
    type Case = (&'static str, &'static [(&'static str, &'static str)], Network);
    let table: [Case; 8] = [
        ("", &[], Network::Off),
        ("network = ['off']", &[("AZUREML_MDC_ENABLED", "true")], Network::Off),
        ("network = ['on']", &[], Network::On),
        ("network = ['5432', '6379']", &[], Network::Ports(vec![5432, 6379])),
        ("", &[("OUTRIGGER_COMPAT", "true")], Network::On),
        ("", &[("AZUREML_MDC_ENABLED", "True")], Network::Ports(vec![50011])),
        ("", &[("AZUREML_MDC_ENABLED", "true"), ("AZUREML_MDC_PORT", "7")], Network::Ports(vec![7])),
        ("debug_port = 5678", &[], Network::Ports(vec![5678])),
    ];
    for (said, environment, expected) in table {
        assert_eq!(network(said, environment).unwrap(), expected, "{said} {environment:?}");
    }
    for wrong in ["['of']", "['0']", "['65536']", "['on', '80']"] {
        let mistakes = network(&format!("network = {wrong}"), &[]).unwrap_err();
        assert!(mistakes[0].problem.contains("`script.network`"), "{wrong}: {mistakes:?}");
    }
}

#[test]
fn parts_of_the_sandbox_go_by_their_names() {
    use outrigger_sandbox::Part;
    let off = |parts: &str| {
        let file = format!("[script]\nentry = 'score.py'\nsandbox_off = {parts}");
        load(&sources(&file, &[])).map(|(config, _)| config.script.unwrap().sandbox.off)
    };
    assert!(off("[]").unwrap().is_empty());
    assert_eq!(off("['files', 'network']").unwrap().into_iter().collect::<Vec<_>>().len(), 2);
    assert_eq!(off("['all']").unwrap().len(), Part::ALL.len());
    let mistakes = off("['file']").unwrap_err();
    assert!(mistakes[0].problem.contains("did you mean `files`?"), "{mistakes:?}");
}

#[test]
fn models_batch_only_where_that_is_said() {
    let file = "\
[models.plain]
path = 'a.onnx'
[models.wide]
path = 'b.onnx'
max_batch = 32
max_delay = '500us'
[models.clever]
path = 'c.onnx'
max_batch = 8
max_delay = 'auto'
";
    let (config, settings) = load(&sources(file, &[])).unwrap();
    let said = |name: &str| (config.models[name].max_batch, config.models[name].max_delay);
    assert_eq!(said("plain"), (None, None));
    assert_eq!(said("wide"), (Some(32), Some(BatchDelay::AtMost(Duration::from_micros(500)))));
    assert_eq!(said("clever"), (Some(8), Some(BatchDelay::Auto)));
    assert!(settings.show().contains("max_delay = \"auto\""));
    let mistakes = problems(&sources("[models.m]\npath = 'a'\nmax_batch = 1025\nmax_delay = 'soon'", &[]));
    for text in
        ["`models.m.max_batch` is `1025`", "`models.m.max_delay` is \"soon\", expected a time with its unit"]
    {
        assert!(mistakes.iter().any(|mistake| mistake.contains(text)), "{text} not in {mistakes:#?}");
    }
}

#[test]
fn backends_have_tables_and_models_lists_of_devices() {
    let file = "\
[placement]
devices = ['cuda:1', 'cpu']
fallback = false
[backends]
cpu_threads = 3
[backends.cpu]
threads = 2
memory = '1GiB'
settings = ['cache=/var/cache/outrigger', 'affinity=0-3']
[backends.ours]
library = 'lib/ours.so'
process = 'in'
[backends.gpu]
max_calls = 8
max_call_bytes = '1GiB'
spin = '0s'
load_timeout = '20m'
quarantine_deaths = 3
[models.a]
path = 'a.onnx'
devices = ['ours', 'cpu']
fallback = true
instances = 4
settings = ['affinity = 0-1']
";
    let (config, settings) = load(&sources(file, &[])).unwrap();
    let wishes = |wishes: &[DeviceWish]| wishes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(wishes(&config.placement.devices), ["cuda:1", "cpu"]);
    assert!(!config.placement.fallback);
    let cpu = config.backends.of("cpu");
    assert_eq!((config.backends.cpu_threads, cpu.threads, cpu.memory), (3, Some(2), Some(1 << 30)));
    let pairs = [("cache", "/var/cache/outrigger"), ("affinity", "0-3")];
    assert_eq!(cpu.settings, pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let process = ["cpu", "cuda", "ours"].map(|name| config.backends.process(name));
    assert_eq!(process, [ProcessKind::In, ProcessKind::Out, ProcessKind::In]);
    assert_eq!(config.backends.of("ours").library.as_deref(), Some(Path::new("/etc/lib/ours.so")));
    let model = &config.models["a"];
    assert_eq!(wishes(model.devices.as_ref().unwrap()), ["ours", "cpu"]);
    assert_eq!((model.fallback, model.instances), (Some(true), Some(4)));
    assert_eq!(model.settings, [("affinity".to_owned(), "0-1".to_owned())]);
    let gpu = config.backends.of("gpu").host;
    assert_eq!((gpu.max_calls, gpu.limits.connections, gpu.limits.call_bytes), (Some(8), 8, 1 << 30));
    let timing = (gpu.timing.spin, gpu.timing.reload, gpu.timing.deaths);
    assert_eq!(timing, (Duration::ZERO, Duration::from_secs(1200), 3));
    assert_eq!(config.backends.of("ours").host, HostConfig::default());
    assert_eq!((config.limits.sample_timeout, config.limits.steps), (Duration::from_secs(60), 1 << 30));
    assert_eq!(config.limits.ensemble, 1 << 30);
    // What is shown can be used as a file.
    let (again, _) = load(&sources(&settings.show(), &[])).unwrap();
    assert_eq!(again.backends.of("cpu").settings, cpu.settings);
    assert_eq!(again.backends.of("gpu").host, gpu);
}

#[test]
fn what_is_wrong_with_the_processes_of_backends_is_named() {
    let file = "\
model_dir = 'models'
[backends.cpu]
quarantine = '1m'
max_calls = 4
[backends.cuda]
max_calls = 0
call_wait = '-1s'
max_call_bytes = '0B'
inline_bytes = '2MiB'
kept_regions = 0
max_models = 0
max_instances = 1000000
start_timeout = '0s'
status_timeout = '0s'
request_timeout = '0s'
load_timeout = '0s'
restart_backoff = '0s'
quarantine_deaths = 0
quarantine_window = '0s'
quarantine = '0s'
cancel_grace = '0s'
end_grace = '0s'
";
    let all = problems(&sources(file, &[]));
    // Each by its own line.
    for line in 6..=22 {
        let place = format!("/etc/outrigger.toml:{line}: `backends.cuda.");
        assert!(all.iter().any(|problem| problem.starts_with(&place)), "{place}\nnot in {all:#?}");
    }
    assert_eq!(all.len(), 17, "{all:#?}");
    let file = "\
model_dir = 'models'
[backends]
cpu_threads = 4
[backends.cpu]
quarantine = '1m'
max_calls = 4
[backends.cuda]
threads = 3
max_calls = 2
spin = '11ms'
restart_backoff = '31s'
[backends.gpu]
restart_backoff_max = '99ms'
[backends.fpga]
threads = 4
max_calls = 4
[models.m]
path = 'm'
settings = ['affinity']
";
    let check = |file: &str, expected: &[&str]| {
        let problems = problems(&sources(file, &[]));
        for text in expected {
            assert!(problems.iter().any(|problem| problem.contains(text)), "{text}\nnot in {problems:#?}");
        }
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    };
    let cuda_and_gpu = [
        "toml:9: `backends.cuda.max_calls` is 2, fewer than the 3 threads of `backends.cuda.threads`",
        "toml:10: `backends.cuda.spin` is 11ms, 10ms is the most",
        "toml:11: `backends.cuda.restart_backoff` is 31s, more than `backends.cuda.restart_backoff_max`, 30s",
        "toml:13: `backends.gpu.restart_backoff` is 100ms, more than `backends.gpu.restart_backoff_max`, 99ms",
        "`models.m.settings` holds `affinity`, which is not KEY=VALUE",
    ];
    let inside = [
        "toml:5: `backends.cpu.quarantine` is about a process of its own, which `cpu` has not; set `backends.cpu.process = \"out\"`",
        "toml:6: `backends.cpu.max_calls` is about a process of its own",
    ];
    check(file, &[&inside[..], &cuda_and_gpu].concat());
    check(&file.replace("quarantine = '1m'\nmax_calls = 4", "process = 'out'\nmax_calls = 4"), &cuda_and_gpu);
    let few = "`backends.cpu.max_calls` is 3, fewer than the 4 threads of `backends.cpu_threads`";
    let file = file.replace("quarantine = '1m'\nmax_calls = 4", "process = 'out'\nmax_calls = 3");
    check(&file, &[&[few][..], &cuda_and_gpu].concat());
}

#[test]
fn what_is_wrong_with_backends_and_lists_is_named() {
    let file = "\
model_dir = 'models'
[backends]
cpu_thread = 3
[backends.path]
threads = 1
[backends.CUDA]
threads = 1
[backends.cdua]
threads = 1
[backends.cpu]
threds = 1
process = 'beside'
settings = ['cache']
[backends.gpu]
settings = ['a=1', 'a=2']
[placement]
devices = []
[models.a]
path = 'a'
devices = ['cuda:x', 'cpu']
[models.b]
path = 'b'
devices = ['cdua', 'fgpa']
instances = 65
";
    let problems = problems(&sources(file, &[]));
    let expected = [
        "/etc/outrigger.toml:3: unknown key `backends.cpu_thread`, did you mean `backends.cpu_threads`?",
        "/etc/outrigger.toml:4: `backends.path` is a table, expected a path",
        "/etc/outrigger.toml:6: `CUDA` is no backend's name",
        "/etc/outrigger.toml:11: unknown key `backends.cpu.threds`, did you mean `threads`?",
        "/etc/outrigger.toml:12: `backends.cpu.process` is \"beside\", expected one of in, out",
        "/etc/outrigger.toml:24: `models.b.instances` is `65`, expected a whole number from 1 to 64",
    ];
    for text in expected {
        assert!(problems.iter().any(|problem| problem.starts_with(text)), "{text}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");

    let file = file
        .replace("cpu_thread = 3\n[backends.path]\nthreads = 1\n[backends.CUDA]\nthreads = 1\n", "")
        .replace("threds = 1\nprocess = 'beside'\n", "")
        .replace("instances = 65\n", "");
    let problems = crate::config::tests::problems(&sources(&file, &[]));
    let expected = [
        "`backends.cdua.library` is missing: `cdua` is none of ours, did you mean `cuda`?",
        "`backends.cpu.settings` holds `cache`, which is not KEY=VALUE",
        "`backends.gpu.settings` sets `a` twice",
        "`placement.devices` names no device",
        "`models.a.devices` holds what is none: `cuda:x` is no device, such as cuda or cuda:1",
        "`models.b.devices` names `fgpa`, but there is no backend `fgpa`, did you mean `fpga`?",
    ];
    for text in expected {
        assert!(problems.iter().any(|problem| problem.contains(text)), "{text}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn an_upstream_is_checked_as_a_whole() {
    let (config, _) = load(&sources("[upstream]\nurl = 'http://127.0.0.1:9000'", &[])).unwrap();
    let upstream = config.upstream.unwrap();
    assert_eq!((upstream.score_path.as_str(), upstream.slots, upstream.connections), ("/score", 1, 1));
    assert_eq!((upstream.timeout, upstream.paths.len()), (Duration::from_secs(5), 0));
    assert_eq!(upstream.probes.ready_at, upstream.address);
    let file = "[upstream]\nurl = 'unix:/run/app.sock'\nslots = 4\nready_path = '/ready?x=y'\nready_port = 8081\n\
                live_path = '/live'\npaths = ['/v1/*', '/predict']\nscore_path = '/invoke'";
    let (config, settings) = load(&sources(file, &[("OUTRIGGER_UPSTREAM_TIMEOUT", "7s")])).unwrap();
    let upstream = config.upstream.unwrap();
    assert_eq!(upstream.address.to_string(), "unix:/run/app.sock");
    assert_eq!(upstream.probes.ready_at.to_string(), "http://127.0.0.1:8081");
    assert_eq!(upstream.probes.live_at, upstream.address);
    assert_eq!((upstream.connections, upstream.timeout), (4, Duration::from_secs(7)));
    assert!(settings.show().contains("connections = 4"), "{}", settings.show());
    // Models may be fetched for it, or served beside it.
    let more = format!("{file}\n[store]\nregistry = '/r'\nmodels = ['a']\n[models.b]\npath = 'b.onnx'");
    assert!(load(&sources(&more, &[])).is_ok());

    let check = |file: &str, expected: &str| {
        let problems = problems(&sources(file, &[]));
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{file}: {problems:?}");
        assert_eq!(problems.len(), 1, "{file}: {problems:?}");
    };
    let url = "url = 'http://127.0.0.1:9000'";
    check(&format!("[script]\nentry = 's.py'\n[upstream]\n{url}"), "`script.entry` is set too");
    check(&format!("[script]\nnative = 's.so'\n[upstream]\n{url}"), "`script.native` is set too");
    check("model_dir = '/m'\n[upstream]\nslots = 2", "`upstream.slots`: `upstream.url` does not say");
    check("[upstream]\nurl = 'http://10.0.0.1:9000'", "upstream.allow_remote = true");
    check("[upstream]\nurl = '127.0.0.1:9000'", "it takes http://127.0.0.1:PORT or unix:PATH");
    check(&format!("[upstream]\n{url}\nscore_path = 'score'"), "`score` is no path");
    check(&format!("[upstream]\n{url}\nscore_path = '/score?x'"), "it has a query");
    check(&format!("[upstream]\n{url}\npaths = ['/a', '/v1*']"), "`/v1*` is no path");
    check(&format!("[upstream]\n{url}\nlive_port = 80"), "upstream.live_path");
    check(&format!("[upstream]\n{url}\nslot = 1"), "upstream.slots");
    let remote = "[upstream]\nurl = 'http://app:9000'\nallow_remote = true";
    assert!(load(&sources(remote, &[])).is_ok());
}

#[test]
fn an_answer_that_is_kept_leaves_room_for_others() {
    let with = |cache: &str| sources(&format!("[models.m]\npath = 'a'\n[cache]\n{cache}"), &[]);
    let mistakes = problems(&with("bytes = '1MiB'"));
    assert!(mistakes[0].contains("`cache.answer` is more than half of `cache.bytes`"), "{mistakes:?}");
    let (config, _) = load(&with("bytes = '1MiB'\nanswer = '512KiB'")).unwrap();
    assert_eq!((config.cache.bytes, config.cache.answer), (1 << 20, 512 << 10));
    assert!(config.cache.per_caller && !config.cache.models);
}
