//! Known vulnerabilities and withdrawn releases: by a tool that is installed and a database that is on disk, or not at
//! all. Neither comes with the project, and a check must not depend on what a network serves that day.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::process;
use crate::repo::Repo;
use crate::say;

/// Returns what is wrong, a line for each.
pub(super) fn check(repo: &Repo) -> Result<Vec<String>> {
    let Some(home) = cargo_home() else {
        say::line("not checked: there is no cargo home to look for an advisory database in");
        return Ok(Vec::new());
    };
    let deny = (repo.cargo(["deny", "--offline", "check", "advisories"]), home.join("advisory-dbs"));
    let audit = (repo.cargo(["audit", "--no-fetch"]), home.join("advisory-db"));
    let mut reasons = Vec::new();
    for (command, database) in [deny, audit] {
        match usable(repo, &command, &database) {
            Ok(()) => {
                return Ok(process::run(command).err().map(|error| error.to_string()).into_iter().collect());
            }
            Err(reason) => reasons.push(reason),
        }
    }
    say::line(&format!("vulnerabilities and withdrawn releases: not checked, {}", reasons.join(", ")));
    Ok(Vec::new())
}

fn usable(repo: &Repo, command: &Command, database: &std::path::Path) -> Result<(), String> {
    let tool = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
    let mut question = repo.cargo([tool.as_str(), "--version"]);
    if !question.output().is_ok_and(|output| output.status.success()) {
        return Err(format!("cargo-{tool} is not installed"));
    }
    let filled = database.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if filled { Ok(()) } else { Err(format!("cargo-{tool} has no database on disk")) }
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}
