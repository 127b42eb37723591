//! Entry scripts as users write them: arguments, working directory, outputs, headers, models.

use outrigger_testkit::onnx;
use serde_json::json;

use crate::support::{outcome, outrigger, score};

#[tokio::test]
async fn a_script_sees_its_arguments_directory_and_environment() {
    let script = "import os, sys\ndef init():\n    pass\ndef run(data):\n    return [sys.argv[1:], os.getcwd(), os.environ.get('AZUREML_MODEL_DIR'), sorted(k for k in os.environ if 'KEY' in k and 'OUTRIGGER' in k)]\n";
    let launch = outrigger().file("models/a.txt", "").script(script);
    let root = launch.directory().canonicalize().unwrap();
    let launch = launch.args(["--script-args", "--alpha", "--script-args", "0.5,1", "--model-dir", "models"]);
    let replica = launch.start();
    let (_, _, body) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!(body[0], json!(["--alpha", "0.5,1"]));
    assert_eq!(body[1], root.join("app").to_str().unwrap());
    assert_eq!(body[2].as_str().map(|path| path.ends_with("models")), Some(true));
    assert_eq!(body[3], json!([]), "keys are not for scripts");
}

#[tokio::test]
async fn what_a_script_writes_under_outputs_is_kept() {
    let script = "def init():\n    with open('outputs/started.txt', 'w') as file:\n        file.write('yes')\ndef run(data):\n    with open('./outputs/last.txt', 'w') as file:\n        file.write(data)\n    return None\n";
    let launch = outrigger().script(script);
    let app = launch.directory().join("app");
    let kept = tempfile::tempdir().unwrap();
    let replica = launch.args(["--script-outputs-dir", kept.path().to_str().unwrap()]).start();
    assert_eq!(score(&replica, "hello").send().await.unwrap().text().await.unwrap(), "{}");
    assert!(app.join("outputs").is_symlink());
    assert_eq!(std::fs::read_to_string(kept.path().join("started.txt")).unwrap(), "yes");
    assert_eq!(std::fs::read_to_string(kept.path().join("last.txt")).unwrap(), "hello");
}

#[tokio::test]
async fn headers_reach_a_script_that_asks_for_them_without_the_key() {
    let script = "def init():\n    pass\ndef run(data, request_headers):\n    return request_headers\n";
    let replica = outrigger().script(script).start();
    let (status, _, body) =
        outcome(score(&replica, "x").header("test-header", "a b").send().await.unwrap()).await;
    assert_eq!((status, &body["Test-Header"]), (200, &json!("a b")), "{body}");
    assert!(body.get("Authorization").is_none(), "{body}");
}

#[tokio::test]
async fn prints_are_in_the_log_line_by_line() {
    let script = "import sys\ndef init():\n    print('from init')\ndef run(data):\n    print('one\\ntwo')\n    print('loud', file=sys.stderr)\n    print('x' * 100000)\n    return data\n";
    let mut replica = outrigger().script(script).start();
    score(&replica, "x").send().await.unwrap();
    for part in ["\"from init\"", "\"one\"", "\"two\"", "\"loud\"", "\"xxx"] {
        replica.wait_for_text(part);
    }
}

#[tokio::test]
async fn a_script_runs_models_of_the_replica() {
    let script = r#"
import json
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from outrigger import model, ModelError

def init():
    global add
    add = model("add")
    assert add.predict(x=np.ones((1, 3)), y=np.ones((1, 3))).tolist() == [[2.0, 2.0, 2.0]]

def run(data):
    what = json.loads(data)
    if what == "threads":
        def one(number):
            x = np.full((50, 3), number, dtype=np.float32)
            return bool((add.predict(x=x, y=x) == 2 * number).all())
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, range(64)))
    if what == "large":
        x = np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)
        return bool((add.predict(x=x, y=x) == x + x).all())
    try:
        return add.predict(**{name: np.asarray(value, dtype=np.float32) for name, value in what.items()}).tolist()
    except ModelError as error:
        return [error.code, str(error)]
