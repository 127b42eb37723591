//! `outrigger dev`: serves a script while it is being written.
//!
//! A saved file starts a second replica beside the one that serves; once it is ready, new connections go to it and the first one ends
//! in order, its calls finished. So a script that does not come up, for whatever reason, changes nothing but the log, and no
//! call is refused in between. Both are in this process, on ports of their own; connections to the port that people know are led
//! to the one that serves.

mod front;
mod watch;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command};
use outrigger_runtime::config::{Config, Endpoint, ScriptConfig, Sources, key};
use outrigger_runtime::{Replica, ReplicaError};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use self::front::Front;
use self::watch::Changes;
use crate::serve::failure;
use crate::{exit, log, serve, sources};

/// The command line of `dev`.
pub(crate) fn command() -> Command {
    let command = Command::new("dev")
        .about(
            "Serves an entry script on loopback without a key, and anew whenever a file beside it is saved",
        )
        .arg(Arg::new("SCRIPT").required(true).help("Entry script with init() and run()"))
        .arg(Arg::new("debug-port").long("debug-port").value_name("PORT").help(
            "Has workers connect to a debugger that listens on this port (debugpy) [env: AZUREML_DEBUG_PORT]",
        ));
    serve::settings(command)
}

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let mut sources = match sources::collect(matches).map(|sources| prepare(sources, matches)) {
        Ok(sources) => sources,
        Err(error) => return sources::say(&error, exit::CONFIG),
    };
    let _state = match sources::private_state(&mut sources) {
        Ok(state) => state,
        Err(error) => return sources::say(&error, exit::CONFIG),
    };
    let (config, settings) = match sources::load(sources) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if let Some(script) = config.script.as_ref().filter(|script| script.debug_port.is_some())
        && let Err(error) = check_debugger(script)
    {
        return sources::say(&error, exit::CONFIG);
    }
    let (_log, _) = match log::start(&config.log) {
        Ok(started) => started,
        Err(error) => {
            return sources::say(&anyhow::Error::new(error).context("the log's thread"), exit::START);
        }
    };
    for notice in &settings.notices {
        tracing::warn!("{notice}");
    }
    let effective = settings.show();
    serve::run_async(config.threads, async {
        match Session::open(config, effective).await {
            Ok(session) => session.run().await,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::from(exit::CONFIG)
            }
        }
    })
}

fn prepare(mut sources: Sources, matches: &ArgMatches) -> Sources {
    sources.presets = vec![(key::AUTH_ENABLED, "false".into())];
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let script = text("SCRIPT").unwrap_or_default();
    let script = sources.working_directory.join(script).to_string_lossy().into_owned();
    sources.flags.push((key::SCRIPT_ENTRY, vec![script]));
    sources.flags.extend(text("debug-port").map(|port| (key::SCRIPT_DEBUG_PORT, vec![port])));
    sources
}

/// Whether the interpreter has `debugpy`; without it the workers would end one after the other and not say so here.
fn check_debugger(script: &ScriptConfig) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(&script.python);
    let output = command.args(["-c", "import debugpy"]).current_dir(&script.app_root).output();
    let output = output.with_context(|| format!("cannot start `{}` (script.python)", script.python))?;
    if !output.status.success() {
        bail!(
            "a debugger port is given, but `{}` has no debugpy: install it there (pip install debugpy), or leave out \
             --debug-port and AZUREML_DEBUG_PORT",
            script.python
        );
    }
    Ok(())
}

/// What lasts over all replicas.
struct Session {
    config: Config,
    effective: String,
    score: Front,
    observe: Front,
    changes: Changes,
    terminate: Signal,
    interrupt: Signal,
    /// Replicas that are ending.
    ending: JoinSet<()>,
    generation: u64,
}

enum Event {
    Changed,
    Ended,
}

