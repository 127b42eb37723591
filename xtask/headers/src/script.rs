//! `outrigger_script.h`: native entry scripts.

use std::path::Path;

use anyhow::Result;

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

pub(crate) fn generate(repository: &Path) -> Result<String> {
    let source = repository.join("entry-scripts/native/abi/src/lib.rs");
    let mut config = crate::config();
    config.header = Some(format!("{HEAD}\n\n{}", crate::rules(&crate::read(&source)?)));
    config.trailer = Some(FOOT.into());
    config.cpp_compat = true;
    let types = TYPES.iter().map(|name| ((*name).to_owned(), format!("Outrigger{name}")));
    let constants = CONSTANTS.iter().map(|name| ((*name).to_owned(), format!("OUTRIGGER_{name}")));
    config.export.rename = types.chain(constants).collect();
    // Types of Rust's that C has no use for.
    config.export.exclude =
        ["AbiFunction", "InitFunction", "RunFunction", "ShutdownFunction"].map(str::to_owned).into();
    crate::bindings(&source, config)
}
