//! `azmlinfsrv`: the command line of AzureML's inference server, so that images and habits carry over. It is `serve` with `compat = true`
//! and, as there, without keys and on all addresses.
//!
//! Source: azureml-inference-server-http 1.5.1: flags, defaults, order of precedence, exit codes and the fields of what is
//! printed at the start. `--help` ends with 0 here.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use outrigger_runtime::config::{Config, HeaderValue, Sources, key};

use crate::sources::variable;
use crate::{exit, serve, sources};

/// The command's name.
pub(crate) const NAME: &str = "azmlinfsrv";

const DEFAULT_PORT: u16 = 5001;
const DEFAULT_HEALTH_PORT: u16 = 5000;

/// The command line.
pub(crate) fn command() -> Command {
    let text = |name: &'static str| Arg::new(name).long(name);
    let port = |name| text(name).value_name("PORT").value_parser(value_parser!(u16).range(1..));
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves an entry script behind the command line of AzureML's inference server: compat on, no keys")
        .long_about(
            "Serves an entry script behind the command line of AzureML's inference server. Answers are as there \
             (compat = true), and no keys are asked for; `outrigger serve` is for everything else.\n\n\
             A flag beats an environment variable, which beats config.json. Outrigger's own variables and its file \
             (OUTRIGGER_CONFIG) are honoured too.\n\n\
             Exit codes: 0 ended in order, 1 wrong flags, 2 address taken, 3 wrong configuration, or the script did not \
             come up, 4 calls were broken off at the end.",
        )
        // As Python's argparse: a beginning that only one flag has is enough.
        .infer_long_args(true)
        .arg(text("entry_script").value_name("PATH").help("Entry script with init() and run()"))
        .arg(text("model_dir").value_name("PATH").help("Directory of models, AZUREML_MODEL_DIR for the script"))
        .arg(port("port").help("Port for scoring [default: 5001]"))
        .arg(port("health_port").help(
            "Port for probes, where SEPARATE_HEALTH_ENDPOINT (or SEPERATE_HEALTH_ENDPOINT) is true [default: 5000]",
        ))
        .arg(
            text("worker_count")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..=1024))
                .help("Worker processes, each at one call at a time [default: 1]"),
        )
        .arg(text("config_file").value_name("PATH").help("config.json with settings"))
        .arg(
            text("appinsights_instrumentation_key")
                .value_name("KEY")
                .help("Handed to the script's environment; nothing is sent to Application Insights"),
        )
        .arg(
            text("access_control_allow_origins")
                .value_name("ORIGINS")
                .allow_hyphen_values(true)
                .help("Origins whose pages may call (CORS), separated by commas"),
        )
        .arg(text("rest").action(ArgAction::SetTrue).hide(true))
}

/// Runs the command; the first of `arguments` is its name.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let mut command = command();
    let matches = match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let _ = error.print();
            println!("\n{}", command.render_help());
            return ExitCode::from(exit::FOUND);
        }
    };
    if !matches.contains_id("entry_script") && !matches.contains_id("config_file") {
        eprintln!("{NAME}: give the entry script (--entry_script) or a file of settings (--config_file)");
        return ExitCode::from(exit::FOUND);
    }
    match start(&matches) {
        Ok(code) => code,
        Err(error) => sources::say(&error, exit::START),
    }
}

fn start(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let mut sources = sources::surroundings()?;
    if let Some(path) = variable(&sources, "OUTRIGGER_CONFIG") {
        let path = sources.working_directory.join(path);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        sources.file = Some((path, text));
    }
    let mut ports = Ports::new(matches, &sources);
    preset(&mut sources, &ports);
    // Several of these run beside each other there, and nothing of the home directory is needed: so here.
    let _state = sources::private_state(&mut sources)?;
    flags(matches, &mut sources, &ports);
    let insights = Insights::new(matches, &sources);
    insights.tell(&mut sources);
    let original = sources.clone();
    let (mut config, settings) = match sources::load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return Ok(code),
    };
    ports.take(&config);
    let environment = environment(&config, &ports, &insights, &original, matches);
    banner(&config, &ports, &insights, &environment, &original);
    if let Some(script) = &mut config.script {
        script.environment.extend(environment);
    }
    Ok(serve::replica(config, &settings))
}

/// The ports that scripts and probes are told.
struct Ports {
    score: u16,
    health: u16,
    /// Probes have a listener of their own that the world can reach.
    separate: bool,
}

