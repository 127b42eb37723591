//! A model that is loaded, and its instances: a call goes to the one that has the fewest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::HeaderValue;
use outrigger_backend::{Instance, ModelInfo};
use prometheus::IntCounter;

use super::batch::Former;
use super::begun::Begun;
use super::health::DeviceHealth;
use super::lease::Door;
use super::statistics::Statistics;
use super::versions::Outcomes;
use super::wanted::Keeping;
use crate::cache::Identity;
use crate::placement::DeviceId;

/// A model that is loaded.
pub struct LoadedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its file format and library, as the Open Inference Protocol calls a platform.
    pub platform: String,
    /// Its inputs and outputs.
    pub info: Arc<ModelInfo>,
    /// The first of its instances; only an ensemble, which runs by those of others, has none.
    pub(super) first: Option<Arc<ModelInstance>>,
    /// The others.
    pub(super) others: Vec<Arc<ModelInstance>>,
    /// What its answers depend on beside their inputs, as it was loaded.
    pub(super) identity: Identity,
    /// Whether they are kept.
    pub(super) keeping: Keeping,
    /// How calls of its version go, if that is counted.
    pub(super) outcomes: Option<Arc<Outcomes>>,
    /// And how long they take.
    pub(super) statistics: Option<Arc<Statistics>>,
    /// Where calls go in and out.
    pub(super) door: Arc<Door>,
}

impl LoadedModel {
    /// Its instances.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &Arc<ModelInstance>> {
        self.first.iter().chain(&self.others)
    }

    /// What its answers depend on beside their inputs. A process of a device that was started again has read the files again.
    pub(super) fn identity(&self) -> Identity {
        let places = self.instances().filter_map(|instance| instance.place.as_ref());
        self.identity.after(places.map(|place| place.health.losses()).sum())
    }

    /// The devices that it is on, each once, in the order in which it came there.
    pub fn devices(&self) -> Vec<&DeviceId> {
        let mut devices = Vec::new();
        for instance in self.instances() {
            if let Some(place) = &instance.place
                && !devices.contains(&&place.device)
            {
                devices.push(&place.device);
            }
        }
        devices
    }

    /// Where the steps before and after it run, device by device, in sentences.
    pub fn steps(&self) -> Vec<String> {
        let mut steps = Vec::new();
        for instance in self.instances() {
            let device = instance.place.as_ref().map(|place| place.device.to_string()).unwrap_or_default();
            for said in instance.steps.iter().map(|said| format!("{device}: {said}")) {
                if !steps.contains(&said) {
                    steps.push(said);
                }
            }
        }
        steps
    }

    /// Bytes of device memory that it holds; 0 if not known.
    pub fn bytes_held(&self) -> u64 {
        self.instances().map(|instance| instance.bytes_held()).fold(0, u64::saturating_add)
    }

    /// A call of it begins, and is counted by how it ends.
    pub(crate) fn begin(&self) -> Begun {
        Begun::new(self.outcomes.clone())
    }

    /// Where the times of its calls are counted.
    pub(crate) fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_deref()
    }

    /// Whether one of its instances is where it can be used. Of an ensemble its models tell, each for itself.
    pub(crate) fn is_able(&self) -> bool {
        self.first.is_none() || self.instances().any(|instance| instance.is_usable())
    }

    /// The instance for the next call.
    pub(super) fn choose(&self) -> Option<&Arc<ModelInstance>> {
        if self.others.is_empty() {
            return self.first.as_ref();
        }
        let rank =
            |instance: &&Arc<ModelInstance>| (!instance.is_usable(), instance.calls.load(Ordering::Relaxed));
        self.instances().min_by_key(rank)
    }

    /// The same among those on a device that take tensors which stay there.
    pub(super) fn choose_on(&self, device: usize) -> Option<&Arc<ModelInstance>> {
        let there = self.instances().filter(|instance| instance.home() == Some(device));
        there
            .filter(|instance| instance.is_usable())
            .min_by_key(|instance| instance.calls.load(Ordering::Relaxed))
    }
}

/// A loaded copy of a model on a device.
pub(crate) struct ModelInstance {
    /// The model's name.
    pub(super) name: String,
    /// The model's inputs and outputs.
    pub(super) info: Arc<ModelInfo>,
    pub(super) instance: Arc<dyn Instance>,
    held: AtomicU64,
    /// Where calls wait for each other, if the model is said to batch.
    pub(super) former: Option<Former>,
    /// The number of its device among those that models are on.
    pub(super) device: usize,
    pub(super) place: Option<Place>,
    /// Whether what it takes and gives can stay on its device.
    pub(super) resides: bool,
    /// Where its steps run, in sentences.
    pub(super) steps: Vec<String>,
    /// Calls under way, where the model has other instances.
    pub(super) calls: AtomicUsize,
    pub(super) runs: IntCounter,
    /// Where runs of its version are counted.
    pub(super) statistics: Option<Arc<Statistics>>,
}

/// Where an instance is, and why.
pub(super) struct Place {
    pub(super) device: DeviceId,
    pub(super) health: Arc<DeviceHealth>,
    /// The same for the header of answers, with where it would have gone if that is elsewhere.
    pub(super) header: Option<HeaderValue>,
}

