//! How busy a replica is, at one moment.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The busy signal of one replica as it crosses the wire (`GET /busy`).
///
/// Router and replica do not know each other's code: they meet here. Members that a reader does not know are
/// skipped, so that replicas of a newer version can be read. Counters start at zero with each
/// [`epoch`](Self::epoch) and only grow. Every number is finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BusySnapshot {
    /// When this process started, in milliseconds since 1970 (below 2⁵³). Another value means that the
    /// counters began anew.
    pub epoch: u64,
    /// Time since the process started, in seconds.
    pub uptime_seconds: f64,
    /// Calls that the replica accepts to execute at once, whatever is loaded at the moment.
    pub slots: u32,
    /// Calls that occupy a slot now.
    pub executing: u32,
    /// Calls that were admitted and wait for a slot now.
    pub queued: u32,
    /// How long the call at the head of the queue has waited, in seconds; absent when nothing waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wait_seconds: Option<f64>,
    /// Whether at least one call is executing or queued.
    pub busy: bool,
    /// Occupied slots over slots, from 0 to 1.
    pub utilisation: f64,
    /// Time during which the replica was busy, integrated over the clock, in seconds.
    pub busy_seconds: f64,
    /// Number of calls executing or queued, integrated over the clock: call-seconds. Its growth over a stretch of time,
    /// divided by that time, is the mean number of calls that were here.
    #[serde(default)]
    pub call_seconds: f64,
    /// How long ago a call was here last, or the process started, in seconds; 0 while busy. To a quarter of a second.
    #[serde(default)]
    pub idle_seconds: f64,
    /// Calls that came, refused ones counted in.
    pub arrived: u64,
    /// Calls that were refused because no slot or place in the queue was free in time.
    pub refused: u64,
    /// Calls that were answered with a result.
    pub answered: u64,
    /// Calls that were admitted and ended without a result.
    pub failed: u64,
    /// Calls that were admitted and whose client went away before they were executed.
    pub cancelled: u64,
    /// Calls that were admitted and whose deadline was over before they were executed.
    #[serde(default)]
    pub expired: u64,
    /// Time spent in slots by all finished calls together, in seconds, waiting not counted.
    pub service_seconds_sum: f64,
    /// Finished calls in [`service_seconds_sum`](Self::service_seconds_sum).
    pub service_count: u64,
    /// Whether a model or the script is being loaded.
    pub loading: bool,
    /// Whether the replica is ending and takes no new calls.
    pub draining: bool,
    /// Whether the replica takes calls.
    pub ready: bool,
    /// The last second.
    #[serde(default)]
    pub second: Window,
    /// The last second too, or as much more as it took until ten calls had ended, up to 16 seconds: where calls are slow or
    /// rare, rates of a single second say little.
    #[serde(default)]
    pub recent: Window,
}

/// What happened in a stretch of time that ended at most a quarter of a second ago. All zero before the first one has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Window {
    /// Its length.
    pub seconds: f64,
    /// Calls that came, refused ones counted in, per second.
    pub arrived: f64,
    /// Calls that ended with a result or failed, per second.
    pub ended: f64,
    /// Calls that failed, were refused or expired, per second.
    pub errors: f64,
    /// Mean number of calls executing or queued.
    pub calls: f64,
}

impl BusySnapshot {
    /// Mean number of calls here over the slots: how much is asked of the replica. Above 1 calls queue. What a load balancer
    /// needs, where [`utilisation`](Self::utilisation) is the same for a replica that is just full and one with a long queue.
    pub fn load(&self) -> f64 {
        let calls = if self.recent.seconds > 0.0 {
            self.recent.calls
        } else {
            f64::from(self.executing + self.queued)
        };
        calls / f64::from(self.slots.max(1))
    }

    /// Calls that would be here if none were refused: the mean number, or what arrives times how long one takes, if that is more.
    pub fn demand(&self) -> f64 {
        let arriving = self.recent.arrived * self.mean_service_seconds().unwrap_or(0.0);
        (self.load() * f64::from(self.slots.max(1))).max(arriving)
    }

    /// Mean time that a call spends in its slot, in seconds; `None` before the first one has finished.
    pub fn mean_service_seconds(&self) -> Option<f64> {
        (self.service_count > 0).then(|| self.service_seconds_sum / self.service_count as f64)
    }

    /// Slots that are not occupied.
    pub fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(self.executing)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn snapshot() -> BusySnapshot {
        BusySnapshot {
            epoch: 1_700_000_000_123,
            uptime_seconds: 12.5,
            slots: 4,
            executing: 3,
            queued: 2,
            oldest_wait_seconds: Some(0.25),
            busy: true,
            utilisation: 0.75,
            busy_seconds: 7.5,
            call_seconds: 20.0,
            idle_seconds: 0.0,
            arrived: 20,
            refused: 1,
            answered: 13,
            failed: 1,
            cancelled: 0,
            expired: 0,
            service_seconds_sum: 3.5,
            service_count: 14,
            loading: false,
            draining: false,
            ready: true,
            second: Window { seconds: 1.0, arrived: 5.0, ended: 3.0, errors: 1.0, calls: 6.0 },
            recent: Window { seconds: 4.0, arrived: 40.0, ended: 2.5, errors: 0.5, calls: 5.0 },
        }
    }

    #[test]
    fn the_signal_survives_the_wire() {
        let text = serde_json::to_string(&snapshot()).unwrap();
        assert_eq!(serde_json::from_str::<BusySnapshot>(&text).unwrap(), snapshot());
        let idle = BusySnapshot { oldest_wait_seconds: None, ..snapshot() };
        let text = serde_json::to_string(&idle).unwrap();
        assert!(!text.contains("oldest_wait"), "{text}");
        assert_eq!(serde_json::from_str::<BusySnapshot>(&text).unwrap(), idle);
    }

    #[test]
    fn what_a_newer_replica_adds_is_skipped() {
        let text = serde_json::to_string(&snapshot()).unwrap().replacen('{', r#"{"lanes":[1],"#, 1);
        assert_eq!(serde_json::from_str::<BusySnapshot>(&text).unwrap(), snapshot());
    }

    #[test]
    fn what_an_older_replica_lacks_is_zero() {
        let text = serde_json::to_string(&snapshot()).unwrap();
        let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
        for name in ["call_seconds", "idle_seconds", "second", "recent"] {
            old.as_object_mut().unwrap().remove(name).unwrap();
        }
        let read: BusySnapshot = serde_json::from_value(old).unwrap();
        assert_eq!((read.call_seconds, read.recent), (0.0, Window::default()));
        assert_eq!(read.load(), 5.0 / 4.0, "the counts, where there is no window");
    }

    #[test]
    fn load_and_demand() {
        assert_eq!(snapshot().load(), 1.25);
        assert_eq!(snapshot().demand(), 10.0, "40 arrive in a second and take a quarter of one");
        let slow = BusySnapshot { recent: Window { arrived: 1.0, ..snapshot().recent }, ..snapshot() };
        assert_eq!(slow.demand(), 5.0);
    }

    #[test]
    fn derived_numbers() {
        assert_eq!(snapshot().mean_service_seconds(), Some(0.25));
        assert_eq!(snapshot().free_slots(), 1);
        let over = BusySnapshot { executing: 9, service_count: 0, ..snapshot() };
        assert_eq!((over.free_slots(), over.mean_service_seconds()), (0, None));
    }
}