impl Ports {
    fn new(matches: &ArgMatches, sources: &Sources) -> Self {
        let given = |name| matches.get_one::<u16>(name).copied();
        // The first is how AzureML spells it.
        let separate = ["SEPERATE_HEALTH_ENDPOINT", "SEPARATE_HEALTH_ENDPOINT"]
            .iter()
            .any(|name| variable(sources, name).as_deref() == Some("true"));
        let score = given("port").unwrap_or(DEFAULT_PORT);
        let health = if separate { given("health_port").unwrap_or(DEFAULT_HEALTH_PORT) } else { score };
        Self { score, health, separate }
    }

    /// Where the operator has said something else in Outrigger's terms, that is what counts.
    fn take(&mut self, config: &Config) {
        self.score = config.listen.score.port();
        self.health = if self.separate { config.listen.observe.port() } else { self.score };
    }
}

/// Defaults of this command; what the operator says in Outrigger's own terms beats them.
fn preset(sources: &mut Sources, ports: &Ports) {
    let observe = if ports.separate { format!("0.0.0.0:{}", ports.health) } else { "127.0.0.1:0".into() };
    let root = sources.working_directory.to_string_lossy().into_owned();
    sources.presets = vec![
        (key::COMPAT, "true".into()),
        (key::AUTH_ENABLED, "false".into()),
        (key::AUTH_ALLOW_OPEN, "true".into()),
        // Where a key is asked for after all, it is as it is there: without TLS.
        (key::TLS_ALLOW_PLAIN, "true".into()),
        (key::SCORE_LISTEN, format!("0.0.0.0:{DEFAULT_PORT}")),
        (key::OBSERVE_LISTEN, observe),
        (key::SCRIPT_APP_ROOT, root),
        // Without an entry script there is `import main`.
        (key::SCRIPT_ENTRY, "main.py".into()),
    ];
}

fn flags(matches: &ArgMatches, sources: &mut Sources, ports: &Ports) {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let real = |path: String| {
        let path = sources.working_directory.join(path);
        path.canonicalize().unwrap_or(path).to_string_lossy().into_owned()
    };
    let mut flags = Vec::new();
    flags.extend(text("entry_script").map(|path| (key::SCRIPT_ENTRY, vec![real(path)])));
    flags.extend(text("model_dir").map(|path| (key::MODEL_DIR, vec![path])));
    let port = matches.get_one::<u16>("port").map(|port| format!("0.0.0.0:{port}"));
    flags.extend(port.map(|address| (key::SCORE_LISTEN, vec![address])));
    if ports.separate && matches.contains_id("health_port") {
        flags.push((key::OBSERVE_LISTEN, vec![format!("0.0.0.0:{}", ports.health)]));
    }
    let workers = matches.get_one::<u16>("worker_count").map(ToString::to_string);
    flags.extend(workers.map(|count| (key::SCRIPT_WORKERS, vec![count])));
    flags.extend(text("access_control_allow_origins").map(|origins| {
        let origins = origins.split(',').map(str::trim).filter(|origin| !origin.is_empty());
        (key::SCORE_CORS_ORIGINS, origins.map(str::to_owned).collect())
    }));
    let config_file = text("config_file").map(real);
    sources.flags = flags;
    if let Some(path) = config_file {
        sources.environment.retain(|(name, _)| name != "AZUREML_CONFIG_FILE");
        sources.environment.push(("AZUREML_CONFIG_FILE".into(), path));
    }
}

/// What the script is told of Application Insights.
struct Insights {
    enabled: bool,
    key: Option<String>,
    /// Whether the key looks like one, where it was looked at.
    valid: Option<bool>,
}

impl Insights {
    fn new(matches: &ArgMatches, sources: &Sources) -> Self {
        let given = matches.get_one::<String>("appinsights_instrumentation_key").cloned();
        // The flag also switches it on.
        let asked =
            given.is_some() || variable(sources, "AML_APP_INSIGHTS_ENABLED").as_deref() == Some("true");
        let key = given.or_else(|| variable(sources, "AML_APP_INSIGHTS_KEY"));
        let valid = if asked { key.as_deref().map(is_uuid) } else { None };
        Self { enabled: valid == Some(true), key, valid }
    }
}

