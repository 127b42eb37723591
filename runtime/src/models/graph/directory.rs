//! Finds models by their names, for ensembles that are made of them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use crate::models::versions::NamedModel;

/// The models of a replica, once they are known. It keeps none of them.
#[derive(Default)]
pub(in crate::models) struct Directory(OnceLock<BTreeMap<String, Weak<NamedModel>>>);

impl Directory {
    /// These are the models.
    pub(in crate::models) fn set(&self, models: &BTreeMap<String, Arc<NamedModel>>) {
        let weak = models.iter().map(|(name, model)| (name.clone(), Arc::downgrade(model)));
        // A replica is loaded once.
        let _ = self.0.set(weak.collect());
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> Option<Arc<NamedModel>> {
        self.0.get()?.get(name)?.upgrade()
    }

    /// The names of all.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.get().into_iter().flat_map(|models| models.keys().map(String::as_str))
    }
}