"#;
    let replica =
        outrigger().file("add.onnx", onnx::add(3)).script(script).args(["--model", "add=add.onnx"]).start();
    let call = async |body: serde_json::Value| {
        outcome(score(&replica, body.to_string()).send().await.unwrap()).await.2
    };
    assert_eq!(call(json!({"x": [[1, 2, 3]], "y": [[10, 20, 30]]})).await, json!([[11.0, 22.0, 33.0]]));
    assert_eq!(call(json!("threads")).await, json!(vec![true; 64]));
    assert_eq!(call(json!("large")).await, json!(true));
    let error = call(json!({"x": [[1, 2, 3]], "y": [[1, 2]]})).await;
    assert_eq!(error[0], "invalid_tensor", "{error}");
    assert!(error[1].as_str().unwrap().contains("`y`"), "{error}");
    // After an error the same worker goes on.
    assert_eq!(call(json!({"x": [[1, 2, 3]], "y": [[0, 0, 0]]})).await, json!([[1.0, 2.0, 3.0]]));
}

#[tokio::test]
async fn a_worker_that_keeps_dying_is_started_ever_more_slowly_and_said_so() {
    let script = "import os\nfrom pathlib import Path\ndef init():\n    if Path('broken').exists():\n        raise RuntimeError('cannot')\ndef run(data):\n    Path('broken').touch()\n    os._exit(1)\n";
    let mut replica = outrigger().script(script).args(["--script-write", "app"]).start();
    assert_eq!(outcome(score(&replica, "x").send().await.unwrap()).await.1, "worker_lost");
    replica.wait_for(|line| {
        line["fields"]["message"].as_str().is_some_and(|text| text.contains("keeps failing"))
    });
    let (status, code, body) = outcome(score(&replica, "x").send().await.unwrap()).await;
    assert_eq!((status, code.as_str()), (503, "not_ready"), "{body}");
    let ready = crate::support::client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    std::fs::remove_file(replica.directory().join("app/broken")).unwrap();
    replica.wait_for(|line| line["fields"]["message"] == "worker ready");
}

#[tokio::test]
async fn a_dying_worker_takes_the_call_it_is_at_and_no_other() {
    let script = "import os\ndef init():\n    pass\ndef run(data):\n    if data == 'die':\n        os._exit(1)\n    return data\n";
    let replica = outrigger().script(script).start();
    // Fast calls in a row, so that the next ones are sent to the worker ahead.
    for _ in 0..64 {
        assert_eq!(score(&replica, "warm").send().await.unwrap().status(), 200);
    }
    let client = crate::support::client();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..120 {
        let body = if number % 40 == 17 { "die".to_owned() } else { number.to_string() };
        let request =
            client.post(format!("{}/score", replica.score)).bearer_auth(outrigger_testkit::replica::KEY);
        let request = request.body(body.clone());
        calls.spawn(async move { (body, outcome(request.send().await.unwrap()).await) });
    }
    let mut lost = 0;
    while let Some(done) = calls.join_next().await {
        let (sent, (status, code, body)) = done.unwrap();
        if sent == "die" {
            assert_eq!((status, code.as_str()), (500, "worker_lost"));
            lost += 1;
        } else {
            assert_eq!((status, body), (200, json!(sent)), "{code}");
        }
    }
    assert_eq!(lost, 3);
    let busy = crate::support::client().get(format!("{}/busy", replica.observe)).send().await.unwrap();
    let busy = outcome(busy).await.2;
    assert_eq!(
        (&busy["executing"], &busy["queued"], &busy["failed"]),
        (&json!(0), &json!(0), &json!(3)),
        "{busy}"
    );
    assert_eq!(busy["arrived"], json!(64 + 120));
}

#[tokio::test]
async fn a_call_that_was_sent_ahead_to_a_dying_worker_keeps_its_body() {
    let script = "import os, time\ndef init():\n    pass\ndef run(data):\n    if data == 'die':\n        time.sleep(0.2)\n        os._exit(1)\n    return len(data)\n";
    // Everything goes through shared memory.
    let replica = outrigger().script(script).args(["--script-region-threshold", "1B"]).start();
    for _ in 0..64 {
        assert_eq!(score(&replica, "warm").send().await.unwrap().status(), 200);
    }
    let client = crate::support::client();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..16 {
        let body = if number == 0 { "die".to_owned() } else { "x".repeat(1000) };
        let request =
            client.post(format!("{}/score", replica.score)).bearer_auth(outrigger_testkit::replica::KEY);
        let request = request.body(body.clone());
        calls.spawn(async move { (body, outcome(request.send().await.unwrap()).await) });
    }
    while let Some(done) = calls.join_next().await {
        let (sent, (status, code, body)) = done.unwrap();
        if sent != "die" {
            assert_eq!((status, body), (200, json!(1000)), "{code}");
        }
    }
}
