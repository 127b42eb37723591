//! What scripts collect themselves, by the packages that AzureML's scripts do it with, read back by pandas from Azure's storage.

use std::path::Path;
use std::process::Command;

use futures_util::TryStreamExt;
use outrigger_store::Location;
use outrigger_testkit::Launch;
use outrigger_testkit::storage::Azurite;
use serde_json::{Value, json};

use super::{collecting, events, until_settled};
use crate::support::{header, outcome, score};

/// What AzureML's scripts run on.
fn python() -> std::path::PathBuf {
    outrigger_testkit::repository().join(".venv-azml/bin/python")
}

fn on_azuremls_python(launch: Launch) -> Launch {
    launch.env("OUTRIGGER_SCRIPT_PYTHON", python())
}

/// Collects what it is given and what it answers, as AzureML's documentation has it.
const V2: &str = r#"
import json
import pandas as pd
from azureml.ai.monitoring import Collector
from azureml.ai.monitoring.context import BasicCorrelationContext

def init():
    global inputs, outputs
    inputs = Collector(name="model_inputs")
    outputs = Collector(name="model_outputs")

def run(data):
    frame = pd.DataFrame(json.loads(data))
    context = inputs.collect(frame, BasicCorrelationContext(id=f"id-{frame['number'][0]}"))
    result = frame.assign(double=frame["number"] * 2)[["double"]]
    outputs.collect(result, context)
    return result.to_dict("list")
"#;

#[tokio::test]
async fn the_unmodified_package_of_v2_collects() {
    let launch = on_azuremls_python(collecting("model_inputs, model_outputs")).script(V2);
    let replica = launch.start();
    for number in 0..10 {
        let body = json!({"number": [number, number + 1], "text": ["a,\"b\"", "\u{e9}\n"]});
        let (status, _, answer) = outcome(score(&replica, body.to_string()).send().await.unwrap()).await;
        assert_eq!((status, answer), (200, json!({"double": [2 * number, 2 * number + 2]})));
    }
    for collection in ["model_inputs", "model_outputs"] {
        let counted = until_settled(&replica, collection, 10.0).await;
        assert_eq!(counted.persisted, 10.0);
    }
    let mut inputs = events(&replica, "model_inputs");
    inputs.sort_by_key(|event| event["data"][0]["number"].as_u64());
    for (number, event) in inputs.iter().enumerate() {
        let text = json!([{"number": number, "text": "a,\"b\""}, {"number": number + 1, "text": "\u{e9}\n"}]);
        assert_eq!(event["data"], text);
        assert_eq!(event["correlationid"], format!("id-{number}"));
        assert_eq!(event["type"], "azureml.inference.model_inputs");
        // What pandas calls it differs from one version to the next.
        assert!(event["collectdatatype"].as_str().unwrap().starts_with("pandas."), "{event}");
        assert_eq!(event["agent"], "azureml-ai-monitoring/1.0.0");
        assert_eq!(event["modelversion"], "default");
    }
    let outputs = events(&replica, "model_outputs");
    assert!(
        outputs
            .iter()
            .all(|output| inputs.iter().any(|input| input["correlationid"] == output["correlationid"]))
    );
}

#[tokio::test]
async fn a_collection_that_is_not_there_is_told_to_the_script() {
    let script = "from azureml.ai.monitoring import Collector\nsaid = []\n\
                  def init():\n    for name in ('known', 'unknown'):\n        Collector(name=name, on_error=lambda e: said.append(str(e)))\n\
                  def run(data):\n    return said\n";
    let replica = on_azuremls_python(collecting("known")).script(script).start();
    let (status, _, said) = outcome(score(&replica, "1").send().await.unwrap()).await;
    assert_eq!(status, 200);
    let said: Vec<Value> = said.as_array().unwrap().clone();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].as_str().unwrap().contains("unknown"), "{said:?}");
}

/// As AzureML's documentation has it for v1.
const V1: &str = r#"
import json
import numpy as np
import pandas as pd
from azureml.monitoring import ModelDataCollector

def init():
    global inputs, predictions
    inputs = ModelDataCollector("best_model", designation="inputs", feature_names=["age", "name"])
    predictions = ModelDataCollector("best_model", designation="predictions", feature_names=["p1", "p2"])

def run(data):
    rows = pd.DataFrame(json.loads(data))
    correlations = inputs.collect(rows)
    answer = np.array([[row["age"] / 2, row["age"] * 2] for _, row in rows.iterrows()])
    predictions.collect(predictions.add_correlations(answer, correlations))
    return answer.tolist()
"#;

/// Posts to the listener what somebody else might.
const POSTS: &str = r#"
import http.client, json, os
def init():
    pass
def run(data):
    answers = []
    for path, headers in json.loads(data):
        connection = http.client.HTTPConnection(os.environ["AZUREML_MDC_HOST"], int(os.environ["AZUREML_MDC_PORT"]))
        connection.request("POST", path, "{}", headers)
        answers.append(connection.getresponse().status)
        connection.close()
    return answers
