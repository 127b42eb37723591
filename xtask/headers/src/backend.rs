//! `outrigger_backend.h`: the table of functions that a backend exports.

use std::path::Path;

use anyhow::{Context, Result};

/// A library that hides its symbols still exports its table.
const HEAD: &str = "\
/* Backends for Outrigger: the C ABI.
 * Made by `cargo xtask headers` from backends/api/src/abi.rs: change that and not this.
 * SPDX-License-Identifier: Apache-2.0 OR MIT */

#ifndef OUTRIGGER_BACKEND_H
#define OUTRIGGER_BACKEND_H
";
const OPEN: &str = "
#ifdef __cplusplus
extern \"C\" {
#endif
";
/// Each release of DLPack defines one of these.
const DLPACK: &str = "
/* DLPack's structs, for those who have not included dlpack.h before. */
#if !defined(DLPACK_DLPACK_H_) && !defined(DLPACK_VERSION) && !defined(DLPACK_MAJOR_VERSION)
";
const FOOT: &str = "\
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

// The one symbol that a library exports. What it returns stays valid and unchanged for the life of the process.
const OutriggerBackendTable *outrigger_backend_v1(void);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
} /* extern \"C\" */
#endif

#endif /* OUTRIGGER_BACKEND_H */";

/// Where the Rust of [`DLPACK_TYPES`] ends.
const DLPACK_END: &str = "/// Why a tensor that came over the table is refused.";
const DLPACK_TYPES: &[&str] = &["DLDevice", "DLDataType", "DLTensor", "DLManagedTensor"];

pub(crate) fn generate(repository: &Path) -> Result<String> {
    let folder = repository.join("backends/api/src");
    let abi = crate::read(&folder.join("abi.rs"))?;
    let dlpack = crate::read(&folder.join("dlpack.rs"))?;
    let (dlpack, _) =
        dlpack.split_once(DLPACK_END).context("dlpack.rs does not have its types at the top")?;

    let flat = flat(&abi);
    let mut config = crate::config();
    config.header = Some(format!("{HEAD}\n{}", unlinked(&crate::rules(&abi))));
    config.after_includes = Some(format!("{OPEN}{DLPACK}\n{}#endif\n", structs(dlpack)?));
    config.trailer = Some(FOOT.into());
    let names = flat.lines().filter_map(name);
    config.export.rename = names.map(|(kind, name)| (name.to_owned(), renamed(kind, name))).collect();
    config.export.include = ["Table", "KDL_CPU", "KDL_EXT_DEV"].map(str::to_owned).into();
    config.export.exclude =
        ["SYMBOL", "EntryPoint", "KDL_CUDA_HOST", "KDL_OPAQUE_HANDLE"].map(str::to_owned).into();
    let constants =
        dlpack.lines().filter(|line| line.starts_with("pub const KDL_") || line.starts_with("/// DLPack's "));
    let constants: String = constants.flat_map(|line| [line, "\n"]).collect();
    for line in constants.lines().filter_map(name) {
        config.export.rename.insert(line.1.to_owned(), format!("OUTRIGGER_BACKEND_{}", &line.1[1..]));
    }
    crate::bindings_of(&unlinked(&format!("{constants}\n{flat}")), config)
}

/// DLPack's structs alone.
fn structs(dlpack: &str) -> Result<String> {
    let mut config = crate::config();
    config.sys_includes = Vec::new();
    config.export.include = DLPACK_TYPES.iter().map(|name| (*name).to_owned()).collect();
    let types = dlpack.find("/// Where the data is.").context("dlpack.rs does not begin with DLDevice")?;
    Ok(crate::bindings_of(&unlinked(&dlpack[types..]), config)?.trim_start().to_owned() + "\n")
}

/// The constants of a module under names of their own, and nullable entries as C has them.
fn flat(abi: &str) -> String {
    let mut module = None;
    let mut flat = String::new();
    for line in abi.lines().skip_while(|line| line.starts_with("//!")) {
        if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(" {")) {
            module = Some(name.to_uppercase());
            // What the module's own text says belongs to no item of C.
            while flat.trim_end().lines().last().is_some_and(|last| last.starts_with("///")) {
                flat.truncate(flat.trim_end().rfind('\n').map_or(0, |at| at + 1));
            }
            continue;
        }
        match &module {
            Some(_) if line == "}" => module = None,
            Some(name) => {
                let line = line.trim_start().replace("pub const ", &format!("pub const {name}_"));
                flat += &line.replace("super::KDL_OPAQUE_HANDLE", "3");
                flat.push('\n');
            }
            None => {
                let line = match line.split_once("Option<") {
                    Some((before, rest)) if line.starts_with("    pub ") => {
                        format!("{before}{}", rest.replace(">,", ","))
                    }
                    _ => line.to_owned(),
                };
                flat += &line;
                flat.push('\n');
            }
        }
    }
    flat
}

/// What a line defines: its keyword and its name.
fn name(line: &str) -> Option<(&str, &str)> {
    let (kind, rest) = line.strip_prefix("pub ")?.split_once(' ')?;
    let is_item = ["const", "struct", "type"].contains(&kind);
    is_item.then(|| (kind, rest.split([' ', ':', '<', ';']).next().unwrap_or(rest)))
}

fn renamed(kind: &str, name: &str) -> String {
    match kind {
        "const" => format!("OUTRIGGER_BACKEND_{name}"),
        _ => format!("OutriggerBackend{}", name.strip_prefix("Backend").unwrap_or(name)),
    }
}

/// Rust's links, as those who read C see them: `[`code::OK`]` is `OUTRIGGER_BACKEND_CODE_OK`.
fn unlinked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[`") {
        let Some((name, after)) = after.split_once("`]") else { break };
        let after = match after.strip_prefix('(').and_then(|link| link.split_once(')')) {
            Some((_, after)) => after,
            None => after,
        };
        out += before;
        out += &format!("`{}`", in_c(name));
        rest = after;
    }
    out + rest
}

fn in_c(name: &str) -> String {
    match name.split_once("::") {
        Some(("Table", entry)) => entry.to_owned(),
        Some((module, constant)) if module.starts_with(char::is_lowercase) => {
            format!("OUTRIGGER_BACKEND_{}_{constant}", module.to_uppercase())
        }
        Some((item, member)) => format!("{}::{member}", in_c(item)),
        None if ["code", "kind", "health", "memory", "type_code"].contains(&name) => {
            format!("OUTRIGGER_BACKEND_{}_...", name.to_uppercase())
        }
        None if name.starts_with("KDL_") => format!("OUTRIGGER_BACKEND_{}", &name[1..]),
        None if ["MAJOR", "MINOR"].contains(&name) => format!("OUTRIGGER_BACKEND_{name}"),
        None if name == "SYMBOL" => "outrigger_backend_v1".into(),
        None if name == "EntryPoint" => "const OutriggerBackendTable *(void)".into(),
        None if name.starts_with("DL") => name.into(),
        None => format!("OutriggerBackend{}", name.strip_prefix("Backend").unwrap_or(name)),
    }
}
