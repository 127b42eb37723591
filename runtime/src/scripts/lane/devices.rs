//! The devices that a call's models ran on.

use http::HeaderValue;

use crate::scripts::call::ScriptResult;

/// The devices that a call's runs of models were on, as the header of its answer says them.
#[derive(Default)]
pub(super) struct Devices(Vec<HeaderValue>);

impl Devices {
    /// So many are named.
    const MOST: usize = 8;

    /// Adds one.
    pub(super) fn add(&mut self, device: &HeaderValue) {
        if self.0.len() < Self::MOST && !self.0.contains(device) {
            self.0.push(device.clone());
        }
    }

    /// All of them, in the order in which they came; nothing if there is none.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        match &self.0[..] {
            [] => None,
            [one] => Some(one.clone()),
            some => HeaderValue::from_bytes(
                &some.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]),
            )
            .ok(),
        }
    }

    /// What becomes of the call, with them named; also where it fails.
    pub(super) fn mark(&self, result: ScriptResult) -> ScriptResult {
        match result {
            Ok(answer) => Ok(answer.on(self.header())),
            Err(error) => Err(error.on(self.header())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_once_and_not_too_many() {
        let mut devices = Devices::default();
        assert_eq!(devices.header(), None);
        for name in ["cpu:0", "gpu:1; fallback-from=cuda", "cpu:0"] {
            devices.add(&HeaderValue::from_static(name));
        }
        assert_eq!(devices.header().unwrap(), "cpu:0, gpu:1; fallback-from=cuda");
        (0..20).for_each(|number| devices.add(&HeaderValue::from(number)));
        assert_eq!(devices.header().unwrap().to_str().unwrap().split(", ").count(), Devices::MOST);
    }
}