impl Place {
    pub(super) fn new(device: DeviceId, health: Arc<DeviceHealth>, fallback_from: Option<&str>) -> Self {
        let text = match fallback_from {
            None => device.to_string(),
            Some(from) => format!("{device}; fallback-from={from}"),
        };
        // Names of backends are such that they can stand in a header.
        Self { device, health, header: HeaderValue::try_from(text).ok() }
    }
}

impl ModelInstance {
    pub(super) fn new(
        name: &str,
        info: Arc<ModelInfo>,
        instance: Arc<dyn Instance>,
        place: Option<Place>,
        runs: IntCounter,
    ) -> Self {
        let (name, calls) = (name.to_owned(), AtomicUsize::new(0));
        let (held, steps) = (AtomicU64::new(0), Vec::new());
        let (former, statistics, device, resides) = (None, None, 0, false);
        Self { name, info, instance, held, former, device, place, resides, steps, calls, runs, statistics }
    }

    /// The device on which what it takes and gives can stay.
    pub(super) fn home(&self) -> Option<usize> {
        self.resides.then_some(self.device)
    }

    /// Whether its device can be used.
    fn is_usable(&self) -> bool {
        self.place.as_ref().is_none_or(|place| place.health.is_usable())
    }

    /// Its device was lost during a run.
    pub(super) fn note_lost(&self) {
        if let Some(place) = &self.place {
            place.health.suspect();
        }
    }

    /// Bytes of device memory that it holds, as they were told when it was loaded; 0 if not known. Asks nobody, so that who shows it
    /// does not wait for a device.
    pub(crate) fn bytes_held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Asks for the bytes that it holds.
    pub(super) fn measure(&self) {
        self.held.store(self.instance.bytes_held(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::models::lease::Door;
    use crate::models::picked::{Picked, Runs};
    use crate::models::residency::Residents;
    use crate::models::served::ServedModel;
    use crate::models::tests::{fake, fake_on};
    use crate::models::wanted::Wanted;

    /// Served and loaded, with these instances.
    fn served(instances: &[Arc<ModelInstance>]) -> ServedModel {
        let served = ServedModel::new(0, 1, Wanted::default(), (None, None), Instant::now());
        let (first, others) = instances.split_first().unwrap();
        served.put(Arc::new(LoadedModel {
            name: "m".into(),
            version: "1".into(),
            platform: String::new(),
            info: Arc::default(),
            first: Some(Arc::clone(first)),
            others: others.to_vec(),
            identity: Identity::of_this_load(),
            keeping: Keeping::Said(false),
            outcomes: None,
            statistics: None,
            door: Door::new(Arc::new(Residents::none())),
        }));
        served
    }

    #[test]
    fn a_call_goes_to_the_instance_with_the_fewest() {
        let instances: Vec<_> = (0..3).map(|_| fake("m")).collect();
        let three = served(&instances).lease().unwrap();
        let at = |picked: &Picked| {
            let Runs::Instance(own) = &picked.runs else { panic!("an instance") };
            instances.iter().position(|instance| Arc::ptr_eq(instance, own)).unwrap()
        };
        let mut picked: Vec<_> = (0..3).map(|_| three.pick()).collect();
        assert_eq!(picked.iter().map(at).collect::<Vec<_>>(), [0, 1, 2]);
        picked.remove(1);
        assert_eq!(at(&three.pick()), 1, "whose call is over");
        drop(picked);
        assert_eq!(instances.iter().map(|one| one.calls.load(Ordering::Relaxed)).sum::<usize>(), 0);
        let one = served(&instances[..1]).lease().unwrap();
        let _picked = one.pick();
        assert_eq!(instances[0].calls.load(Ordering::Relaxed), 0, "one alone is not counted");
    }

    #[test]
    fn what_a_call_has_does_not_make_way() {
        let model = served(&[fake("m")]);
        let lease = model.lease().unwrap();
        assert!(model.take_if_idle().is_none() && !model.usage().idle);
        let picked = lease.pick();
        drop(lease);
        assert!(model.take_if_idle().is_none(), "its run is under way, though nobody waits for it");
        drop(picked);
        let waiting = model.wait();
        assert!(model.take_if_idle().is_none() && !model.usage().idle, "somebody is about to use it");
        drop(waiting);
        assert!(model.usage().idle && model.take_if_idle().is_some());
        assert!(model.lease().is_none() && model.resident().is_none());
        assert_eq!(model.usage().uses, 1);
    }

    #[test]
    fn a_device_that_cannot_be_used_gets_no_calls_while_there_is_another() {
        let instances: Vec<_> = (0..3).map(|index| Arc::new(fake_on("m", index))).collect();
        let model = served(&instances).lease().unwrap();
        let picked = || model.pick().header().unwrap();
        assert_eq!(picked(), "gpu:0");
        instances[0].note_lost();
        // However many calls the others have.
        let under_way: Vec<_> = (0..5).map(|_| model.pick()).collect();
        assert!(under_way.iter().all(|picked| picked.header().unwrap() != "gpu:0"));
        instances[1].note_lost();
        assert_eq!(picked(), "gpu:2");
        // With none that can be used it is tried all the same: the answer says why.
        instances[2].note_lost();
        assert!(!model.is_able());
        assert_eq!(picked(), "gpu:0");
    }
}
