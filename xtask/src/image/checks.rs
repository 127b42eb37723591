//! What `cargo xtask image smoke` checks. deploy/smoke/score.py is the script that answers.

use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::container::{Container, Start};
use super::engine::Engine;
use super::smoke::{IMAGE, SERVICE};
use crate::build;

pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) run: fn(&Engine) -> Result<()>,
}

pub(super) const CHECKS: &[Check] = &[
    Check { name: "a user's image serves", run: users_image },
    Check { name: "hardened, user 10001:10001", run: hardened },
    Check { name: "any user of group 0, keys made", run: any_user },
    Check { name: "process 1 reaps orphans", run: orphans },
    Check { name: "stop finishes accepted calls", run: stop },
    Check { name: "stop while init() runs", run: stop_during_init },
    Check { name: "init() fails", run: init_fails },
    Check { name: "azmlinfsrv", run: azmlinfsrv },
    Check { name: "a model without a script", run: no_script },
    Check { name: "registered models", run: registered },
    Check { name: "lint and other arguments", run: arguments },
    Check { name: "nothing to serve", run: nothing },
    Check { name: "every backend", run: backends },
];

const KEY: &str = "a-key-for-the-smoke-test-only";
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

fn service<'a>(engine: &'a Engine, options: &[&str], key: Option<&str>) -> Result<Container<'a>> {
    let options = [&["--env=SMOKE_INIT=models"], options].concat();
    Container::start(engine, &Start { image: SERVICE, options: &options, arguments: SERVE, key })
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
    is_confined(&container, &facts)?;
    let first = container.exec(&["cat", "/proc/1/comm"])?;
    ensure!(first == "outrigger", "process 1 is `{first}`");
    is_healthy(&container)?;
    let log = container.log()?;
    ensure!(log.contains("init was here"), "the log lacks what the script printed:\n{log}");
    ensure!(!log.contains(KEY), "the log has the key");
    Ok(())
}

/// A read-only root, no capability, another user: what is asked for where others' code runs.
fn hardened(engine: &Engine) -> Result<()> {
    let container = service(engine, HARDENED, Some(KEY))?;
    answers(&container)?;
    let facts = container.ask(&json!({"do": "facts"}))?;
    expect(&facts, "uid", json!(10001))?;
    expect(&facts, "gid", json!(10001))?;
    expect(&facts, "shm_bytes", json!(64 << 20))?;
    is_confined(&container, &facts)?;
    is_healthy(&container)?;
    ended_in_order(&container)
}

/// A user that the image does not know, in group 0, as OpenShift starts it; without a key, so keys are made.
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
    is_confined(&container, &container.ask(&json!({"do": "facts"}))?)?;
    // The file is there, and the script's own user owns it: the sandbox alone stands in between.
    let refused = container.post("/score", &json!({"do": "open", "path": file}))?;
    ensure!(refused.status == 500, "the script opened {file}, or else: {}", refused.status);
    for part in ["PermissionError", file, "script.read"] {
        container.wait_for(&format!("`{part}` in the log"), || Ok(container.log()?.contains(part)))?;
    }
    ensure!(!container.log()?.contains(&keys.primary), "the log has a key");
    let written = "touch /var/azureml-app/x /home/outrigger/x";
    container.exec(&["sh", "-c", written]).context("group 0 may write the app root and the home")?;
    ended_in_order(&container)
}

/// A process whose parent has gone is handed to process 1, which has to reap it or keep its entry for ever.
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

/// `docker stop` while the script loads: nothing is owed to anybody, so the end is an orderly one too.
fn stop_during_init(engine: &Engine) -> Result<()> {
    let options = ["--env=SMOKE_INIT=waits"];
    let start = Start { image: SERVICE, options: &options, arguments: &[], key: Some(KEY) };
    let container = Container::launch(engine, &start)?;
    container.wait_for("init()", || Ok(container.log()?.contains("init was here")))?;
    let probe = container.observed("/ready")?;
    ensure!(probe.status == 503, "/ready got {} during init()", probe.status);
    ended_in_order(&container)
}

