//! The keys of tables of which there may be many: of each model, backend, caller, collection and issuer.

use super::Key;
use crate::config::value::Kind;

/// The most copies of one model.
pub const MAX_INSTANCES: usize = 64;

macro_rules! table_keys {
    ($table:literal, $all:ident, $($id:ident = $name:literal, $kind:expr, $default:literal, $doc:literal;)*) => {
        $(#[doc = concat!("Key of each `[", $table, ".NAME]` table.")] pub const $id: &Key =
            &Key { name: $name, kind: $kind, default: $default, aliases: &[], doc: $doc };)*

        #[doc = concat!("All keys of a `[", $table, ".NAME]` table.")]
        pub const $all: &[&Key] = &[$($id),*];
    };
}

table_keys! { "models", MODEL_KEYS,
    MODEL_PATH = "path", Kind::Path, "",
        "the model file, or a directory that holds one, with its model.toml if it has one";
    MODEL_SOURCE = "source", Kind::Text, "",
        "in place of path: the registered model that it is, as NAME:VERSION, NAME@LABEL, or NAME for the latest version; it is fetched from store.registry";
    MODEL_INTRA_THREADS = "intra_threads", Kind::Count { min: 1, max: 1024 }, "",
        "threads inside one run [default: backends.intra_threads]";
    MODEL_MAX_BATCH = "max_batch", Kind::Count { min: 1, max: 1024 }, "1",
        "most rows of calls that are run together; 1: each call by itself";
    MODEL_MAX_DELAY = "max_delay", Kind::Delay, "0s",
        "longest time that calls wait for others although a thread is free; auto: as long as joining saves, where others are likely";
    MODEL_DEVICES = "devices", Kind::List, "",
        "where it goes, best first: cuda, or cuda:1 [default: placement.devices]";
    MODEL_FALLBACK = "fallback", Kind::Flag, "",
        "whether it may go elsewhere than where its list begins [default: placement.fallback]";
    MODEL_INSTANCES = "instances", Kind::Count { min: 1, max: MAX_INSTANCES as u64 }, "1",
        "loaded copies, spread over the devices that match";
    MODEL_LOAD = "load", Kind::OneOf(crate::config::LoadTime::WORDS), "",
        "when it is loaded: start, use or pinned [default: residency.load]";
    MODEL_STEPS = "steps", Kind::OneOf(crate::config::StepsWish::WORDS), "auto",
        "where the steps of its model.toml run: host, on the CPU; device, in the model's graph; auto, in it where the device (not yet cuda) has memory of its own and the operators";
    MODEL_CACHE = "cache", Kind::Flag, "",
        "whether its answers are kept for who asks the same again: only for models that always answer the same alike [default: cache.models]";
    MODEL_SETTINGS = "settings", Kind::List, "",
        "settings of the backend for this model, as KEY=VALUE, over those of its model.toml; which there are, the backend says";
}

