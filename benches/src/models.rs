//! The replica's models, without its front.

use std::sync::Arc;
use std::time::Instant;

use outrigger_auth::{Policy, PolicyConfig};
use outrigger_runtime::busy::Busy;
use outrigger_runtime::config::{self, Sources};
use outrigger_runtime::{Metrics, Models};

/// Loads what a configuration names, with its metrics.
///
/// # Errors
/// The first mistake of the configuration, or why a model does not load.
pub fn load(configuration: String) -> anyhow::Result<(Models, Metrics)> {
    let sources = Sources { file: Some(("/bench.toml".into(), configuration)), ..Sources::default() };
    let (config, _) = config::load(&sources).map_err(|mistakes| {
        anyhow::anyhow!("{}", mistakes.first().map_or(String::new(), ToString::to_string))
    })?;
    let busy = Busy::new(1);
    let open = PolicyConfig { open: true, ..PolicyConfig::default() };
    let metrics = Metrics::new(Arc::clone(&busy), Arc::new(Policy::new(None, &open, Instant::now())?), 50)?;
    Ok((Models::load(&config, None, &busy, &metrics)?, metrics))
}
