//! The log: as text for people, as JSON for collectors, or in the lines of AzureML's inference server.

mod azureml;
mod writer;

use std::io::{self, IsTerminal};

use outrigger_runtime::config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use azureml::AzureMl;

pub(crate) use writer::Log;

/// Starts logging. `RUST_LOG`, where set and valid, takes the place of the level; it can name modules. The process must not fork
/// any more.
///
/// # Errors
/// There is no thread for it.
pub(crate) fn start(config: &LogConfig) -> io::Result<Log> {
    // The client of blob storage logs URLs, and a signed one is a credential. What it fails with is told by who asked.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{},object_store=off", config.level)));
    let format = config.format;
    // Past the filter and the queue: this is said in the thread that writes, whatever waits.
    let notice = move |lines| {
        let dispatch = match format {
            LogFormat::Text | LogFormat::Json => dispatch(format, EnvFilter::new("warn"), io::stderr),
            LogFormat::AzureMl => dispatch(format, EnvFilter::new("warn"), io::stdout),
        };
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::warn!(lines, "lines of the log are lost: more came than were read (log.buffer)");
        });
    };
    let out: Box<dyn io::Write + Send> = match format {
        LogFormat::Text | LogFormat::Json => Box::new(io::stderr()),
        LogFormat::AzureMl => Box::new(io::stdout()),
    };
    let (log, waiting) = Log::start(out, config.buffer, Box::new(notice))?;
    // It is empty until here.
    let _ = tracing::dispatcher::set_global_default(dispatch(format, filter, waiting));
    Ok(log)
}

/// Writes events to `to` in one of the formats.
fn dispatch<W>(format: LogFormat, filter: EnvFilter, to: W) -> tracing::Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(to);
    match format {
        LogFormat::Text => events.with_ansi(io::stderr().is_terminal()).into(),
        LogFormat::Json => events.json().into(),
        LogFormat::AzureMl => events.event_format(AzureMl).into(),
    }
}
