//! The texts that the configuration is read from: flags, environment, files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ArgMatches;
use clap::parser::ValueSource;
use outrigger_runtime::config::key::{self, KEYS};
use outrigger_runtime::config::{self, Config, Mistake, Settings, Sources, azureml, container};
use outrigger_runtime::fetching::{self, Extent, Fetched};

use tempfile::TempDir;

use crate::exit;

/// Collects what the environment says, and where the process stands.
pub(crate) fn surroundings() -> anyhow::Result<Sources> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let working_directory = std::env::current_dir().context("the working directory cannot be read")?;
    let container = container::evidence(&environment, Path::new("/"));
    Ok(Sources { environment, working_directory, container, ..Sources::default() })
}

/// Collects what the command line, the environment and the file say.
pub(crate) fn collect(matches: &ArgMatches) -> anyhow::Result<Sources> {
    let mut sources = surroundings()?;
    let named = matches.get_one::<String>("config").cloned();
    let path = named.or_else(|| variable(&sources, "OUTRIGGER_CONFIG"));
    if let Some(path) = path {
        let path = sources.working_directory.join(PathBuf::from(path));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        sources.file = Some((path, text));
    }
    let given = KEYS.iter().filter(|key| {
        matches.try_contains_id(key.name).unwrap_or(false)
            && matches.value_source(key.name) == Some(ValueSource::CommandLine)
    });
    sources.flags = given
        .map(|key| (*key, matches.get_many::<String>(key.name).unwrap_or_default().cloned().collect()))
        .collect();
    if matches.try_contains_id("model").unwrap_or(false) {
        sources.models = matches.get_many::<String>("model").unwrap_or_default().cloned().collect();
    }
    Ok(sources)
}

/// Makes the configuration, or says on stderr what is wrong and gives the exit code.
pub(crate) fn load(mut sources: Sources) -> Result<(Config, Settings), ExitCode> {
    let mistaken = if config::is_compat(&sources) { exit::START } else { exit::CONFIG };
    match find_config_json(&sources) {
        Ok(found) => sources.config_json = found,
        Err(error) => return Err(say(&error, mistaken)),
    }
    config::load(&sources).map_err(|mistakes| say_mistakes(&mistakes, mistaken))
}

/// Fetches what the configuration names, for a command that looks at models without serving them, or says why it cannot be had. The second is to be kept
/// as long as models are looked at.
pub(crate) fn fetched(config: Config) -> Result<(Config, Option<Fetched>), ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let fetched = runtime
        .map_err(anyhow::Error::new)
        .and_then(|runtime| Ok(runtime.block_on(fetching::fetch(&config, Extent::All))?));
    match fetched {
        Ok(Some(fetched)) => Ok((fetched.config(&config), Some(fetched))),
        Ok(None) => Ok((config, None)),
        Err(error) => Err(say(&error, exit::START)),
    }
}

/// Says what is wrong with the configuration.
pub(crate) fn say_mistakes(mistakes: &[Mistake], code: u8) -> ExitCode {
    eprintln!("outrigger: the configuration has {} mistake(s):", mistakes.len());
    for mistake in mistakes {
        eprintln!("  {mistake}");
    }
    ExitCode::from(code)
}

/// Says an error with its causes.
pub(crate) fn say(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("outrigger: {error:#}");
    ExitCode::from(code)
}

/// AzureML's `config.json`, where it counts and is there.
fn find_config_json(sources: &Sources) -> anyhow::Result<Option<(PathBuf, String)>> {
    for path in azureml::candidates(sources) {
        if let Some(text) = read_config_json(&path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

fn read_config_json(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() > 0 => {
            anyhow::ensure!(
                found.len() <= azureml::CONFIG_JSON_LIMIT,
                "{} is larger than {} bytes",
                path.display(),
                azureml::CONFIG_JSON_LIMIT
            );
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Some(text))
        }
        _ => Ok(None),
    }
}

/// Has the state directory be one for this process alone, unless a variable names one. It goes with what is given back.
pub(crate) fn private_state(sources: &mut Sources) -> anyhow::Result<Option<TempDir>> {
    if variable(sources, &key::STATE_DIR.variable()).is_some() {
        return Ok(None);
    }
    let state = TempDir::with_prefix("outrigger-");
    let state = state.context("no directory for the admin socket; set OUTRIGGER_STATE_DIR")?;
    sources.presets.push((key::STATE_DIR, state.path().to_string_lossy().into_owned()));
    Ok(Some(state))
}

/// A variable that is set and not empty.
pub(crate) fn variable(sources: &Sources, name: &str) -> Option<String> {
    let found = sources.environment.iter().find(|(variable, value)| variable == name && !value.is_empty());
    found.map(|(_, value)| value.clone())
}
