//! The log: to stderr, as text for people or as JSON for collectors.

use std::io::IsTerminal;

use outrigger_runtime::config::LogConfig;
use tracing_subscriber::EnvFilter;

/// Starts logging. `RUST_LOG`, where set and valid, takes the place of the level; it can name modules.
pub(super) fn start(config: &LogConfig) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&config.level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}
