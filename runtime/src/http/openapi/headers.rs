//! Headers of answers: what each means, and what it is called on the wire.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What all of them mean, by name.
pub(super) fn all() -> BTreeMap<&'static str, Value> {
    let text = |text: &str| json!({ "description": text, "schema": { "type": "string" } });
    let number = |text: &str| json!({ "description": text, "schema": { "type": "integer", "minimum": 0 } });
    BTreeMap::from([
        ("RequestId", text("That of the request, or one that was made for it.")),
        (
            "Device",
            text(
                "Where the model ran; `; fallback-from=` names where it was to go first, if that is elsewhere.",
            ),
        ),
        (
            "Cache",
            json!({ "description": "How the answer of a model was come by whose answers are kept: it was there, another call was at it, or it was run.", "schema": { "enum": ["hit", "joined", "miss"] } }),
        ),
        ("RetryAfter", number("Seconds after which a retry makes sense, if that is known.")),
        ("Authenticate", text("`Bearer`")),
        (
            "RunFailed",
            json!({ "description": "Whether it was `run()` that failed.", "schema": { "enum": ["True", "False"] } }),
        ),
        ("RunTime", text("Milliseconds that `run()` took, with three decimals.")),
        ("JsonLength", number("How many bytes of the body are JSON, where others follow.")),
        (
            "LoadReport",
            text("The replica's load (ORCA) as text or JSON, where that is asked for or configured."),
        ),
        ("LoadReportBin", text("The same as a message in Base64.")),
        ("MsRequestId", text("That of the request, or what else identifies it.")),
        ("MsClientRequestId", text("That of the request, or its `x-ms-request-id`.")),
        ("TraceId", text("That of the request.")),
        ("ServerVersion", text("Name and version of the server.")),
        ("AllowOrigin", text("The origin whose pages may read the answer.")),
        ("Vary", text("What in a request the answer depends on.")),
        ("CacheControl", text("Whether the answer may be kept.")),
        ("ContentEncoding", text("`gzip`, where the request takes that.")),
        ("ContentPolicy", text("What the page may load: itself and what lies beside it.")),
        ("ContentTypeOptions", text("`nosniff`")),
        ("FrameOptions", text("`DENY`")),
        ("OpenerPolicy", text("`same-origin`")),
        ("ReferrerPolicy", text("`no-referrer`")),
        ("Code", text("What is wrong; stable, to match on.")),
        (
            "Retryable",
            json!({ "description": "Whether the same request may succeed later, or elsewhere.", "schema": { "enum": ["true", "false"] } }),
        ),
    ])
}

/// Headers of the components, by the names that they have on the wire.
pub(super) fn headers(names: &[&str]) -> Value {
    let wire = |name: &str| match name {
        "RequestId" => "X-Request-Id",
        "Cache" => "Outrigger-Cache",
        "Device" => "Outrigger-Device",
        "RetryAfter" => "Retry-After",
        "Authenticate" => "WWW-Authenticate",
        "RunFailed" => "x-ms-run-function-failed",
        "RunTime" => "x-ms-run-fn-exec-ms",
        "JsonLength" => "Inference-Header-Content-Length",
        "LoadReport" => "endpoint-load-metrics",
        "LoadReportBin" => "endpoint-load-metrics-bin",
        "MsRequestId" => "x-ms-request-id",
        "MsClientRequestId" => "x-ms-client-request-id",
        "TraceId" => "TraceId",
        "ServerVersion" => "x-ms-server-version",
        "AllowOrigin" => "Access-Control-Allow-Origin",
        "Vary" => "Vary",
        "CacheControl" => "Cache-Control",
        "ContentEncoding" => "Content-Encoding",
        "ContentPolicy" => "Content-Security-Policy",
        "ContentTypeOptions" => "X-Content-Type-Options",
        "FrameOptions" => "X-Frame-Options",
        "OpenerPolicy" => "Cross-Origin-Opener-Policy",
        "ReferrerPolicy" => "Referrer-Policy",
        "Code" => "Outrigger-Code",
        "Retryable" => "Outrigger-Retryable",
        _ => "",
    };
    let one =
        |name: &&str| (wire(name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }));
    Value::Object(names.iter().map(one).collect())
}
