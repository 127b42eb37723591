//! What has happened to models: events for who listens and who asks later, and how the last load of each went.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::broadcast;

use crate::fetching::Brought;

/// Something that has happened to a model.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct ModelEvent {
    /// Its number; the next event has the next one.
    pub number: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// What.
    pub event: Happening,
    /// Bytes that it holds, or held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What can happen to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// Its files are being fetched.
    Fetching,
    /// They are here, complete and verified.
    Fetched,
    /// A load has been asked for.
    Queued,
    /// It is being loaded.
    Loading,
    /// It is tried with its samples.
    Warming,
    /// Calls can have it.
    Ready,
    /// It did not load.
    Failed,
    /// It takes no more calls, and leaves once those are through which have it.
    Draining,
    /// It has left because somebody asked for that.
    Unloaded,
    /// It has made way for another.
    Evicted,
    /// Its files have left the disk so that there is room for others.
    PutAway,
    /// It does not make way from now on.
    Pinned,
    /// It may make way again.
    Unpinned,
    /// A version takes the place of another: calls have it from now on.
    Switched,
    /// Calls have the one before it again: it did worse.
    Returned,
    /// It did no worse than the one before it, and stays.
    Confirmed,
    /// It cannot take the place of another.
    Refused,
    /// It is not served any more.
    Retired,
    /// Models are loaded again and again that have just made way.
    Thrashing,
}

/// How a load went, or goes.
#[derive(Clone, Debug, Default, Serialize, schemars::JsonSchema)]
pub struct Timeline {
    /// When it was asked for, milliseconds since 1970.
    pub asked_ms: u64,
    /// Seconds that it took to have its files here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch: Option<f64>,
    /// Bytes of them that came from the storage; the others were in the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetched_bytes: Option<u64>,
    /// Seconds that threads worked on their digests, while others came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<f64>,
    /// Bytes of which digests were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_bytes: Option<u64>,
    /// Seconds until a thread came to it.
    pub queued: Option<f64>,
    /// Seconds until there was room on a device, others making way.
    pub room: Option<f64>,
    /// Seconds that its device took to load it.
    pub load: Option<f64>,
    /// Seconds that its samples took.
    pub warm: Option<f64>,
    /// Bytes that it holds.
    pub bytes: Option<u64>,
    /// Why it did not load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Timeline {
    /// Seconds that all of it took so far.
    pub(super) fn seconds(&self) -> f64 {
        [self.fetch, self.queued, self.room, self.load, self.warm].into_iter().flatten().sum()
    }
}

/// A load of which the times are being taken.
struct Clock {
    timeline: Timeline,
    /// When the step that it is at began.
    since: Instant,
}

/// The steps of a load, each ended by what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Fetch,
    Queued,
    Room,
    Load,
    Warm,
}

pub(super) struct History {
    past: Mutex<Past>,
    live: broadcast::Sender<ModelEvent>,
    kept: usize,
}

struct Past {
    events: VecDeque<ModelEvent>,
    next: u64,
    clocks: Vec<Option<Clock>>,
}

impl History {
    /// Of so many models, with room for so many events.
    pub(super) fn new(models: usize, kept: usize) -> Self {
        let clocks = (0..models).map(|_| None).collect();
        let past = Past { events: VecDeque::new(), next: 1, clocks };
        Self { past: Mutex::new(past), live: broadcast::Sender::new(kept.clamp(16, 4096)), kept }
    }

