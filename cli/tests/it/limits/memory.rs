//! Regions of shared memory: how many there may be, and how long their names are.

use outrigger_testkit::ReplicaProcess;
use serde_json::json;

use super::requests::{models, models_still_serve, post};

/// A file of shared memory that is gone when it is dropped.
struct Shared(std::path::PathBuf);

impl Shared {
    fn new(test: &str) -> Self {
        let path = format!("/dev/shm/outrigger-limits-{test}-{}", std::process::id()).into();
        std::fs::write(&path, [0; 64]).unwrap();
        Self(path)
    }

    fn key(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).unwrap()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn register(replica: &ReplicaProcess, name: &str, file: &Shared) -> (u16, String) {
    let body = json!({"key": file.key(), "offset": 0, "byte_size": 64}).to_string();
    post(replica, &format!("/v2/systemsharedmemory/region/{name}/register"), body).await
}

pub(super) async fn regions() {
    let file = Shared::new("regions");
    let launch = models().args(["--score-shared-memory", "/dev/shm", "--score-shared-memory-regions", "2"]);
    let replica = launch.start();
    for (name, expected) in [("a", (200, "")), ("b", (200, "")), ("c", (503, "overloaded"))] {
        let (status, code) = register(&replica, name, &file).await;
        assert_eq!((status, code.as_str()), expected, "{name}");
    }
    // One that is forgotten makes room.
    assert_eq!(post(&replica, "/v2/systemsharedmemory/region/a/unregister", "").await.0, 200);
    assert_eq!(register(&replica, "c", &file).await.0, 200);
    models_still_serve(&replica).await;
}

pub(super) async fn region_names() {
    let file = Shared::new("names");
    let replica = models().args(["--score-shared-memory", "/dev/shm"]).start();
    for (length, expected) in [(255, (200, "")), (256, (400, "bad_request"))] {
        let (status, code) = register(&replica, &"r".repeat(length), &file).await;
        assert_eq!((status, code.as_str()), expected, "{length}");
    }
    models_still_serve(&replica).await;
}

pub(super) async fn slices() {
    let file = Shared::new("slices");
    let replica = models().args(["--score-shared-memory", "/dev/shm"]).start();
    assert_eq!(register(&replica, "r", &file).await.0, 200);
    for (offset, expected) in [(56, (200, "")), (57, (400, "bad_request")), (u64::MAX, (400, "bad_request"))]
    {
        let parameters = json!({"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": offset});
        let x = json!({"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": parameters});
        let (status, code) = post(&replica, "/v2/models/f/infer", json!({"inputs": [x]}).to_string()).await;
        assert_eq!((status, code.as_str()), expected, "{offset}");
    }
    models_still_serve(&replica).await;
}