impl Session {
    async fn open(config: Config, effective: String) -> anyhow::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let bind = async |address, key| {
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({key})"))
        };
        let connections = config.limits.connections;
        let score = Front::open(bind(config.listen.score, "score.listen").await?, connections)?;
        let observe = Front::open(bind(config.listen.observe, "observe.listen").await?, connections)?;
        let folder =
            config.script.as_ref().and_then(|script| script.entry.parent()).unwrap_or(Path::new("."));
        let changes = Changes::below(folder)?;
        let admin = &config.listen.admin;
        tracing::info!(score = %score.address(), observe = %observe.address(), %admin, "listening");
        println!(
            "serving http://{}/score, anew whenever a file below {} is saved",
            score.address(),
            folder.display()
        );
        println!("  curl -s http://{}/score -H 'Content-Type: application/json' -d '{{}}'", score.address());
        println!("(`outrigger lint` shows a request that fits the script)");
        Ok(Self {
            config,
            effective,
            score,
            observe,
            changes,
            terminate,
            interrupt,
            ending: JoinSet::new(),
            generation: 0,
        })
    }

    async fn run(mut self) -> ExitCode {
        let mut current: Option<Arc<Replica>> = None;
        loop {
            self.generation += 1;
            let begun = Instant::now();
            let next = tokio::select! {
                next = bring_up(self.next_config(), self.effective.clone()) => next,
                () = ended(&mut self.terminate, &mut self.interrupt) => break,
            };
            match next {
                Ok(next) => {
                    let addresses = next.addresses();
                    let before =
                        [self.score.lead_to(&addresses.score), self.observe.lead_to(&addresses.observe)];
                    tracing::info!(generation = self.generation, took = ?begun.elapsed(), "ready");
                    if let Some(old) = current.replace(next) {
                        self.ending.spawn(async move {
                            // A connection on which no request has come yet would be closed by the replica.
                            for open in before.into_iter().flatten() {
                                open.ended().await;
                            }
                            old.stop().await;
                        });
                    }
                }
                Err(error) => {
                    failure::report(&error, &self.config);
                    match &current {
                        Some(_) => {
                            tracing::warn!("the script as it is now does not come up; the one before goes on")
                        }
                        None => tracing::warn!(
                            "the script does not come up; it is tried again when a file is saved"
                        ),
                    }
                }
            }
            // What init() has written is no reason to begin again.
            let again = self.changes.source_changed_meanwhile();
            match if again { Event::Changed } else { self.wait().await } {
                Event::Changed => tracing::info!("a file was saved: starting anew"),
                Event::Ended => break,
            }
        }
        self.score.close();
        self.observe.close();
        let Self { score, observe, mut ending, mut terminate, mut interrupt, .. } = self;
        let all = async {
            if let Some(replica) = current {
                replica.stop().await;
            }
            while ending.join_next().await.is_some() {}
            // The last bytes of their answers are still on the way.
            score.finish().await;
            observe.finish().await;
        };
        tokio::select! {
            () = all => ExitCode::SUCCESS,
            () = ended(&mut terminate, &mut interrupt) => ExitCode::from(exit::BROKEN_OFF),
        }
    }

    async fn wait(&mut self) -> Event {
        tokio::select! {
            () = self.changes.next() => Event::Changed,
            () = ended(&mut self.terminate, &mut self.interrupt) => Event::Ended,
        }
    }

    /// The configuration with ports and an admin socket of its own.
    fn next_config(&self) -> Config {
        let mut config = self.config.clone();
        let loopback = ([127, 0, 0, 1], 0).into();
        (config.listen.score, config.listen.observe) = (loopback, loopback);
        config.listen.admin = match config.listen.admin {
            Endpoint::Unix(path) => Endpoint::Unix(path.with_extension(format!("{}.sock", self.generation))),
            Endpoint::Tcp(_) => Endpoint::Tcp(loopback),
        };
        // The link to it would go with the replica that has made it, and the next one stands there without.
        if let Some(script) = &mut config.script {
            script.outputs_dir = None;
        }
        config
    }
}

async fn ended(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn bring_up(config: Config, effective: String) -> Result<Arc<Replica>, ReplicaError> {
    let replica = Replica::listen(config, effective)?;
    if let Err(error) = replica.load().await {
        replica.stop().await;
        return Err(error);
    }
    Ok(replica)
}
