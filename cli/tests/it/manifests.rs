//! `model.toml` beside a model's files: what it says holds, and what is wrong in it is named.

use outrigger_testkit::{Launch, onnx};
use serde_json::{Value, json};

use crate::placement::{adder, answer, call, refused};
use crate::support::{client, outcome, outrigger};

/// A whole one.
const SUM: &str = r#"
name = "sum"
version = "2024-05"
format = "onnx"
file = "sum.onnx"
devices = ["gpu", "cpu"]
fallback = true
instances = 2
max_batch = 8
max_delay = "1ms"
intra_threads = 1

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 3]

[[inputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]

[[outputs]]
name = "z"
datatype = "FP32"
shape = ["batch", 3]

[[samples]]
request = "samples/request.json"
expect = "samples/golden.json"

[[samples]]
request = "samples/request.json"
"#;

fn golden(values: [f32; 3]) -> String {
    let output = json!({"name": "z", "datatype": "FP32", "shape": [1, 3], "data": values});
    json!({"model_name": "sum", "model_version": "7", "outputs": [output]}).to_string()
}

/// The model directory `models` with `sum/1`, which has this manifest.
fn with(manifest: &str) -> Launch {
    outrigger()
        .file("models/sum/1/sum.onnx", onnx::add(3))
        .file("models/sum/1/other.onnx", onnx::mlp(&[3, 3]))
        .file("models/sum/1/samples/request.json", call())
        .file("models/sum/1/samples/golden.json", golden([11.0, 22.0, 33.0]))
        .file("models/sum/1/model.toml", manifest)
        .args(["--model-dir", "models"])
}

#[tokio::test]
async fn what_a_manifest_says_holds() {
    let replica = with(SUM).start();
    assert_eq!(answer(&replica, "sum").await, (json!([11.0, 22.0, 33.0]), "cpu:0; fallback-from=gpu".into()));
    let get = async |path: &str| {
        let url = format!("{}/v2/models/sum{path}", replica.score);
        outcome(client().get(url).bearer_auth(outrigger_testkit::replica::KEY).send().await.unwrap()).await
    };
    let (status, _, metadata) = get("").await;
    assert_eq!((status, &metadata["versions"]), (200, &json!(["2024-05"])), "{metadata}");
    assert_eq!(metadata["platform"], "onnx_cpu");
    assert_eq!(get("/versions/2024-05").await.0, 200);
    assert_eq!(get("/versions/1").await.0, 404);
    let log = replica.log_text();
    assert_eq!(log.matches("\"model ready\"").count(), 2, "{log}");
}

#[tokio::test]
async fn the_configuration_goes_over_it_and_its_path_may_name_a_directory() {
    let manifest = "devices = ['cuda']\nfallback = false\ninstances = 4\nversion = 3\nfile = 'sum.onnx'";
    let config = "[models.mine]\npath = 'models/sum'\ndevices = ['cpu']\ninstances = 1";
    let replica = with(manifest).file("outrigger.toml", config).args(["--config", "outrigger.toml"]).start();
    assert_eq!(answer(&replica, "mine").await.1, "cpu:0");
    assert_eq!(replica.log_text().matches("\"model ready\"").count(), 1);
}

#[tokio::test]
async fn a_file_that_lies_flat_has_its_manifest_beside_it() {
    let replica = outrigger()
        .file("models/sum.onnx", onnx::add(3))
        .file("models/sum.toml", "devices = ['fpga', 'cpu']")
        .file("models/plain.onnx", onnx::add(3))
        .args(["--model-dir", "models"])
        .start();
    assert_eq!(answer(&replica, "sum").await.1, "cpu:0; fallback-from=fpga");
    assert_eq!(answer(&replica, "plain").await.1, "cpu:0");
}

#[tokio::test]
async fn a_model_of_another_format_is_one_by_its_manifest() {
    let config =
        format!("[backends.adder]\nlibrary = '{}'\nprocess = 'in'\nmemory = '1KiB'", adder().display());
    let replica = outrigger()
        .file("models/sum/model.toml", "file = 'words.txt'\nformat = 'text'\ndevices = ['cpu', 'adder']")
        .file("models/sum/words.txt", "add 3\n")
        .file("outrigger.toml", config)
        .args(["--config", "outrigger.toml", "--model-dir", "models"])
        .start();
    assert_eq!(answer(&replica, "sum").await.1, "adder:0; fallback-from=cpu");
}

fn says(manifest: &str, parts: &[&str]) {
    let text = refused(with(manifest), 3);
    for part in parts {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn what_does_not_match_the_model_is_named() {
    for (good, bad, said) in [
        ("datatype = \"FP32\"", "datatype = \"FP64\"", "input `x` is FP32 in the model, not FP64"),
        ("shape = [-1, 3]", "shape = [-1, 4]", "input `x` has shape [-1, 3] in the model, not [-1, 4]"),
        ("name = \"z\"", "name = \"zz\"", "the model has no output `zz`, did you mean `z`?"),
        ("name = \"sum\"", "name = \"product\"", "`name` is `product`, but the model is served as `sum`"),
    ] {
        says(&SUM.replacen(good, bad, 1), &["sum/1/model.toml", said]);
    }
    let undescribed = SUM.replace("[[inputs]]\nname = \"y\"\ndatatype = \"FP32\"\nshape = [-1, 3]\n", "");
    says(&undescribed, &["the model has an input `y`, which is not described"]);
}

#[test]
fn what_is_wrong_in_it_is_named() {
    for (manifest, said) in [
        ("fiel = 'sum.onnx'", "unknown key `fiel`, did you mean `file`?"),
        (
            "[[samples]]\nrequest = 'a'\nexpects = 'b'",
            "unknown key `samples.expects`, did you mean `expect`?",
        ),
        (
            "devices = ['cdua']",
            "`devices` names `cdua`, but there is no backend `cdua`, did you mean `cuda`?",
        ),
        ("devices = 'cuda'", "line 1: invalid type"),
        (
            "[[inputs]]\nname = 'x'\ndatatype = 'FP23'\nshape = [1]",
            "`inputs`: `x` has the datatype `FP23`, did you mean `FP32`?",
        ),
        (
            "[[outputs]]\nname = 'z'\ndatatype = 'FP32'\nshape = [1.5]",
            "expected a whole number, or a name for an extent that is free",
        ),
        ("instances = 0", "`instances` is 0, expected a whole number from 1 to 64"),
        ("settings = ['affinity']", "`settings` holds `affinity`, which is not KEY=VALUE"),
        ("settings = 'affinity=0'", "line 1: invalid type"),
        ("max_delay = '5'", "`max_delay` is \"5\", expected a time"),
        ("version = '../x'", "`version` is not a letter or digit"),
        (
            "file = '../1/sum.onnx'",
            "`file` is \"../1/sum.onnx\", which is not a path inside the model's directory",
        ),
        ("file = '/etc/passwd'", "not a path inside the model's directory"),
        ("file = 'none.onnx'", "`file`: "),
        ("a = ", "line 1: "),
        ("", "holds not exactly one model file"),
    ] {
        says(manifest, &[said]);
    }
    let large = format!("# {}\n", "x".repeat(300_000));
    says(&large, &["is larger than 262144 bytes"]);
}

#[test]
fn links_do_not_lead_out() {
    let launch = with("file = 'link.onnx'");
    std::fs::write(launch.directory().join("secret.onnx"), onnx::add(3)).unwrap();
    std::os::unix::fs::symlink("../../../secret.onnx", launch.directory().join("models/sum/1/link.onnx"))
        .unwrap();
    let text = refused(launch, 3);
    assert!(text.contains("a link that leads out of the model's directory"), "{text}");
}

#[test]
fn samples_must_give_what_they_must() {
    let sample = |expect: &str, more: &str| {
        let manifest = format!(
            "file = 'sum.onnx'\n[[samples]]\nrequest = 'samples/request.json'\nexpect = 'samples/x.json'\n{more}"
        );
        with(&manifest).file("models/sum/1/samples/x.json", expect)
    };
    let off =
        "model `sum` on cpu:0: sample request.json: output `z` at index 1 is 22, expected 22.5 in x.json";
    let text = refused(sample(&golden([11.0, 22.5, 33.0]), ""), 3);
    assert!(text.contains(off), "{text}");
    // Within the tolerance that is asked for.
    drop(sample(&golden([11.0, 22.5, 33.0]), "rtol = 0.1\natol = 0").start());
    let wide = golden([1.0; 3]).replace("[1,3]", "[3,1]");
    for (expect, said) in [
        (wide.as_str(), "x.json: output `z`"),
        (&golden([1.0; 3]).replace("\"z\"", "\"q\""), "x.json: the model has no output `q`"),
        ("{}", "x.json: has no `outputs`"),
        ("[", "x.json: EOF"),
    ] {
        let text = refused(sample(expect, ""), 3);
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
    let bad = with("file = 'sum.onnx'\n[[samples]]\nrequest = 'samples/golden.json'");
    let text = refused(bad, 3);
    assert!(text.contains("sample golden.json: "), "{text}");
}

#[test]
fn a_sample_that_takes_too_long_ends_the_start() {
    for process in ["in", "out"] {
        let config = format!(
            "[limits]\nsample_timeout = '200ms'\n[backends.adder]\nlibrary = '{}'\nprocess = '{process}'",
            adder().display()
        );
        let launch = outrigger()
            .file("models/slow/model.toml", "file = 'words.txt'\nformat = 'text'\ndevices = ['adder']\n[[samples]]\nrequest = 'request.json'")
            .file("models/slow/words.txt", "slow 86400000")
            .file("models/slow/request.json", call())
            .file("outrigger.toml", config)
            .args(["--config", "outrigger.toml", "--model-dir", "models"]);
        let text = refused(launch, 3);
        let said = "model `slow` on adder:0: sample request.json: it did not end within limits.sample_timeout, 200ms";
        assert!(text.contains(said) && !text.contains("still under way"), "{process}: {text}");
    }
}

#[tokio::test]
async fn samples_of_halves_are_numbers() {
    use outrigger_backend::DataType;
    let launch = |data_type: DataType, got: &str, expected: &str| {
        let body = |side: &str, name: &str, data: &str| {
            format!(
                r#"{{"{side}":[{{"name":"{name}","datatype":"{data_type}","shape":[3],"data":{data}}}]}}"#
            )
        };
        outrigger()
            .file("models/same/same.onnx", onnx::identity(data_type, &[onnx::Dim::Named("n")]))
            .file("models/same/model.toml", "[[samples]]\nrequest = 'r.json'\nexpect = 'e.json'")
            .file("models/same/r.json", body("inputs", "x", got))
            .file("models/same/e.json", body("outputs", "y", expected))
            .args(["--model-dir", "models"])
    };
    for (data_type, off) in [
        (DataType::Fp16, "output `y` at index 0 is 0.0999755859375, expected 0.1500244140625 in e.json"),
        (DataType::Bf16, "output `y` at index 0 is 0.10009765625, expected 0.150390625 in e.json"),
    ] {
        drop(launch(data_type, "[0.1, 1, -2]", "[0.1001, 1.001, -2.001]").start());
        let text = refused(launch(data_type, "[0.1, 1, -2]", "[0.15, 1, -2]"), 3);
        assert!(text.contains(off), "{text}");
    }
    let text = refused(launch(DataType::Fp16, "[1, 65520, 1]", "[1, 1, 1]"), 3);
    assert!(text.contains("sample r.json: input `x`: a number is out of the range"), "{text}");
}

#[test]
fn check_takes_directories() {
    let launch = with(SUM).file("outrigger.toml", "[models.sum]\npath = 'models/sum'");
    let ended = launch.args(["--config", "outrigger.toml", "--check"]).run();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    let _: Vec<Value> = ended.log;
}
