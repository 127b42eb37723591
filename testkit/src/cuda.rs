//! NVIDIA's driver and the runtime of CUDA without a GPU behind them: the device's memory is the host's, copies are copies, and kernels do
//! nothing. So what is not computing can be tested on the real libraries of others (`testkit/cuda`).
//!
//! Needs `cc` and `nm`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("names")
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda").join(name)
}

fn build(library: &Path, name: &str, text: &Path, more: &[String]) {
    let mut cc = Command::new("cc");
    cc.args(["-w", "-shared", "-fPIC"]).arg(format!("-Wl,-soname,{name}")).args(more).arg("-o");
    said(cc.arg(library).arg(text));
}

/// Makes a driver in `folder` with one GPU that will do, but for what the definitions say: `VERSION=12040`, `COUNT=0`, `CAPABILITY=6`.
///
/// # Panics
/// If there is no C compiler.
pub fn driver(folder: &Path, definitions: &[&str]) -> PathBuf {
    let library = folder.join(format!("libcuda{}.so.1", definitions.concat()));
    let definitions: Vec<_> = definitions.iter().map(|definition| format!("-D{definition}")).collect();
    build(&library, "libcuda.so.1", &source("driver.c"), &definitions);
    library
}

/// Makes libraries in `folder` with all the functions that `users` name, by the libraries that they name them of, if those are `wanted`. That of
/// CUDA's runtime does what has to be done; all other functions do nothing and succeed.
///
/// # Panics
/// If there is no C compiler, or a file is none.
pub fn libraries(folder: &Path, users: &[PathBuf], wanted: impl Fn(&str) -> bool) {
    let mut functions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in said(Command::new("nm").args(["-D", "--undefined-only"]).args(users)).lines() {
        let name = line.trim().trim_start_matches("U ");
        if let Some((name, library)) = name.split_once('@') {
            let library = library.trim_start_matches('@');
            if library.starts_with("lib") && wanted(library) {
                functions.entry(library.into()).or_default().push(name.into());
            }
        }
    }
    // Of this one ONNX Runtime has no functions that are named with a version, if any.
    if wanted("libcurand.so.10") {
        functions.entry("libcurand.so.10".into()).or_default();
    }
    let runtime = std::fs::read_to_string(source("runtime.c")).expect("it is here");
    for (library, mut names) in functions {
        names.sort();
        names.dedup();
        let own = if library.starts_with("libcudart") { runtime.as_str() } else { "" };
        let is_own = |name: &String| own.contains(&format!(" {name}(")) || own.contains(&format!("*{name}("));
        let rest = names
            .iter()
            .filter(|name| !is_own(name))
            .map(|name| format!("long {name}(void) {{ return 0; }}\n"));
        let (text, map) = (folder.join("library.c"), folder.join("library.map"));
        let written = std::fs::write(&text, own.to_owned() + &rest.collect::<String>())
            .and_then(|()| std::fs::write(&map, format!("{library} {{ global: *; }};\n")));
        written.expect("a folder to write in");
        build(&folder.join(&library), &library, &text, &[format!("-Wl,--version-script={}", map.display())]);
    }
}
