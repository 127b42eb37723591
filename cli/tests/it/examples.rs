//! The examples in the form of AzureML's scripts, confined, with and without `compat`.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_testkit::replica::KEY;
use outrigger_testkit::{ReplicaProcess, repository};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{client, header, outcome, outrigger, score};

/// Both ways to serve.
const MODES: [&[&str]; 2] = [&[], &["--compat"]];

/// Models, bodies, and the answers that the models themselves give.
struct Models {
    folder: TempDir,
    asked: Value,
}

impl Models {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(outrigger_testkit::python());
        command.arg(repository().join("entry-scripts/tests/example_models.py")).arg(folder.path());
        assert!(command.status().unwrap().success());
        let asked =
            serde_json::from_slice(&std::fs::read(folder.path().join("asked.json")).unwrap()).unwrap();
        Self { folder, asked }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn serve(script: &str, models: &Path, mode: &[&str]) -> ReplicaProcess {
    let entry = repository().join("entry-scripts/examples").join(script);
    let launch = outrigger().args(["--script-entry", entry.to_str().unwrap()]);
    let replica = launch.args(["--model-dir", models.to_str().unwrap()]).args(mode.iter().copied()).start();
    assert!(replica.log_text().contains("workers are confined"), "{}", replica.log_text());
    replica
}

async fn answer(replica: &ReplicaProcess, body: &Value) -> (u16, Value) {
    let request = score(replica, body.to_string()).header(CONTENT_TYPE, "application/json");
    let (status, _, body) = outcome(request.send().await.unwrap()).await;
    (status, body)
}

#[tokio::test]
async fn scripts_that_load_their_model_answer_as_the_model_does() {
    let models = Models::make();
    for (script, directory, asked, expected) in [
        ("numpy_schema/score.py", "iris", "numpy", models.asked["numpy"]["classes"].clone()),
        (
            "numpy_schema/score_frame.py",
            "iris",
            "frame",
            json!({"Results": models.asked["frame"]["classes"]}),
        ),
        ("onnx/score.py", "linear", "onnx", json!({"result": models.asked["onnx"]["result"]})),
    ] {
        for mode in MODES {
            let replica = serve(script, &models.path(directory), mode);
            let answer = answer(&replica, &models.asked[asked]["body"]).await;
            assert_eq!(answer, (200, expected.clone()), "{script} {mode:?}\n{}", replica.log_text());
            assert_eq!(replica.stop().status.code(), Some(0));
        }
    }
}

#[tokio::test]
async fn digits_are_recognised_in_both_modes() {
    let models = Models::make();
    for mode in MODES {
        let replica = serve("digits/score.py", &models.path("digits"), mode);
        let (status, body) = answer(&replica, &models.asked["digits"]["body"]).await;
        assert_eq!((status, &body["labels"]), (200, &models.asked["digits"]["labels"]), "{mode:?}: {body}");
        assert_eq!(body["probabilities"].as_array().map(Vec::len), Some(20), "{mode:?}: {body}");
    }
}

#[tokio::test]
async fn a_schema_refuses_what_does_not_fit_it_and_is_told() {
    let models = Models::make();
    // AzureML's server takes what does not fit for a failure of the script.
    for (mode, refused) in MODES.into_iter().zip([400, 500]) {
        let replica = serve("numpy_schema/score.py", &models.path("iris"), mode);
        let (status, body) = answer(&replica, &json!({"data": [[1, 2, 3]]})).await;
        assert_eq!(status, refused, "{mode:?}: {body}");
        let request = client().get(format!("{}/swagger.json", replica.score)).bearer_auth(KEY);
        let (status, _, swagger) = outcome(request.send().await.unwrap()).await;
        assert_eq!(status, 200, "{mode:?}: {swagger}");
        let example = &swagger["definitions"]["ServiceInput"]["example"];
        assert_eq!(example, &json!({"data": [[5.1, 3.5, 1.4, 0.2]]}), "{mode:?}: {swagger}");
    }
}

#[tokio::test]
async fn pictures_go_in_and_come_out() {
    let models = Models::make();
    let picture = std::fs::read(models.path("picture.png")).unwrap();
    for mode in MODES {
        let replica = serve("images/score.py", models.folder.path(), mode);
        let url = format!("{}/score", replica.score);
        let post = |url: &str, body: Vec<u8>| {
            client().post(url).bearer_auth(KEY).header(CONTENT_TYPE, "image/png").body(body).send()
        };
        let (status, _, body) = outcome(post(&url, picture.clone()).await.unwrap()).await;
        let described = json!({"width": 40, "height": 20, "mean": [10.0, 20.0, 30.0]});
        assert_eq!((status, body), (200, described), "{mode:?}");
        let small = post(&format!("{url}?thumbnail=10"), picture.clone()).await.unwrap();
        assert_eq!((small.status().as_u16(), header(&small, "content-type").as_str()), (200, "image/png"));
        // The signature, the length and name of the first part, then width and height.
        let small = small.bytes().await.unwrap();
        assert_eq!((&small[1..4], &small[16..24]), (&b"PNG"[..], &[0, 0, 0, 10, 0, 0, 0, 5][..]), "{mode:?}");
        let (status, _, body) = outcome(post(&url, b"no picture".to_vec()).await.unwrap()).await;
        assert_eq!(status, 400, "{mode:?}: {body}");
        let greeting = client().get(&url).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(
            (greeting.status().as_u16(), greeting.text().await.unwrap().as_str()),
            (200, "send a picture")
        );
    }
}
