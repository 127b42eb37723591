//! The base image where there is no registry to pull one from: Debian 12, made with mmdebstrap.

use std::fs;

use anyhow::{Context as _, Result};

use super::engine::Engine;
use super::quietly;
use crate::repo::Repo;
use crate::say;

/// Name of the image that is made.
pub(super) const NAME: &str = "outrigger-base:bookworm";
const SUITE: &str = "bookworm";

/// What Debian's own slim images leave out as well. `copyright` stays: licences ask for it.
const EXCLUDED: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"];
const INCLUDED: &[&str] = &["/usr/share/doc/*/copyright"];

/// Makes the base, once: its archive is kept in target/image, to be deleted by who wants a newer Debian.
pub(super) fn ensure(repo: &Repo, engine: &Engine) -> Result<()> {
    let folder = repo.target()?.join("image");
    let archive = folder.join(format!("base-{SUITE}.tar"));
    if !archive.is_file() {
        let spinner = say::spinner("making a small Debian");
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        // Under another name until it is complete.
        let half = folder.join(format!("base-{SUITE}-{}.tar", std::process::id()));
        let mut command = repo.command("mmdebstrap");
        // dpkg need not wait for the disk: after a crash the archive is made anew.
        command.args(["--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io"]);
        command.args(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
        command.args(INCLUDED.iter().map(|path| format!("--dpkgopt=path-include={path}")));
        command.arg(SUITE).arg(&half);
        let made = quietly(command).context("making the base needs mmdebstrap and a Debian mirror");
        if let Err(error) = made.and_then(|()| Ok(fs::rename(&half, &archive)?)) {
            let _ = fs::remove_file(&half);
            return Err(error);
        }
        spinner.finish_and_clear();
    } else if engine.inspect(NAME, "{{.Id}}").is_ok() {
        say::line(&format!("{NAME} is there"));
        return Ok(());
    }
    let mut command = engine.command(["import"]);
    command.arg(&archive).arg(NAME);
    quietly(command)
}
