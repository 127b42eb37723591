//! Which device each copy of a model goes to, and why: a pure function of what models want and take, and of what devices have.
//!
//! Models are placed in the order in which they come, the most valuable first. Each copy goes to the first entry of its model's list
//! that has a device with room for it; of the devices that an entry matches, to the one with the fewest copies of the model, then to the
//! one with the most room. Where an entry means several backends, those that take the model's format are asked, one after the other.
//! What would have to leave for a first choice is named, and nothing leaves.
//!
//! A plan is made anew when a model does not load where it was planned. Copies that are loaded by then stay where they are, with the
//! bytes that they were measured to hold; the others are placed as before, but not where their model has failed.

mod planner;
mod reason;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::config::DeviceWish;
pub use planner::plan;
pub use reason::{Reason, Tried};

/// A device: its backend, by the name that the configuration has for it, and its number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The backend.
    pub backend: String,
    /// The number of the device.
    pub index: usize,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend, self.index)
    }
}

impl Serialize for DeviceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A backend, as far as placement has to know it.
#[derive(Clone, Debug, Default)]
pub struct BackendState {
    /// Its name.
    pub name: String,
    /// The formats that it takes.
    pub formats: Vec<String>,
    /// Its devices, by number.
    pub devices: Vec<DeviceState>,
    /// Why there are none.
    pub absent: Option<String>,
    /// The backend whose devices these are, by another library; `None` where they are its own.
    pub beside: Option<String>,
}

impl BackendState {
    /// The backend whose devices these are.
    fn main(&self) -> &str {
        self.beside.as_deref().unwrap_or(&self.name)
    }

    /// The devices that an entry matches which means this backend.
    fn matching<'a>(&'a self, wish: &'a DeviceWish) -> impl Iterator<Item = (usize, &'a DeviceState)> {
        self.devices.iter().enumerate().filter(|(index, _)| wish.has(*index))
    }

    /// Why an entry matches none.
    fn without(&self, wish: &DeviceWish) -> String {
        self.absent.clone().unwrap_or_else(|| match self.devices.len() {
            0 => "its backend does not say why".into(),
            count if wish.index.is_some() => format!("its backend has {count}"),
            _ => "nobody says what the format of the model is".into(),
        })
    }

    /// What an entry says that means this backend.
    fn meant_by(&self, wish: &DeviceWish) -> String {
        DeviceWish { backend: self.name.clone(), index: wish.index }.to_string()
    }
}

/// A device, as far as placement has to know it.
#[derive(Clone, Debug, Default)]
pub struct DeviceState {
    /// Bytes that models may hold; `None` if nobody knows.
    pub budget: Option<u64>,
    /// Bytes that are held already.
    pub held: u64,
    /// Why it cannot be used.
    pub lost: Option<String>,
}

/// What a model wants, and what it would take.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Where it may go, best first.
    pub devices: Vec<DeviceWish>,
    /// Whether it may go elsewhere than where the list begins.
    pub fallback: bool,
    /// Copies.
    pub instances: usize,
    /// Its format, where that is known.
    pub format: Option<String>,
    /// Bytes that a copy would take on a device, or why that cannot be told. Where nothing is said it is nothing.
    pub estimates: BTreeMap<DeviceId, Result<u64, String>>,
    /// Its first copies, which are loaded already and stay where they are, with the bytes that they were measured to hold.
    pub loaded: Vec<Placed>,
    /// Where it was tried and did not load, and why.
    pub failed: BTreeMap<DeviceId, String>,
}

/// Where everything goes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// The copies that have a place, in the order of the plan.
    pub placed: Vec<Placed>,
    /// The copies that have none.
    pub unplaced: Vec<Unplaced>,
    /// What each device would hold.
    pub devices: Vec<DeviceUse>,
    /// What ensembles are made of; who asks for a plan to show it has them added.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ensembles: Vec<PlannedEnsemble>,
}

/// An ensemble, which has no place of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedEnsemble {
    /// Its name.
    pub ensemble: String,
    /// Its version.
    pub version: String,
    /// Its nodes, each after those that it takes tensors from.
    pub nodes: Vec<PlannedNode>,
}

/// A node of an ensemble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedNode {
    /// Its name.
    pub node: String,
    /// Its model.
    pub model: String,
    /// The version of that; nothing if there is none.
    pub version: Option<String>,
    /// Where the model would be, copy by copy; nothing if it is an ensemble itself.
    pub devices: Vec<DeviceId>,
}

/// A copy that has a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// The model.
    pub model: String,
    /// The number of the copy.
    pub instance: usize,
    /// Where it goes.
    pub device: DeviceId,
    /// Bytes that it takes, estimated; 0 if not known.
    pub bytes: u64,
    /// Where it would have gone, if that is elsewhere.
    pub fallback_from: Option<String>,
    /// Where it could not go, and why.
    pub tried: Vec<Tried>,
    /// What would have to leave so that it could go where its list begins.
    pub evict: Vec<Eviction>,
    /// Where the steps before and after it run, in sentences; who asks for a plan to show it has them added.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}

/// A copy that has no place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unplaced {
    /// The model.
    pub model: String,
    /// The number of the copy.
    pub instance: usize,
    /// Where it could not go, and why.
    pub tried: Vec<Tried>,
    /// What would have to leave so that it could go where its list begins.
    pub evict: Vec<Eviction>,
}

/// A copy that would have to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Eviction {
    /// The model.
    pub model: String,
    /// The number of the copy.
    pub instance: usize,
    /// Where it is.
    pub device: DeviceId,
    /// Bytes that it holds, estimated.
    pub bytes: u64,
}

/// What a device would hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceUse {
    /// The device.
    pub device: DeviceId,
    /// Bytes that models may hold; nothing if nobody knows.
    pub budget: Option<u64>,
    /// Bytes that are held already.
    pub held: u64,
    /// Bytes that the plan adds.
    pub planned: u64,
}
