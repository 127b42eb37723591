//! `outrigger lint`: what is said of good and bad scripts.

use std::process::{Command, Output};

use serde_json::{Value, json};

fn lint(script: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("score.py"), script).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command
        .args(["lint", "score.py"])
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", directory.path())
        .env("OUTRIGGER_SCRIPT_PYTHON", outrigger_testkit::python())
        .env("OUTRIGGER_SCRIPT_HOST", outrigger_testkit::repository().join("entry-scripts"))
        .current_dir(directory.path())
        .output()
        .unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_good_script_is_shown_with_a_request_to_paste() {
    let script = "def init():\n    raise RuntimeError('init is not called')\n\ndef run(data, request_headers):\n    return data\n";
    let output = lint(script, &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "score.py: ok",
        "plain: run() gets the body as text",
        "GET, POST",
        "all headers but the caller's key",
        "2, 3, 3.1",
        "curl -s http://127.0.0.1:5001/score -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' -d '",
    ] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
    let object = json_of(&lint(script, &["--json", "--auth-enabled=false"]));
    assert_eq!(
        (&object["ok"], &object["mode"], &object["kind"]),
        (&json!(true), &json!("plain"), &json!("sync"))
    );
    assert_eq!(object["swagger"], json!(["2", "3", "3.1"]));
    assert!(!object["curl"].as_str().unwrap().contains("Bearer"), "{object}");
    let output = lint(script, &["--init"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("init is not called"), "{output:?}");
}

#[test]
fn bad_scripts_end_with_1_and_say_why() {
    for (script, part) in [
        ("def run(data):\n    pass\n", "init"),
        ("def init():\n    pass\n", "run"),
        ("def init(:\n", "SyntaxError"),
        ("import no_such_module\ndef init(): pass\ndef run(data): pass\n", "no_such_module"),
        ("def init(): pass\ndef run(): pass\n", "run() needs to accept an argument for input data."),
        ("import os\nos._exit(9)\n", "9"),
    ] {
        let output = lint(script, &[]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{script}\n{text}");
        assert!(text.contains(part), "{part} not in\n{text}");
        let object = json_of(&lint(script, &["--json"]));
        assert_eq!(object["ok"], false);
        assert!(object["error"].to_string().contains(part), "{object}");
    }
}

#[test]
fn what_is_not_wrong_but_unwise_is_a_warning() {
    let script = "print('hello from the import')\ndef init(): pass\ndef run(data): pass\n";
    let output = lint(script, &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("warning: the script writes while it is imported"), "{text}");
    assert!(text.contains("hello from the import"), "{text}");
    let object = json_of(&lint(script, &["--json"]));
    assert_eq!(object["warnings"].as_array().unwrap().len(), 1, "{object}");
}

#[test]
fn a_script_that_is_not_there_and_an_interpreter_that_is_not_there_are_said() {
    let output = lint("", &["--script-python", "/no/such/python"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("script.python"), "{output:?}");
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("lint").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "no script is named");
}

#[test]
fn a_schema_gives_a_sample_to_send() {
    let script = r#"
import numpy as np
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema

def init():
    pass

@input_schema("data", NumpyParameterType(np.array([[1, 2]])))
@output_schema(StandardPythonParameterType({"it's": 1}))
def run(data):
    return {"it's": int(data.sum())}
"#;
    let object = json_of(&lint(script, &["--json", "--auth-enabled=false"]));
    assert_eq!(
        (&object["mode"], &object["sample"]),
        (&json!("schema"), &json!({"data": [[1, 2]]})),
        "{object}"
    );
    assert_eq!(
        object["curl"],
        "curl -s http://127.0.0.1:5001/score -H 'Content-Type: application/json' -d '{\"data\": [[1, 2]]}'"
    );
    let long = script.replace("[[1, 2]]", "np.zeros((100, 100))");
    let output = lint(&long, &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("-d '@sample.json'") && text.contains("has it as `sample`"), "{text}");
}

#[test]
fn a_raw_script_is_shown_with_its_methods() {
    let script = "from azureml.contrib.services.aml_request import rawhttp\n\ndef init(): pass\n\n@rawhttp\ndef run(request):\n    return 'x'\n";
    let object = json_of(&lint(script, &["--json"]));
    assert_eq!(object["mode"], "raw", "{object}");
    assert!(object["curl"].as_str().unwrap().ends_with("--data-binary @FILE"), "{object}");
    assert!(object["methods"].as_array().unwrap().contains(&json!("OPTIONS")), "{object}");
}

#[test]
fn a_script_that_hangs_is_ended_and_shown_where() {
    let script = "import time\nwhile True:\n    time.sleep(0.01)\n";
    let output = lint(script, &["--script-import-timeout", "1s"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("script.import_timeout") && text.contains("score.py"), "{text}");
}
