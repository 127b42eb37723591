//! `cargo xtask image smoke`: what a service in a container relies on, tried on a real engine.

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::container::{Container, Start};
use super::engine::{Engine, Found};
use super::{base, engine, make, quietly};
use crate::repo::Repo;
use crate::table::{self, Align};
use crate::test::{self, Skip};
use crate::{process, say, setup, signals};

const IMAGE: &str = "outrigger-python:smoke";
const SERVICE: &str = "outrigger-smoke-service:smoke";
const SCRIPT: &str = "deploy/smoke/score.py";
const MODEL: &str = "deploy/smoke/make_model.py";
const KEY: &str = "a-key-for-the-smoke-test-only";

/// All that a user writes: the README promises that no more is needed.
const USERS_DOCKERFILE: &str = "\
FROM outrigger-python:smoke
COPY . /var/azureml-app/
ENV AZUREML_ENTRY_SCRIPT=score.py
";
/// Names the model for `outrigger.model(...)` in the script.
const SERVE: &[&str] = &["serve", "--model", "double=/var/azureml-app/models/double.onnx"];
/// As a careful operator starts what others have written.
const HARDENED: &[&str] = &[
    "--read-only",
    "--tmpfs=/tmp",
    "--user=10001:10001",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=512m",
    "--pids-limit=128",
    "--shm-size=64m",
];

/// A check, and whether it has to pass already.
struct Check {
    name: &'static str,
    /// Why it cannot pass yet. One that passes all the same fails the run, so that the mark goes with its reason.
    pending: Option<&'static str>,
    run: fn(&Engine) -> Result<()>,
}

const CHECKS: &[Check] = &[
    Check { name: "a user's image serves", pending: None, run: users_image },
    Check { name: "process 1 reaps orphans", pending: Some("the replica does not reap yet"), run: orphans },
    Check { name: "stop finishes accepted calls", pending: None, run: stop },
    Check { name: "hardened, user 10001:10001", pending: None, run: hardened },
    Check { name: "any user of group 0, keys made", pending: None, run: any_user },
    Check { name: "a model without a script", pending: None, run: no_script },
    Check { name: "nothing to serve", pending: None, run: nothing },
];

