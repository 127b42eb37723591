//! The plan as it is being made.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{
    BackendState, DeviceId, DeviceState, DeviceUse, Eviction, Placed, Plan, Reason, Tried, Unplaced, Wanted,
};
use crate::config::DeviceWish;

/// Places models.
pub fn plan(models: &[Wanted], backends: &[BackendState]) -> Plan {
    let mut planner = Planner { backends, plan: Plan::default(), taken: BTreeMap::new() };
    for backend in backends {
        for (index, device) in backend.devices.iter().enumerate() {
            planner.taken.insert(DeviceId { backend: backend.name.clone(), index }, device.held);
        }
    }
    // What is loaded has its room, whoever comes before it.
    for placed in models.iter().flat_map(|model| &model.loaded) {
        planner.take(&placed.device, placed.bytes);
    }
    for model in models {
        planner.plan.placed.extend(model.loaded.iter().cloned());
        for instance in model.loaded.len()..model.instances {
            planner.place(model, instance);
        }
    }
    planner.finish()
}

/// Of devices that match equally well, the one with the least of this: copies of the model, less room, number.
type Order = (usize, Reverse<u64>, usize);

struct Planner<'a> {
    backends: &'a [BackendState],
    plan: Plan,
    /// Bytes held and planned.
    taken: BTreeMap<DeviceId, u64>,
}

