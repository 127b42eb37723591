//! What models hold on each device, as measured, against what they may. Plans go by estimates; this does not.

use super::survey::OpenDevice;
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
    /// The same device, as its main backend calls it: that whose name says that it drives the devices of another does so with a library
    /// of its own, and they share its memory.
    main: DeviceId,
    budget: Option<u64>,
    /// Bytes of what was there before, and of the models that are through.
    held: u64,
}

impl Ledger {
    /// Of devices, with the bytes that are held already.
    pub(super) fn new<'a>(devices: impl Iterator<Item = (&'a OpenDevice, u64)>) -> Self {
        let account = |(open, held): (&OpenDevice, u64)| Account {
            device: open.id.clone(),
            main: open.main.clone(),
            budget: open.budget,
            held,
        };
        Self(devices.map(account).collect())
    }

    /// Whether a device is within its budget with a model's instances as they are now.
    ///
    /// # Errors
    /// [`Over`], if it holds more than it may.
    pub(super) fn check(&self, device: &DeviceId, instances: &[(DeviceId, u64)]) -> Result<(), Over> {
        let Some(account) = self.0.iter().find(|account| account.device == *device) else { return Ok(()) };
        account.check(&[account], instances)?;
        let Some(main) = self.0.iter().find(|main| main.device == account.main) else { return Ok(()) };
        let sharing: Vec<_> = self.0.iter().filter(|other| other.main == account.main).collect();
        main.check(&sharing, instances)
    }

    /// A model is through.
    pub(super) fn add(&mut self, instances: &[(DeviceId, u64)]) {
        self.0.iter_mut().for_each(|account| account.held = account.with(instances));
    }
}

impl Account {
    /// Whether what some accounts hold together is within the budget of this one.
    fn check(&self, accounts: &[&Self], instances: &[(DeviceId, u64)]) -> Result<(), Over> {
        let sum = |bytes: fn(&Self, &[(DeviceId, u64)]) -> u64| {
            accounts.iter().map(|account| bytes(account, instances)).fold(0, u64::saturating_add)
        };
        let (held, before) = (sum(Self::with), sum(|account, _| account.held));
        match self.budget {
            // What was there before is nobody's fault here.
            Some(budget) if held > budget && held > before => {
                Err(Over { backend: self.device.backend.clone(), held, budget })
            }
            _ => Ok(()),
        }
    }

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
        let beside = DeviceId { backend: "gpu_other".into(), index: 0 };
        let account =
            |device: &DeviceId, main, budget, held| Account { device: device.clone(), main, budget, held };
        let mut ledger = Ledger(vec![
            account(&id(0), id(0), Some(100), 10),
            account(&id(1), id(1), None, 0),
            account(&id(2), id(2), Some(5), 9),
            account(&beside, id(0), Some(60), 0),
        ]);
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
        // What drives the same device has what is left of it, and its own budget.
        let over = |bytes, ledger: &Ledger| {
            ledger.check(&beside, &[(beside.clone(), bytes)]).err().map(|over| over.held)
        };
        assert_eq!([over(40, &ledger), over(41, &ledger), over(61, &ledger)], [None, Some(101), Some(61)]);
        ledger.add(&[(beside.clone(), 30)]);
        assert_eq!(error(0, &[(id(0), 10)], &ledger), None);
        assert!(error(0, &[(id(0), 11)], &ledger).unwrap().contains("101 bytes"));
    }
}
