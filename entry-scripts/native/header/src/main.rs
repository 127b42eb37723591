//! Makes `include/outrigger_script.h` out of `abi/src/lib.rs`; with `--check`, says whether it is up to date.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};

/// A library that hides its symbols still exports these.
const HEAD: &str = "\
/* Native entry scripts for Outrigger: the C ABI.
 * Made by `cargo xtask headers` from entry-scripts/native/abi/src/lib.rs: change that and not this.
 * SPDX-License-Identifier: Apache-2.0 OR MIT */

#ifndef OUTRIGGER_SCRIPT_H
#define OUTRIGGER_SCRIPT_H

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif";
const FOOT: &str = "\
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif /* OUTRIGGER_SCRIPT_H */";

const TYPES: &[&str] = &["Bytes", "Header", "Host", "Message", "Request", "Response", "Script"];
const CONSTANTS: &[&str] = &[
    "ABI",
    "MAJOR",
    "MINOR",
    "CODE_OK",
    "CODE_FAILED",
    "CODE_INPUT",
    "METHOD_GET",
    "METHOD_POST",
    "METHOD_OPTIONS",
    "METHOD_HEAD",
    "CANCELLED_NO",
    "CANCELLED_CLIENT_GONE",
    "CANCELLED_OUT_OF_TIME",
    "LEVEL_DEBUG",
    "LEVEL_INFO",
    "LEVEL_WARNING",
    "LEVEL_ERROR",
    "LEVEL_CRITICAL",
    "SCRIPT_THREAD_SAFE",
];

fn main() -> Result<ExitCode> {
    let native = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = native.join("include/outrigger_script.h");
    let header = generate(&native.join("abi/src/lib.rs"))?;
    match std::env::args().nth(1).as_deref() {
        None => {
            std::fs::write(&path, header).with_context(|| format!("could not write `{}`", path.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Some("--check") if std::fs::read_to_string(&path).is_ok_and(|committed| committed == header) => {
            Ok(ExitCode::SUCCESS)
        }
        Some("--check") => {
            println!(
                "entry-scripts/native/include/outrigger_script.h is out of date: run `cargo xtask headers`"
            );
            Ok(ExitCode::FAILURE)
        }
        Some(other) => bail!("there is no flag `{other}`, only --check"),
    }
}

fn generate(source: &Path) -> Result<String> {
    let rust =
        std::fs::read_to_string(source).with_context(|| format!("could not read `{}`", source.display()))?;
    // What holds for all of it stands at the top, there as here.
    let rules = rust.lines().map_while(|line| line.strip_prefix("//!")).map(|line| format!("//{line}\n"));
    let mut config = Config {
        language: Language::C,
        header: Some(format!("{HEAD}\n\n{}", rules.collect::<String>())),
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        trailer: Some(FOOT.into()),
        cpp_compat: true,
        style: Style::Both,
        documentation_style: DocumentationStyle::C99,
        usize_is_size_t: true,
        line_length: 100,
        ..Config::default()
    };
    let types = TYPES.iter().map(|name| ((*name).to_owned(), format!("Outrigger{name}")));
    let constants = CONSTANTS.iter().map(|name| ((*name).to_owned(), format!("OUTRIGGER_{name}")));
    config.export.rename = types.chain(constants).collect();
    // Types of Rust's that C has no use for.
    config.export.exclude =
        ["AbiFunction", "InitFunction", "RunFunction", "ShutdownFunction"].map(str::to_owned).into();
    let bindings = Builder::new()
        .with_src(source)
        .with_config(config)
        .generate()
        .with_context(|| format!("could not read `{}`", source.display()))?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    Ok(String::from_utf8(text)?)
}