pub(super) fn run(repo: &Repo, release: bool, given_base: Option<&str>) -> Result<ExitCode> {
    let engine = match engine::find(repo)? {
        Found::Engine(engine) => engine,
        Found::None(reason) => return skipped(repo, reason),
    };
    if given_base.is_none() {
        base::ensure(repo, &engine)?;
    }
    make(repo, &engine, release, Some(given_base.unwrap_or(base::NAME)), IMAGE)?;
    users_build(repo, &engine)?;
    say::step("smoke test");
    let mut rows = Vec::new();
    let mut failed = 0;
    for check in CHECKS {
        if signals::heard() > 0 {
            bail!("interrupted");
        }
        let begin = Instant::now();
        let verdict = match ((check.run)(&engine), check.pending) {
            (Ok(()), None) => "ok".to_owned(),
            (Err(error), Some(reason)) => {
                println!("{}: pending: {error:#}", check.name);
                format!("pending: {reason}")
            }
            (Ok(()), Some(_)) => {
                println!("{}: passes, so it is no longer pending: take the mark away", check.name);
                "failed".to_owned()
            }
            (Err(error), None) => {
                println!("{}: {error:#}", check.name);
                "failed".to_owned()
            }
        };
        failed += usize::from(verdict == "failed");
        rows.push(vec![check.name.into(), verdict, format!("{:.1}", begin.elapsed().as_secs_f64())]);
    }
    // What an engine of the developer's would keep; the base and the build cache make the next run short.
    let _ = quietly(engine.command(["image", "rm", SERVICE, IMAGE]));
    let header = [("image smoke", Align::Left), ("result", Align::Left), ("seconds", Align::Right)];
    println!("\n{}", table::render(&header, &rows));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says that nothing was tried; only a skip that is listed is no failure.
fn skipped(repo: &Repo, reason: String) -> Result<ExitCode> {
    println!("skipped: {reason}");
    let skip = Skip { suite: "image".into(), test: "image::smoke".into(), reason };
    if test::allowed(repo)?.line_for(&skip).is_none() {
        println!("problem: ci/allowed-skips does not list this skip");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the service upon the image, as its user would.
fn users_build(repo: &Repo, engine: &Engine) -> Result<()> {
    let folder = repo.target()?.join("image/service");
    let models = folder.join("models");
    fs::create_dir_all(&models).with_context(|| format!("could not make {}", models.display()))?;
    fs::write(folder.join("Dockerfile"), USERS_DOCKERFILE)?;
    fs::copy(repo.path(SCRIPT), folder.join("score.py"))?;
    let mut command = repo.command(setup::existing(repo)?.python);
    command.arg(MODEL).arg(models.join("double.onnx"));
    process::run(command)?;
    quietly(engine.build(&folder, SERVICE))
}

fn service<'a>(engine: &'a Engine, options: &[&str], key: Option<&str>) -> Result<Container<'a>> {
    Container::start(engine, &Start { image: SERVICE, options, arguments: SERVE, key })
}

/// The default user, probes, a key from the environment, a model of the replica's, the log.
fn users_image(engine: &Engine) -> Result<()> {
    let container = service(engine, &[], Some(KEY))?;
    let health = container.get("/")?;
    ensure!(health.status == 200, "GET / on the scoring port got {}", health.status);
    answers(&container)?;
    let facts = container.ask(&json!({"do": "facts"}))?;
    expect(&facts, "uid", json!(1000))?;
    expect(&facts, "gid", json!(0))?;
    expect(&facts, "directory", json!("/var/azureml-app"))?;
    expect(&facts, "capabilities", json!(0))?;
    expect(&facts, "writable", json!(["/dev/shm", "/tmp"]))?;
    expect(&facts, "keys", json!([]))?;
    let first = container.exec(&["cat", "/proc/1/comm"])?;
    ensure!(first == "outrigger", "process 1 is `{first}`");
    let probe: Vec<String> = serde_json::from_str(&container.inspect("{{json .Config.Healthcheck.Test}}")?)?;
    let probe: Vec<&str> = probe.iter().skip(1).map(String::as_str).collect();
    let said = container.exec(&probe).context("the image's health check")?;
    ensure!(said.starts_with("200"), "the health check says `{said}`");
    let log = container.log()?;
    ensure!(log.contains("init was here"), "the log lacks what the script printed:\n{log}");
    ensure!(!log.contains(KEY), "the log has the key");
    Ok(())
}

/// A process whose parent has gone is handed to process 1, which has to wait for it or keep its entry for ever.
fn orphans(engine: &Engine) -> Result<()> {
    let container = service(engine, &[], Some(KEY))?;
    let orphan = container.exec(&["sh", "-c", "(sleep 0.1 >/dev/null 2>&1 & echo $!)"])?;
    let entry = format!("/proc/{orphan}");
    let look = format!("test -e {entry} && echo there || echo gone");
    container.wait_for("the orphan's entry goes", || Ok(container.exec(&["sh", "-c", &look])? == "gone"))?;
    // Reaping strangers must not take the worker's own end away from who waits for it.
    answers(&container)
}

/// `docker stop` while a call is at work: the call is answered, and the end is an orderly one.
fn stop(engine: &Engine) -> Result<()> {
    let container = service(engine, &[], Some(KEY))?;
    thread::scope(|scope| {
        let call = scope.spawn(|| container.ask(&json!({"do": "sleep", "seconds": 2})));
        container.wait_for("the call is at work", || {
            let busy: Value = serde_json::from_slice(&container.observed("/busy")?.body)?;
            Ok(busy["executing"] == 1)
        })?;
        ended_in_order(&container)?;
        let answer = call.join().expect("it only makes a call")?;
        ensure!(answer == "slept", "the call got {answer}");
        Ok(())
    })
}

/// A read-only root, no capability, another user: what is asked for where others' code runs.
fn hardened(engine: &Engine) -> Result<()> {
    let container = service(engine, HARDENED, Some(KEY))?;
    answers(&container)?;
    let facts = container.ask(&json!({"do": "facts"}))?;
    expect(&facts, "uid", json!(10001))?;
    expect(&facts, "gid", json!(10001))?;
    expect(&facts, "capabilities", json!(0))?;
    expect(&facts, "no_new_privileges", json!(true))?;
    expect(&facts, "shm_bytes", json!(64 << 20))?;
    expect(&facts, "writable", json!(["/dev/shm", "/tmp"]))?;
    ended_in_order(&container)
}

/// A user that the image does not know, in group 0, as OpenShift starts it; without a key, so that keys are made.
fn any_user(engine: &Engine) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Keys {
        primary: String,
    }
    let mut container = service(engine, &["--user=1234567:0"], None)?;
    let file = "/tmp/outrigger/keys.toml";
    let mode = container.exec(&["stat", "--format=%a %u", file])?;
    ensure!(mode == "600 1234567", "{file} has mode and owner {mode}");
    let keys: Keys = toml::from_str(&container.exec(&["cat", file])?).context("the file of keys")?;
    let refused = container.post("/score", &json!({"do": "facts"}))?;
    ensure!(refused.status == 401, "a call without a key got {}", refused.status);
    container.use_key(&keys.primary);
    answers(&container)?;
    ensure!(!container.log()?.contains(&keys.primary), "the log has a key");
    let written = "touch /var/azureml-app/x /home/outrigger/x";
    container.exec(&["sh", "-c", written]).context("group 0 may write the app root and the home")?;
    ended_in_order(&container)
}