table_keys! { "backends", BACKEND_KEYS,
    BACKEND_LIBRARY = "library", Kind::Path, "",
        "its library [default: liboutrigger_NAME.so where backends.path says]";
    BACKEND_PROCESS = "process", Kind::OneOf(&["in", "out"]), "",
        "whether it runs in the replica's process or in one of its own [default: cpu in, all others out]";
    BACKEND_THREADS = "threads", Kind::Count { min: 1, max: 1024 }, "",
        "threads that run models on each of its devices [default: for cpu backends.cpu_threads, else what the backend says]";
    BACKEND_MEMORY = "memory", Kind::Size { min: 1, max: 1 << 50 }, "",
        "memory of each of its devices that models may hold [default: what the device has free]";
    BACKEND_SETTINGS = "settings", Kind::List, "",
        "settings of the backend itself, as KEY=VALUE; which there are, it says";
    BACKEND_MAX_CALLS = "max_calls", Kind::Count { min: 1, max: 4096 }, "",
        "calls at once to the process of a device, at least as many as its threads [default: 64, or as many as threads]";
    BACKEND_CALL_WAIT = "call_wait", Kind::Duration, "30s",
        "longest time that a call waits for one of them to end";
    BACKEND_MAX_CALL_BYTES = "max_call_bytes", Kind::Size { min: 1, max: 1 << 40 }, "2GiB",
        "largest inputs, and largest results, of one call";
    BACKEND_INLINE_BYTES = "inline_bytes", Kind::Size { min: 0, max: outrigger_device_host::Limits::MOST_INLINE as u64 }, "4KiB",
        "inputs, and results, of a call up to this size go through a socket, larger ones through shared memory";
    BACKEND_KEPT_BYTES = "kept_bytes", Kind::Size { min: 0, max: 1 << 40 }, "64MiB",
        "shared memory for inputs, and for results, that is kept for each of max_calls; what is larger is made for one call";
    BACKEND_KEPT_REGIONS = "kept_regions", Kind::Count { min: 1, max: 1024 }, "16",
        "pieces of that for results; what callers hold beyond is made for one call each";
    BACKEND_MAX_MODELS = "max_models", Kind::Count { min: 1, max: 1 << 20 }, "4096",
        "models that the process of a device has loaded";
    BACKEND_MAX_INSTANCES = "max_instances",
        Kind::Count { min: 1, max: outrigger_device_host::Limits::MOST_INSTANCES as u64 }, "16384",
        "loaded copies of these";
    BACKEND_SPIN = "spin", Kind::Duration, "50us",
        "longest time that replica and process look for what comes next before they sleep, where it comes that fast; 0s: none, at most 10ms";
    BACKEND_START_TIMEOUT = "start_timeout", Kind::Timeout, "1m",
        "time limit of starting the process, until it has opened the backend's library";
    BACKEND_STATUS_TIMEOUT = "status_timeout", Kind::Timeout, "5s",
        "time limit of telling the device's status; a process that does not is ended, and the next one started";
    BACKEND_REQUEST_TIMEOUT = "request_timeout", Kind::Timeout, "1m",
        "the same for opening the device, for estimates, and for memory of its own";
    BACKEND_LOAD_TIMEOUT = "load_timeout", Kind::Timeout, "10m",
        "the same for loading a model, also again in the next process, and for making a copy of it";
    BACKEND_CANCEL_GRACE = "cancel_grace", Kind::Timeout, "30s",
        "time that a run which was cancelled has to end before its process is, where the backend can end runs early";
    BACKEND_IDLE_TIMEOUT = "idle_timeout", Kind::Timeout, "1m",
        "time after which a connection to the process that nobody uses is closed, but for one";
    BACKEND_END_GRACE = "end_grace", Kind::Timeout, "10s",
        "time that the process has to unload something, and to end by itself";
    BACKEND_RESTART_BACKOFF = "restart_backoff", Kind::Timeout, "100ms",
        "pause before a process that died is started a second time, the first being at once; it doubles with each";
    BACKEND_RESTART_BACKOFF_MAX = "restart_backoff_max", Kind::Timeout, "30s",
        "longest such pause; as often is tried what did not load in the next process";
    BACKEND_RESTART_BACKOFF_RESET = "restart_backoff_reset", Kind::Duration, "30s",
        "a process that served so long, with a good call, is started again at once";
    BACKEND_QUARANTINE_DEATHS = "quarantine_deaths", Kind::Count { min: 1, max: 1000 }, "5",
        "processes of a device that die without a good call in between before it is quarantined ...";
    BACKEND_QUARANTINE_WINDOW = "quarantine_window", Kind::Timeout, "1m",
        "... if all of that is within this time";
    BACKEND_QUARANTINE = "quarantine", Kind::Timeout, "1m",
        "time between two tries to start a process for a device that is quarantined";
}

table_keys! { "callers", CALLER_KEYS,
    CALLER_KEY = "key", Kind::Secret, "",
        "the caller's key, at least 22 characters; primary and secondary have theirs in [auth] [default: those that `outrigger keys add` has made for it]";
    CALLER_CERTIFICATE = "certificate", Kind::Text, "",
        "who it is by a certificate, where it sends no key: spiffe://..., dns:NAME or cn:NAME, which the certificate has to have (tls.client_certificates)";
    CALLER_OPERATIONS = "operations", Kind::List, "",
        "what it may do: score, swagger, infer, shared_memory, model_metadata, server_metadata, token, status, model_control, collect_control [default: all but status, model_control \
         and collect_control; for primary and secondary: all]";
    CALLER_MODELS = "models", Kind::List, "",
        "models that it may infer with and ask about, by name; a `*` at the end stands for any rest [default: all]";
    CALLER_RATE = "rate", Kind::Number { min: outrigger_auth::MIN_RATE, max: outrigger_auth::MAX_RATE }, "",
        "calls of score and infer per second [default: no limit]";
    CALLER_BURST = "burst", Kind::Count { min: 1, max: outrigger_auth::MAX_BURST as u64 }, "",
        "such calls at once after a pause [default: what `rate` allows in a second, at least 1]";
    CALLER_CONCURRENCY = "concurrency", Kind::Count { min: 1, max: 60_000 }, "",
        "such calls in the house at once, waiting ones among them [default: no limit]";
    CALLER_PRIORITY = "priority", Kind::OneOf(&["high", "normal", "low"]), "",
        "priority of its calls, and the most urgent that it may ask for [default: normal]";
}

