//! The keys of `[backends.NAME]` that are about processes of its own.

use std::time::Duration;

use outrigger_device_host::{Limits, Timing};

use super::devices::{BackendConfig, ProcessKind};
use super::key::{self, Key};
use super::value::Value;
use super::{Mistake, NamedSection, Origin, Section};

/// How the processes of a backend's devices are held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Calls at once, if that is said.
    pub max_calls: Option<usize>,
    /// The other limits.
    pub limits: Limits,
    /// Times.
    pub timing: Timing,
}

/// Longer than this, whoever looks for what comes next costs a processor.
const MOST_SPIN: Duration = Duration::from_millis(10);

/// The keys that say nothing of a backend in the replica's own process.
const KEYS: &[&Key] = &[
    key::BACKEND_MAX_CALLS,
    key::BACKEND_CALL_WAIT,
    key::BACKEND_MAX_CALL_BYTES,
    key::BACKEND_INLINE_BYTES,
    key::BACKEND_KEPT_BYTES,
    key::BACKEND_KEPT_REGIONS,
    key::BACKEND_MAX_MODELS,
    key::BACKEND_MAX_INSTANCES,
    key::BACKEND_SPIN,
    key::BACKEND_START_TIMEOUT,
    key::BACKEND_STATUS_TIMEOUT,
    key::BACKEND_REQUEST_TIMEOUT,
    key::BACKEND_LOAD_TIMEOUT,
    key::BACKEND_CANCEL_GRACE,
    key::BACKEND_IDLE_TIMEOUT,
    key::BACKEND_END_GRACE,
    key::BACKEND_RESTART_BACKOFF,
    key::BACKEND_RESTART_BACKOFF_MAX,
    key::BACKEND_RESTART_BACKOFF_RESET,
    key::BACKEND_QUARANTINE_DEATHS,
    key::BACKEND_QUARANTINE_WINDOW,
    key::BACKEND_QUARANTINE,
];

/// What a table says; the rest is as the device host has it.
pub(super) fn host(section: &Section) -> HostConfig {
    let value = |key: &Key| section.get(key.name).map(|setting| &setting.value);
    let count = |key: &Key| match value(key) {
        Some(Value::Count(count)) => usize::try_from(*count).ok(),
        _ => None,
    };
    let size = |key: &Key, usual: u64| match value(key) {
        Some(Value::Size(size)) => *size,
        _ => usual,
    };
    let time = |key: &Key, usual: Duration| match value(key) {
        Some(Value::Duration(time)) => *time,
        _ => usual,
    };
    let (limits, timing) = (Limits::default(), Timing::default());
    HostConfig {
        max_calls: count(key::BACKEND_MAX_CALLS),
        limits: Limits {
            connections: count(key::BACKEND_MAX_CALLS).unwrap_or(limits.connections),
            connection_wait: time(key::BACKEND_CALL_WAIT, limits.connection_wait),
            call_bytes: size(key::BACKEND_MAX_CALL_BYTES, limits.call_bytes),
            inline_bytes: usize::try_from(size(key::BACKEND_INLINE_BYTES, limits.inline_bytes as u64))
                .unwrap_or(limits.inline_bytes),
            kept_bytes: size(key::BACKEND_KEPT_BYTES, limits.kept_bytes),
            kept_regions: count(key::BACKEND_KEPT_REGIONS).unwrap_or(limits.kept_regions),
            models: count(key::BACKEND_MAX_MODELS).unwrap_or(limits.models),
            instances: count(key::BACKEND_MAX_INSTANCES).unwrap_or(limits.instances),
        },
        timing: Timing {
            spin: time(key::BACKEND_SPIN, timing.spin),
            start: time(key::BACKEND_START_TIMEOUT, timing.start),
            answer: time(key::BACKEND_STATUS_TIMEOUT, timing.answer),
            request: time(key::BACKEND_REQUEST_TIMEOUT, timing.request),
            reload: time(key::BACKEND_LOAD_TIMEOUT, timing.reload),
            cancel_grace: time(key::BACKEND_CANCEL_GRACE, timing.cancel_grace),
            idle: time(key::BACKEND_IDLE_TIMEOUT, timing.idle),
            end_grace: time(key::BACKEND_END_GRACE, timing.end_grace),
            backoff: time(key::BACKEND_RESTART_BACKOFF, timing.backoff),
            backoff_most: time(key::BACKEND_RESTART_BACKOFF_MAX, timing.backoff_most),
            served_well: time(key::BACKEND_RESTART_BACKOFF_RESET, timing.served_well),
            deaths: count(key::BACKEND_QUARANTINE_DEATHS).unwrap_or(timing.deaths),
            deaths_within: time(key::BACKEND_QUARANTINE_WINDOW, timing.deaths_within),
            quarantine: time(key::BACKEND_QUARANTINE, timing.quarantine),
        },
    }
}

