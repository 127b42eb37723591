//! The command line of AzureML's inference server.

use std::io::{BufRead, BufReader, Lines};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{ECHO, client, outcome};

/// A script that says what it finds.
const ENVIRONMENT: &str = "import json, os\n\ndef init():\n    print('from init')\n\ndef run(data):\n    return {name: os.environ.get(name) for name in json.loads(data)}\n";

/// `outrigger azmlinfsrv` in a directory, with nothing in its environment but what it needs: no HOME either.
fn azmlinfsrv(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command
        .arg("azmlinfsrv")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("OUTRIGGER_SCRIPT_PYTHON", outrigger_testkit::python())
        .env("OUTRIGGER_SCRIPT_HOST", outrigger_testkit::repository().join("entry-scripts"))
        .current_dir(directory);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A directory with a script.
fn app(script: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("score.py"), script).unwrap();
    directory
}

/// A running server with its standard output. It is killed when dropped.
struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
    /// `http://127.0.0.1:PORT`.
    url: String,
}

impl Server {
    /// Starts it on a free port and waits until it is ready.
    fn start(mut command: Command) -> Self {
        command.env("OUTRIGGER_SCORE_LISTEN", "127.0.0.1:0");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { child, lines, seen: Vec::new(), url: String::new() };
        server.wait_for(" listening ");
        server.url = format!("http://{}", listening(&server, "score="));
        server.wait_for(" - ready ");
        server
    }

