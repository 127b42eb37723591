//! Headers of answers: what operations call them, what they are called on the wire, and what each means.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What a header can say.
#[derive(Clone, Copy)]
enum Says {
    Text,
    Number,
    OneOf(&'static [&'static str]),
}

use Says::{Number, OneOf, Text};

impl Says {
    fn schema(self) -> Value {
        match self {
            Text => json!({ "type": "string" }),
            Number => json!({ "type": "integer", "minimum": 0 }),
            OneOf(values) => json!({ "enum": values }),
        }
    }
}

/// Its name among the components, on the wire, what it can say, and what that means.
type Header = (&'static str, &'static str, Says, &'static str);

const HEADERS: &[Header] = &[
    ("RequestId", "X-Request-Id", Text, "That of the request, or one that was made for it."),
    (
        "Device",
        "Outrigger-Device",
        Text,
        "Where the model ran; `; fallback-from=` names where it was to go first, if that is elsewhere.",
    ),
    (
        "Cache",
        "Outrigger-Cache",
        OneOf(&["hit", "joined", "miss"]),
        "How the answer of a model was come by whose answers are kept: it was there, another call was at it, or it was run.",
    ),
    ("RetryAfter", "Retry-After", Number, "Seconds after which a retry makes sense, if that is known."),
    ("Authenticate", "WWW-Authenticate", Text, "`Bearer`"),
    (
        "RunFailed",
        "x-ms-run-function-failed",
        OneOf(&["True", "False"]),
        "Whether it was `run()` that failed.",
    ),
    ("RunTime", "x-ms-run-fn-exec-ms", Text, "Milliseconds that `run()` took, with three decimals."),
    (
        "JsonLength",
        "Inference-Header-Content-Length",
        Number,
        "How many bytes of the body are JSON, where others follow.",
    ),
    (
        "LoadReport",
        "endpoint-load-metrics",
        Text,
        "The replica's load (ORCA) as text or JSON, where that is asked for or configured.",
    ),
    ("LoadReportBin", "endpoint-load-metrics-bin", Text, "The same as a message in Base64."),
    (
        "ServerTiming",
        "Server-Timing",
        Text,
        "How the time of the request was spent, in milliseconds, where that is asked for by the header `outrigger-timing` or configured.",
    ),
    ("MsRequestId", "x-ms-request-id", Text, "That of the request, or what else identifies it."),
    ("MsClientRequestId", "x-ms-client-request-id", Text, "That of the request, or its `x-ms-request-id`."),
    ("TraceId", "TraceId", Text, "That of the request."),
    ("ServerVersion", "x-ms-server-version", Text, "Name and version of the server."),
    ("AllowOrigin", "Access-Control-Allow-Origin", Text, "The origin whose pages may read the answer."),
    ("Vary", "Vary", Text, "What in a request the answer depends on."),
    ("CacheControl", "Cache-Control", Text, "Whether the answer may be kept."),
    ("ContentEncoding", "Content-Encoding", Text, "`gzip`, where the request takes that."),
    (
        "ContentPolicy",
        "Content-Security-Policy",
        Text,
        "What the page may load: itself and what lies beside it.",
    ),
    ("ContentTypeOptions", "X-Content-Type-Options", Text, "`nosniff`"),
    ("FrameOptions", "X-Frame-Options", Text, "`DENY`"),
    ("OpenerPolicy", "Cross-Origin-Opener-Policy", Text, "`same-origin`"),
    ("ReferrerPolicy", "Referrer-Policy", Text, "`no-referrer`"),
    ("Code", "Outrigger-Code", Text, "What is wrong; stable, to match on."),
    (
        "Retryable",
        "Outrigger-Retryable",
        OneOf(&["true", "false"]),
        "Whether the same request may succeed later, or elsewhere.",
    ),
];

/// What all of them mean, by name.
pub(super) fn all() -> BTreeMap<&'static str, Value> {
    let one =
        |(name, _, says, text): &Header| (*name, json!({ "description": text, "schema": says.schema() }));
    HEADERS.iter().map(one).collect()
}

/// References to these, by what they are called on the wire.
pub(super) fn headers(names: &[&str]) -> Value {
    let used = HEADERS.iter().filter(|(name, ..)| names.contains(name));
    let one = |(name, wire, ..): &Header| {
        ((*wire).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }))
    };
    Value::Object(used.map(one).collect())
}
