//! The keys that a configuration has once, in the order in which they are shown.

use super::{Alias, Key, alias, collector, millis, port};
use crate::config::value::Kind;

macro_rules! keys {
    ($($id:ident = $name:literal, $kind:expr, $default:literal, [$($alias:expr),*], $doc:literal;)*) => {
        $(#[doc = $doc] pub const $id: &Key = &Key {
            name: $name, kind: $kind, default: $default, aliases: &[$($alias),*], doc: $doc,
        };)*

        /// All keys, in the order in which they are shown.
        pub const KEYS: &[&Key] = &[$($id),*];
    };
}

keys! {
    COMPAT = "compat", Kind::Flag, "false", [],
        "behaves as AzureML's inference server where its contract and good sense differ; changes some defaults";
    SERVICE_NAME = "service.name", Kind::Text, "ML service", [alias("SERVICE_NAME")],
        "name of the service, shown in swagger and status";
    SERVICE_VERSION = "service.version", Kind::Text, "1.0", [alias("SERVICE_VERSION")],
        "version of the service, shown in swagger";
    SERVICE_PATH_PREFIX = "service.path_prefix", Kind::Text, "", [alias("SERVICE_PATH_PREFIX")],
        "path under which a router shows the service, for swagger";
    SERVICE_POD = "service.pod", Kind::Text, "", [alias("POD_NAME")],
        "name of this replica, for scalers that tell replicas apart by it [default: $HOSTNAME]";
    STATE_DIR = "state_dir", Kind::Path, "", [],
        "directory for keys and the admin socket [default: $XDG_STATE_HOME/outrigger or ~/.local/state/outrigger]";
    THREADS = "threads", Kind::Count { min: 1, max: 1024 }, "", [],
        "threads for network and scheduling [default: half the cores; workers and models need the others]";
    LOG_LEVEL = "log.level", Kind::OneOf(&["error", "warn", "info", "debug", "trace"]), "info", [alias("AZUREML_LOG_LEVEL")],
        "least severe level that is logged; RUST_LOG, where set, takes its place";
    LOG_FORMAT = "log.format", Kind::OneOf(&["auto", "text", "json", "azureml"]), "auto", [],
        "form of the log: text or json on stderr, or AzureML's lines on stdout; auto: text on a terminal, else json [with compat: azureml]";
    LOG_BUFFER = "log.buffer", Kind::Size { min: 1024, max: 1 << 30 }, "8MiB", [],
        "memory for lines of the log that wait to be written; when nobody reads it, further ones are lost, which it says once it is \
         read again";
    LOG_REQUESTS = "log.requests", Kind::OneOf(&["off", "errors", "slow", "all"]), "errors", [],
        "requests on score.listen that are logged in a line: errors, those that are refused or fail; slow, those that take longer than \
         log.slow as well [with compat: all]";
    LOG_SLOW = "log.slow", Kind::Duration, "1s", [],
        "from when on a request is slow, for log.requests";
    LOG_RATE = "log.rate", Kind::Count { min: 0, max: 1_000_000 }, "20", [],
        "warnings and errors of one kind, and lines of failed and of slow requests, in a second; further ones are counted, which a line \
         tells; 0: no limit. Lines of scripts, and log.requests = \"all\", have none";
    LOG_KEPT = "log.kept", Kind::Size { min: 0, max: 1 << 30 }, "2MiB", [],
        "memory for the last lines of the log, which `outrigger logs` shows";
    PROCESS_INIT = "process.init", Kind::OneOf(&["auto", "true", "false"]), "auto", [],
        "whether a small parent process forwards signals and reaps orphans; auto: when started as process 1";
    PROCESS_CONTAINER = "process.container", Kind::OneOf(&["auto", "true", "false"]), "auto", [],
        "whether the replica is in a container, where scoring may be on all addresses without TLS, and files that are mounted may be open to others; auto: told by \
         what engines, Kubernetes and platforms leave";

    METRICS_MODELS = "metrics.models", Kind::Count { min: 1, max: 10_000 }, "50", [],
        "models that have series of their own in /metrics: those with the most calls of late; the others are summed up as model=\"other\"";
    TELEMETRY_ENDPOINT = "telemetry.endpoint", Kind::Text, "", [alias("OTEL_EXPORTER_OTLP_ENDPOINT")],
        "collector that takes traces and metrics by OTLP, such as http://127.0.0.1:4318; none are sent without. Over HTTP it gets them below \
         /v1/traces and /v1/metrics";
    TELEMETRY_TRACES_ENDPOINT = "telemetry.traces_endpoint", Kind::Text, "", [alias("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")],
        "where traces go, if that is elsewhere: the whole URL";
    TELEMETRY_METRICS_ENDPOINT = "telemetry.metrics_endpoint", Kind::Text, "", [alias("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")],
        "where metrics go, if that is elsewhere: the whole URL";
    TELEMETRY_PROTOCOL = "telemetry.protocol", Kind::OneOf(&["http/protobuf", "grpc"]), "http/protobuf", [alias("OTEL_EXPORTER_OTLP_PROTOCOL")],
        "how the collector is reached";
    TELEMETRY_HEADERS = "telemetry.headers", Kind::Secret, "", [alias("OTEL_EXPORTER_OTLP_HEADERS")],
        "headers of what is sent: NAME=VALUE, several with commas between them, escapes as in URLs";
    TELEMETRY_TIMEOUT = "telemetry.timeout", Kind::Timeout, "10s", [millis("OTEL_EXPORTER_OTLP_TIMEOUT")],
        "how long the collector has to take what is sent";
    TELEMETRY_QUEUE = "telemetry.queue", Kind::Count { min: 1, max: 1_000_000 }, "2048", [alias("OTEL_BSP_MAX_QUEUE_SIZE")],
        "requests whose spans may wait to be sent; those of further ones are dropped, and counted";
    TELEMETRY_INTERVAL = "telemetry.interval", Kind::Timeout, "1m", [millis("OTEL_METRIC_EXPORT_INTERVAL")],
        "time from one sending of metrics to the next";
    TELEMETRY_SAMPLER = "telemetry.sampler",
        Kind::OneOf(&["always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"]),
        "parentbased_always_on", [alias("OTEL_TRACES_SAMPLER")],
        "which requests are traced; parentbased: as the trace says to which a request belongs, else as the rest of the word says";
    TELEMETRY_RATIO = "telemetry.sampler_ratio", Kind::Number { min: 0.0, max: 1.0 }, "1", [alias("OTEL_TRACES_SAMPLER_ARG")],
        "of how many requests, for traceidratio";
    TELEMETRY_SERVICE = "telemetry.service", Kind::Text, "", [alias("OTEL_SERVICE_NAME")],
        "what the collector knows the service by [default: service.name]";
    TELEMETRY_ATTRIBUTES = "telemetry.attributes", Kind::Text, "", [alias("OTEL_RESOURCE_ATTRIBUTES")],
        "what else it is told of this replica: NAME=VALUE, several with commas between them, escapes as in URLs";
    TELEMETRY_INSIGHTS = "telemetry.application_insights", Kind::Secret, "", [alias("APPLICATIONINSIGHTS_CONNECTION_STRING")],
        "connection string of Application Insights, which gets a record of each request that is traced [default: of the key in \
         AML_APP_INSIGHTS_KEY, where AML_APP_INSIGHTS_ENABLED is true]";
    TELEMETRY_WORKSPACE = "telemetry.workspace", Kind::Text, "", [alias("WORKSPACE_NAME")],
        "name of the workspace in those records";
    TELEMETRY_DISABLED = "telemetry.disabled", Kind::Flag, "false", [alias("OTEL_SDK_DISABLED")],
        "sends nothing, whatever endpoint is set";
    TELEMETRY_TIMING = "telemetry.server_timing", Kind::OneOf(&["off", "asked", "always"]), "asked", [],
        "whether answers say how their time was spent (server-timing); asked: those whose request has the header outrigger-timing";

    SCORE_LISTEN = "score.listen", Kind::Address, "127.0.0.1:5001", [port("AIP_HTTP_PORT"), port("SAGEMAKER_BIND_TO_PORT")],
        "address for scoring requests";
    SCORE_CORS_ORIGINS = "score.cors_origins", Kind::List, "", [alias("AML_CORS_ORIGINS")],
        "origins whose pages may call, such as https://a.example; `*` for all";
    SCORE_SERVER_VERSION = "score.server_version", Kind::Text, "", [alias("HTTP_X_MS_SERVER_VERSION")],
        "value of the answer header x-ms-server-version, empty for none [default: outrigger/VERSION; with compat: azmlinfsrv/1.5.1]";
    SCORE_LOAD_METRICS = "score.load_metrics", Kind::OneOf(&["off", "asked", "text", "json", "bin"]), "asked", [],
        "whether answers tell load balancers how busy the replica is (ORCA): all do, in that form; asked: those whose request has \
         the header endpoint-load-metrics-format; off: none";
    SCORE_CONTRACTS = "score.contracts", Kind::List, "aml, oip, grpc, tensorflow, sagemaker, vertex", [],
        "contracts that are spoken: aml, AzureML's /score and /swagger.json; oip, the Open Inference Protocol at /v2; grpc, the same over \
         gRPC; tensorflow, TensorFlow Serving's Predict over gRPC; sagemaker, /ping, /invocations and /models; vertex, Vertex AI's routes [with compat: aml]";
    SCORE_VERTEX_HEALTH_ROUTE = "score.vertex_health_route", Kind::Text, "", [alias("AIP_HEALTH_ROUTE")],
        "path of Vertex AI's health route, beside /vertex/health";
    SCORE_VERTEX_PREDICT_ROUTE = "score.vertex_predict_route", Kind::Text, "", [alias("AIP_PREDICT_ROUTE")],
        "path of Vertex AI's predict route, beside /vertex/predict";
    SCORE_MODEL = "score.model", Kind::Text, "", [],
        "model that is meant where a request cannot name one, or does not [default: the only one]";
    SCORE_MODEL_CONTROL = "score.model_control", Kind::Flag, "false", [],
        "whether callers that may do model_control can load and unload models here too, and not on the admin listener alone";
    SCORE_SHARED_MEMORY = "score.shared_memory", Kind::Path, "", [],
        "directory, such as /dev/shm, in which callers on this machine may name files to read inputs from and write outputs to: whoever may \
         do shared_memory can then read and write all of them that this user can; none if empty";
    SCORE_SHARED_MEMORY_REGIONS = "score.shared_memory_regions", Kind::Count { min: 1, max: 1 << 16 }, "256", [],
        "regions of shared memory that may be registered at once";
    SCORE_STREAM_CALLS = "score.stream_calls", Kind::Count { min: 1, max: 1024 }, "16", [],
        "requests of one gRPC stream that are worked on at once; further ones are not read before";

    OPENAPI_ENABLED = "openapi.enabled", Kind::Flag, "true", [],
        "whether each listener describes what it serves (OpenAPI 3.1) at /openapi.json, and as a page at /docs [with compat: false]";
    OPENAPI_PAGE = "openapi.page", Kind::Flag, "true", [],
        "whether there is the page, which nobody needs a key for: it holds nothing of the service";
    OPENAPI_MODELS = "openapi.models", Kind::Count { min: 1, max: 1000 }, "20", [],
        "models that one description has at most, with what each takes: about 3 KB each; the next ones, or a single one, are asked for by the query";
    OPENAPI_BYTES = "openapi.bytes", Kind::Size { min: 1 << 16, max: 1 << 28 }, "1MiB", [],
        "bytes that models' paths take in one description; those that do not fit into it are asked for by the query, and one that does not by itself is \
         described without its tensors";
    OPENAPI_AT_ONCE = "openapi.at_once", Kind::Count { min: 1, max: 1024 }, "2", [],
        "descriptions that are put together at once of each listener; who asks for one more is told to come again";

    OBSERVE_LISTEN = "observe.listen", Kind::Address, "127.0.0.1:5002", [],
        "address for probes, the busy signal and metrics: read-only, no key needed";
    OBSERVE_WATCHERS = "observe.watchers", Kind::Count { min: 1, max: 1 << 16 }, "64", [],
        "readers of the busy signal that stay connected: /busy?watch, streams of ORCA and KEDA; further ones are refused";
    OBSERVE_REPORT_INTERVAL = "observe.report_interval", Kind::Timeout, "100ms", [],
        "shortest time between two reports of ORCA's stream; who asks for less gets this";
    OBSERVE_MESSAGE = "observe.message", Kind::Size { min: 1024, max: 1 << 24 }, "64KiB", [],
        "largest gRPC request on observe.listen";
    ADMIN_LISTEN = "admin.listen", Kind::Endpoint, "", [],
        "loopback address or unix:PATH for management [default: unix:STATE_DIR/admin.sock]";

    TLS_CERTIFICATE = "tls.certificate", Kind::Path, "", [],
        "file with the server's certificate (PEM), and behind it those that lead to its issuer; with it, and tls.key, listeners speak TLS";
    TLS_KEY = "tls.key", Kind::Path, "", [],
        "file with the certificate's private key (PEM, not encrypted), which others than its owner and group cannot read, but in a container";
    TLS_LISTENERS = "tls.listeners", Kind::List, "score, admin", [],
        "listeners that speak TLS: score, observe, admin; a Unix socket never does";
    TLS_CLIENT_CERTIFICATES = "tls.client_certificates", Kind::OneOf(crate::config::ClientCertificates::WORDS), "off", [],
        "whether clients of score and admin show a certificate: off, they are not asked; optional, one that tls.client_ca has signed, or none; required, no connection \
         without one";
    TLS_CLIENT_CA = "tls.client_ca", Kind::Path, "", [],
        "file with the authorities (PEM) that sign clients' certificates";
    TLS_MIN_VERSION = "tls.min_version", Kind::OneOf(&["1.2", "1.3"]), "1.2", [],
        "oldest version of TLS that is spoken; the newest is 1.3";
    TLS_HANDSHAKE_TIMEOUT = "tls.handshake_timeout", Kind::Timeout, "10s", [],
        "longest time for a TLS handshake, after which the connection is closed";
    TLS_RELOAD = "tls.reload", Kind::Duration, "5s", [],
        "how often the files are looked at; new ones that are sound hold for new connections, else the old ones stay; 0s: never";
    TLS_EXPIRY_WARNING = "tls.expiry_warning", Kind::Duration, "336h", [],
        "time before a certificate expires from which on the log says so, once a day";
    TLS_ALLOW_PLAIN = "tls.allow_plain", Kind::Flag, "false", [],
        "permits score.listen beyond loopback without TLS outside of a container, where something in front of it speaks TLS";

    AUTH_ENABLED = "auth.enabled", Kind::Flag, "true", [],
        "whether scoring needs a key";
    AUTH_ALLOW_OPEN = "auth.allow_open", Kind::Flag, "false", [],
        "permits listening beyond loopback with auth.enabled = false";
    AUTH_PRIMARY_KEY = "auth.primary_key", Kind::Secret, "", [],
        "primary key, at least 22 characters [default: from auth.keys_file]";
    AUTH_SECONDARY_KEY = "auth.secondary_key", Kind::Secret, "", [],
        "secondary key, at least 22 characters [default: from auth.keys_file]";
    AUTH_KEYS_FILE = "auth.keys_file", Kind::Path, "", [],
        "file with the service's two keys as they are, mode 0600, or 0640 for a group; made with new keys at a start at which there are none at all [default: STATE_DIR/keys.toml]";
    AUTH_KEY_STORE = "auth.key_store", Kind::Path, "", [],
        "file with hashes of the keys that `outrigger keys` manages, mode 0600, or 0640 for a group [default: STATE_DIR/key-store.toml]";
    AUTH_KEY_POLL = "auth.key_poll", Kind::Timeout, "1s", [],
        "how often both files are looked at; a change holds from then on";
    AUTH_KEY_USE = "auth.key_use", Kind::Timeout, "1m", [],
        "how often it is written down, beside auth.key_store, when keys were last used";
    AUTH_KEY_NOTICE = "auth.key_notice", Kind::Duration, "7d", [],
        "how long before the end of a key log and metrics say that it is near";

    AUTH_MODE = "auth.mode", Kind::OneOf(&["key", "token", "both"]), "key", [],
        "what says who calls: key; token, of an issuer of [tokens.issuers.NAME] or of the replica itself (tokens.local), where a key is good for /token alone; both: either";
    TOKENS_LOCAL = "tokens.local", Kind::Flag, "false", [],
        "whether the replica gives tokens for keys, at POST /token, and takes them";
    TOKENS_ISSUER = "tokens.issuer", Kind::Text, "outrigger", [],
        "what it calls itself in these (iss)";
    TOKENS_AUDIENCE = "tokens.audience", Kind::Text, "", [],
        "for whom they are (aud) [default: service.name]";
    TOKENS_LIFETIME = "tokens.lifetime", Kind::Timeout, "1h", [],
        "how long they hold; no longer than the key that they were given for, and not after that has been revoked";
    TOKENS_SIGNING_KEY = "tokens.signing_key", Kind::Path, "", [],
        "file with the key that they are signed with, mode 0600, or 0640 for a group; made when absent [default: STATE_DIR/token-key.pem]";
    TOKENS_BYTES = "tokens.bytes", Kind::Size { min: 512, max: 1 << 20 }, "8KiB", [],
        "longest token that is looked at";
    TOKENS_SKEW = "tokens.skew", Kind::Duration, "1m", [],
        "by how much the clocks of issuers may differ from this one, 10m at most";
    TOKENS_REMEMBERED = "tokens.remembered", Kind::Count { min: 1, max: 10_000_000 }, "10000", [],
        "tokens that are remembered once their signature has been verified, about 100 bytes each";
    TOKENS_REFRESH = "tokens.refresh", Kind::Timeout, "5m", [],
        "how often issuers are asked for their keys; those that are known hold while an issuer cannot be asked";
    TOKENS_MAX_AGE = "tokens.max_age", Kind::Timeout, "7d", [],
        "how long they hold then, counted from the last time that it could, be it before this start; its tokens are refused afterwards";
    TOKENS_RETRY = "tokens.retry", Kind::Timeout, "10s", [],
        "shortest time between two such questions to one issuer, be it that the last one failed or that a token names a key that is not known";
    TOKENS_TIMEOUT = "tokens.timeout", Kind::Timeout, "5s", [],
        "time limit of one";
    TOKENS_DOCUMENT = "tokens.document", Kind::Size { min: 1024, max: 1 << 24 }, "256KiB", [],
        "largest answer to one";
    TOKENS_KEYS = "tokens.keys", Kind::Count { min: 1, max: 10_000 }, "100", [],
        "most keys of one issuer";

    MODEL_DIR = "model_dir", Kind::Path, "", [alias("AZUREML_MODEL_DIR")],
        "directory of model files; given to the script as AZUREML_MODEL_DIR, served whole when there is neither script nor upstream";

    STORE_REGISTRY = "store.registry", Kind::Location, "", [],
        "where models are registered, by name and version: a folder, or a URL that begins with az://, s3://, gs://, https:// or file://";
    STORE_MODELS = "store.models", Kind::List, "", [],
        "registered models that are fetched before anything else, as NAME:VERSION, NAME@LABEL, or NAME for the latest version; *: the latest of all. A script \
         finds their files below AZUREML_MODEL_DIR, an upstream below store.root; where there is neither, they are served";
    STORE_ROOT = "store.root", Kind::Path, "", [],
        "directory below which models are laid out as azureml-models/NAME/VERSION/... [default: script.app_root where that is set, else STATE_DIR]";
    STORE_CACHE = "store.cache", Kind::Path, "", [],
        "directory of fetched files, which all replicas on a host may share [default: $XDG_CACHE_HOME/outrigger/models or ~/.cache/outrigger/models]";
    STORE_CACHE_SIZE = "store.cache_size", Kind::Size { min: 1, max: 1 << 60 }, "100GiB", [],
        "bytes that it may hold; beyond, files that nobody uses make way, those first that were not used for longest";
    STORE_CONNECTIONS = "store.connections", Kind::Count { min: 1, max: 256 }, "16", [],
        "requests to the storage at once";
    STORE_PIECE = "store.piece", Kind::Size { min: 1 << 16, max: 1 << 30 }, "8MiB", [],
        "larger files come in pieces of this size, several at once, and go on where they stopped";
    STORE_BANDWIDTH = "store.bandwidth", Kind::Size { min: 1024, max: 1 << 50 }, "", [],
        "most bytes in a second from the storage [default: no limit]";
    STORE_ATTEMPTS = "store.attempts", Kind::Count { min: 1, max: 100 }, "6", [],
        "how often a request to the storage is made before it counts as failed";
    STORE_STALL_TIMEOUT = "store.stall_timeout", Kind::Timeout, "15s", [],
        "longest time for which nothing may come of an answer of the storage";
    STORE_REFRESH = "store.refresh", Kind::Duration, "0s", [],
        "how often the registry is asked whether another version is the latest one, or the labelled one, that a model names; it is rolled \
         out then; 0s: never";
    STORE_TRUSTED_KEYS = "store.trusted_keys", Kind::List, "", [],
        "files with public keys (Ed25519, PEM): only manifests that one of them has signed count [default: signatures are not asked for]";
    STORE_ARCHIVE_FILES = "store.archive_files", Kind::Count { min: 1, max: 1 << 24 }, "10000", [],
        "most files and folders of an archive that is unpacked";
    STORE_ARCHIVE_FILE_BYTES = "store.archive_file_bytes", Kind::Size { min: 1, max: 1 << 60 }, "64GiB", [],
        "largest file of an archive that is unpacked";
    STORE_ARCHIVE_BYTES = "store.archive_bytes", Kind::Size { min: 1, max: 1 << 60 }, "256GiB", [],
        "most bytes of an archive once it is unpacked";
    STORE_ARCHIVE_RATIO = "store.archive_ratio", Kind::Count { min: 1, max: 1 << 20 }, "200", [],
        "most bytes unpacked for each packed one, beyond 16 MiB";

    SCRIPT_ENTRY = "script.entry", Kind::Text, "", [alias("AZUREML_ENTRY_SCRIPT")],
        "entry script with init() and run(), below script.app_root";
    SCRIPT_APP_ROOT = "script.app_root", Kind::Path, "", [alias("AML_APP_ROOT")],
        "root of the scoring code and the worker's working directory [default: the entry script's directory]";
    SCRIPT_SOURCE_DIRECTORY = "script.source_directory", Kind::Text, "", [alias("AZUREML_SOURCE_DIRECTORY")],
        "directory below script.app_root that is added to sys.path";
    SCRIPT_ARGS = "script.args", Kind::List, "", [],
        "arguments that the entry script finds in sys.argv";
    SCRIPT_DEBUG_PORT = "script.debug_port", Kind::Count { min: 1, max: 65_535 }, "", [alias("AZUREML_DEBUG_PORT")],
        "port of a waiting debugger that workers connect to with debugpy before they import the script";
    SCRIPT_PYTHON = "script.python", Kind::Program, "python3", [],
        "Python interpreter for workers, 3.11 or later";
    SCRIPT_HOST = "script.host", Kind::Path, "", [],
        "directory that holds outrigger_worker [default: beside the executable]";
    SCRIPT_WORKERS = "script.workers", Kind::Count { min: 1, max: 1024 }, "1", [alias("WORKER_COUNT")],
        "worker processes, each working on one call at a time; with script.trusted, threads";
    SCRIPT_TIMEOUT = "script.timeout", Kind::Timeout, "60s", [Alias { variable: "SCORING_TIMEOUT_MS", prefix: "", suffix: "ms" }],
        "time limit of one run(); the worker is replaced when it is over [with compat: 1h]";
    SCRIPT_HARD_TIMEOUT = "script.hard_timeout", Kind::Duration, "", [Alias { variable: "WORKER_TIMEOUT", prefix: "", suffix: "s" }],
        "upper bound of script.timeout, whatever that says; 0s for none";
    SCRIPT_IMPORT_TIMEOUT = "script.import_timeout", Kind::Timeout, "5m", [],
        "time limit of importing the script";
    SCRIPT_INIT_TIMEOUT = "script.init_timeout", Kind::Timeout, "5m", [],
        "time limit of init(), and of warmup()";
    SCRIPT_GAP_TIMEOUT = "script.gap_timeout", Kind::Timeout, "60s", [],
        "longest time between two pieces of an answer that is produced as a stream";
    SCRIPT_STALL_TIMEOUT = "script.stall_timeout", Kind::Timeout, "60s", [],
        "longest time that a client may take nothing of its stream before that is broken off and the worker free again";
    SCRIPT_CANCEL_GRACE = "script.cancel_grace", Kind::Duration, "20ms", [],
        "time that a call which is out of time has to return by itself before its worker is ended";
    SCRIPT_TASK_GRACE = "script.task_grace", Kind::Duration, "2s", [],
        "the same for a call of an `async def run` whose event loop still turns, since other calls would end with its worker";
    SCRIPT_CONCURRENCY = "script.concurrency", Kind::Count { min: 1, max: 1024 }, "1", [],
        "calls that one worker of an `async def run` works on at once";
    SCRIPT_MAX_BATCH = "script.max_batch", Kind::Count { min: 1, max: 1024 }, "1", [],
        "most calls that run_batch() gets at once";
    SCRIPT_BISECT = "script.bisect", Kind::Flag, "true", [],
        "whether calls whose run_batch() raised are given to it again in two halves, and so on, so that only those that are at fault fail";
    SCRIPT_MAX_DELAY = "script.max_delay", Kind::Duration, "0s", [],
        "longest time that a call waits for others to make a batch with";
    SCRIPT_PRELOAD = "script.preload", Kind::List, "", [],
        "modules that the fork-server imports once, so that workers share their memory; they must not start threads";
    SCRIPT_FORK_SERVER = "script.fork_server", Kind::Flag, "true", [],
        "whether workers are forked from a process that has Python loaded, rather than started as programs of their own";
    SCRIPT_BREAKER = "script.breaker", Kind::Flag, "true", [],
        "whether a worker that keeps failing is started again ever more slowly";
    SCRIPT_REGION_THRESHOLD = "script.region_threshold", Kind::Size { min: 0, max: 1 << 30 }, "64KiB", [],
        "bodies, answers and tensors of at least this size go between replica and worker in shared memory; 0: none do";
    SCRIPT_STREAM_WINDOW = "script.stream_window", Kind::Size { min: 1024, max: 1 << 30 }, "256KiB", [],
        "bytes of a streamed answer that a worker may be ahead of the client";
    SCRIPT_NATIVE = "script.native", Kind::Path, "", [],
        "shared library with outrigger_script_init and outrigger_script_run, in place of script.entry";
    SCRIPT_TRUSTED = "script.trusted", Kind::Flag, "false", [],
        "whether script.native runs in the replica's own process, in script.workers threads where it is thread-safe: faster; \
         not sandboxed, it sees keys and requests, its crash is the replica's, and a call of it cannot be ended";
    SCRIPT_SANDBOX_OFF = "script.sandbox_off", Kind::List, "", [],
        "parts of the sandbox that are not wanted, by the names that are shown at start; all: none is";
    SCRIPT_NETWORK = "script.network", Kind::List, "", [],
        "what scripts may reach: off, on, or TCP ports [default: off, and the port of the data collector where that is on; with compat: on]";
    SCRIPT_UNIX_SOCKETS = "script.unix_sockets", Kind::Flag, "false", [],
        "whether scripts may make Unix sockets while script.network is not on";
    SCRIPT_READ = "script.read", Kind::List, "", [],
        "paths that scripts may read, beside their code, the model directory, Python and the system's libraries";
    SCRIPT_WRITE = "script.write", Kind::List, "", [],
        "paths that scripts may write, beside $TMPDIR, ./outputs and the caches in HOME";
    SCRIPT_EXECUTE = "script.execute", Kind::List, "", [],
        "the only programs that scripts may start [default: any that they may read]";
    SCRIPT_MEMORY = "script.memory", Kind::Size { min: 1 << 20, max: 1 << 50 }, "", [],
        "memory of a worker and what it starts [default: nine tenths of what this machine or container has]";
    SCRIPT_PIDS = "script.pids", Kind::Count { min: 1, max: 1 << 22 }, "1024", [],
        "processes and threads of a worker and what it starts";
    SCRIPT_CPU = "script.cpu", Kind::Count { min: 1, max: 1 << 20 }, "", [],
        "thousandths of a core for a worker and what it starts [default: no limit]";
    SCRIPT_KEEP_ENVIRONMENT = "script.keep_environment", Kind::List, "", [],
        "environment variables that scripts see although they look like credentials";
    SCRIPT_CGROUPS = "script.cgroups", Kind::Flag, "true", [],
        "whether limits of workers may be held by control groups, where those can be written";
    SCRIPT_OUTPUTS_DIR = "script.outputs_dir", Kind::Path, "", [],
        "where files that the script writes under ./outputs are kept [default: they stay in script.app_root]";

    UPSTREAM_URL = "upstream.url", Kind::Text, "", [],
        "server that this replica stands in front of, in place of a script: http://127.0.0.1:PORT, or unix:PATH of a socket";
    UPSTREAM_ALLOW_REMOTE = "upstream.allow_remote", Kind::Flag, "false", [],
        "permits an upstream.url beyond loopback; what goes there is not encrypted";
    UPSTREAM_SCORE_PATH = "upstream.score_path", Kind::Text, "/score", [],
        "where its scoring route is: what /score is passed on to";
    UPSTREAM_PATHS = "upstream.paths", Kind::List, "", [],
        "further paths that are passed on to it as they are, such as /predict, or /v1/* for all below; each asks for the operation `score`, \
         and goes before a path of the replica's own other than /score; /* is all that is none";
    UPSTREAM_TRUST_FORWARDED = "upstream.trust_forwarded", Kind::Flag, "false", [],
        "passes on what requests say of where they come from (Forwarded, X-Real-IP, X-Forwarded-*), for where a proxy in front of the replica sets it; \
         who calls without one could say anything there";
    UPSTREAM_SLOTS = "upstream.slots", Kind::Count { min: 1, max: 60_000 }, "1", [],
        "calls that it works on at once; further ones wait here";
    UPSTREAM_TIMEOUT = "upstream.timeout", Kind::Timeout, "5s", [],
        "longest time that it may take to begin with its answer once it has the request; the call is then broken off";
    UPSTREAM_CONNECT_TIMEOUT = "upstream.connect_timeout", Kind::Timeout, "1s", [],
        "time limit of connecting to it";
    UPSTREAM_GAP_TIMEOUT = "upstream.gap_timeout", Kind::Timeout, "60s", [],
        "longest time between two pieces of its answer";
    UPSTREAM_STALL_TIMEOUT = "upstream.stall_timeout", Kind::Timeout, "60s", [],
        "longest time that a client may take nothing of an answer that is longer than upstream.window before that is broken off and the slot \
         free again";
    UPSTREAM_PAUSE_TIMEOUT = "upstream.pause_timeout", Kind::Timeout, "5s", [],
        "longest time that a body which is passed on as it comes may pause while its call holds a slot; limits.body_timeout holds for all of it";
    UPSTREAM_STREAM_THRESHOLD = "upstream.stream_threshold", Kind::Size { min: 0, max: 1 << 30 }, "1MiB", [],
        "so much of a request body is here before its call takes a slot; what is longer is passed on as it comes";
    UPSTREAM_WINDOW = "upstream.window", Kind::Size { min: 8192, max: 1 << 30 }, "256KiB", [],
        "bytes of an answer that it may be ahead of the client; as many again may have been read from its connection, and its head has to fit in";
    UPSTREAM_CONNECTIONS = "upstream.connections", Kind::Count { min: 0, max: 60_000 }, "", [],
        "connections to it that are kept for the calls to come [default: upstream.slots]";
    UPSTREAM_IDLE_TIMEOUT = "upstream.idle_timeout", Kind::Timeout, "1s", [],
        "how long each is kept: less than what the server itself closes idle ones after";
    UPSTREAM_READY_PATH = "upstream.ready_path", Kind::Text, "", [],
        "its readiness route, which answers 2xx [default: that it can be connected to]";
    UPSTREAM_READY_PORT = "upstream.ready_port", Kind::Count { min: 1, max: 65_535 }, "", [],
        "port of that [default: that of upstream.url]";
    UPSTREAM_LIVE_PATH = "upstream.live_path", Kind::Text, "", [],
        "its liveness route, which answers 2xx; what it says is shown and logged, for who may start it again [default: it is not asked]";
    UPSTREAM_LIVE_PORT = "upstream.live_port", Kind::Count { min: 1, max: 65_535 }, "", [],
        "port of that [default: that of upstream.url]";
    UPSTREAM_INITIAL_DELAY = "upstream.initial_delay", Kind::Duration, "0s", [],
        "time before these are asked first";
    UPSTREAM_PROBE_PERIOD = "upstream.probe_period", Kind::Timeout, "1s", [],
        "time between two questions";
    UPSTREAM_PROBE_TIMEOUT = "upstream.probe_timeout", Kind::Timeout, "2s", [],
        "time limit of one";
    UPSTREAM_SUCCESS_THRESHOLD = "upstream.success_threshold", Kind::Count { min: 1, max: 1000 }, "1", [],
        "good answers in a row before it counts as ready, or live";
    UPSTREAM_FAILURE_THRESHOLD = "upstream.failure_threshold", Kind::Count { min: 1, max: 1000 }, "3", [],
        "other answers, or none, in a row before it no longer does";

    BACKENDS_PATH = "backends.path", Kind::Path, "", [],
        "directory of backend libraries [default: beside the executable, then ../lib/outrigger]";
    BACKENDS_ONNXRUNTIME = "backends.onnxruntime", Kind::Path, "", [],
        "ONNX Runtime's library [default: that of the Python package onnxruntime, seen by script.python]";
    BACKENDS_CPU_THREADS = "backends.cpu_threads", Kind::Count { min: 1, max: 1024 }, "", [],
        "threads that run models on the CPU [default: as many as cores]";
    BACKENDS_INTRA_THREADS = "backends.intra_threads", Kind::Count { min: 1, max: 1024 }, "1", [],
        "threads inside one run of a model on the CPU";
    PLACEMENT_DEVICES = "placement.devices", Kind::List, "cpu", [],
        "where models go, best first: kinds of devices (cuda) or single ones (cuda:1), by the names of their backends";
    PLACEMENT_FALLBACK = "placement.fallback", Kind::Flag, "true", [],
        "whether a model that cannot go where its list begins goes to what the list names next; the answers say so";

    LIMITS_BODY = "limits.body", Kind::Size { min: 1, max: 1 << 30 }, "100MiB", [],
        "largest request body";
    LIMITS_BODY_TIMEOUT = "limits.body_timeout", Kind::Timeout, "60s", [],
        "longest time for a request body to arrive";
    LIMITS_BODIES = "limits.bodies", Kind::Size { min: 1, max: 1 << 40 }, "1GiB", [],
        "memory for all request bodies that are in the house at once";
    LIMITS_MESSAGE = "limits.message", Kind::Size { min: 1024, max: 1 << 24 }, "64KiB", [],
        "largest gRPC message for scoring that is no call of a model, which limits.body is for";
    LIMITS_INFLATE = "limits.inflate", Kind::Count { min: 1, max: 10_000 }, "100", [],
        "how many times as long as what was sent a compressed request body may become; limits.body holds for what it becomes";
    LIMITS_HEADER = "limits.header", Kind::Size { min: 1024, max: 1 << 20 }, "32KiB", [],
        "largest request header block, URL counted in";
    LIMITS_HEADER_TIMEOUT = "limits.header_timeout", Kind::Timeout, "30s", [],
        "longest time for a request header to arrive: from the beginning of a connection, and on one that is kept from the first of it that comes; over HTTP/2 for its preface";
    LIMITS_CONNECTIONS = "limits.connections", Kind::Count { min: 1, max: 1 << 20 }, "4096", [],
        "connections per listener; further ones wait in the kernel";
    LIMITS_STREAMS = "limits.streams", Kind::Count { min: 1, max: 1 << 14 }, "256", [],
        "requests at once on one HTTP/2 connection";
    LIMITS_STREAM_WINDOW = "limits.stream_window", Kind::Size { min: 1 << 16, max: (1 << 31) - 1 }, "256KiB", [],
        "bytes that one request of an HTTP/2 connection may send before they are read";
    LIMITS_CONNECTION_WINDOW = "limits.connection_window", Kind::Size { min: 1 << 16, max: (1 << 31) - 1 }, "", [],
        "bytes that all requests of an HTTP/2 connection together may send before they are read, and no fewer than that by default, so that those that wait \
         keep no others from sending; docs/limits.md says what of it there can be at most [default: limits.streams × limits.stream_window]";
    LIMITS_SILENCE = "limits.silence", Kind::Timeout, "20s", [],
        "time after which an HTTP/2 client that has sent nothing is asked whether it is there; after as long again without an answer its \
         connection is closed and its calls end";
    LIMITS_IDLE = "limits.idle", Kind::Timeout, "11m", [],
        "time after which, or a quarter more, a connection on which nothing is asked is closed, over HTTP/2 with a GOAWAY; to be longer than clients and load \
         balancers keep theirs (Google's do for 10 minutes), for who asks at that very moment over HTTP/1.1 has to ask again";
    LIMITS_ANSWER = "limits.answer", Kind::Size { min: 1, max: 1 << 30 }, "256MiB", [],
        "largest answer of a script; largest inputs, and largest outputs, of one run of a model";
    LIMITS_ELEMENTS = "limits.elements", Kind::Count { min: 1, max: 1 << 30 }, "67108864", [],
        "elements of one tensor that a caller sends";
    LIMITS_RANK = "limits.rank", Kind::Count { min: 1, max: 32 }, "32", [],
        "dimensions of one tensor that a caller sends";
    LIMITS_DEPTH = "limits.depth", Kind::Count { min: 4, max: 256 }, "32", [],
        "arrays and objects inside each other in the JSON of a call of a model, data of tensors apart";
    LIMITS_ID = "limits.id", Kind::Size { min: 1, max: 1 << 16 }, "256B", [],
        "longest id of a call of a model, which its answer has too";
    LIMITS_ANSWERS = "limits.answers", Kind::Size { min: 1, max: 1 << 40 }, "1GiB", [],
        "memory for all answers that clients have not taken yet, what waits of streams among them; while they hold more, calls \
         are refused with 503";
    LIMITS_WRITE_TIMEOUT = "limits.write_timeout", Kind::Timeout, "5m", [],
        "longest time that a client may take nothing of an answer that is there for it; then its connection is closed, once other \
         answers on it (HTTP/2) have had as long again";
    LIMITS_SAMPLE_TIMEOUT = "limits.sample_timeout", Kind::Timeout, "60s", [],
        "time limit of the run of one sample of a model.toml, before the replica is ready";
    LIMITS_STEPS = "limits.steps", Kind::Size { min: 1, max: 1 << 40 }, "1GiB", [],
        "memory that the steps before one run of a model may take, and those after it, with what the model gives to them; a call that \
         would take more is refused";
    LIMITS_ENSEMBLE = "limits.ensemble", Kind::Size { min: 1, max: 1 << 40 }, "1GiB", [],
        "memory that tensors between the nodes of an ensemble may take in one call; a call that would take more is refused";
    LIMITS_ENSEMBLE_RUNS = "limits.ensemble_runs", Kind::Count { min: 1, max: 256 }, "8", [],
        "runs of an ensemble's models that may be under way at once in one call; further ones wait until others are over";
    LIMITS_MODELS = "limits.models", Kind::Count { min: 1, max: 1000 }, "1000", [],
        "models per replica";

    CACHE_MODELS = "cache.models", Kind::Flag, "false", [],
        "whether answers are kept for who asks the same again, of models that do not say so themselves";
    CACHE_BYTES = "cache.bytes", Kind::Size { min: 4096, max: 1 << 40 }, "256MiB", [],
        "memory for all answers that are kept, a quarter of it for finding them; those that are asked for least make way";
    CACHE_ANSWER = "cache.answer", Kind::Size { min: 1, max: 1 << 30 }, "1MiB", [],
        "largest answer that is kept";
    CACHE_WAITING = "cache.waiting", Kind::Count { min: 0, max: 1 << 20 }, "256", [],
        "calls that may wait for the run of another that has asked the same; further ones are run themselves, and these if nothing comes of it, which queue.items has to have room for";
    CACHE_PER_CALLER = "cache.per_caller", Kind::Flag, "true", [],
        "whether callers are given only what they asked for themselves; else one can tell by the time whether another has asked the same";

    QUEUE_ITEMS = "queue.items", Kind::Count { min: 0, max: 60_000 }, "512", [],
        "calls that may wait for a slot; beyond, calls are refused with 503, first those of whoever has the most";
    QUEUE_BYTES = "queue.bytes", Kind::Size { min: 1, max: 1 << 40 }, "512MiB", [],
        "memory for the bodies of calls that wait for a slot; beyond, calls are refused with 503, first those of whoever holds the most";
    QUEUE_AGEING = "queue.ageing", Kind::Duration, "1s", [],
        "wait after which calls of a lesser priority get every fourth slot that becomes free";
    QUEUE_WAIT = "queue.wait", Kind::Duration, "30s", [],
        "longest time a call waits for a slot before it is refused with 503";

    RESIDENCY_LOAD = "residency.load", Kind::OneOf(crate::config::LoadTime::WORDS), "start", [],
        "when models are loaded: start, before the replica is ready, and they may make way for others later; use, with the first call \
         that needs them, and a registered one is fetched then; pinned, as start, and they never make way";
    RESIDENCY_FETCHES = "residency.fetches", Kind::Count { min: 1, max: 256 }, "8", [],
        "registered models at once whose files are fetched with their first use, in the order of those; all share store.connections";
    RESIDENCY_LOADS = "residency.loads", Kind::Count { min: 1, max: 64 }, "", [],
        "models that are loaded at once after the start [default: half the cores]";
    RESIDENCY_LOADING_MEMORY = "residency.loading_memory", Kind::Size { min: 1, max: 1 << 50 }, "2GiB", [],
        "memory that models which are being loaded may take together; one alone may take more";
    RESIDENCY_WAITERS = "residency.waiters", Kind::Count { min: 1, max: 1 << 20 }, "1024", [],
        "calls that may wait for models to be loaded; further ones are refused with 503";
    RESIDENCY_ROOM_WAIT = "residency.room_wait", Kind::Timeout, "10s", [],
        "longest time a load waits for room while all models that could make way are in use";
    RESIDENCY_HALF_LIFE = "residency.half_life", Kind::Timeout, "5m", [],
        "time after which the use of a model counts half in the choice of those that make way";
    RESIDENCY_RETRY = "residency.retry", Kind::Timeout, "1s", [],
        "time after a failed load before it is tried again; doubled with each that fails";
    RESIDENCY_MAX_RETRY = "residency.max_retry", Kind::Timeout, "1m", [],
        "longest time before a failed load is tried again";
    RESIDENCY_NICE = "residency.nice", Kind::Count { min: 0, max: 19 }, "10", [],
        "how much less urgent than calls of other models loads are to the processor, as of nice(1)";
    RESIDENCY_EVENTS = "residency.events", Kind::Count { min: 1, max: 100_000 }, "1000", [],
        "events of models that are kept for who asks later; the oldest go first";

    ROLLOUT_WATCH = "rollout.watch", Kind::Duration, "5m", [],
        "time for which the version before is kept loaded, so that calls have it again at once if more of them fail with the new one; 0s: \
         none is";
    ROLLOUT_FAILURES = "rollout.failures", Kind::Count { min: 1, max: 1_000_000 }, "5", [],
        "calls of a new version that must have failed before it is given up";
    ROLLOUT_MARGIN = "rollout.margin", Kind::Number { min: 0.0, max: 100.0 }, "2", [],
        "percent of calls that may fail beyond those that failed before, and beyond chance, before a new version is given up";
    ROLLOUT_VERSIONS = "rollout.versions", Kind::Count { min: 2, max: 64 }, "6", [],
        "versions of one model that may be there at once";

    SHUTDOWN_QUIET = "shutdown.quiet", Kind::Duration, "0s", [],
        "time between not ready and closing the listeners, for routers to notice";
    SHUTDOWN_DRAIN = "shutdown.drain", Kind::Duration, "30s", [],
        "time for accepted calls to finish before the end";

    COLLECT_TO = "collect.to", Kind::Location, "", [],
        "where collected data goes: a folder, or a URL of blob storage, whose credentials are found as those of `store.registry`; nothing is \
         collected if empty [default: az://modeldata where AML_MODEL_DC_STORAGE_ENABLED is true and AML_MODEL_DC_STORAGE is a connection string]";
    COLLECT_COLLECTIONS = "collect.collections", Kind::List, "", [],
        "collections that are kept, beside those that have a table [collections.NAME]: request and response are what was asked and answered, \
         modeldata is what ModelDataCollector collects, others are scripts' own";
    COLLECT_SPOOL = "collect.spool", Kind::Path, "", [],
        "directory that collected data is written to first, and that survives the process; each replica has one of its own [default: STATE_DIR/collect]";
    COLLECT_ENDPOINT = "collect.endpoint", Kind::Text, "", [],
        "name of the endpoint, a folder in blob storage [default: service.name where it can be one, else default]";
    COLLECT_DEPLOYMENT = "collect.deployment", Kind::Text, "default", [],
        "name of the deployment, a folder in blob storage";
    COLLECT_WORKSPACE = "collect.workspace", Kind::Text, "default/default/default", [],
        "workspace of rows that name none, as subscription/group/workspace";
    COLLECT_URL = "collect.url", Kind::Text, "", [],
        "what URLs of data begin with that is an object of its own [default: collect.to as it is shown]";
    COLLECT_LISTEN = "collect.listen", Kind::Address, "127.0.0.1:50011", [collector("AZUREML_MDC_PORT")],
        "loopback address at which scripts hand over what they collect, as azureml-ai-monitoring and azureml.monitoring do; port 0: any free one, which they are told";
    COLLECT_BODY = "collect.body", Kind::Size { min: 1024, max: 1 << 28 }, "4MiB", [],
        "most bytes of a request, or of an answer, that are kept of it";
    COLLECT_BODIES = "collect.bodies", Kind::Size { min: 1 << 16, max: 1 << 40 }, "256MiB", [],
        "most bytes of requests and answers that are held for collection while their calls go on; of further ones none is kept";
    COLLECT_HEADERS = "collect.headers", Kind::List, "", [],
        "headers of requests that are kept with them; credentials never are";
    COLLECT_ROWS = "collect.rows", Kind::Size { min: 1024, max: 1 << 28 }, "16MiB", [],
        "largest body that a script may hand over";
    COLLECT_CALLS = "collect.calls", Kind::Count { min: 1, max: 65_536 }, "64", [],
        "bodies that scripts may hand over at once; who brings one more is told to come again";
    COLLECT_ITEMS = "collect.items", Kind::Count { min: 1, max: 1 << 20 }, "4096", [],
        "most records of a collection that wait in memory to be written to disk";
    COLLECT_MEMORY = "collect.memory", Kind::Size { min: 1 << 16, max: 1 << 40 }, "64MiB", [],
        "most bytes of these";
    COLLECT_SEGMENT = "collect.segment", Kind::Size { min: 1 << 16, max: 1 << 32 }, "16MiB", [],
        "size of the files in collect.spool";
    COLLECT_FLUSH = "collect.flush", Kind::Timeout, "30s", [],
        "how long new records wait until their object in blob storage is written again";
    COLLECT_OBJECT = "collect.object", Kind::Size { min: 1024, max: 1 << 30 }, "4MiB", [],
        "size at which an object is closed, and the next one begins";
    COLLECT_INLINE = "collect.inline", Kind::Size { min: 1, max: 1 << 30 }, "4MiB", [],
        "largest data inside of a line; what is larger is an object of its own";
    COLLECT_OPEN = "collect.open", Kind::Count { min: 1, max: 65_536 }, "16", [],
        "most objects of a collection that are open at once";
    COLLECT_WAITING = "collect.waiting", Kind::Count { min: 1024, max: 1 << 24 }, "65536", [],
        "most objects of a collection that wait to be written to blob storage: each is a few hundred bytes in memory, its records are on disk";
    COLLECT_UPLOADS = "collect.uploads", Kind::Count { min: 1, max: 256 }, "4", [],
        "most objects that are written to blob storage at once";
    COLLECT_UPLOAD_TIMEOUT = "collect.upload_timeout", Kind::Timeout, "1m", [],
        "time limit of writing one";
    COLLECT_RETRY_MAX = "collect.retry_max", Kind::Timeout, "30s", [],
        "longest pause before it is tried again";
    COLLECT_STOP = "collect.stop", Kind::Duration, "10s", [],
        "longest time at the end for writing to blob storage what is there; the rest is written after the next start";
    COLLECT_SAMPLING_KEY = "collect.sampling_key", Kind::Secret, "", [],
        "key of the hash that decides by its id whether a request is kept, so that callers cannot; the same for all replicas";
}