"#;

#[tokio::test]
async fn web_pages_hand_nothing_over() {
    let replica = collecting("mine, modeldata").script(POSTS).start();
    let events = |more: Value| {
        let mut headers = json!({"ce-type": "azureml.inference.mine", "content-type": "application/json"});
        headers.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!(["/modeldata/log", headers])
    };
    let posts = json!([
        events(json!({})),
        events(json!({"content-type": "text/plain"})),
        events(json!({"origin": "http://127.0.0.1:50011"})),
        ["/modeldata/csv", {"content-type": "text/plain"}],
        ["/modeldata/csv", {"content-type": "application/json", "origin": "null"}],
    ]);
    let (status, _, answers) = outcome(score(&replica, posts.to_string()).send().await.unwrap()).await;
    assert_eq!((status, answers), (200, json!([200, 200, 403, 415, 403])), "{}", replica.log_text());
    until_settled(&replica, "mine", 2.0).await;
}

/// Reads all files of each designation as one frame, and joins them.
const JOIN: &str = r#"
import glob, json, sys
import pandas as pd
def frame(designation):
    files = sorted(glob.glob(f"{sys.argv[1]}/**/{designation}/**/*.csv", recursive=True))
    assert files, designation
    return pd.concat([pd.read_csv(file, dtype={"name": str}, keep_default_na=False) for file in files])
inputs, predictions = frame("inputs"), frame("predictions")
assert list(inputs)[:2] == ["age", "name"], list(inputs)
columns = [name for name in inputs if name.startswith("$aml_")]
assert len(columns) == 8 and columns == [name for name in predictions if name.startswith("$aml_")], columns
by = ["$aml_dc_correlation_id", "$aml_request_id"]
inputs["row"] = inputs.groupby(by).cumcount()
predictions["row"] = predictions.groupby(by).cumcount()
joined = inputs.merge(predictions, on=[*by, "row"], validate="one_to_one")
assert len(joined) == len(inputs) == len(predictions)
print(json.dumps(joined[["age", "name", "p1", "p2", "$aml_request_id"]].values.tolist()))
"#;

#[tokio::test]
async fn rows_of_v1_reach_azures_storage_and_join() {
    let Some(azurite) = Azurite::found() else { return };
    azurite.create_container("modeldata");
    let environment: Vec<(&'static str, String)> = azurite.environment().into_iter().collect();
    let launch = environment.iter().fold(collecting(""), |launch, (name, value)| launch.env(name, value));
    // As a deployment of AzureML's says it.
    let launch = launch
        .env_remove("OUTRIGGER_COLLECT_COLLECTIONS")
        .env("OUTRIGGER_COLLECT_TO", "az://modeldata")
        .env("AML_MODEL_DC_STORAGE_ENABLED", "true")
        .env("SERVICE_NAME", "svc");
    let replica = on_azuremls_python(launch).script(V1).start();
    let mut wanted = Vec::new();
    for number in 0..10 {
        let names = [format!("n, \"{number}\""), "\u{e9}\r\nx".to_owned()];
        let body = json!({"age": [number, number + 1], "name": names});
        let answer = score(&replica, body.to_string()).send().await.unwrap();
        let id = header(&answer, "x-request-id");
        assert_eq!(answer.status(), 200, "{}", replica.log_text());
        for (row, name) in names.iter().enumerate() {
            let age = number + row;
            wanted.push(json!([age, name, age as f64 / 2.0, age as f64 * 2.0, id]));
        }
    }
    let counted = until_settled(&replica, "modeldata", 20.0).await;
    assert_eq!(counted.persisted, 20.0);
    let folder = tempfile::tempdir().unwrap();
    download("az://modeldata", environment.into_iter(), folder.path()).await;
    let output = Command::new(python()).args(["-c", JOIN]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut joined: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    joined.sort_by_key(|row| row.to_string());
    wanted.sort_by_key(|row| row.to_string());
    assert_eq!(joined.len(), wanted.len());
    for (row, wanted) in joined.iter().zip(&wanted) {
        let numbers = |row: &Value| (row[0].as_f64(), row[2].as_f64(), row[3].as_f64());
        assert_eq!((numbers(row), &row[1], &row[4]), (numbers(wanted), &wanted[1], &wanted[4]));
    }
}

/// Everything that is at a location, into a folder.
pub(super) async fn download(
    at: &str,
    environment: impl Iterator<Item = (&'static str, String)>,
    folder: &Path,
) {
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).collect();
    let location = Location::open(at, folder, &environment).unwrap();
    let store = location.store();
    let found: Vec<_> = store.list(Some(location.at())).try_collect().await.unwrap();
    for object in found {
        let bytes = object_store::ObjectStoreExt::get(&**store, &object.location)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        let path = folder.join(object.location.as_ref());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
