//! Names, variables and files of AzureML's, and `compat`.

use super::*;

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
