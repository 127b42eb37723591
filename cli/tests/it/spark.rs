//! `SparkParameterType` of the real `inference-schema`, with a real Java machine beside the worker, confined. It needs some 700 MB
//! of packages and a Java machine: `cargo xtask prove spark` installs the former and runs this.

use outrigger_testkit::replica::KEY;
use serde_json::{Value, json};

use crate::support::{client, outcome, outrigger, score};

const SCRIPT: &str = r#"
from inference_schema.parameter_types.spark_parameter_type import SparkParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
sample = spark.createDataFrame([("a", 1, 1.5), ("b", 2, 2.5)], ["name", "count", "value"])

def init():
    pass

@input_schema("data", SparkParameterType(sample))
@output_schema(StandardPythonParameterType(4.0))
def run(data):
    return data.groupBy().sum("value").collect()[0][0]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_spark_frame_goes_in() {
    let Some(python) = std::env::var_os("OUTRIGGER_SPARK_PYTHON") else {
        println!("skipped: no environment with Spark");
        return;
    };
    // `compat` has the network that Spark needs to talk to its Java machine.
    for args in [["--compat"], ["--script-network=on"]] {
        let replica = outrigger().script(SCRIPT).env("OUTRIGGER_SCRIPT_PYTHON", &python).args(args).start();
        assert!(replica.log_text().contains("workers are confined"), "{}", replica.log_text());
        let ask = async |rows: Value| {
            let request = score(&replica, json!({"data": rows}).to_string());
            outcome(request.header("content-type", "application/json").send().await.unwrap()).await
        };
        let rows = json!([{"name": "x", "count": 1, "value": 2.25}, {"name": "y", "count": 2, "value": 3.0}]);
        let (status, _, sum) = ask(rows).await;
        assert_eq!((status, sum), (200, json!(5.25)), "{args:?}: {}", replica.log_text());
        let (status, _, _) = ask(json!([{"name": "x", "count": "one", "value": 2.25}])).await;
        assert_ne!(status, 200, "{args:?}");
        let request = client().get(format!("{}/swagger.json", replica.score)).bearer_auth(KEY);
        let (_, _, swagger) = outcome(request.send().await.unwrap()).await;
        let input = &swagger["definitions"]["ServiceInput"];
        let row = &input["properties"]["data"]["items"]["properties"];
        assert_eq!((&row["count"]["format"], &row["value"]["format"]), (&json!("int64"), &json!("double")));
        assert_eq!(input["example"]["data"][1], json!({"name": "b", "count": 2, "value": 2.5}), "{args:?}");
    }
    let ended = outrigger().script(SCRIPT).env("OUTRIGGER_SCRIPT_PYTHON", &python).run();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.text().contains("script.network"), "the setting is named: {}", ended.text());
}
