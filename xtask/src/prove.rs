//! `cargo xtask prove NAME`: evidence that takes too long for every change.

use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::args::{Arguments, Flag, Spec, aligned};
use crate::fuzz::{self, Run};
use crate::process;
use crate::repo::Repo;
use crate::say;
use crate::setup::{self, Venv};

const SECONDS: &str = "--seconds";
const TARGET: &str = "--target";
const JOBS: &str = "--jobs";
const KEEP: &str = "--keep";

pub(crate) const SPEC: Spec = Spec {
    name: "prove",
    about: "long proofs; without a name, the list of them",
    details: "Each writes what it did and saw to target/prove. The flags are those of `fuzz`.",
    operands: Some("NAME"),
    flags: &[
        Flag { name: SECONDS, value: Some("N"), about: "how long each target runs; 600 by default" },
        Flag {
            name: TARGET,
            value: Some("NAME"),
            about: "this target alone, or these, where it is repeated",
        },
        Flag { name: JOBS, value: Some("N"), about: "targets at once; one on each core by default" },
        Flag { name: KEEP, value: None, about: "keep some of what was found in fuzz/corpus" },
    ],
};

/// The one proof that takes flags.
const FUZZ: &str = "fuzz";

/// A proof: its name, what it shows, and how.
struct Proof {
    name: &'static str,
    about: &'static str,
    run: fn(&Repo, &mut Log) -> Result<()>,
}

const PROOFS: &[Proof] = &[
    Proof {
        name: "demo-fresh",
        about: "demo and tests run from a fresh clone of what is committed",
        run: demo_fresh,
    },
    Proof {
        name: "kill-under-load",
        about: "a worker that is killed takes its own call only, and is back at once",
        run: |repo, log| tests(repo, log, "failures::killed_under_load"),
    },
    Proof {
        name: "deadlines",
        about: "an endless loop in C ends at its deadline, and the lane is back at once",
        run: |repo, log| tests(repo, log, "failures::an_endless_loop_in_c"),
    },
    Proof {
        name: "memory",
        about: "a script that takes memory without bound meets its own limit, and nobody else notices",
        run: |repo, log| tests(repo, log, "failures::memory_without_bound"),
    },
    Proof {
        name: "crashes",
        about: "10,000 crashes leave no descriptor, process, shared memory or control group",
        run: |repo, log| tests(repo, log, "crashes::"),
    },
    Proof {
        name: "isolation",
        about: "no call sees another's data, however long a script keeps what it was given",
        run: |repo, log| tests(repo, log, "isolation::"),
    },
    Proof {
        name: "streams",
        about: "a slow reader holds up its own generator only, in bounded memory",
        run: |repo, log| tests(repo, log, "streaming::a_slow_reader"),
    },
    Proof {
        name: "killed-downloads",
        about: "1000 kills during download and unpacking: the next start is always clean and complete",
        run: |repo, log| {
            setup::ensure_for_tests(repo)?;
            tests(repo, log, "models::killed_at_any_moment")
        },
    },
    Proof {
        name: "collection-kills",
        about: "200 kills under load: what was answered is in blob storage once, and nothing is there twice",
        run: |repo, log| tests(repo, log, "collection::crashes::"),
    },
    Proof {
        name: "collection-outage",
        about: "five minutes without blob storage cost calls neither CPU time nor latency, and lose nothing",
        run: |repo, log| {
            setup::ensure_for_tests(repo)?;
            tests(repo, log, "collection::outages::")
        },
    },
    Proof {
        name: "envoy",
        about: "two replicas behind a real Envoy get traffic by the load that they report, in answers and out of band",
        run: |repo, log| {
            setup::ensure_for_tests(repo)?;
            tests(repo, log, "envoy::")
        },
    },
    Proof {
        name: "overload",
        about: "five times what can be executed costs no capacity, and one greedy caller slows down nobody",
        run: |repo, log| tests(repo, log, "overload::"),
    },
    Proof {
        name: "scheduler",
        about: "the scheduler's properties on a virtual clock, in a hundred times as many cases",
        run: scheduler,
    },
    Proof {
        name: FUZZ,
        about: "parsers of what comes from outside survive ten minutes each of what nobody would write",
        run: fuzz_targets,
    },
    Proof {
        name: "cpu-stress",
        about: "many threads in the same sessions of the CPU backend get their own results, with cancels and loads in between",
        run: |repo, log| cpu(repo, log, "stress"),
    },
    Proof {
        name: "cpu-memory",
        about: "what models took is given back to the operating system when they are unloaded",
        run: |repo, log| cpu(repo, log, "memory"),
    },
    Proof {
        name: "spark",
        about: "inference-schema's SparkParameterType works unchanged (needs java, installs 700 MB)",
        run: spark,
    },
];

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    let [name] = &arguments.operands[..] else {
        let rows: Vec<_> = PROOFS.iter().map(|proof| (proof.name.to_owned(), proof.about)).collect();
        print!("cargo xtask prove NAME, with one of\n{}", aligned(&rows));
        return Ok(if arguments.operands.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) });
    };
    let proof = PROOFS.iter().find(|proof| proof.name == name);
    let proof = proof.with_context(|| format!("there is no proof `{name}`, see `cargo xtask prove`"))?;
    if name != FUZZ && SPEC.flags.iter().any(|flag| arguments.has(flag.name)) {
        bail!("the proof `{name}` takes no flags");
    }
    let mut log = Log::create(&repo.target()?.join("prove"), name)?;
    log.arguments = arguments.clone();
    say::step(&format!("proof {name}: {}", proof.about));
    let start = Instant::now();
    let result = (proof.run)(repo, &mut log);
    let verdict = match &result {
        Ok(()) => format!("{name} holds, after {:.0} s", start.elapsed().as_secs_f64()),
        Err(error) => format!("{name} does not hold: {error:#}"),
    };
    log.line(&verdict)?;
    say::line(&format!("its log is {}", repo.shown(&log.path)));
    result.map(|()| ExitCode::SUCCESS)
}

