//! What devices may hold.

/// What a model holds: a device and bytes for each of its copies.
pub(in crate::models) type Charges = Vec<(usize, u64)>;

/// A device's memory.
#[derive(Clone, Debug)]
pub(in crate::models) struct Account {
    /// Bytes that may be held; `None` if nobody knows.
    pub(in crate::models) budget: Option<u64>,
    /// The device whose memory this one shares: itself, or that which another library drives too. What all of them hold together counts
    /// against its budget.
    pub(in crate::models) main: usize,
    /// Bytes that were held before any model was.
    pub(in crate::models) held: u64,
}

/// A bound of what some devices hold together.
#[derive(Debug)]
pub(super) struct Limit {
    /// Whose budget it is.
    pub(super) device: usize,
    budget: u64,
    devices: Vec<usize>,
}

impl Limit {
    /// Bytes that some charges have of these devices.
    pub(super) fn of(&self, charges: &Charges) -> u64 {
        let own = charges.iter().filter(|(device, _)| self.devices.contains(device));
        own.map(|(_, bytes)| *bytes).fold(0, u64::saturating_add)
    }

    /// By how many bytes it is overstepped.
    pub(super) fn excess(&self, held: &[u64]) -> u64 {
        let held = self.devices.iter().filter_map(|device| held.get(*device)).copied();
        held.fold(0, u64::saturating_add).saturating_sub(self.budget)
    }
}

/// All devices.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Bytes that were held before any model was.
    before: Vec<u64>,
    limits: Vec<Limit>,
}

impl Accounts {
    pub(super) fn new(accounts: &[Account]) -> Self {
        let mut limits = Vec::new();
        for (device, account) in accounts.iter().enumerate() {
            let Some(budget) = account.budget else { continue };
            limits.push(Limit { device, budget, devices: vec![device] });
            let sharing = accounts.iter().enumerate().filter(|(_, other)| other.main == device);
            let devices: Vec<_> = sharing.map(|(other, _)| other).collect();
            if devices.iter().any(|other| *other != device) {
                limits.push(Limit { device, budget, devices });
            }
        }
        Self { before: accounts.iter().map(|account| account.held).collect(), limits }
    }

    /// What devices hold with some charges.
    pub(super) fn with<'a>(&self, charges: impl Iterator<Item = &'a Charges>) -> Vec<u64> {
        charges.fold(self.before.clone(), |mut held, charges| {
            change(&mut held, charges, u64::saturating_add);
            held
        })
    }

    /// The limits that some charges have a part in. What is over a limit without them is no fault of theirs.
    pub(super) fn touched<'a>(&'a self, charges: &'a Charges) -> impl Iterator<Item = &'a Limit> {
        self.limits.iter().filter(|limit| limit.of(charges) > 0)
    }

    /// Whether `held`, of which charges are a part, is within the limits that they touch.
    pub(super) fn fit(&self, held: &[u64], charges: &Charges) -> bool {
        self.touched(charges).all(|limit| limit.excess(held) == 0)
    }

    pub(super) fn budget(&self, device: usize) -> Option<u64> {
        self.limits.iter().find(|limit| limit.device == device).map(|limit| limit.budget)
    }
}

/// Changes what devices hold by some charges.
pub(super) fn change(held: &mut [u64], charges: &Charges, how: fn(u64, u64) -> u64) {
    for (device, bytes) in charges {
        if let Some(held) = held.get_mut(*device) {
            *held = how(*held, *bytes);
        }
    }
}

/// Bytes of all charges together.
pub(super) fn total(charges: &Charges) -> u64 {
    charges.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add)
}