table_keys! { "collections", COLLECTION_KEYS,
    COLLECTION_FORMAT = "format", Kind::OneOf(&["events", "csv", "parquet"]), "",
        "form of its objects: events, CloudEvents as JSON lines; csv, rows as ModelDataCollector has them; parquet [default: events; for modeldata, which is that of ModelDataCollector, csv]";
    COLLECTION_ROLLING = "rolling", Kind::OneOf(&["minute", "hour", "day", "month", "year"]), "",
        "how often another folder begins [default: hour; of csv day, or hour where AML_MODEL_DC_BOUNDARY is hour]";
    COLLECTION_SAMPLING = "sampling", Kind::Number { min: 0.0, max: 1.0 }, "1",
        "share of requests that are kept, decided by their ids: of one request all collections with the same share keep theirs or none";
    COLLECTION_KEEP_ERRORS = "keep_errors", Kind::Flag, "false",
        "whether what belongs to calls that failed is kept whatever the share";
    COLLECTION_KEEP_SLOWER = "keep_slower", Kind::Timeout, "",
        "the same of calls that took longer than this [default: none]";
    COLLECTION_FULL = "full", Kind::OneOf(&["drop_newest", "drop_oldest", "block"]), "drop_newest",
        "what happens without room, in memory or on disk: what comes is dropped, or what has waited longest, or calls wait until what is collected of them is on disk";
    COLLECTION_BLOCK = "block", Kind::Timeout, "2s",
        "longest time that a call waits with full = \"block\", 10m at most";
    COLLECTION_SYNC = "sync", Kind::OneOf(&["always", "interval", "never"]), "interval",
        "when what is written is safe from the end of the machine too: before anybody is told, every sync_interval, or as the system likes; it is safe from the end of the process in any case";
    COLLECTION_SYNC_INTERVAL = "sync_interval", Kind::Timeout, "1s",
        "how often, with sync = \"interval\"";
    COLLECTION_DISK = "disk", Kind::Size { min: 1 << 20, max: 1 << 50 }, "1GiB",
        "most bytes on disk that are not in blob storage yet";
    COLLECTION_ALLOW = "allow", Kind::List, "",
        "JSON pointers, such as /data/*/age, of all that is kept of a body; `*` is any member [default: everything]";
    COLLECTION_DENY = "deny", Kind::List, "",
        "JSON pointers of what is left out";
    COLLECTION_HASH = "hash", Kind::List, "",
        "JSON pointers of what is replaced by a hash keyed with `salt`";
    COLLECTION_SALT = "salt", Kind::Secret, "",
        "key of that hash, 16 characters or more";
    COLLECTION_PATTERNS = "patterns", Kind::List, "",
        "regular expressions: what they match anywhere is replaced by ***";
    COLLECTION_HASH_PATTERNS = "hash_patterns", Kind::List, "",
        "the same, replaced by a hash keyed with `salt`";
    COLLECTION_TEXT = "text", Kind::Count { min: 1, max: 1 << 24 }, "",
        "longest text, characters; of a longer one the beginning is kept [default: any length]";
    COLLECTION_RETENTION_DAYS = "retention_days", Kind::Count { min: 1, max: 36_500 }, "",
        "age in days at which what is in blob storage is deleted, by its folder [default: never]";
}

table_keys! { "tokens.issuers", ISSUER_KEYS,
    ISSUER_ISSUER = "issuer", Kind::Text, "",
        "what the issuer calls itself (iss), to the letter: a URL, below which its discovery document is, that begins with https://, or with http:// on this machine";
    ISSUER_JWKS = "jwks_uri", Kind::Text, "",
        "where its public keys are [default: where its discovery document says]";
    ISSUER_AUDIENCES = "audiences", Kind::List, "",
        "for whom its tokens may be (aud), one of these";
    ISSUER_ALGORITHMS = "algorithms", Kind::List, "",
        "how they may be signed [default: RS256, ES256, EdDSA]";
    ISSUER_CLAIM = "claim", Kind::Text, "sub",
        "the member that says who calls";
    ISSUER_CALLER = "caller", Kind::Text, "",
        "the caller of [callers.NAME] whose rules hold for all of its tokens but those in callers [default: the one of the name that the claim has]";
    ISSUER_CALLERS = "callers", Kind::List, "",
        "which caller whose rules hold, by the claim, as CLAIM=NAME; others than those are refused unless there is caller";
    ISSUER_SCOPES = "scopes", Kind::List, "",
        "scopes that a token must have, all of them (scope, scp)";
    ISSUER_ROLES = "roles", Kind::List, "",
        "roles, too (roles)";
}
