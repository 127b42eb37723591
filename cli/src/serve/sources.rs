//! The texts that the configuration is read from: flags, environment, file.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::ArgMatches;
use clap::parser::ValueSource;
use outrigger_runtime::config::Sources;
use outrigger_runtime::config::key::KEYS;

/// Collects what the command line, the environment and the file say.
pub(super) fn collect(matches: &ArgMatches) -> anyhow::Result<Sources> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let named = matches.get_one::<String>("config").cloned();
    let path = named.or_else(|| {
        let variable =
            environment.iter().find(|(name, value)| name == "OUTRIGGER_CONFIG" && !value.is_empty());
        variable.map(|(_, value)| value.clone())
    });
    let working_directory = std::env::current_dir().context("the working directory cannot be read")?;
    let file = match path {
        Some(path) => {
            let path = working_directory.join(PathBuf::from(path));
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Some((path, text))
        }
        None => None,
    };
    let given = KEYS.iter().filter(|key| {
        matches.try_contains_id(key.name).unwrap_or(false)
            && matches.value_source(key.name) == Some(ValueSource::CommandLine)
    });
    let flags = given
        .map(|key| (*key, matches.get_many::<String>(key.name).unwrap_or_default().cloned().collect()))
        .collect();
    let models = matches.get_many::<String>("model").unwrap_or_default().cloned().collect();
    Ok(Sources { file, environment, flags, models, working_directory })
}
