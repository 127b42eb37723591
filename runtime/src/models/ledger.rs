//! What models hold on each device, as measured, against what they may. Plans go by estimates; this does not.

use crate::placement::DeviceId;

/// A device holds more than it may.
#[derive(Debug, thiserror::Error)]
#[error("its models hold {held} bytes with this one, more than its {budget} (backends.{backend}.memory)")]
pub(super) struct Over {
    backend: String,
    /// Bytes held.
    held: u64,
    /// Bytes that may be.
    budget: u64,
}

/// What is held, device by device.
pub(super) struct Ledger(Vec<Account>);

struct Account {
    device: DeviceId,
    budget: Option<u64>,
    /// Bytes of what was there before, and of the models that are through.
    held: u64,
}

impl Ledger {
    /// Of devices with a budget and what they hold already.
    pub(super) fn new(devices: impl Iterator<Item = (DeviceId, Option<u64>, u64)>) -> Self {
        Self(devices.map(|(device, budget, held)| Account { device, budget, held }).collect())
    }

    /// Whether a device is within its budget with a model's instances as they are now.
    ///
    /// # Errors
    /// [`Over`], if it holds more than it may.
    pub(super) fn check(&self, device: &DeviceId, instances: &[(DeviceId, u64)]) -> Result<(), Over> {
        let Some(account) = self.0.iter().find(|account| account.device == *device) else { return Ok(()) };
        let held = account.with(instances);
        match account.budget {
            // What was there before is nobody's fault here.
            Some(budget) if held > budget && held > account.held => {
                Err(Over { backend: device.backend.clone(), held, budget })
            }
            _ => Ok(()),
        }
    }

    /// A model is through.
    pub(super) fn add(&mut self, instances: &[(DeviceId, u64)]) {
        self.0.iter_mut().for_each(|account| account.held = account.with(instances));
    }
}

impl Account {
    fn with(&self, instances: &[(DeviceId, u64)]) -> u64 {
        let own = instances.iter().filter(|(device, _)| *device == self.device);
        own.map(|(_, bytes)| *bytes).fold(self.held, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_held_against_the_budget() {
        let id = |index| DeviceId { backend: "gpu".into(), index };
        let mut ledger =
            Ledger::new([(id(0), Some(100), 10), (id(1), None, 0), (id(2), Some(5), 9)].into_iter());
        let error = |index, instances: &[(DeviceId, u64)], ledger: &Ledger| {
            ledger.check(&id(index), instances).err().map(|error| error.to_string())
        };
        let within = [(id(0), 90), (id(1), u64::MAX), (id(2), 0)];
        assert!((0..4).all(|index| error(index, &within, &ledger).is_none()));
        let over = "its models hold 101 bytes with this one, more than its 100 (backends.gpu.memory)";
        assert_eq!(error(0, &[(id(0), 45), (id(1), 7), (id(0), 46)], &ledger).as_deref(), Some(over));
        ledger.add(&[(id(0), 50)]);
        assert_eq!(error(0, &[(id(0), 40)], &ledger), None);
        assert!(error(0, &[(id(0), 41)], &ledger).unwrap().contains("101 bytes"));
        assert!(error(0, &[(id(0), u64::MAX)], &ledger).is_some());
    }
}
