//! Makes the C headers out of the Rust of the ABIs; with `--check`, says whether they are up to date.

mod backend;
mod script;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};

/// A header, and what makes its text out of the repository.
type Header = (&'static str, fn(&Path) -> Result<String>);

const HEADERS: &[Header] = &[
    ("entry-scripts/native/include/outrigger_script.h", script::generate),
    ("backends/api/include/outrigger_backend.h", backend::generate),
];

fn main() -> Result<ExitCode> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("there is no flag `{other}`, only --check"),
    };
    let mut verdict = ExitCode::SUCCESS;
    for (path, generate) in HEADERS {
        let header = generate(&repository)?;
        let file = repository.join(path);
        if !check {
            std::fs::write(&file, header).with_context(|| format!("could not write `{}`", file.display()))?;
        } else if !std::fs::read_to_string(&file).is_ok_and(|committed| committed == header) {
            println!("{path} is out of date: run `cargo xtask headers`");
            verdict = ExitCode::FAILURE;
        }
    }
    Ok(verdict)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("could not read `{}`", path.display()))
}

/// What holds for all of it stands at the top, there as here.
fn rules(rust: &str) -> String {
    rust.lines().map_while(|line| line.strip_prefix("//!")).map(|line| format!("//{line}\n")).collect()
}

/// How our headers look.
fn config() -> Config {
    Config {
        language: Language::C,
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        style: Style::Both,
        documentation_style: DocumentationStyle::C99,
        usize_is_size_t: true,
        line_length: 100,
        ..Config::default()
    }
}

fn bindings(source: &Path, config: Config) -> Result<String> {
    let bindings = Builder::new()
        .with_src(source)
        .with_config(config)
        .generate()
        .with_context(|| format!("could not read `{}`", source.display()))?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    Ok(String::from_utf8(text)?)
}

/// The same of a text that lies in no file.
fn bindings_of(rust: &str, config: Config) -> Result<String> {
    let path: PathBuf = std::env::temp_dir().join(format!("outrigger-headers-{}.rs", std::process::id()));
    std::fs::write(&path, rust).with_context(|| format!("could not write `{}`", path.display()))?;
    let text = bindings(&path, config);
    std::fs::remove_file(&path).with_context(|| format!("could not remove `{}`", path.display()))?;
    text
}
