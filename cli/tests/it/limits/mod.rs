//! Every limit on what comes from outside: the table of them in `docs/limits.md`, and one test for each row. A row cannot be there without its test,
//! for it is the row that makes the test. Those that tests of other subjects hold are in [`table`].

mod compressed;
mod connections;
mod idle;
mod json;
mod memory;
mod requests;
mod streams;
mod table;
mod tensors;
mod waiting;

use outrigger_runtime::config::key;
use std::io::ErrorKind;
use std::net::TcpStream;

use outrigger_testkit::{Launch, ReplicaProcess};

use crate::support::client;
use table::Source::{Fixed, OfCaller};
pub(crate) use table::table;
use table::{Row, of};

/// Memory that a replica has in use, bytes.
fn resident(replica: &ReplicaProcess) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", replica.pid())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A metric, by its name and labels with a space behind them; 0 where it is not there.
async fn metric(replica: &ReplicaProcess, name: &str) -> usize {
    let metrics = client().get(format!("{}/metrics", replica.observe)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.parse().unwrap())
}

/// Bytes of answers that clients have not taken.
async fn held(replica: &ReplicaProcess) -> usize {
    metric(replica, "outrigger_answer_bytes ").await
}

/// Two replicas that differ in one time alone: in the first it is longer than any test, in the second it is short. If the same is begun in both, in
/// this order, and over in the second alone, then that time is why, however slow the machine is. What a test itself does within the short one is some
/// milliseconds of work.
fn long_and_short(launch: impl Fn() -> Launch, flag: &str) -> [ReplicaProcess; 2] {
    ["1h", "2s"].map(|time| launch().args([flag, time]).start())
}

/// Whether the connection is open, and nothing has been said on it that was not read.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

macro_rules! rows {
    ($($limit:literal, $source:expr, $beyond:literal => $module:ident::$test:ident;)*) => {
        const HERE: &[Row] = &[$(Row { limit: $limit, source: $source, beyond: $beyond }),*];

        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            $module::$test().await;
        })*
    };
}