impl Planner<'_> {
    fn take(&mut self, device: &DeviceId, bytes: u64) {
        let taken = self.taken.entry(device.clone()).or_default();
        *taken = taken.saturating_add(bytes);
    }

    fn place(&mut self, model: &Wanted, instance: usize) {
        let mut tried = Vec::new();
        let first = model.devices.first();
        for (rank, wish) in model.devices.iter().enumerate() {
            if rank > 0 && !model.fallback {
                tried.push(Tried::new(wish.to_string(), Reason::Forbidden));
                continue;
            }
            if let Some((device, bytes)) = self.best(model, wish, &mut tried) {
                self.take(&device, bytes);
                let evict = if rank > 0 { self.evictions(model, &tried) } else { Vec::new() };
                let fallback_from = first.filter(|_| rank > 0).map(DeviceWish::to_string);
                let model = model.name.clone();
                let steps = Vec::new();
                self.plan.placed.push(Placed {
                    model,
                    instance,
                    device,
                    bytes,
                    fallback_from,
                    tried,
                    evict,
                    steps,
                });
                return;
            }
        }
        let evict = self.evictions(model, &tried);
        self.plan.unplaced.push(Unplaced { model: model.name.clone(), instance, tried, evict });
    }

    /// The best device that an entry matches and that has room, and the bytes there. What does not fit is noted.
    fn best(&self, model: &Wanted, wish: &DeviceWish, tried: &mut Vec<Tried>) -> Option<(DeviceId, u64)> {
        let meant = || self.backends.iter().filter(|backend| wish.means(&backend.name));
        let takes = |backend: &&BackendState| match &model.format {
            // Nobody knows better than the entry itself.
            None => backend.name == wish.backend,
            Some(format) => backend.formats.contains(format),
        };
        if meant().any(|backend| takes(&backend)) {
            return meant().filter(takes).find_map(|backend| self.on(backend, model, wish, tried));
        }
        if meant().next().is_none() {
            tried.push(Tried::new(wish.to_string(), Reason::Absent { why: "it was not opened".into() }));
        }
        for backend in meant() {
            let reason = match &model.format {
                Some(format) if backend.matching(wish).next().is_some() => {
                    Reason::Format { format: format.clone(), takes: backend.formats.clone() }
                }
                _ => Reason::Absent { why: backend.without(wish) },
            };
            tried.push(Tried::new(backend.meant_by(wish), reason));
        }
        None
    }

    /// The best device of a backend that takes the model.
    fn on(
        &self,
        backend: &BackendState,
        model: &Wanted,
        wish: &DeviceWish,
        tried: &mut Vec<Tried>,
    ) -> Option<(DeviceId, u64)> {
        if backend.matching(wish).next().is_none() {
            tried.push(Tried::new(backend.meant_by(wish), Reason::Absent { why: backend.without(wish) }));
            return None;
        }
        let mut best: Option<(Order, DeviceId, u64)> = None;
        for (index, device) in backend.matching(wish) {
            let id = DeviceId { backend: backend.name.clone(), index };
            match self.fits(model, backend, &id, device) {
                Ok((bytes, room)) => {
                    let copies = self.copies(model, &id);
                    let key = (copies, Reverse(room), index);
                    if best.as_ref().is_none_or(|(known, ..)| key < *known) {
                        best = Some((key, id, bytes));
                    }
                }
                Err(reason) => tried.push(Tried::new(id.to_string(), reason)),
            }
        }
        best.map(|(_, id, bytes)| (id, bytes))
    }

    /// The bytes that a copy takes on a device, and the room that there is.
    fn fits(
        &self,
        model: &Wanted,
        backend: &BackendState,
        id: &DeviceId,
        device: &DeviceState,
    ) -> Result<(u64, u64), Reason> {
        if let Some(why) = &device.lost {
            return Err(Reason::Unhealthy { why: why.clone() });
        }
        if let Some(why) = model.failed.get(id) {
            return Err(Reason::Failed { why: why.clone() });
        }
        let bytes = match model.estimates.get(id) {
            // Copies on one device share what the first one took.
            Some(Ok(_)) if self.copies(model, id) > 0 => 0,
            None => 0,
            Some(Ok(bytes)) => *bytes,
            Some(Err(why)) => return Err(Reason::Unreadable { why: why.clone() }),
        };
        let own = (self.taken.get(id).copied().unwrap_or_default(), device.budget);
        let mut room = u64::MAX;
        for (taken, budget) in [own, self.shared(backend, id.index)] {
            room = room.min(match budget {
                None => u64::MAX - taken, // taken is a u64 itself
                Some(budget) if taken.checked_add(bytes).is_some_and(|sum| sum <= budget) => budget - taken,
                Some(budget) => return Err(Reason::NoRoom { bytes, taken, budget }),
            });
        }
        Ok((bytes, room))
    }

    /// What is taken of a device by all backends that drive it, and what may be.
    fn shared(&self, backend: &BackendState, index: usize) -> (u64, Option<u64>) {
        let main = backend.main();
        let drive = || self.backends.iter().filter(|backend| backend.main() == main);
        let taken = drive().filter_map(|backend| {
            self.taken.get(&DeviceId { backend: backend.name.clone(), index }).copied()
        });
        let budget = drive().find(|backend| backend.name == main);
        let budget = budget.and_then(|backend| backend.devices.get(index)?.budget);
        (taken.fold(0, u64::saturating_add), budget)
    }

    /// The backend whose devices a backend drives.
    fn main(&self, backend: &str) -> Option<&str> {
        self.backends.iter().find(|known| known.name == backend).map(BackendState::main)
    }

    fn copies(&self, model: &Wanted, id: &DeviceId) -> usize {
        let same = |placed: &&Placed| placed.model == model.name && placed.device == *id;
        // Copies of one model stand together at the end.
        self.plan.placed.iter().rev().take_while(|placed| placed.model == model.name).filter(same).count()
    }

    /// What would have to leave a device where the model's list begins: the least valuable, which was placed last, first.
    fn evictions(&self, model: &Wanted, tried: &[Tried]) -> Vec<Eviction> {
        let Some(wish) = model.devices.first() else { return Vec::new() };
        let full = self.taken.keys().filter(|id| wish.means(&id.backend) && wish.has(id.index));
        let choices = full.filter_map(|id| {
            let name = id.to_string();
            let Reason::NoRoom { bytes, taken, budget } =
                tried.iter().find(|tried| tried.device == name).map(|tried| &tried.reason)?
            else {
                return None;
            };
            let mut missing = taken.saturating_add(*bytes).saturating_sub(*budget);
            let mut leave = Vec::new();
            // Where it is what all backends hold together that is too much, what others hold counts as well.
            let shared = self.taken.get(id) != Some(taken);
            let there = |device: &DeviceId| {
                device == id
                    || shared
                        && device.index == id.index
                        && self.main(&device.backend) == self.main(&id.backend)
            };
            // Copies of the model itself would only change places.
            let others = self
                .plan
                .placed
                .iter()
                .rev()
                .filter(|placed| there(&placed.device) && placed.model != model.name);
            for placed in others {
                if missing == 0 {
                    break;
                }
                missing = missing.saturating_sub(placed.bytes);
                leave.push(Eviction {
                    model: placed.model.clone(),
                    instance: placed.instance,
                    device: placed.device.clone(),
                    bytes: placed.bytes,
                });
            }
            (missing == 0).then_some(leave)
        });
        choices
            .min_by_key(|leave| leave.iter().map(|eviction| eviction.bytes).sum::<u64>())
            .unwrap_or_default()
    }

    fn finish(mut self) -> Plan {
        for backend in self.backends {
            for (index, state) in backend.devices.iter().enumerate() {
                let device = DeviceId { backend: backend.name.clone(), index };
                let taken = self.taken.get(&device).copied().unwrap_or_default();
                let planned = taken.saturating_sub(state.held);
                self.plan.devices.push(DeviceUse { device, budget: state.budget, held: state.held, planned });
            }
        }
        self.plan
    }
}