/// Runs tests of the executable that do more when they are proofs; what they print is in the log.
fn tests(repo: &Repo, log: &mut Log, filter: &str) -> Result<()> {
    tests_with(repo, log, filter, &[])
}

fn tests_with(repo: &Repo, log: &mut Log, filter: &str, variables: &[(&str, &Path)]) -> Result<()> {
    let command = ["test", "--release", "--quiet", "--package", "outrigger", "--test", "it", "--", filter];
    run_tests(repo, log, &command, variables)
}

/// Runs a file of the CPU backend's tests.
fn cpu(repo: &Repo, log: &mut Log, file: &str) -> Result<()> {
    let command = ["test", "--release", "--quiet", "--package", "outrigger-cpu", "--test", file, "--"];
    run_tests(repo, log, &command, &[])
}

/// Runs the simulations.
fn scheduler(repo: &Repo, log: &mut Log) -> Result<()> {
    let command =
        ["test", "--release", "--quiet", "--package", "outrigger-runtime", "--lib", "--", "simulation::"];
    run_tests(repo, log, &command, &[])
}

fn run_tests(repo: &Repo, log: &mut Log, command: &[&str], variables: &[(&str, &Path)]) -> Result<()> {
    log.circumstances(repo)?;
    let mut command = repo.cargo(command);
    command
        .args(["--nocapture", "--test-threads", "1"])
        .env("OUTRIGGER_PROVE", "1")
        .envs(variables.iter().copied());
    log.run(command)?;
    // A test that lacks something says so and succeeds.
    if let Some(line) = log.skipped.take() {
        bail!("{line}");
    }
    Ok(())
}

/// Runs fuzz targets, all of them where none is named.
fn fuzz_targets(repo: &Repo, log: &mut Log) -> Result<()> {
    log.circumstances(repo)?;
    let all = fuzz::targets(repo)?;
    let wanted: Vec<String> = log.arguments.values(TARGET).map(str::to_owned).collect();
    if let Some(odd) = wanted.iter().find(|target| !all.contains(target)) {
        bail!("there is no fuzz target `{odd}`, only {}", all.join(", "));
    }
    let targets = if wanted.is_empty() { all } else { wanted };
    let jobs = log.arguments.value(JOBS)?;
    let (seconds, keep) = (log.arguments.value(SECONDS)?.unwrap_or(600), log.arguments.has(KEEP));
    let built = fuzz::build(repo)?;
    log.line(&format!("{} targets, {seconds} s each", targets.len()))?;
    let (mut executions, mut crashes) = (0, Vec::new());
    built.run_all(&targets, Run { seconds, seed: None, resume: true, jobs }, |outcome| {
        log.line(&outcome.line())?;
        executions += outcome.executions;
        crashes.extend(outcome.crash.is_some().then_some(outcome.target));
        Ok(())
    })?;
    log.line(&format!("{executions} executions, {} crashes", crashes.len()))?;
    if !crashes.is_empty() {
        bail!("{} did not survive: each gets a test, and then a cure", crashes.join(", "));
    }
    if keep {
        let (mut inputs, mut bytes) = (0, 0);
        for target in &targets {
            let (more, larger) = built.keep(target)?;
            (inputs, bytes) = (inputs + more, bytes + larger);
        }
        log.line(&format!("{inputs} inputs of {bytes} bytes are kept in fuzz/corpus"))?;
    }
    Ok(())
}

