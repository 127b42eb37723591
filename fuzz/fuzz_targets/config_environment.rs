//! Configuration by variables, flags and AzureML's `config.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::configuration;
use outrigger_runtime::config::{Sources, key};

fuzz_target!(|text: &[u8]| {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let mut sources = Sources {
        environment: vec![("HOME".into(), "/home/u".into())],
        file: Some(("/o.toml".into(), "model_dir = '/m'\ncompat = true\n".into())),
        working_directory: "/work".into(),
        ..Sources::default()
    };
    // Lines as `NAME=value`, `--flag value`, `--model value`, and the rest of the text from a brace on.
    let (lines, json) = text.split_once('{').map_or((text, None), |(lines, json)| (lines, Some(json)));
    // Each is held against all names that there are, so that many take long.
    for line in lines.lines().take(8) {
        if let Some((flag, value)) = line.strip_prefix("--").and_then(|line| line.split_once(' ')) {
            let key = key::KEYS.iter().find(|key| key.name.replace(['.', '_'], "-") == flag);
            match key {
                Some(key) => sources.flags.push((key, vec![value.to_owned()])),
                None => sources.models.push(value.to_owned()),
            }
        } else if let Some((name, value)) = line.split_once('=') {
            sources.environment.push((name.to_owned(), value.to_owned()));
        }
    }
    sources.config_json = json.map(|json| ("/app/config.json".into(), format!("{{{json}")));
    configuration::check(&sources);
});
