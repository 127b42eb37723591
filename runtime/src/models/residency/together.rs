//! Whether models have a place beside each other on the devices, whoever else makes way.

use std::sync::Arc;

use super::super::served::ServedModel;
use super::super::survey;
use super::Residency;
use crate::placement::{self, Placed, Reason, Unplaced, Wanted};

impl Residency {
    /// Whether devices hold these models together, once all others have left that may: by what each was measured to hold or, where that is not known,
    /// by what its device thinks. What cannot be told is taken to be nothing. It may read files; not for an async task.
    ///
    /// # Errors
    /// Those that have no place beside the others.
    pub(super) fn have_place(&self, models: &[Arc<ServedModel>]) -> Result<(), Vec<Unplaced>> {
        let mut wanted: Vec<Wanted> = models.iter().filter_map(|model| self.place_of(model)).collect();
        let numbers: Vec<usize> = models.iter().map(|model| model.number).collect();
        let held = self.residents.lock().held_by_staying(&numbers);
        let states = survey::states(&self.backends, &held);
        let mut first = None;
        // A plan takes one after the other. Who finds no place is the next time the first to look for one.
        for _ in 0..=wanted.len() {
            let mut unplaced = placement::plan(&wanted, &states).unplaced;
            // What has no place for another reason says so when it is loaded.
            unplaced
                .retain(|one| one.tried.iter().any(|tried| matches!(tried.reason, Reason::NoRoom { .. })));
            if unplaced.is_empty() {
                return Ok(());
            }
            wanted.sort_by_key(|one| !unplaced.iter().any(|other| other.model == one.name));
            first.get_or_insert(unplaced);
        }
        first.map_or(Ok(()), Err)
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