/// Makes an environment with Spark, then runs the test that needs it.
fn spark(repo: &Repo, log: &mut Log) -> Result<()> {
    let mut java = repo.command("java");
    java.arg("-version");
    log.run(java).context("no Java machine: install a JRE, 17 or later, such as openjdk-17-jre-headless")?;
    let venv = Venv::new(repo.target()?.join("prove/spark"), "cli/tests/spark/requirements.lock");
    if !venv.is_current(repo) {
        venv.make(repo, &setup::existing(repo)?.python)?;
    }
    tests_with(repo, log, "spark::", &[("OUTRIGGER_SPARK_PYTHON", &venv.python())])
}

/// What a figure depends on.
fn machine() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = text("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = text("/proc/sys/kernel/osrelease");
    let load = text("/proc/loadavg");
    format!(
        "machine: {count} x {}, Linux {}, load {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default()
    )
}

/// Clones the last commit beside everything that is here, so that nothing left over can help.
fn demo_fresh(repo: &Repo, log: &mut Log) -> Result<()> {
    let folder = env::temp_dir().join(format!("outrigger-fresh-{}", std::process::id()));
    if folder.exists() {
        bail!("{} exists already", folder.display());
    }
    let git = |arguments: &[&str]| {
        let mut command = repo.command("git");
        command.args(arguments);
        command
    };
    log.line(&format!("commit {}", process::capture(git(&["rev-parse", "HEAD"]))?.trim()))?;
    if !process::capture(git(&["status", "--porcelain"]))?.is_empty() {
        log.line("note: what is not committed takes no part")?;
    }
    let mut clone = git(&["clone", "--quiet"]);
    clone.arg(&repo.root).arg(&folder);
    log.run(clone)?;
    for task in [&["demo", "--once", "--port", "0"][..], &["test"]] {
        let mut command = repo.cargo(["xtask"]);
        command.args(task).current_dir(&folder).env_remove("CARGO_TARGET_DIR");
        log.run(command).with_context(|| format!("the clone is kept in {}", folder.display()))?;
    }
    fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))
}

/// What a proof did and saw: on stdout and in a file.
struct Log {
    path: PathBuf,
    file: File,
    /// What a test that skipped itself has said, or the harness that has none.
    skipped: Option<String>,
    /// What was typed after the task's name.
    arguments: Arguments,
}

impl Log {
    fn create(folder: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let path = folder.join(format!("{name}-{now}.log"));
        let file = File::create(&path).with_context(|| format!("could not create {}", path.display()))?;
        Ok(Self { path, file, skipped: None, arguments: Arguments::default() })
    }

    fn line(&mut self, text: &str) -> Result<()> {
        println!("{text}");
        writeln!(self.file, "{text}").with_context(|| format!("could not write {}", self.path.display()))
    }

    /// What figures depend on: the commit and the machine.
    fn circumstances(&mut self, repo: &Repo) -> Result<()> {
        let git = |arguments: &[&str]| {
            let mut command = repo.command("git");
            command.args(arguments);
            process::capture(command)
        };
        let changed = if git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
            ""
        } else {
            ", changed"
        };
        self.line(&format!("{}{changed}", git(&["log", "-1", "--format=commit %h of %cs"])?.trim()))?;
        self.line(&machine())
    }

    fn run(&mut self, command: Command) -> Result<()> {
        let (text, start) = (process::shown(&command), Instant::now());
        self.line(&format!("$ {text}"))?;
        let mut written = Ok(());
        let status = process::lines(command, |line| {
            if line.contains("skipped: ") || line == "running 0 tests" {
                self.skipped.get_or_insert_with(|| line.to_owned());
            }
            let result = self.line(line);
            if written.is_ok() {
                written = result;
            }
        })?;
        written?;
        self.line(&format!("{status} after {:.0} s", start.elapsed().as_secs_f64()))?;
        process::succeeded(&text, status)
    }
}