/// The code of a failed start comes through process 1, and the log says why.
fn init_fails(engine: &Engine) -> Result<()> {
    let (code, said) = ended(engine, &["--env=SMOKE_INIT=fails", SERVICE])?;
    ensure!(code == Some(3), "ended with {code:?}: {said}");
    ensure!(said.contains("no such weights"), "said {said}");
    Ok(())
}

/// Images and habits that name AzureML's server: as a command of the entry point's, and as an entry point.
fn azmlinfsrv(engine: &Engine) -> Result<()> {
    let flags = ["--entry_script", "score.py"];
    let as_command = ["azmlinfsrv", "--entry_script", "score.py"];
    for (options, arguments) in
        [([].as_slice(), as_command.as_slice()), (&["--entrypoint=azmlinfsrv"], &flags)]
    {
        let start = Start { image: SERVICE, options, arguments, key: None };
        let container = Container::start(engine, &start)?;
        let facts = container.ask(&json!({"do": "facts"}))?;
        is_healthy(&container)?;
        // Its scripts may use the network, so that management has to tell them from an operator.
        ensure!(facts["attempts"]["metrics"] == "done: None", "{}", facts["attempts"]);
        let refused = facts["attempts"]["management"].as_str().unwrap_or_default();
        ensure!(refused.contains("Error"), "management is open to scripts: {}", facts["attempts"]);
        is_confined_as_said(&container)?;
        manages(&container)?;
        ended_in_order(&container)?;
    }
    Ok(())
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

/// Models out of a registry, with nothing writable but a tmpfs; and TLS, for storage that is reached through it, has its authorities.
fn registered(engine: &Engine) -> Result<()> {
    let push = "outrigger models push /var/azureml-app/models/double.onnx && exec outrigger serve";
    let options = [
        "--env=AZUREML_ENTRY_SCRIPT=",
        "--env=OUTRIGGER_STORE_REGISTRY=/tmp/registry",
        "--env=OUTRIGGER_STORE_MODELS=double",
        "--env=OUTRIGGER_STORE_ROOT=/tmp/app",
        "--env=OUTRIGGER_STORE_CACHE=/tmp/cache",
        "--read-only",
        "--tmpfs=/tmp",
        "--entrypoint=sh",
    ];
    let start = Start { image: SERVICE, options: &options, arguments: &["-c", push], key: Some(KEY) };
    let container = Container::start(engine, &start)?;
    let input = json!({"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]});
    let answer = container.post("/v2/models/double/infer", &json!({"inputs": [input]}))?;
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status == 200, "got {}: {text}", answer.status);
    ended_in_order(&container)?;
    let nobody = ["models", "verify", "x:1", "--registry", "https://127.0.0.1:1/"];
    let (code, said) = ended(engine, &[&[IMAGE][..], &nobody].concat())?;
    ensure!(code == Some(1) && said.to_lowercase().contains("connect"), "ended with {code:?}: {said}");
    ensure!(!said.to_lowercase().contains("certificate"), "TLS has no authorities: {said}");
    Ok(())
}

/// What follows the image's name takes the place of `serve`.
fn arguments(engine: &Engine) -> Result<()> {
    for (arguments, expected, part) in [
        (&["lint", "score.py"][..], 0, "score.py"),
        (&["lint", "nothing.py"], 1, "nothing.py"),
        (&["serve", "--check"], 0, "0.0.0.0:5001"),
        (&["--version"], 0, "outrigger"),
        (&["--workers", "2"], 2, "Usage: outrigger <COMMAND>"),
    ] {
        let (code, said) = ended(engine, &[&[SERVICE], arguments].concat())?;
        ensure!(code == Some(expected) && said.contains(part), "{arguments:?} ended with {code:?}: {said}");
    }
    Ok(())
}

/// The image with nothing in it says what to set, and ends as a configuration mistake.
fn nothing(engine: &Engine) -> Result<()> {
    let (code, said) = ended(engine, &[IMAGE])?;
    ensure!(code == Some(2), "ended with {code:?}: {said}");
    ensure!(said.contains("nothing to serve"), "said {said}");
    Ok(())
}

/// Each plug-in opens: the CPU has its device, the others say what they lack.
fn backends(engine: &Engine) -> Result<()> {
    let (code, said) = ended(engine, &[IMAGE, "devices", "--json"])?;
    ensure!(code == Some(0), "devices ended with {code:?}: {said}");
    let listed: Value = serde_json::from_str(&said).with_context(|| format!("devices said {said}"))?;
    let listed = listed["backends"].as_array().context("devices lists no backends")?;
    for library in build::plugin_libraries() {
        let name = library.trim_start_matches("liboutrigger_").trim_end_matches(".so");
        let found = listed.iter().find(|backend| backend["backend"] == name);
        let found = found.with_context(|| format!("no backend `{name}` in {said}"))?;
        ensure!(found["formats"].as_array().is_some_and(|formats| !formats.is_empty()), "{name}: {found}");
    }
    Ok(())
}

/// Runs a container that ends by itself; gives its exit code and what it said.
fn ended(engine: &Engine, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = engine.command(["run", "--rm"]);
    let output = command.args(arguments).output().context("could not start docker")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// The script answers, and its model.
fn answers(container: &Container<'_>) -> Result<()> {
    let answer = container.ask(&json!({"do": "double", "x": [1.5, 2.0]}))?;
    ensure!(answer == json!([3.0, 4.0]), "the script answered {answer}");
    Ok(())
}

/// The image's health check passes.
fn is_healthy(container: &Container<'_>) -> Result<()> {
    let probe: Vec<String> = serde_json::from_str(&container.inspect("{{json .Config.Healthcheck.Test}}")?)?;
    let probe: Vec<&str> = probe.iter().skip(1).map(String::as_str).collect();
    let said = container.exec(&probe).context("the image's health check")?;
    ensure!(said == "ready", "the health check says `{said}`");
    Ok(())
}

/// The script sees no settings and no keys, writes only where it may, and reaches neither replica nor network.
fn is_confined(container: &Container<'_>, facts: &Value) -> Result<()> {
    is_confined_as_said(container)?;
    expect(facts, "capabilities", json!(0))?;
    expect(facts, "no_new_privileges", json!(true))?;
    expect(facts, "writable", json!(["/dev/shm"]))?;
    expect(facts, "scratch", json!(true))?;
    let variables = facts["environment"].as_object().context("the environment")?;
    for (name, value) in variables {
        ensure!(!name.starts_with("OUTRIGGER_") && value != KEY, "the script sees {name}={value}");
    }
    let attempts = facts["attempts"].as_object().context("the attempts")?;
    ensure!(!attempts.is_empty());
    for (name, outcome) in attempts {
        ensure!(outcome == "PermissionError", "{name}: a script's attempt got `{outcome}`");
    }
    manages(container)
}

/// The log says that workers are confined, and what does not hold here: the number of processes, which takes control
/// groups that can be written. A container's cannot.
fn is_confined_as_said(container: &Container<'_>) -> Result<()> {
    let log = container.log()?;
    ensure!(log.contains("workers are confined"), "workers are not confined:\n{log}");
    let missing: Vec<_> = log.lines().filter(|line| line.contains("DOES NOT HOLD")).collect();
    let [missing] = missing.as_slice() else { bail!("the sandbox does not hold: {missing:#?}") };
    // In JSON, as lines are where no terminal is, or as text under the names of the inference server.
    let part = missing.contains("part=processes") || missing.contains(r#""part":"processes""#);
    ensure!(part, "in a container this does not hold: {missing}");
    Ok(())
}

/// Whoever has a shell in the container reaches management.
fn manages(container: &Container<'_>) -> Result<()> {
    let ask = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/tmp/outrigger/admin.sock'); \
               s.sendall(b'GET /status HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(s.recv(1000).decode())";
    let said = container.exec(&["python3", "-c", ask])?;
    ensure!(said.starts_with("HTTP/1.1 200"), "management says `{said}`");
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
