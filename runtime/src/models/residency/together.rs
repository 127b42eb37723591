//! Whether models have a place beside each other on the devices, whoever else makes way.

use std::sync::Arc;

use super::super::served::ServedModel;
use super::super::survey;
use super::Residency;
use crate::placement::{self, DeviceId, Placed, Plan, Reason, Unplaced, Wanted};

impl Residency {
    /// Whether devices hold these models together, once all others have left that may: by what each was measured to hold or, where that is not known,
    /// by what its device thinks. What cannot be told is taken to be nothing. It may read files; not for an async task.
    ///
    /// Gives the numbers of those that are loaded, and would not be where they are.
    ///
    /// # Errors
    /// Those that have no place beside the others.
    pub(super) fn have_place(&self, models: &[Arc<ServedModel>]) -> Result<Vec<usize>, Vec<Unplaced>> {
        let mut wanted: Vec<Wanted> = models.iter().filter_map(|model| self.place_of(model)).collect();
        let numbers: Vec<usize> = models.iter().map(|model| model.number).collect();
        let held = self.residents.lock().held_by_staying(&numbers);
        let states = survey::states(&self.backends, &held);
        let mut first = None;
        // A plan takes one after the other. Who finds no place is the next time the first to look for one.
        for _ in 0..=wanted.len() {
            let Plan { placed, mut unplaced, .. } = placement::plan(&wanted, &states);
            // What has no place for another reason says so when it is loaded.
            unplaced
                .retain(|one| one.tried.iter().any(|tried| matches!(tried.reason, Reason::NoRoom { .. })));
            if unplaced.is_empty() {
                return Ok(elsewhere(models, &placed));
            }
            wanted.sort_by_key(|one| !unplaced.iter().any(|other| other.model == one.name));
            first.get_or_insert(unplaced);
        }
        first.map_or(Ok(Vec::new()), Err)
    }

    /// What a model wants of devices; nothing as long as its files are not here.
    fn place_of(&self, model: &ServedModel) -> Option<Wanted> {
        let stays = {
            let core = self.residents.lock();
            if !core.is_here(model.number) {
                return None;
            }
            core.stays(model.number)
        };
        let (measured, name) = (model.measured(), model.name.clone());
        // Any other makes way where it is, and comes back elsewhere, if that makes room.
        if let Some(resident) = model.resident().filter(|_| stays) {
            let loaded = resident.instances().enumerate().filter_map(|(instance, copy)| {
                let (device, bytes) = (copy.place.as_ref()?.device.clone(), copy.bytes_held());
                let (model, fallback_from) = (name.clone(), None);
                let (tried, evict, steps) = Default::default();
                Some(Placed { model, instance, device, bytes, fallback_from, tried, evict, steps })
            });
            let loaded: Vec<_> = loaded.collect();
            return Some(Wanted { name, instances: loaded.len(), loaded, ..Wanted::default() });
        }
        let own = &model.wanted;
        if measured.is_empty() {
            let estimates = survey::estimate(&self.config.backends, &[own], &self.backends);
            return estimates.models.into_iter().next();
        }
        Some(Wanted {
            name,
            devices: own.devices.clone(),
            fallback: own.fallback,
            instances: own.instances,
            format: own.format.clone(),
            estimates: measured.into_iter().map(|(device, bytes)| (device, Ok(bytes))).collect(),
            ..Wanted::default()
        })
    }
}

/// The numbers of those that are loaded on other devices than are planned.
fn elsewhere(models: &[Arc<ServedModel>], placed: &[Placed]) -> Vec<usize> {
    let is_elsewhere = |model: &&Arc<ServedModel>| {
        let Some(resident) = model.resident() else { return false };
        let planned = placed.iter().filter(|placed| placed.model == model.name);
        let mut planned: Vec<&DeviceId> = planned.map(|placed| &placed.device).collect();
        let places = resident.instances().filter_map(|instance| instance.place.as_ref());
        let mut there: Vec<&DeviceId> = places.map(|place| &place.device).collect();
        planned.sort();
        there.sort();
        planned != there
    };
    models.iter().filter(is_elsewhere).map(|model| model.number).collect()
}
