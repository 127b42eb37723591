//! What a machine must have before anything can be set up; everything that is missing is named at once.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::process;
use crate::repo::Repo;
use crate::say;

type Version = (u32, u32);

/// ort 2.0.0-rc.15 needs it.
const RUSTC: Version = (1, 92);
/// The oldest Python that the lock file has wheels for.
const PYTHON: Version = (3, 11);
/// In the order in which they are tried: what the user calls Python, then by version.
const INTERPRETERS: &[&str] = &["python3", "python3.13", "python3.12", "python3.11", "python3.14", "python"];

/// Something that is not there.
#[derive(Debug)]
struct Missing {
    what: String,
    /// Debian and Ubuntu packages that bring it.
    packages: Vec<String>,
    /// What else to type.
    command: Option<&'static str>,
}

/// Returns a Python that can make virtual environments, if one is `needed`.
pub(crate) fn check(repo: &Repo, needed: bool) -> Result<Option<PathBuf>> {
    let mut missing = Vec::new();
    let rustc = process::capture(
        repo.command(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg_version(),
    );
    missing.extend(rustc_missing(rustc.ok().as_deref()));
    if process::capture(repo.command("cc").arg_version()).is_err() {
        let packages = vec!["gcc".into(), "libc6-dev".into()];
        missing.push(Missing { what: "a C compiler, `cc`".into(), packages, command: None });
    }
    let mut python = None;
    if needed {
        let seen: Vec<Interpreter> = INTERPRETERS.iter().filter_map(|name| ask(repo, name)).collect();
        match choose(&seen) {
            Ok(chosen) => {
                say::line(&format!("Python {}.{} ({})", chosen.version.0, chosen.version.1, chosen.name));
                python = Some(PathBuf::from(chosen.name));
            }
            Err(absent) => missing.push(absent),
        }
    }
    if !missing.is_empty() {
        bail!("{}", advice(&missing));
    }
    Ok(python)
}

/// `--version` on a command, in one expression.
trait ArgVersion {
    fn arg_version(self) -> Self;
}

impl ArgVersion for std::process::Command {
    fn arg_version(mut self) -> Self {
        self.arg("--version");
        self
    }
}

fn rustc_missing(said: Option<&str>) -> Option<Missing> {
    let version = said.and_then(|text| parse_version(text.strip_prefix("rustc ")?));
    let what = match version {
        Some(version) if version >= RUSTC => return None,
        Some((major, minor)) => format!("rustc {}.{} or later: this is {major}.{minor}", RUSTC.0, RUSTC.1),
        None => format!("rustc {}.{} or later", RUSTC.0, RUSTC.1),
    };
    Some(Missing { what, packages: Vec::new(), command: Some("rustup update stable") })
}

fn parse_version(text: &str) -> Option<Version> {
    let mut parts = text.trim().split(['.', ' ', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// An interpreter on the search path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interpreter {
    name: &'static str,
    version: Version,
    /// Debian leaves `ensurepip` out of its Python; without it `venv` makes an environment that has no pip.
    makes_environments: bool,
}

fn ask(repo: &Repo, name: &'static str) -> Option<Interpreter> {
    const QUESTION: &str = "
import sys
print('%d.%d' % sys.version_info[:2])
try:
    import ensurepip, venv
    print('venv')
except ImportError:
    pass";
    let mut command = repo.command(name);
    command.args(["-c", QUESTION]);
    let answer = process::capture(command).ok()?;
    Some(Interpreter {
        name,
        version: parse_version(answer.lines().next()?)?,
        makes_environments: answer.lines().nth(1) == Some("venv"),
    })
}

fn choose(seen: &[Interpreter]) -> Result<Interpreter, Missing> {
    let recent = || seen.iter().filter(|python| python.version >= PYTHON);
    if let Some(python) = recent().find(|python| python.makes_environments) {
        return Ok(*python);
    }
    let wanted = format!("Python {}.{} or later with venv", PYTHON.0, PYTHON.1);
    let (what, packages) = match (recent().next(), seen.first()) {
        (Some(python), _) => {
            let (major, minor) = python.version;
            let package = if python.name == "python3" {
                "python3-venv".into()
            } else {
                format!("python{major}.{minor}-venv")
            };
            (format!("{wanted}: {} is {major}.{minor} but lacks venv", python.name), vec![package])
        }
        (None, Some(old)) => (
            format!("{wanted}: {} is {}.{}", old.name, old.version.0, old.version.1),
            vec!["python3.11".into(), "python3.11-venv".into()],
        ),
        (None, None) => (wanted, vec!["python3".into(), "python3-venv".into()]),
    };
    Err(Missing { what, packages, command: None })
}

fn advice(missing: &[Missing]) -> String {
    let mut text = String::from("this machine lacks:\n");
    for item in missing {
        text += &format!("  - {}\n", item.what);
    }
    let packages: Vec<&str> = missing.iter().flat_map(|item| &item.packages).map(String::as_str).collect();
    if !packages.is_empty() {
        let packages = packages.join(" ");
        text += &format!(
            "On Debian or Ubuntu:\n  sudo apt-get update && sudo apt-get install --yes {packages}\n"
        );
    }
    for command in missing.iter().filter_map(|item| item.command) {
        text += &format!("To update Rust:\n  {command}\n");
    }
    text + "Then run the same command again."
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn python(name: &'static str, minor: u32, makes_environments: bool) -> Interpreter {
        Interpreter { name, version: (3, minor), makes_environments }
    }

    #[test]
    fn rustc_by_version() {
        let check = |said, expected: Option<&str>| {
            let what = rustc_missing(said).map(|missing| missing.what);
            assert_eq!(what.as_deref(), expected, "{said:?}");
        };
        check(Some("rustc 1.92.0 (abc 2025-12-08)\n"), None);
        check(Some("rustc 1.100.0-nightly (abc)"), None);
        check(Some("rustc 1.85.1 (abc)"), Some("rustc 1.92 or later: this is 1.85"));
        check(Some("something else"), Some("rustc 1.92 or later"));
        check(None, Some("rustc 1.92 or later"));
    }

    #[test]
    fn the_first_python_that_will_do() {
        let check = |seen: &[Interpreter], expected: Result<&str, &str>| {
            let found = choose(seen);
            let found =
                found.as_ref().map(|python| python.name).map_err(|missing| missing.packages.join(" "));
            assert_eq!(found, expected.map_err(String::from), "{seen:?}");
        };
        check(&[python("python3", 11, true)], Ok("python3"));
        check(&[python("python3", 9, true), python("python3.12", 12, true)], Ok("python3.12"));
        check(&[python("python3", 11, false), python("python3.13", 13, true)], Ok("python3.13"));
        check(&[python("python3", 11, false)], Err("python3-venv"));
        check(&[python("python3", 10, true), python("python3.12", 12, false)], Err("python3.12-venv"));
        check(&[python("python3", 9, true)], Err("python3.11 python3.11-venv"));
        check(&[], Err("python3 python3-venv"));
    }

    #[test]
    fn everything_missing_in_one_message() {
        let cc = Missing { what: "a C compiler, `cc`".into(), packages: vec!["gcc".into()], command: None };
        let text = advice(&[rustc_missing(None).unwrap(), cc, choose(&[]).unwrap_err()]);
        assert_eq!(
            text,
            "this machine lacks:\n  - rustc 1.92 or later\n  - a C compiler, `cc`\n  - Python 3.11 or later with venv\n\
             On Debian or Ubuntu:\n  sudo apt-get update && sudo apt-get install --yes gcc python3 python3-venv\n\
             To update Rust:\n  rustup update stable\nThen run the same command again."
        );
    }
}