/// The image alone, with a model directory.
fn no_script(engine: &Engine) -> Result<()> {
    let options = ["--env=AZUREML_ENTRY_SCRIPT=", "--env=AZUREML_MODEL_DIR=/var/azureml-app/models"];
    let start = Start { image: SERVICE, options: &options, arguments: &[], key: Some(KEY) };
    let container = Container::start(engine, &start)?;
    let input = json!({"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]});
    let answer = container.post("/v2/models/double/infer", &json!({"inputs": [input]}))?;
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status == 200, "got {}: {text}", answer.status);
    let outputs: Value = serde_json::from_str(&text)?;
    ensure!(outputs["outputs"][0]["data"] == json!([3.0, 4.0]), "got {text}");
    ended_in_order(&container)
}

/// The image with nothing in it says what to set, and ends as a configuration mistake.
fn nothing(engine: &Engine) -> Result<()> {
    let output = engine.command(["run", "--rm", IMAGE]).output().context("could not start docker")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "ended with {}: {text}", output.status);
    ensure!(text.contains("nothing to serve"), "said {text}");
    Ok(())
}

/// The script answers, and its model.
fn answers(container: &Container<'_>) -> Result<()> {
    let answer = container.ask(&json!({"do": "double", "x": [1.5, 2.0]}))?;
    ensure!(answer == json!([3.0, 4.0]), "the script answered {answer}");
    Ok(())
}

/// Ends with 0: neither killed (137) nor by the signal itself (143), nor with calls broken off (4).
fn ended_in_order(container: &Container<'_>) -> Result<()> {
    let code = container.stop()?;
    ensure!(code == 0, "ended with {code}\n{}", container.log()?);
    Ok(())
}

fn expect(facts: &Value, name: &str, expected: Value) -> Result<()> {
    ensure!(facts[name] == expected, "`{name}` is {}, expected {expected}", facts[name]);
    Ok(())
}