impl Insights {
    /// The replica goes by the variables, whichever way it was said.
    fn tell(&self, sources: &mut Sources) {
        let own = ["AML_APP_INSIGHTS_ENABLED", "AML_APP_INSIGHTS_KEY"];
        if let (true, Some(key)) = (self.enabled, &self.key) {
            sources.environment.retain(|(name, _)| !own.contains(&name.as_str()));
            let values = ["true".to_owned(), key.clone()];
            sources.environment.extend(own.map(str::to_owned).into_iter().zip(values));
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

/// The variables that this command sets for the script.
fn environment(
    config: &Config,
    ports: &Ports,
    insights: &Insights,
    sources: &Sources,
    matches: &ArgMatches,
) -> Vec<(String, String)> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut environment = vec![
        ("SERVER_PORT", ports.score.to_string()),
        ("HEALTH_PORT", ports.health.to_string()),
        ("AML_APP_INSIGHTS_ENABLED", insights.enabled.to_string()),
        ("TRANSPORT_PROTOCOL", if matches.get_flag("rest") { "rest" } else { "grpc" }.into()),
    ];
    if let Some(script) = &config.script {
        environment.extend([
            ("AML_APP_ROOT", path(&script.app_root)),
            ("AZUREML_ENTRY_SCRIPT", path(&script.entry)),
            ("WORKER_COUNT", script.workers.to_string()),
        ]);
    }
    environment.extend(config.model_dir.iter().map(|directory| ("AZUREML_MODEL_DIR", path(directory))));
    environment.extend(insights.key.iter().map(|key| ("AML_APP_INSIGHTS_KEY", key.clone())));
    environment.extend(
        variable(sources, "AZUREML_CONFIG_FILE").iter().map(|path| ("AZUREML_CONFIG_FILE", path.clone())),
    );
    let shown = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    environment
        .extend(config.score.server_version.iter().map(|value| ("HTTP_X_MS_SERVER_VERSION", shown(value))));
    if !config.score.cors_origins.is_empty() {
        // As it was given, spaces and all.
        let given = matches.get_one::<String>("access_control_allow_origins").cloned();
        let given = given.or_else(|| variable(sources, "AML_CORS_ORIGINS"));
        let all = || config.score.cors_origins.iter().map(shown).collect::<Vec<_>>().join(", ");
        environment.push(("AML_CORS_ORIGINS", given.unwrap_or_else(all)));
    }
    environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Says what is started. Tools read these fields, so their names and order are those of AzureML's server.
fn banner(
    config: &Config,
    ports: &Ports,
    insights: &Insights,
    environment: &[(String, String)],
    sources: &Sources,
) {
    let set = |name: &str| {
        let ours = environment.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.clone());
        ours.or_else(|| variable(sources, name)).unwrap_or_else(|| "None".into())
    };
    let mut lines = Vec::new();
    if config.model_dir.is_none() {
        lines.push("No model directory is set (--model_dir, AZUREML_MODEL_DIR).".to_owned());
    }
    lines.extend(insights.valid.map(|valid| {
        let word = if valid { "Valid" } else { "Invalid" };
        format!("{word} Application Insights instrumentation key provided.")
    }));
    lines.extend([
        String::new(),
        format!(
            "Outrigger {} in the place of Azure ML Inferencing HTTP server v1.5.1: compat is {}, keys are {}",
            env!("CARGO_PKG_VERSION"),
            if config.compat { "on" } else { "off" },
            if config.auth.enabled { "needed" } else { "not asked for: whoever reaches the port can score" },
        ),
        String::new(),
        "Server Settings".into(),
        "---------------".into(),
    ]);
    let key = if insights.key.is_some() { "AppInsights key provided" } else { "None" };
    let origins = match set("AML_CORS_ORIGINS") {
        none if config.score.cors_origins.is_empty() => none,
        origins => format!("Enabling CORS for {origins}"),
    };
    let fields = [
        ("Entry Script Name", set("AZUREML_ENTRY_SCRIPT")),
        ("Model Directory", set("AZUREML_MODEL_DIR")),
        ("Config File", set("AZUREML_CONFIG_FILE")),
        ("Worker Count", set("WORKER_COUNT")),
        ("Worker Timeout (seconds)", set("WORKER_TIMEOUT")),
        ("Server Port", set("SERVER_PORT")),
        ("Health Port", set("HEALTH_PORT")),
        ("Application Insights Enabled", set("AML_APP_INSIGHTS_ENABLED")),
        ("Application Insights Key", key.to_owned()),
        ("Inferencing HTTP server version", set("HTTP_X_MS_SERVER_VERSION")),
        ("CORS for the specified origins", origins),
        ("Create dedicated endpoint for health", set("SEPERATE_HEALTH_ENDPOINT")),
    ];
    lines.extend(fields.map(|(name, value)| format!("{name}: {value}")));
    lines.extend([
        String::new(),
        String::new(),
        "Server Routes".into(),
        "---------------".into(),
        format!("Liveness Probe: GET   127.0.0.1:{}/", ports.health),
        format!("Score:          POST  127.0.0.1:{}/score", ports.score),
        String::new(),
    ]);
    // A closed pipe is the reader's choice.
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
}
