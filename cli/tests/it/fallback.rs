//! Models that do not load on the device that they are planned on: where they go, what is said of it, and what stays where it is.

use outrigger_testkit::{Launch, onnx};
use serde_json::{Value, json};

use crate::placement::{NO_DRIVER, adder, answer, call, contains, metrics, refused};
use crate::support::{busy, header, infer, outcome, outrigger, score};

/// Adders that take ONNX files too, with these settings and other lines of the table.
fn adders(process: &str, settings: &str, lines: &str) -> String {
    let library = adder();
    let table = |name: &str| {
        format!(
            "[backends.{name}]\nlibrary = '{}'\nprocess = '{process}'\nsettings = [{settings}]\n{lines}\n",
            library.display()
        )
    };
    table("adder") + &table("desk")
}

fn serving(config: &str) -> Launch {
    outrigger()
        .file("high.onnx", onnx::add(3))
        .file("sum.onnx", onnx::add(3))
        .file("outrigger.toml", format!("{config}\n{NO_DRIVER}"))
        .args(["--config", "outrigger.toml"])
}

fn sum() -> Value {
    json!([11.0, 22.0, 33.0])
}

#[tokio::test]
async fn what_does_not_load_on_its_device_goes_to_the_next_and_says_why() {
    for (process, how, why) in [
        ("in", "memory", "out of memory: as it was told to"),
        ("in", "unsupported", "adder:0: did not load it: as it was told to"),
        ("in", "broken", "model cannot be loaded: "),
        ("in", "lost", "the device is lost: as it was told to"),
        ("out", "memory", "out of memory: as it was told to"),
        ("out", "exit", "the device is lost: "),
    ] {
        let config = adders(process, &format!("'onnx=42', 'load={how}:high.onnx'"), "threads = 3")
            + "[backends.cpu]\nthreads = 2\n\
               [models.high]\npath = 'high.onnx'\ndevices = ['adder', 'cpu']\nmax_batch = 8\n\
               [models.sum]\npath = 'sum.onnx'\ndevices = ['adder', 'cpu']\n";
        let replica = serving(&config).start();
        assert_eq!(answer(&replica, "high").await, (sum(), "cpu:0; fallback-from=adder".into()), "{how}");
        // What ended the device's host is not what comes after it.
        assert_eq!(answer(&replica, "sum").await, (sum(), "adder:0".into()), "{how}");
        let text = metrics(&replica).await;
        contains(&text, &["outrigger_model_runs_total{device=\"cpu:0\",fallback=\"true\",model=\"high\"} 1"]);
        assert!(!text.contains("device=\"adder:0\",fallback=\"false\",model=\"high\""), "{text}");
        // Two threads with batches of eight, and three with single calls: where models are counts, not where they were planned.
        assert_eq!(busy(&replica).await["slots"], 19, "{how}");
        let log = replica.log_text();
        contains(&log, &["adder:0: did not load it: ", why]);
        assert_eq!(log.matches("not where its list of devices begins").count(), 1, "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[tokio::test]
async fn what_ends_a_device_s_process_in_its_estimate_costs_no_other_model_its_place() {
    let config = adders("out", "'onnx=42', 'estimate=exit:high.onnx'", "")
        + "[models.high]\npath = 'high.onnx'\ndevices = ['adder', 'cpu']\n\
           [models.sum]\npath = 'sum.onnx'\ndevices = ['adder', 'cpu']\n";
    let replica = serving(&config).start();
    assert_eq!(answer(&replica, "high").await, (sum(), "cpu:0; fallback-from=adder".into()));
    assert_eq!(answer(&replica, "sum").await, (sum(), "adder:0".into()));
}

#[tokio::test]
async fn a_device_without_memory_for_a_sample_is_none_for_the_model() {
    let config = adders("in", "'onnx=42', 'run=memory:high.onnx'", "")
        + "[models.high]\npath = 'high.onnx'\ndevices = ['adder', 'cpu']\n\
           [models.sum]\npath = 'sum.onnx'\ndevices = ['adder', 'cpu']\n";
    let replica = serving(&config)
        .file("high.toml", "[[samples]]\nrequest = 'request.json'\n")
        .file("request.json", call())
        .start();
    assert_eq!(answer(&replica, "high").await, (sum(), "cpu:0; fallback-from=adder".into()));
    assert_eq!(answer(&replica, "sum").await, (sum(), "adder:0".into()));
    contains(&replica.log_text(), &["adder:0: did not load it: out of memory"]);
}

#[test]
fn without_another_device_the_start_ends_and_names_all_that_were_tried() {
    let high = |settings: &str, lines: &str| {
        adders("in", settings, "") + &format!("[models.high]\npath = 'high.onnx'\n{lines}")
    };
    let text = refused(
        serving(&high("'onnx=42', 'load=memory'", "devices = ['adder', 'cpu']\nfallback = false")),
        3,
    );
    contains(
        &text,
        &[
            "model `high` has no place: adder:0: did not load it: out of memory: as it was told to; cpu: not allowed: fallback = false",
        ],
    );
    let text = refused(serving(&high("'onnx=42', 'load=memory'", "devices = ['adder', 'cuda', 'desk']")), 3);
    contains(
        &text,
        &[
            "adder:0: did not load it: out of memory",
            "cuda: no such device",
            "desk:0: did not load it: out of memory",
        ],
    );
    // Where nothing but the file is wrong it is the file that is named.
    let broken = high("'onnx=42', 'load=broken'", "devices = ['adder', 'desk']");
    let text = refused(serving(&broken), 3);
    contains(&text, &["model `high` (", "high.onnx) does not load"]);
    assert!(!text.contains("has no place"), "{text}");
}

#[tokio::test]
async fn what_is_over_a_budget_as_measured_goes_elsewhere_and_what_is_loaded_stays() {
    let config = adders("in", "'onnx=1'", "memory = '50B'")
        + "[models.a]\npath = 'sum.onnx'\ndevices = ['adder', 'cpu']\n\
           [models.b]\npath = 'high.onnx'\ndevices = ['adder', 'cpu']\n\
           [models.c]\npath = 'nine.txt'\ndevices = ['adder', 'desk']\n\
           [models.d]\npath = 'eight.txt'\ndevices = ['adder', 'desk']\n";
    let launch = || serving(&config).file("nine.txt", "weights 9").file("eight.txt", "weights 8");
    let replica = launch().start();
    // By the estimates all of them have room; a and b really take 42 bytes each.
    for (model, device) in [
        ("a", "adder:0"),
        ("b", "cpu:0; fallback-from=adder"),
        ("c", "desk:0; fallback-from=adder"),
        ("d", "adder:0"),
    ] {
        assert_eq!(answer(&replica, model).await, (sum(), device.into()), "{model}");
    }
    contains(
        &replica.log_text(),
        &[
            "adder:0: did not load it: its models hold 84 bytes with this one, more than its 50 (backends.adder.memory)",
            "adder:0: has no room: 9 bytes more than the 42 taken are over its 50",
        ],
    );
    contains(
        &metrics(&replica).await,
        &[
            "outrigger_model_bytes{device=\"adder:0\",model=\"a\"} 42",
            "outrigger_model_bytes{device=\"adder:0\",model=\"d\"} 8",
        ],
    );
}

#[tokio::test]
async fn what_is_over_a_budget_once_its_samples_have_run_goes_elsewhere() {
    for process in ["in", "out"] {
        // Loaded it holds 42 bytes, and 84 once it has run.
        let adders = adders(process, "", "memory = '83B'");
        let config = adders.replacen("83B", "84B", 2).replacen("84B", "83B", 1)
            + "[models.a]\npath = 'hoard.txt'\ndevices = ['adder', 'desk']\n";
        let replica = serving(&config)
            .file("hoard.txt", "hoard 1")
            .file("hoard.toml", "[[samples]]\nrequest = 'request.json'\n")
            .file("request.json", call())
            .start();
        assert_eq!(answer(&replica, "a").await, (sum(), "desk:0; fallback-from=adder".into()));
        let why = "its models hold 84 bytes with this one, more than its 83 (backends.adder.memory)";
        contains(&replica.log_text(), &[why]);
        contains(&metrics(&replica).await, &["outrigger_model_bytes{device=\"desk:0\",model=\"a\"} 84"]);
    }
}

#[tokio::test]
async fn another_device_of_the_same_entry_is_no_fallback_but_the_log_says_it() {
    let config = adders("in", "'onnx=1', 'devices=2'", "memory = '50B'")
        + "[models.a]\npath = 'sum.onnx'\ndevices = ['adder:0']\n\
           [models.b]\npath = 'five.txt'\ndevices = ['adder:1']\n\
           [models.c]\npath = 'high.onnx'\ndevices = ['adder', 'cpu']\nfallback = false\n";
    let replica = serving(&config).file("five.txt", "weights 5").start();
    // Planned where there was more room, as far as was known.
    assert_eq!(answer(&replica, "c").await, (sum(), "adder:1".into()));
    let log = replica.log_text();
    contains(
        &log,
        &[
            "model did not load on another device that is as good",
            "adder:0: did not load it: its models hold 84",
        ],
    );
    assert!(!log.contains("not where its list of devices begins"), "{log}");
}

#[test]
fn a_device_further_down_has_to_do_with_the_samples_what_the_first_one_has_to() {
    let golden = |data: [f32; 3]| {
        json!({"outputs": [{"name": "z", "datatype": "FP32", "shape": [1, 3], "data": data}]}).to_string()
    };
    let config = adders("in", "'onnx=42', 'load=memory'", "")
        + "[models.sum]\npath = 'models/sum'\ndevices = ['adder', 'cpu']\n";
    let launch = serving(&config)
        .file("models/sum/sum.onnx", onnx::add(3))
        .file("models/sum/model.toml", "[[samples]]\nrequest = 'sample.json'\nexpect = 'golden.json'\n")
        .file("models/sum/sample.json", call())
        .file("models/sum/golden.json", golden([11.0, 22.0, 34.0]));
    contains(&refused(launch, 3), &["model `sum` on cpu:0: sample sample.json", "expected 34"]);
}

/// A model that has no memory when it runs, and one that takes its time.
const TROUBLED: &str = "[models.full]\npath = 'full.txt'\ndevices = ['cuda', 'adder']\n\
    [models.slow]\npath = 'slow.txt'\ndevices = ['adder']\n";

fn troubled() -> Launch {
    serving(&(adders("in", "", "") + TROUBLED)).file("full.txt", "fail 3").file("slow.txt", "slow 60000")
}

#[tokio::test]
async fn an_error_says_on_which_device_the_call_was() {
    let replica = troubled().start();
    let device = "adder:0; fallback-from=cuda";
    let failed = infer(&replica, "full", call()).send().await.unwrap();
    assert_eq!(header(&failed, "outrigger-device"), device);
    let (status, code, _) = outcome(failed).await;
    assert_eq!((status, code.as_str()), (503, "model_unavailable"));
    let late = infer(&replica, "slow", call()).header("x-request-deadline-ms", "1000");
    let late = late.send().await.unwrap();
    assert_eq!((late.status().as_u16(), header(&late, "outrigger-device").as_str()), (504, "adder:0"));
    // What is refused before a device is chosen names none.
    let refused = infer(&replica, "full", "{}").send().await.unwrap();
    assert_eq!((refused.status().as_u16(), header(&refused, "outrigger-device").as_str()), (400, ""));
}

#[tokio::test]
async fn an_error_of_a_script_says_where_its_models_ran() {
    let script = r#"
import json
import numpy
from outrigger import model

def init():
    global full
    full = model("full")

def run(data):
    if json.loads(data):
        rows = numpy.ones((1, 3), "float32")
        full.predict(x=rows, y=rows)
    raise ValueError("without a model")
"#;
    let replica = troubled().script(script).start();
    for (asks, device) in [("true", "adder:0; fallback-from=cuda"), ("false", "")] {
        let failed = score(&replica, asks).send().await.unwrap();
        assert_eq!(header(&failed, "outrigger-device"), device, "{}", replica.log_text());
        assert_eq!(outcome(failed).await.1, "script_error");
    }
}
