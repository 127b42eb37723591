//! Answers to who asks how the server and its models are.

use bytes::Bytes;
use serde_json::json;

/// The body of `GET /v2/health/live`.
pub fn server_live(live: bool) -> Bytes {
    Bytes::from_static(if live { br#"{"live":true}"# } else { br#"{"live":false}"# })
}

/// The body of `GET /v2/health/ready`.
pub fn server_ready(ready: bool) -> Bytes {
    Bytes::from_static(if ready { br#"{"ready":true}"# } else { br#"{"ready":false}"# })
}

/// The body of `GET /v2/models/{name}/ready`.
pub fn model_ready(name: &str, ready: bool) -> Bytes {
    Bytes::from(json!({ "name": name, "ready": ready }).to_string())
}
