//! Runs a Python script under the default policy, and shows what holds: `confined PYTHON SCRIPT [ARGUMENT..]`.
fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let python: std::path::PathBuf = arguments.next().expect("a Python interpreter").into();
    let script: std::path::PathBuf = arguments.next().expect("a script").into();
    let mut policy = outrigger_sandbox::Policy::for_python(&python, |name| std::env::var_os(name));
    policy.read.push(script.clone());
    policy.write.extend(std::env::var_os("TMPDIR").map(Into::into));
    let prepared = policy.prepare();
    eprintln!("{}", prepared.report());
    let mut command = std::process::Command::new(python);
    command.arg(script).args(arguments);
    prepared.confine(&mut command, None)?;
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1));
}
