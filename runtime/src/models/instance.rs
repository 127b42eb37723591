//! A model that is loaded, and its instances: a call goes to the one that has the fewest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::HeaderValue;
use outrigger_backend::{Instance, ModelInfo};
use prometheus::IntCounter;

use super::batch::Former;
use super::health::DeviceHealth;
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
    /// Its number among what calls can be for.
    pub(crate) kind: u16,
    /// The first of its instances, of which there is always one.
    pub(super) first: Arc<ModelInstance>,
    /// The others.
    pub(super) others: Vec<Arc<ModelInstance>>,
}

impl LoadedModel {
    /// Its instances.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &Arc<ModelInstance>> {
        std::iter::once(&self.first).chain(&self.others)
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

    /// Whether one of its instances is where it can be used.
    pub(crate) fn is_able(&self) -> bool {
        self.instances().any(|instance| instance.is_usable())
    }

    /// The instance for the next call: that with the fewest calls under way, among those that can be used.
    pub fn pick(&self) -> Picked {
        if self.others.is_empty() {
            return Picked { instance: Arc::clone(&self.first), counted: None };
        }
        let rank =
            |instance: &&Arc<ModelInstance>| (!instance.is_usable(), instance.calls.load(Ordering::Relaxed));
        let instance = self.instances().min_by_key(rank).unwrap_or(&self.first);
        Picked { instance: Arc::clone(instance), counted: Some(Counted::new(Arc::clone(instance))) }
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
    /// Where its steps run, in sentences.
    pub(super) steps: Vec<String>,
    /// Calls under way, where the model has other instances.
    calls: AtomicUsize,
    pub(super) runs: IntCounter,
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
        Self { name, info, instance, held, former: None, device: 0, place, steps, calls, runs }
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

/// The instance that a call goes to.
pub struct Picked {
    pub(super) instance: Arc<ModelInstance>,
    pub(super) counted: Option<Counted>,
}

impl Picked {
    /// What answers say of the device.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        self.instance.place.as_ref()?.header.clone()
    }
}

/// A call that an instance has, until it is dropped.
pub(super) struct Counted(Arc<ModelInstance>);

impl Counted {
    fn new(instance: Arc<ModelInstance>) -> Self {
        instance.calls.fetch_add(1, Ordering::Relaxed);
        Self(instance)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::tests::{fake, fake_on};

    #[test]
    fn a_call_goes_to_the_instance_with_the_fewest() {
        let model = |instances: usize| LoadedModel {
            name: "m".into(),
            version: "1".into(),
            platform: String::new(),
            info: Arc::default(),
            kind: 1,
            first: fake("m"),
            others: (1..instances).map(|_| fake("m")).collect(),
        };
        let three = model(3);
        let at = |picked: &Picked| {
            three.instances().position(|instance| Arc::ptr_eq(instance, &picked.instance)).unwrap()
        };
        let mut picked: Vec<_> = (0..3).map(|_| three.pick()).collect();
        assert_eq!(picked.iter().map(at).collect::<Vec<_>>(), [0, 1, 2]);
        picked.remove(1);
        assert_eq!(at(&three.pick()), 1, "whose call is over");
        drop(picked);
        assert_eq!(three.instances().map(|one| one.calls.load(Ordering::Relaxed)).sum::<usize>(), 0);
        assert!(model(1).pick().counted.is_none(), "one alone is not counted");
    }

    #[test]
    fn a_device_that_cannot_be_used_gets_no_calls_while_there_is_another() {
        let instances: Vec<_> = (0..3).map(|index| Arc::new(fake_on("m", index))).collect();
        let model = LoadedModel {
            name: "m".into(),
            version: "1".into(),
            platform: String::new(),
            info: Arc::default(),
            kind: 1,
            first: Arc::clone(&instances[0]),
            others: instances[1..].to_vec(),
        };
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