    fn lock(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an event and tells who listens. Its number and time are set here.
    pub(super) fn add(&self, mut event: ModelEvent) {
        let mut past = self.lock();
        event.number = past.next;
        event.at_ms = now_ms();
        past.next += 1;
        if past.events.len() >= self.kept {
            past.events.pop_front();
        }
        past.events.push_back(event.clone());
        // Within the lock, so that who listens hears them in their order. Nobody may listen.
        let _ = self.live.send(event);
    }

    /// The events after that number which are kept, and those to come.
    pub(super) fn after(&self, number: u64) -> (Vec<ModelEvent>, broadcast::Receiver<ModelEvent>) {
        let past = self.lock();
        let kept = past.events.iter().filter(|event| event.number > number).cloned().collect();
        (kept, self.live.subscribe())
    }

    /// There is one more model by that number, of which nothing has happened yet.
    pub(super) fn begin(&self, model: usize) {
        let mut past = self.lock();
        let models = past.clocks.len().max(model + 1);
        past.clocks.resize_with(models, || None);
        past.clocks[model] = None;
    }

    /// A load of a model has been asked for.
    pub(super) fn asked(&self, model: usize) {
        let timeline = Timeline { asked_ms: now_ms(), ..Timeline::default() };
        if let Some(clock) = self.lock().clocks.get_mut(model) {
            *clock = Some(Clock { timeline, since: Instant::now() });
        }
    }

    /// A step of its load is over; gives how long it took.
    pub(super) fn over(&self, model: usize, step: Step) -> Duration {
        let mut past = self.lock();
        let Some(Some(clock)) = past.clocks.get_mut(model) else { return Duration::ZERO };
        let took = clock.since.elapsed();
        clock.since += took;
        let timeline = &mut clock.timeline;
        let place = match step {
            Step::Fetch => &mut timeline.fetch,
            Step::Queued => &mut timeline.queued,
            Step::Room => &mut timeline.room,
            Step::Load => &mut timeline.load,
            Step::Warm => &mut timeline.warm,
        };
        // Copies of one model are loaded one after the other.
        *place = Some(place.unwrap_or(0.0) + took.as_secs_f64());
        took
    }

    /// What was fetched for it.
    pub(super) fn fetched(&self, model: usize, brought: &Brought) {
        if let Some(Some(clock)) = self.lock().clocks.get_mut(model) {
            let timeline = &mut clock.timeline;
            let (bytes, took) = brought.verified;
            timeline.fetched_bytes = Some(brought.came);
            (timeline.verified_bytes, timeline.verify) = (Some(bytes), Some(took.as_secs_f64()));
        }
    }

    /// How a load has ended.
    pub(super) fn ended(&self, model: usize, ended: Result<u64, &str>) {
        let mut past = self.lock();
        let Some(Some(clock)) = past.clocks.get_mut(model) else { return };
        match ended {
            Ok(bytes) => clock.timeline.bytes = Some(bytes),
            Err(why) => clock.timeline.failure = Some(why.to_owned()),
        }
    }

    /// How the last load of a model went, if there was one.
    pub(super) fn timeline(&self, model: usize) -> Option<Timeline> {
        Some(self.lock().clocks.get(model)?.as_ref()?.timeline.clone())
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(model: &str) -> ModelEvent {
        ModelEvent {
            number: 0,
            at_ms: 0,
            model: model.into(),
            version: "1".into(),
            event: Happening::Ready,
            bytes: None,
            seconds: None,
            reason: None,
        }
    }

    #[test]
    fn events_are_numbered_kept_up_to_a_count_and_told() {
        let history = History::new(1, 3);
        let (before, mut live) = history.after(0);
        assert!(before.is_empty());
        (0..5).for_each(|number| history.add(event(&number.to_string())));
        let (kept, _) = history.after(0);
        assert_eq!(kept.iter().map(|event| event.number).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(history.after(4).0.len(), 1);
        let heard: Vec<_> = std::iter::from_fn(|| live.try_recv().ok()).map(|event| event.model).collect();
        assert_eq!(heard, ["0", "1", "2", "3", "4"]);
        let json = serde_json::to_value(&kept[0]).unwrap();
        assert_eq!((&json["event"], json.get("bytes")), (&"ready".into(), None));
    }

    #[test]
    fn a_load_has_its_steps_one_after_the_other() {
        let history = History::new(1, 3);
        assert!(history.timeline(0).is_none() && history.over(0, Step::Load) == Duration::ZERO);
        history.asked(0);
        for step in [Step::Queued, Step::Room, Step::Load, Step::Warm, Step::Load] {
            history.over(0, step);
        }
        history.ended(0, Ok(7));
        let seen = history.timeline(0).unwrap();
        assert!(seen.queued.is_some() && seen.room.is_some() && seen.load.is_some() && seen.warm.is_some());
        assert_eq!((seen.bytes, seen.failure), (Some(7), None));
        history.asked(0);
        history.ended(0, Err("no"));
        assert_eq!(history.timeline(0).unwrap().failure.as_deref(), Some("no"));
        history.asked(9);
        assert!(history.timeline(9).is_none());
    }
}
