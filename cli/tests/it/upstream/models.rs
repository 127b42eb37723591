//! Models that are fetched for an upstream, which finds them where they are laid out.

use outrigger_testkit::faults::{Fault, On};
use outrigger_testkit::replica::KEY;
use outrigger_testkit::upstream::App;
use reqwest::Method;
use serde_json::{Value, json};

use super::{in_front_of, seen};
use crate::models::Stored;
use crate::support::{client, outcome};

async fn files(app: &App, root: &str) -> Value {
    let url = format!("{}/app/files?root={root}", app.url());
    outcome(client().get(url).send().await.unwrap()).await.2["files"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_there_before_it_is_asked_anything() {
    let Some(stored) = Stored::azure() else { return };
    stored.write("weights/model.bin", "w".repeat(100_000));
    stored.write("weights/config.json", "{}");
    stored.done(&["push", "weights", "--name", "llm"]);
    stored.done(&["push", "weights/config.json", "--name", "small"]);
    let shared = stored.path("shared");
    let shared = shared.to_str().unwrap();
    let app = App::start();
    stored.proxy().forget();
    stored.proxy().inject(On::get().path("model.bin"), Fault::Stall { after: 1000 });
    let launch = in_front_of(&app).args(["--store-models", "*", "--store-root", shared]);
    let launch = launch.args(["--upstream-ready-path", "/ready", "--residency-load", "use"]);
    // Nobody has asked it whether it is ready while a file is still to come.
    let mut replica = stored.for_replica(launch).args(["--store-stall-timeout", "1s"]).spawn();
    crate::devices::until("the fetch", async || {
        let asked = seen(&app).await["probes"].clone();
        let tries = stored.proxy().counts(&On::get().path("model.bin")).requests;
        assert!(tries > 1 || asked == 0, "{asked}");
        tries > 1
    })
    .await;
    replica.wait_for(|line| line["fields"]["message"] == "ready");
    assert!(seen(&app).await["probes"].as_u64().unwrap() > 0);
    let there = files(&app, shared).await;
    for file in ["llm/1/weights/config.json", "llm/1/weights/model.bin", "small/1/config.json"] {
        let file = json!(format!("azureml-models/{file}"));
        assert!(there.as_array().unwrap().contains(&file), "{file}: {there}");
    }
    // They are the upstream's, and not served.
    let url = format!("{}/v2/models/llm", replica.score);
    let asked = client().request(Method::GET, url).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(outcome(asked).await.1, "model_not_found");
}
