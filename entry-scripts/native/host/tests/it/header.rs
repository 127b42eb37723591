//! The header, as compilers see it.

use std::process::Command;

use crate::support::native;

fn compiles(compiler: &str, flags: &[&str], extension: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join(extension);
    // Twice, for the guard.
    let text = "#include \"outrigger_script.h\"\n#include \"outrigger_script.h\"\n\
                uint32_t outrigger_script_abi(void) { return OUTRIGGER_ABI; }\n";
    std::fs::write(&source, text).unwrap();
    let mut command = Command::new(compiler);
    command.args(flags).args(["-pedantic", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-c"]);
    command.arg("-I").arg(native().join("include")).arg("-o").arg(folder.path().join("out.o"));
    match command.arg(source).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => println!("skipped: no `{compiler}`"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn it_is_c99() {
    compiles("cc", &["-std=c99"], "a.c");
}

#[test]
fn it_is_cpp17() {
    compiles("c++", &["-std=c++17"], "a.cpp");
}
