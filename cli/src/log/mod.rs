//! The log: as text for people, as JSON for collectors, or in the lines of AzureML's inference server.

mod azureml;
mod lines;
mod parts;
mod rate;
mod writer;

use std::io::{self, IsTerminal};
use std::sync::Arc;

use outrigger_runtime::config::{LogConfig, LogFormat};
use outrigger_runtime::telemetry::KeptLines;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use lines::Lines;
use rate::Rate;

pub(crate) use writer::Log;

/// Starts logging. `RUST_LOG`, where set and valid, takes the place of the level; it can name modules. The process must not fork
/// any more. The last lines are in what comes back.
///
/// # Errors
/// There is no thread for it.
pub(crate) fn start(config: &LogConfig) -> io::Result<(Log, Arc<KeptLines>)> {
    // The client of blob storage logs URLs, and a signed one is a credential. What it fails with is told by who asked.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{},object_store=off", config.level)));
    let terminal = io::stderr().is_terminal();
    let format = match config.format {
        LogFormat::Auto if terminal => LogFormat::Text,
        LogFormat::Auto => LogFormat::Json,
        known => known,
    };
    let colours = format == LogFormat::Text && terminal;
    // Past the filter and the queue: this is said in the thread that writes, whatever waits.
    let notice = move |lost| {
        let lines = Lines { format, colours, rate: Rate::new(0), kept: None };
        let dispatch = match format {
            LogFormat::AzureMl => dispatch(lines, EnvFilter::new("warn"), io::stdout),
            _ => dispatch(lines, EnvFilter::new("warn"), io::stderr),
        };
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::warn!(lines = lost, "lines of the log are lost: more came than were read (log.buffer)");
        });
    };
    let out: Box<dyn io::Write + Send> = match format {
        LogFormat::AzureMl => Box::new(io::stdout()),
        _ => Box::new(io::stderr()),
    };
    let (log, waiting) = Log::start(out, config.buffer, Box::new(notice))?;
    let kept = KeptLines::new(config.kept);
    let lines = Lines { format, colours, rate: Rate::new(config.rate), kept: Some(Arc::clone(&kept)) };
    // It is empty until here.
    let _ = tracing::dispatcher::set_global_default(dispatch(lines, filter, waiting));
    Ok((log, kept))
}

/// Writes events to `to`.
fn dispatch<W>(lines: Lines, filter: EnvFilter, to: W) -> tracing::Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(to).event_format(lines).into()
}
