//! Rules across keys, and of what values mean.

use super::*;

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
