//! `cargo xtask peers`: Outrigger beside the servers that its users come from, measured in one run.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::args::{Arguments, Flag, Spec};
use crate::repo::Repo;
use crate::setup::Venv;
use crate::{build, process, say, setup};

pub(crate) const SPEC: Spec = Spec {
    name: "peers",
    about: "measure CPU time per request beside other servers",
    details: "\
Installs azureml-inference-server-http, FastAPI with uvicorn, and mosec, each by its lock file in benches/peers into an
environment below target/peers; a second run installs nothing. Then builds the release and lets all of them take turns.
benches/peers/README.md says what is measured. Flags that are not given have the defaults of the measuring program.",
    operands: None,
    flags: FLAGS,
};

const FLAGS: &[Flag] = &[
    Flag { name: "--rounds", value: Some("N"), about: "rounds that count" },
    Flag { name: "--seconds", value: Some("S"), about: "length of a server's turn in a round" },
    Flag { name: "--connections", value: Some("LIST"), about: "connections at once, such as 1,16" },
    Flag { name: "--servers", value: Some("LIST"), about: "servers that take part, such as outrigger,mosec" },
    Flag { name: "--cases", value: Some("LIST"), about: "some of trivial,batch,tensor,stream" },
];

/// Folders of `benches/peers` with a lock file.
const PEERS: &[&str] = &["azureml", "fastapi", "mosec"];
const BENCHES: &str = "outrigger-benches";

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    let environment = setup::ensure(repo)?;
    say::step("peers");
    let target = repo.target()?;
    for peer in PEERS {
        let venv =
            Venv::new(target.join("peers").join(peer), format!("benches/peers/{peer}/requirements.lock"));
        if venv.is_current(repo) {
            say::line(&format!("{peer} is up to date"));
        } else {
            venv.make(repo, &environment.python)?;
        }
    }
    build::product(repo, true)?;
    let artifacts = build::packages(repo, &[BENCHES], &["--release"])?;
    let program = artifacts.into_iter().filter(|artifact| artifact.target.name == "peers");
    let program = program.filter_map(|artifact| artifact.executable).next();
    let mut command = repo.command(program.context("cargo built no executable `peers`")?);
    for flag in FLAGS {
        if let Some(value) = arguments.value::<String>(flag.name)? {
            command.args([flag.name, &value]);
        }
    }
    process::run(command)?;
    Ok(ExitCode::SUCCESS)
}