/// What is wrong with it. `threads` are those of each device, as far as the configuration says.
pub(super) fn mistakes(
    name: &str,
    named: &NamedSection,
    table: &BackendConfig,
    process: ProcessKind,
    threads: Option<(&str, usize)>,
) -> Vec<Mistake> {
    let said = |key: &Key| named.section.get(key.name).map(|setting| &setting.origin);
    let mut mistakes = Vec::new();
    let mut mistake = |origin: &Origin, problem: String| {
        mistakes.push(Mistake { origin: origin.to_string(), problem });
    };
    if process == ProcessKind::In {
        for (key, origin) in KEYS.iter().filter_map(|key| Some((key, said(key)?))) {
            let problem = format!(
                "`backends.{name}.{}` is about a process of its own, which `{name}` has not; set `backends.{name}.process = \"out\"`, or take it out",
                key.name
            );
            mistake(origin, problem);
        }
        return mistakes;
    }
    let timing = &table.host.timing;
    if let Some((origin, spin)) = said(key::BACKEND_SPIN).map(|origin| (origin, timing.spin))
        && spin > MOST_SPIN
    {
        mistake(origin, format!("`backends.{name}.spin` is {spin:?}, {MOST_SPIN:?} is the most"));
    }
    let pauses = [key::BACKEND_RESTART_BACKOFF, key::BACKEND_RESTART_BACKOFF_MAX];
    if let Some(origin) = pauses.into_iter().find_map(said)
        && timing.backoff > timing.backoff_most
    {
        let (first, most) = (timing.backoff, timing.backoff_most);
        mistake(
            origin,
            format!(
                "`backends.{name}.restart_backoff` is {first:?}, more than `backends.{name}.restart_backoff_max`, {most:?}"
            ),
        );
    }
    if let (Some(calls), Some((key, threads))) = (table.host.max_calls, threads)
        && calls < threads
        && let Some(origin) = said(key::BACKEND_MAX_CALLS)
    {
        mistake(
            origin,
            format!("`backends.{name}.max_calls` is {calls}, fewer than the {threads} threads of `{key}`"),
        );
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::super::key::BACKEND_KEYS;
    use super::*;
    use crate::config::Setting;

    #[test]
    fn every_key_of_a_process_has_a_default_that_is_the_device_host_s() {
        let mut section = Section::new();
        for key in KEYS.iter().filter(|key| key.name != "max_calls") {
            let value = key.kind.parse(key.default).unwrap_or_else(|| panic!("{}", key.name));
            section.insert(key.name, Setting { value, origin: Origin::Default });
        }
        assert_eq!(host(&section), HostConfig::default());
        let general = BACKEND_KEYS.iter().filter(|key| KEYS.iter().all(|of| of.name != key.name));
        let general: Vec<_> = general.map(|key| key.name).collect();
        assert_eq!(general, ["library", "process", "threads", "memory", "settings"]);
    }

    #[test]
    fn each_key_changes_one_thing() {
        for key in KEYS {
            let text = match key.kind {
                super::super::Kind::Count { .. } => "7",
                super::super::Kind::Size { .. } => "7B",
                _ => "7ms",
            };
            let value = key.kind.parse(text).unwrap();
            let section = Section::from([(key.name, Setting { value, origin: Origin::Default })]);
            let (changed, usual) =
                (format!("{:#?}", host(&section)), format!("{:#?}", HostConfig::default()));
            let lines = changed.lines().filter(|line| usual.lines().all(|usual| usual != *line));
            let lines: Vec<_> = lines.map(str::trim).collect();
            // One of them is there twice, the first over three lines.
            let most = if key.name == "max_calls" { 4 } else { 1 };
            assert!(!lines.is_empty() && lines.len() <= most, "{}: {lines:?}", key.name);
            assert!(lines.iter().any(|line| line.contains('7')), "{}: {lines:?}", key.name);
        }
    }
}
