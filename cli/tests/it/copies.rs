//! Large bodies and tensors are not copied on their way to a script: what it sees lies in a region's own mapping.

use outrigger_testkit::onnx;
use serde_json::json;

use crate::support::{outcome, outrigger, score};

/// `run()` says whether a buffer lies in memory that is shared with the replica, and what is in it.
const WHERE: &str = r#"
import numpy as np

def shared(array):
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return "memfd:outrigger" in line
    return False
"#;

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|at| (at as f32).to_le_bytes()).collect()
}

#[tokio::test]
async fn a_large_body_is_seen_where_it_was_received() {
    let script = format!(
        "{WHERE}\ndef init():\n    pass\n\ndef run(data: memoryview):\n    array = np.frombuffer(data, np.float32)\n    return [shared(array), float(array.sum()), data.readonly]\n"
    );
    // With several workers nobody knows yet whose it will be: it is copied once more, and seen without a copy all the same.
    for workers in ["1", "3"] {
        let replica = outrigger().script(&script).args(["--script-workers", workers]).start();
        for count in [200_000, 150_528, 300_000] {
            let (status, _, body) = outcome(score(&replica, floats(count)).send().await.unwrap()).await;
            let sum = (0..count).map(|at| at as f64).sum::<f64>();
            assert_eq!((status, &body[0], &body[2]), (200, &json!(true), &json!(true)), "{body}");
            assert!((body[1].as_f64().unwrap() - sum).abs() < sum * 1e-3, "{body}");
        }
        let (_, _, body) = outcome(score(&replica, floats(4)).send().await.unwrap()).await;
        assert_eq!(body, json!([false, 6.0, true]), "a small one comes over the socket");
    }
    // Nothing is shared where the operator does not want it.
    let replica = outrigger().script(&script).args(["--script-region-threshold", "0B"]).start();
    let (_, _, body) = outcome(score(&replica, floats(200_000)).send().await.unwrap()).await;
    assert_eq!(body[0], json!(false));
}

#[tokio::test]
async fn a_large_result_of_a_model_is_seen_where_the_replica_put_it() {
    let script = format!(
        "{WHERE}\nfrom outrigger import model\n\ndef init():\n    global add\n    add = model('add')\n\ndef run(data):\n    x = np.arange(int(data) * 3, dtype=np.float32).reshape(-1, 3)\n    z = add.predict(x=x, y=x)\n    return [shared(z), bool((z == 2 * x).all())]\n"
    );
    let launch = outrigger().file("add.onnx", onnx::add(3)).script(&script).args(["--model", "add=add.onnx"]);
    let replica = launch.start();
    let (_, _, body) = outcome(score(&replica, "100000").send().await.unwrap()).await;
    assert_eq!(body, json!([true, true]));
    let (_, _, body) = outcome(score(&replica, "2").send().await.unwrap()).await;
    assert_eq!(body, json!([false, true]));
}
