//! TorchScript models on the CPU, in a process of their own, described by `model.toml`.

use outrigger_testkit::torchscript::{self, Module};
use outrigger_testkit::{Launch, ReplicaProcess};
use serde_json::json;

use crate::placement::{NO_DRIVER, answer, call, refused};
use crate::steps;
use crate::support::{client, infer, outcome, outrigger};

const MANIFEST: &str = "\
format = 'torchscript'
devices = ['cpu_torch']

[[inputs]]
name = 'x'
datatype = 'FP32'
shape = ['batch', 3]

[[inputs]]
name = 'y'
datatype = 'FP32'
shape = ['batch', 3]
";

fn serving(manifest: &str, module: &Module) -> Launch {
    outrigger()
        .file("models/sum/model.toml", format!("file = 'sum.pt'\n{manifest}"))
        .file("models/sum/sum.pt", module.archive())
        .file("outrigger.toml", "")
        .args(["--config", "outrigger.toml", "--model-dir", "models"])
}

/// Whether `cargo xtask torch` has run.
fn is_there() -> bool {
    let test = std::env::current_exe().unwrap();
    let there = test.ancestors().nth(2).unwrap().join("outrigger_torch_core.so").is_file();
    if !there {
        println!("skipped: no libtorch is set up");
    }
    there
}

async fn metadata(replica: &ReplicaProcess) -> serde_json::Value {
    let url = format!("{}/v2/models/sum", replica.score);
    let request = client().get(url).bearer_auth(outrigger_testkit::replica::KEY);
    outcome(request.send().await.unwrap()).await.2
}

#[tokio::test]
async fn a_torchscript_model_is_served_by_what_its_manifest_says() {
    if !is_there() {
        return;
    }
    let replica = serving(MANIFEST, &torchscript::add()).start();
    assert_eq!(answer(&replica, "sum").await, (json!([11.0, 22.0, 33.0]), "cpu_torch:0".into()));
    let metadata = metadata(&replica).await;
    assert_eq!(metadata["platform"], "torchscript_cpu_torch");
    assert_eq!(metadata["outputs"], json!([{"name": "output_0", "datatype": "FP32", "shape": [-1, 3]}]));
    // In a process of its own, unless somebody says otherwise.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", replica.pid())).unwrap();
    assert!(!maps.contains("libtorch") && !maps.contains("outrigger_torch"), "{maps}");
    // A failure of the model's is told in one line.
    let mut body: serde_json::Value = serde_json::from_str(&call()).unwrap();
    body["inputs"][1]["shape"] = json!([3, 1]);
    let (status, _, answer) = outcome(infer(&replica, "sum", body.to_string()).send().await.unwrap()).await;
    assert_eq!(status, 400, "{answer}");
}

#[tokio::test]
async fn outputs_that_were_found_out_can_be_batched() {
    if !is_there() {
        return;
    }
    // It loads with `max_batch` because two trial runs have told that the first extent of what comes is the batch.
    let replica = serving(&format!("max_batch = 8\n{MANIFEST}"), &torchscript::add()).start();
    assert_eq!(answer(&replica, "sum").await.0, json!([11.0, 22.0, 33.0]));
}

/// Callers send an image and get classes: what the backend is told of the model is what the steps before it give.
#[tokio::test]
async fn steps_go_around_a_torchscript_model() {
    if !is_there() {
        return;
    }
    let weights: Vec<f32> = (0..3)
        .flat_map(|channel| (0..steps::CLASSES).map(move |class| steps::weight(channel, class)))
        .collect();
    let statements = ["return torch.matmul(torch.mean(pixels, [2, 3]), self.weights)"];
    let network = Module::forward("pixels: Tensor", "Tensor", &statements);
    let network = network.weight("weights", &[3, steps::CLASSES as i64], weights);
    let top = "file = 'classes.pt'\nformat = 'torchscript'\ndevices = ['cpu_torch']\nmax_batch = 4\nmax_delay = '1ms'";
    let replica = outrigger()
        .file("models/classes/classes.pt", network.archive())
        .file("models/classes/model.toml", format!("{top}\n{}", steps::MANIFEST))
        .args(["--model-dir", "models"])
        .start();
    for (count, height, width) in [(1, 13, 21), (3, 8, 8), (2, 40, 5)] {
        let images: Vec<_> = (0..count).map(|seed| steps::image(seed, height, width)).collect();
        let (status, _, answer) = steps::call(&replica, steps::body(&images, height, width)).await;
        assert_eq!(status, 200, "{answer}");
        steps::is_right(&answer, &images, height, width);
    }
    steps::together(&replica).await;
}

#[test]
fn what_is_missing_is_told_at_the_start() {
    if !is_there() {
        return;
    }
    let text = refused(serving("format = 'torchscript'\ndevices = ['cpu_torch']", &torchscript::add()), 3);
    assert!(text.contains("describe `x`, `y` in model.toml, as `[[inputs]]`"), "{text}");
    let config = "[backends.cpu_torch]\nsettings = ['libtorch=/nowhere']";
    let text = refused(serving(MANIFEST, &torchscript::add()).file("outrigger.toml", config), 3);
    assert!(text.contains("no libtorch 2.11.0; tried `/nowhere`: there is no lib/libc10.so"), "{text}");
}

/// Where there is no GPU: `cuda_torch` is one of the family `cuda`, and says why it has no device.
#[tokio::test]
async fn without_a_gpu_a_list_that_says_cuda_goes_on() {
    if !is_there() {
        return;
    }
    let config = format!("{NO_DRIVER}{}", NO_DRIVER.replace("[backends.cuda]", "[backends.cuda_torch]"));
    let on = |devices: &str| {
        let manifest = MANIFEST.replace("['cpu_torch']", devices);
        serving(&manifest, &torchscript::add()).file("outrigger.toml", &config)
    };
    let replica = on("['cuda', 'cpu']").start();
    let expected = (json!([11.0, 22.0, 33.0]), "cpu_torch:0; fallback-from=cuda".into());
    assert_eq!(answer(&replica, "sum").await, expected);
    let text = refused(on("['cuda_torch']"), 3);
    assert!(text.contains("NVIDIA driver not found: /nonexistent/libcuda.so.1: "), "{text}");
}