rows! {
    "request body; gRPC message", of(key::LIMITS_BODY), "413 `body_too_large`; over gRPC RESOURCE_EXHAUSTED"
        => requests::body;
    "what a compressed one becomes", of(key::LIMITS_BODY), "413 `body_too_large`"
        => compressed::inflated;
    "times as long as what was sent that it may become, beyond 64 KiB", of(key::LIMITS_INFLATE), "413 `body_too_large`"
        => compressed::ratio;
    "codings of a body for a model, and of a gRPC message", Fixed("identity, gzip of one member, deflate", "others are not understood"),
        "415 `unsupported_media_type`; over gRPC UNIMPLEMENTED, with `grpc-accept-encoding`"
        => compressed::codings;
    "parts of a multipart body, for a model", Fixed("0", "it is JSON; a script has any body"), "415 `unsupported_media_type`"
        => compressed::parts;
    "time in which a body, or a message that has begun, comes", of(key::LIMITS_BODY_TIMEOUT),
        "408 `body_timeout`; over gRPC DEADLINE_EXCEEDED"
        => requests::body_timeout;
    "body, or message, that is no call", of(key::LIMITS_MESSAGE), "413 `body_too_large`"
        => requests::small_messages;
    "gRPC message of health, for which no key is needed", Fixed("1 KiB", "anybody may send it"), "RESOURCE_EXHAUSTED `body_too_large`"
        => requests::health_messages;
    "URL and headers", of(key::LIMITS_HEADER), "431 `header_too_large`; far beyond, the connection is closed"
        => requests::header_block;
    "headers", Fixed("100", "what the parser of HTTP/1.1 has room for"), "431, over HTTP/1.1 without a code"
        => requests::headers;
    "each of `x-request-id`, `x-ms-request-id`, `x-ms-client-request-id`", Fixed("100 characters", "AzureML's contract"),
        "431 `request_id_too_long`"
        => requests::identifiers;
    "key of a caller", Fixed("512 characters", "longer ones cannot be configured"), "401 `unauthenticated`"
        => requests::keys;
    "connections of a listener", of(key::LIMITS_CONNECTIONS), "further ones wait in the kernel"
        => connections::connections;
    "requests at once on an HTTP/2 connection", of(key::LIMITS_STREAMS), "REFUSED_STREAM"
        => connections::streams;
    "bytes that an HTTP/2 request may be ahead of its reader", of(key::LIMITS_STREAM_WINDOW), "the client waits"
        => connections::stream_window;
    "the same of all on the connection", of(key::LIMITS_CONNECTION_WINDOW), "the client waits"
        => connections::connection_window;
    "requests of an HTTP/2 connection that are cancelled before they are taken", Fixed("20", "against floods of them"),
        "ENHANCE_YOUR_CALM, and the connection is closed"
        => connections::resets;
    "frames of bodies without a byte, on an HTTP/2 connection", Fixed("100", "against floods of them"),
        "ENHANCE_YOUR_CALM, and the connection is closed"
        => connections::empty_frames;
    "what frames of bodies lack of 256 bytes each, while nobody reads them, on an HTTP/2 connection",
        Fixed("half of `limits.connection_window`", "against floods of them"), "ENHANCE_YOUR_CALM, and the connection is closed"
        => connections::crumbs;
    "time in which an HTTP/2 client says nothing, and then does not answer a ping", of(key::LIMITS_SILENCE), "the connection is closed"
        => connections::silence;
    "time for which nothing is asked on a connection", of(key::LIMITS_IDLE), "it is closed; over HTTP/2 with a GOAWAY, and what comes before that is heard of is answered"
        => idle::idle;
    "time in which URL and headers come, on any kind of socket; over HTTP/2, its preface", of(key::LIMITS_HEADER_TIMEOUT), "the connection is closed"
        => idle::heads;
    "time in which headers of HTTP/2 that have begun make no end, and then as long again", of(key::LIMITS_SILENCE), "the connection is closed, for before their end no ping can be answered"
        => idle::heads_of_http2;
    "bytes of all inputs of a call of a model", of(key::LIMITS_ANSWER), "400 `invalid_tensor`"
        => tensors::bytes;
    "elements of a tensor", of(key::LIMITS_ELEMENTS), "400 `invalid_tensor`"
        => tensors::elements;
    "product of the extents, before memory is taken", Fixed("64 bits", "the machine's"), "400 `invalid_tensor`"
        => tensors::product;
    "dimensions of a tensor", of(key::LIMITS_RANK), "400 `invalid_tensor`"
        => tensors::rank;
    "inputs, and outputs that are asked for", Fixed("as many as the model has", "each once"), "400 `invalid_tensor`"
        => tensors::count;
    "length that a string of `BYTES` says", Fixed("what there is of its tensor", "the format's"), "400 `invalid_tensor`"
        => tensors::strings;
    "arrays and objects inside each other in JSON, data apart", of(key::LIMITS_DEPTH), "400 `malformed_json`"
        => json::depth;
    "numbers of a tensor", Fixed("what its datatype can say", "however many digits they have"), "400 `invalid_tensor`"
        => json::numbers;
    "`id` of a call", of(key::LIMITS_ID), "400 `bad_request`"
        => json::id;
    "characters of a name that an error repeats", Fixed("64", "it is for reading"), "the rest is left out"
        => json::names;
    "parameters that are not known", Fixed("what fits into the body", "none is kept"), "413 `body_too_large`"
        => json::parameters;
    "length of the JSON, and of what lies behind it, that a request says", Fixed("what there is", "the format's"),
        "400 `bad_request`, `invalid_tensor`"
        => json::lengths;
    "regions of shared memory", of(key::SCORE_SHARED_MEMORY_REGIONS), "503 `overloaded`"
        => memory::regions;
    "name of one", Fixed("255 bytes", "a file's"), "400 `bad_request`"
        => memory::region_names;
    "part of one", Fixed("what there is", "it may be cut short at any time"), "400 `bad_request`"
        => memory::slices;
    "requests of a gRPC stream that are worked on at once", of(key::SCORE_STREAM_CALLS), "further ones are not read before"
        => streams::calls;
    "time in which a client takes nothing of a gRPC stream", of(key::LIMITS_WRITE_TIMEOUT), "the connection is closed"
        => streams::untaken;
    "time in which a gRPC stream finishes its calls once the replica ends", of(key::SHUTDOWN_DRAIN),
        "UNAVAILABLE `draining` at once for what has not come yet"
        => streams::drained;
    "calls of a second in a gRPC stream", OfCaller(key::CALLER_RATE), "an answer in the stream with the code `rate_limited`"
        => streams::rate;
    "calls in the house of a gRPC stream", OfCaller(key::CALLER_CONCURRENCY), "an answer in the stream with the code `too_many_calls`"
        => streams::concurrency;
    "calls that wait for a slot", of(key::QUEUE_ITEMS), "503 `overloaded`, with `Retry-After`"
        => waiting::queued_items;
    "bytes of their bodies", of(key::QUEUE_BYTES), "503 `overloaded`, with `Retry-After`"
        => waiting::queued_bytes;
    "time for which they wait", of(key::QUEUE_WAIT), "503 `overloaded`, with `Retry-After`"
        => waiting::queue_wait;
}
