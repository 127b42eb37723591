//! What the sandbox costs: making it ready, starting a process in it, and system calls in it, against the same without.
//! With and without alternate; medians are shown.

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_sandbox::{Policy, Prepared};

const ROUNDS: usize = 9;
const STARTS: u32 = 40;
const CALLS: u32 = 100_000;

type Operation<'a> = (&'a str, Box<dyn FnMut() + 'a>);

fn main() -> std::io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("loop") {
        return calls();
    }
    let own = std::env::current_exe()?;
    let mut policy = Policy::default();
    policy.read.push(own.clone());
    (policy.memory, policy.processes, policy.cpu_millicores) = (Some(1 << 30), Some(256), Some(8000));
    let begin = Instant::now();
    let prepared = policy.prepare();
    println!("prepare: {:.2} ms", begin.elapsed().as_secs_f64() * 1e3);

    let mut groupless = policy.clone();
    (groupless.memory, groupless.processes, groupless.cpu_millicores) = (None, None, None);
    let groupless = groupless.prepare();
    let mut starts = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (times, sandbox) in starts.iter_mut().zip([None, Some(&groupless), Some(&prepared)]) {
            times.push(start(sandbox)?);
        }
    }
    let [plain, confined, grouped] =
        starts.map(|times| median(times).as_secs_f64() * 1e6 / f64::from(STARTS));
    println!(
        "start and end of /bin/true: {plain:.0} us plain, {confined:.0} us confined, {grouped:.0} us with a control group"
    );

    let mut found: Vec<(String, [Vec<f64>; 2])> = Vec::new();
    for _ in 0..ROUNDS {
        for (column, sandbox) in [None, Some(&prepared)].into_iter().enumerate() {
            let mut command = Command::new(&own);
            command.arg("loop");
            if let Some(sandbox) = sandbox {
                sandbox.confine(&mut command, None)?;
            }
            let output = command.output()?;
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let Some((name, time)) = line.rsplit_once(' ') else { continue };
                let Ok(time) = time.parse() else { continue };
                match found.iter_mut().find(|(other, _)| other == name) {
                    Some((_, columns)) => columns[column].push(time),
                    None => {
                        let mut columns = [Vec::new(), Vec::new()];
                        columns[column].push(time);
                        found.push((name.to_owned(), columns));
                    }
                }
            }
        }
    }
    for (name, [plain, confined]) in found {
        println!("{name}: {:.0} ns plain, {:.0} ns confined", middle(plain), middle(confined));
    }
    Ok(())
}

fn start(sandbox: Option<&Prepared>) -> std::io::Result<Duration> {
    let begin = Instant::now();
    for _ in 0..STARTS {
        let mut command = Command::new("/bin/true");
        let group = sandbox.map(Prepared::cgroup).transpose()?.flatten();
        if let Some(sandbox) = sandbox {
            sandbox.confine(&mut command, group.as_ref())?;
        }
        command.status()?;
    }
    Ok(begin.elapsed())
}

fn calls() -> std::io::Result<()> {
    let (mut reader, mut writer) = std::io::pipe()?;
    let operations: [Operation<'_>; 4] = [
        ("getppid", Box::new(|| _ = std::os::unix::process::parent_id())),
        ("write and read of a pipe", Box::new(|| drop((writer.write(b"x"), reader.read(&mut [0]))))),
        ("open and close of /usr/bin/env", Box::new(|| drop(std::fs::File::open("/usr/bin/env")))),
        ("stat of /usr/bin/env", Box::new(|| drop(std::fs::metadata("/usr/bin/env")))),
    ];
    for (name, mut operation) in operations {
        let begin = Instant::now();
        for _ in 0..CALLS {
            operation();
        }
        println!("{name} {}", begin.elapsed().as_nanos() / u128::from(CALLS));
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