    fn wait_for(&mut self, part: &str) -> String {
        loop {
            let Some(Ok(line)) = self.lines.next() else { panic!("{part} not in\n{}", self.seen.join("\n")) };
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    async fn ask(&self, names: &[&str]) -> Value {
        let body = serde_json::to_string(names).unwrap();
        outcome(client().post(format!("{}/score", self.url)).body(body).send().await.unwrap()).await.2
    }
}

/// What stands behind a word in the line that says where the server listens.
fn listening(server: &Server, word: &str) -> String {
    let line = server.seen.iter().find(|line| line.contains(" listening ")).unwrap();
    line.split(word).nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

impl Drop for Server {
    fn drop(&mut self) {
        // In order, so that the directory in /tmp goes too.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            outrigger_testkit::replica::kill("TERM", self.child.id());
            let _ = self.child.wait();
        }
    }
}

#[test]
fn wrong_flags_end_with_1_and_the_help() {
    let directory = app(ECHO);
    for flags in [
        &["--entry_script", "score.py", "--no_such_flag"][..],
        &["--entry_script", "score.py", "--port", "70000"],
        &["--entry_script", "score.py", "--port", "0"],
        &["--entry_script", "score.py", "--port", "x"],
        &["--entry_script", "score.py", "--worker_count", "0"],
        &["--entry_script"],
        &["score.py"],
    ] {
        let output = azmlinfsrv(directory.path()).args(flags).output().unwrap();
        assert_eq!(code(&output), Some(1), "{flags:?}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("--access_control_allow_origins"), "{flags:?}");
        assert!(text(&output.stderr).contains("error"), "{flags:?}");
    }
    let output = azmlinfsrv(directory.path()).output().unwrap();
    assert_eq!(code(&output), Some(1));
    assert!(text(&output.stderr).contains("--entry_script"));
    // The variable alone is not enough, as there.
    let output = azmlinfsrv(directory.path()).env("AZUREML_ENTRY_SCRIPT", "score.py").output().unwrap();
    assert_eq!(code(&output), Some(1));
}

#[test]
fn help_names_the_flags_and_is_found_under_the_old_name() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("azmlinfsrv");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_outrigger"), &link).unwrap();
    for mut command in [azmlinfsrv(directory.path()), Command::new(&link)] {
        let output = command.arg("--help").output().unwrap();
        assert_eq!(code(&output), Some(0));
        let text = text(&output.stdout);
        for flag in [
            "--entry_script",
            "--model_dir",
            "--port",
            "--health_port",
            "--worker_count",
            "--config_file",
            "--appinsights_instrumentation_key",
            "--access_control_allow_origins",
        ] {
            assert!(text.contains(flag), "{flag} not in\n{text}");
        }
        assert!(!text.contains("--rest"), "hidden, as there");
    }
    let output = Command::new(link).output().unwrap();
    assert_eq!(code(&output), Some(1), "neither script nor file");
}

#[test]
fn a_taken_port_ends_it_after_the_settings_are_shown() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let directory = app(ECHO);
    let output = azmlinfsrv(directory.path())
        .args(["--entry_script", "./score.py", "--port", &port, "--worker_count", "2", "--model_dir", "."])
        .args(["--access_control_allow_origins", "a.example, b.example", "--rest"])
        .args(["--appinsights_instrumentation_key", "no-key"])
        .env("WORKER_TIMEOUT", "100")
        .env("SERVER_PORT", "1234")
        .output()
        .unwrap();
    assert_eq!(code(&output), Some(2));
    let text = text(&output.stdout);
    let root = directory.path().canonicalize().unwrap();
    for line in [
        "Azure ML Inferencing HTTP server v1.5.1",
        "compat is on, keys are not asked for",
        "Server Settings\n---------------\n",
        &format!("Entry Script Name: {}/score.py\n", root.display()),
        "Worker Count: 2\n",
        "Worker Timeout (seconds): 100\n",
        &format!("Server Port: {port}\n"),
        &format!("Health Port: {port}\n"),
        "Application Insights Enabled: false\n",
        "Application Insights Key: AppInsights key provided\n",
        "Invalid Application Insights instrumentation key provided.\n",
        "Inferencing HTTP server version: azmlinfsrv/1.5.1\n",
        "CORS for the specified origins: Enabling CORS for a.example, b.example\n",
        "Create dedicated endpoint for health: None\n",
        "Server Routes\n---------------\n",
        &format!("Liveness Probe: GET   127.0.0.1:{port}/\n"),
        &format!("Score:          POST  127.0.0.1:{port}/score\n"),
        "another process has it",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
    assert!(!text.contains("no-key"), "{text}");
}

#[tokio::test]
async fn it_serves_without_keys_and_hands_its_variables_to_the_script() {
    let directory = app(ENVIRONMENT);
    std::fs::create_dir(directory.path().join("models")).unwrap();
    let mut command = azmlinfsrv(directory.path());
    command
        .args(["--entry_script", "score.py", "--model_dir", "models"])
        .args(["--appinsights_instrumentation_key", "01234567-89ab-cdef-0123-456789ABCDEF"])
        .env("AZUREML_MODEL_DIR", "/of/the/environment")
        .env("SERVER_PORT", "1234")
        .env("HOSTNAME", "container")
        .env("AML_DBG_MODEL_INFO", "1");
    let mut server = Server::start(command);
    let names = [
        "AML_APP_ROOT",
        "AZUREML_ENTRY_SCRIPT",
        "AZUREML_MODEL_DIR",
        "AML_APP_INSIGHTS_ENABLED",
        "AML_APP_INSIGHTS_KEY",
        "WORKER_COUNT",
        "HTTP_X_MS_SERVER_VERSION",
        "HOSTNAME",
        "AZUREML_CONFIG_FILE",
        "TRANSPORT_PROTOCOL",
    ];
    let seen = server.ask(&names).await;
    let root = directory.path().canonicalize().unwrap();
    let root = root.display();
    for (name, expected) in [
        ("AML_APP_ROOT", Some(root.to_string())),
        ("AZUREML_ENTRY_SCRIPT", Some(format!("{root}/score.py"))),
        ("AZUREML_MODEL_DIR", Some(format!("{root}/models"))),
        ("AML_APP_INSIGHTS_ENABLED", Some("true".into())),
        ("AML_APP_INSIGHTS_KEY", Some("01234567-89ab-cdef-0123-456789ABCDEF".into())),
        ("WORKER_COUNT", Some("1".into())),
        ("HTTP_X_MS_SERVER_VERSION", Some("azmlinfsrv/1.5.1".into())),
        ("HOSTNAME", Some("container".into())),
        ("AZUREML_CONFIG_FILE", None),
        ("TRANSPORT_PROTOCOL", Some("grpc".into())),
    ] {
        assert_eq!(seen[name].as_str().map(str::to_owned), expected, "{name} in {seen}");
    }
    assert_ne!(server.ask(&["SERVER_PORT"]).await["SERVER_PORT"], "1234");
    assert!(server.seen.iter().any(|line| line.contains("AML_DBG_MODEL_INFO")), "{:?}", server.seen);
    assert!(
        server.seen.iter().any(|line| line.ends_with(" azmlinfsrv.print - from init")),
        "{:?}",
        server.seen
    );
    outrigger_testkit::replica::kill("TERM", server.child.id());
    server.wait_for(" - ended ");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let admin = listening(&server, "admin=unix:");
    assert!(!Path::new(&admin).parent().unwrap().exists(), "{admin} is left behind");
}

#[tokio::test]
async fn config_json_is_read_and_weaker_than_variables_and_flags() {
    let directory = app(ENVIRONMENT);
    let json = r#"{"AZUREML_ENTRY_SCRIPT": "score.py", "AZUREML_MODEL_DIR": "of_the_file", "SERVICE_NAME": "of the file",
        "SERVICE_VERSION": "7", "SERVICE_NAEM": 1}"#;
    std::fs::write(directory.path().join("my.json"), json).unwrap();
    let mut command = azmlinfsrv(directory.path());
    command.args(["--config_file", "my.json"]).env("SERVICE_VERSION", "8");
    let server = Server::start(command);
    let root = directory.path().canonicalize().unwrap();
    let seen = server.ask(&["AZUREML_MODEL_DIR", "AZUREML_CONFIG_FILE"]).await;
    assert_eq!(seen["AZUREML_MODEL_DIR"].as_str(), root.join("of_the_file").to_str());
    assert_eq!(seen["AZUREML_CONFIG_FILE"].as_str(), root.join("my.json").to_str());
    let swagger = client().get(format!("{}/swagger.json", server.url)).send().await.unwrap();
    let swagger = outcome(swagger).await.2;
    assert_eq!(
        (&swagger["info"]["title"], &swagger["info"]["version"]),
        (&"of the file".into(), &"8".into())
    );
    let warned = server.seen.iter().any(|line| line.contains("did you mean `SERVICE_NAME`?"));
    assert!(warned, "{:?}", server.seen);
}

#[test]
fn a_wrong_configuration_ends_with_3() {
    let directory = app(ECHO);
    let file = directory.path().join("config.json");
    let run = |environment: (&str, &str)| {
        let mut command = azmlinfsrv(directory.path());
        command.args(["--entry_script", "score.py"]).env(environment.0, environment.1).output().unwrap()
    };
    std::fs::write(&file, "{").unwrap();
    let output = run(("A", "b"));
    assert_eq!(code(&output), Some(3));
    assert!(text(&output.stderr).contains("config.json: invalid JSON"), "{}", text(&output.stderr));
    // An empty file counts as none.
    std::fs::write(&file, "").unwrap();
    let output = run(("SCORING_TIMEOUT_MS", "soon"));
    assert_eq!(code(&output), Some(3));
    assert!(text(&output.stderr).contains("SCORING_TIMEOUT_MS"), "{}", text(&output.stderr));
    std::fs::write(directory.path().join("score.py"), "def init():\n  x\n y\n").unwrap();
    let output = run(("OUTRIGGER_SCORE_LISTEN", "127.0.0.1:0"));
    assert_eq!(code(&output), Some(3));
    assert!(text(&output.stdout).contains("IndentationError"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn probes_have_a_port_of_their_own_where_that_is_asked_for() {
    for spelling in ["SEPERATE_HEALTH_ENDPOINT", "SEPARATE_HEALTH_ENDPOINT"] {
        // Free in this moment.
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let directory = app(ENVIRONMENT);
        let mut command = azmlinfsrv(directory.path());
        command
            .args(["--entry_script", "score.py", "--health_port", &port.to_string()])
            .env(spelling, "true")
            // A flag beats the environment.
            .env("OUTRIGGER_OBSERVE_LISTEN", "127.0.0.1:1");
        let server = Server::start(command);
        assert_eq!(server.ask(&["HEALTH_PORT"]).await["HEALTH_PORT"], port.to_string());
        for (path, body) in [("", "Healthy"), ("ready", "ready\n")] {
            let response = client().get(format!("http://127.0.0.1:{port}/{path}")).send().await.unwrap();
            assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (200, body));
        }
        let shown = format!("Liveness Probe: GET   127.0.0.1:{port}/");
        assert!(server.seen.contains(&shown), "{:?}", server.seen);
    }
}
