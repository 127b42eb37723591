//! The table of limits in `docs/limits.md`, and those of its rows that other tests hold.

use outrigger_runtime::config::key::{self, Key};
use outrigger_testkit::repository;

/// Where a limit comes from.
pub(super) enum Source {
    /// The key whose default it is.
    Key(&'static Key),
    /// A key of the tables `[callers.NAME]`.
    OfCaller(&'static Key),
    /// It is always the same: how much, and why.
    Fixed(&'static str, &'static str),
}

pub(super) const fn of(key: &'static Key) -> Source {
    Source::Key(key)
}

/// A row of the table.
pub(super) struct Row {
    pub(super) limit: &'static str,
    pub(super) source: Source,
    /// What a caller gets who goes beyond it.
    pub(super) beyond: &'static str,
}

/// A key's default, which may depend on others.
fn default(key: &Key) -> String {
    let told = || {
        let (_, told) = key.doc.split_once("[default: ")?;
        Some(format!("`{}`", told.trim_end_matches(']')))
    };
    match key.default {
        "" => told().unwrap_or_else(|| "none".into()),
        default => format!("`{default}`"),
    }
}

impl Row {
    fn text(&self) -> String {
        let Self { limit, source, beyond } = self;
        let (number, key) = match source {
            Source::Key(key) => (default(key), format!("`{}`", key.name)),
            Source::OfCaller(key) => (default(key), format!("`{}` of a [caller](callers.md)", key.name)),
            Source::Fixed(number, why) => ((*number).to_owned(), format!("fixed: {why}")),
        };
        format!("| {limit} | {number} | {key} | {beyond} |\n")
    }
}

/// The whole of it.
pub(crate) fn table() -> String {
    let rows = super::HERE.iter().chain(ELSEWHERE.iter().map(|(row, _, _)| row));
    let rows: String = rows.map(Row::text).collect();
    format!("| limit | number | key | beyond it |\n|---|---|---|---|\n{rows}")
}

/// Rows that are held by tests which are about more than the limit: the row, the file, and the test.
const ELSEWHERE: &[(Row, &str, &str)] = &[
    (
        Row {
            limit: "time of a TLS handshake",
            source: of(key::TLS_HANDSHAKE_TIMEOUT),
            beyond: "the connection is closed",
        },
        "cli/tests/it/tls/handshakes.rs",
        "a_handshake_that_does_not_go_on_is_cut_and_keeps_nobody_out",
    ),
    (
        Row { limit: "all bodies together", source: of(key::LIMITS_BODIES), beyond: "503 `overloaded`" },
        "cli/tests/it/bad_input.rs",
        "all_bodies_together_have_a_limit",
    ),
    (
        Row {
            limit: "deadline of a request",
            source: Source::Fixed("24 h", "longer ones count as that"),
            beyond: "400 `bad_request` for what is no time",
        },
        "cli/tests/it/scheduling.rs",
        "what_a_request_says_of_its_urgency_is_checked",
    ),
    (
        Row {
            limit: "fields, and parts, of a form that a script reads",
            source: Source::Fixed("1000", "as in the worker"),
            beyond: "400 `bad_request`",
        },
        "entry-scripts/tests/test_raw.py",
        "test_requests_that_are_not_what_the_script_expects",
    ),
    (
        Row {
            limit: "outputs of a call of a model, and tensors as text",
            source: of(key::LIMITS_ANSWER),
            beyond: "400 `invalid_tensor`",
        },
        "cli/tests/it/bad_input.rs",
        "outputs_have_a_limit_too",
    ),
    (
        Row {
            limit: "answer of a script",
            source: of(key::LIMITS_ANSWER),
            beyond: "500 `script_result_unserialisable`",
        },
        "cli/tests/it/bad_input.rs",
        "scripts_that_misbehave_cost_their_own_call_only",
    ),
    (
        Row {
            limit: "all answers that nobody has taken yet",
            source: of(key::LIMITS_ANSWERS),
            beyond: "503 `overloaded` for further calls",
        },
        "cli/tests/it/bad_input.rs",
        "answers_that_nobody_takes_have_a_limit_and_a_time",
    ),
    (
        Row {
            limit: "time in which a client takes nothing of an answer, over HTTP/2 too",
            source: of(key::LIMITS_WRITE_TIMEOUT),
            beyond: "the connection is closed",
        },
        "cli/tests/it/bad_input.rs",
        "over_http2_too_an_answer_that_nobody_takes_has_a_time",
    ),
    (
        Row {
            limit: "time in which a client takes nothing of a script's stream",
            source: of(key::SCRIPT_STALL_TIMEOUT),
            beyond: "the stream is broken off",
        },
        "cli/tests/it/streaming.rs",
        "a_client_that_reads_nothing_for_too_long_loses_the_worker",
    ),
    (
        Row {
            limit: "time of one `run()`",
            source: of(key::SCRIPT_TIMEOUT),
            beyond: "500 `scoring_timeout`",
        },
        "cli/tests/it/bad_input.rs",
        "a_call_that_hangs_leaves_the_other_worker_alone",
    ),
    (
        Row {
            limit: "memory of the steps before and after a model",
            source: of(key::LIMITS_STEPS),
            beyond: "400 `invalid_tensor`",
        },
        "cli/tests/it/steps.rs",
        "what_steps_take_is_bounded",
    ),
    (
        Row {
            limit: "tensors between the nodes of an ensemble",
            source: of(key::LIMITS_ENSEMBLE),
            beyond: "400 `invalid_tensor`",
        },
        "cli/tests/it/ensembles/mod.rs",
        "what_goes_between_nodes_is_bounded",
    ),
    (
        Row {
            limit: "runs of an ensemble's models at once in a call",
            source: of(key::LIMITS_ENSEMBLE_RUNS),
            beyond: "further ones wait until others are over",
        },
        "runtime/src/models/graph/tests/residence.rs",
        "no_more_runs_are_under_way_than_may_be",
    ),
    (
        Row {
            limit: "memory of answers that are kept",
            source: of(key::CACHE_BYTES),
            beyond: "those that are asked for least make way",
        },
        "runtime/src/cache/tests.rs",
        "bytes_are_bounded_whatever_comes",
    ),
    (
        Row { limit: "an answer that is kept", source: of(key::CACHE_ANSWER), beyond: "it is not kept" },
        "cli/tests/it/cache.rs",
        "bytes_are_bounded_and_large_answers_are_not_kept",
    ),
    (
        Row {
            limit: "calls that wait for others' runs",
            source: of(key::CACHE_WAITING),
            beyond: "further ones are run themselves",
        },
        "runtime/src/cache/tests.rs",
        "so_many_wait_and_further_ones_run_themselves",
    ),
    (
        Row {
            limit: "calls of a second",
            source: Source::OfCaller(key::CALLER_RATE),
            beyond: "429 `rate_limited`, with `Retry-After`",
        },
        "cli/tests/it/policy.rs",
        "a_rate_is_held_over_both_contracts_and_the_refusal_says_when_to_come_back",
    ),
    (
        Row {
            limit: "calls in the house",
            source: Source::OfCaller(key::CALLER_CONCURRENCY),
            beyond: "429 `too_many_calls`",
        },
        "cli/tests/it/policy.rs",
        "places_are_held_while_calls_run_and_wait_and_are_free_when_an_answer_is_there",
    ),
    (
        Row {
            limit: "calls that wait for a model to be loaded",
            source: of(key::RESIDENCY_WAITERS),
            beyond: "503 `overloaded`",
        },
        "cli/tests/it/residency.rs",
        "who_cannot_wait_is_told_when_to_come_again_and_the_load_goes_on",
    ),
    (
        Row {
            limit: "head of another server's answer, and what that may be ahead of the client",
            source: of(key::UPSTREAM_WINDOW),
            beyond: "502 `upstream_failed`; it waits",
        },
        "cli/tests/it/upstream/faults.rs",
        "each_fault_has_its_own_error_and_the_next_call_its_own_chance",
    ),
    (
        Row {
            limit: "time in which another server begins with its answer",
            source: of(key::UPSTREAM_TIMEOUT),
            beyond: "500 `scoring_timeout`",
        },
        "cli/tests/it/upstream/slots.rs",
        "a_time_limit_that_is_over_ends_the_call_there_too",
    ),
    (
        Row {
            limit: "time for which a body may pause that is passed on to it",
            source: of(key::UPSTREAM_PAUSE_TIMEOUT),
            beyond: "408 `body_timeout`",
        },
        "cli/tests/it/upstream/streams.rs",
        "a_sender_that_stops_does_not_hold_a_slot_for_long",
    ),
    (
        Row {
            limit: "time in which a client takes nothing of its answer",
            source: of(key::UPSTREAM_STALL_TIMEOUT),
            beyond: "the answer is broken off",
        },
        "cli/tests/it/upstream/streams.rs",
        "what_a_client_does_not_take_is_not_produced",
    ),
    (
        Row {
            limit: "readers of the busy signal, and of health",
            source: of(key::OBSERVE_WATCHERS),
            beyond: "503 `overloaded`; over gRPC RESOURCE_EXHAUSTED",
        },
        "cli/tests/it/busy.rs",
        "watchers_are_limited_and_leave_with_the_replica",
    ),
    (
        Row {
            limit: "descriptions that are put together at once",
            source: of(key::OPENAPI_AT_ONCE),
            beyond: "503 `overloaded`",
        },
        "runtime/src/http/openapi/mod.rs",
        "no_more_are_put_together_at_once_than_may_be",
    ),
    (
        Row {
            limit: "bytes of a description that are about models",
            source: of(key::OPENAPI_BYTES),
            beyond: "it has fewer of them at a time; one that does not fit by itself is there without its tensors",
        },
        "cli/tests/it/openapi/models.rs",
        "a_description_has_so_many_bytes_about_models",
    ),
    (
        Row {
            limit: "gRPC message on `observe.listen`",
            source: of(key::OBSERVE_MESSAGE),
            beyond: "OUT_OF_RANGE",
        },
        "cli/tests/it/busy.rs",
        "a_request_that_is_too_large_is_refused",
    ),
    (
        Row {
            limit: "state and baggage of a request's trace",
            source: Source::Fixed("512 and 8192 bytes", "what W3C has anybody pass on"),
            beyond: "they are not passed on",
        },
        "runtime/src/telemetry/context.rs",
        "state_and_baggage_are_bounded",
    ),
    (
        Row {
            limit: "lines of the log of one kind in a second",
            source: of(key::LOG_RATE),
            beyond: "they are left out and counted",
        },
        "cli/tests/it/telemetry/lines.rs",
        "a_flood_of_refused_requests_does_not_fill_the_log",
    ),
    (
        Row {
            limit: "bytes of lines that are kept for `outrigger logs`",
            source: of(key::LOG_KEPT),
            beyond: "the oldest go",
        },
        "runtime/src/telemetry/kept.rs",
        "bytes_are_bounded_and_the_oldest_go",
    ),
    (
        Row {
            limit: "requests whose spans wait to be sent",
            source: of(key::TELEMETRY_QUEUE),
            beyond: "their spans are dropped and counted",
        },
        "cli/tests/it/telemetry/traces.rs",
        "a_collector_that_is_away_matters_to_no_call_and_all_spans_are_counted",
    ),
    (
        Row {
            limit: "models with series of their own",
            source: of(key::METRICS_MODELS),
            beyond: "they are summed up as `other`",
        },
        "cli/tests/it/telemetry/models.rs",
        "models_without_calls_make_way_for_those_with_and_nothing_goes_back",
    ),
];

#[test]
fn tests_that_hold_rows_elsewhere_are_there() {
    for (row, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(repository().join(file)).unwrap();
        let is_there = [format!("fn {test}("), format!("def {test}(")].iter().any(|head| text.contains(head));
        assert!(is_there, "`{}` is held by {file}::{test}, which is not there", row.limit);
    }
}

#[test]
fn every_key_of_limits_has_a_row() {
    // What is no matter of requests: the time of samples at the start, and how many models there may be.
    let others = [key::LIMITS_SAMPLE_TIMEOUT.name, key::LIMITS_MODELS.name];
    let table = table();
    for key in key::KEYS.iter().filter(|key| key.name.starts_with("limits.") && !others.contains(&key.name)) {
        assert!(table.contains(&format!("| {} | `{}` |", default(key), key.name)), "{} has no row", key.name);
    }
}
