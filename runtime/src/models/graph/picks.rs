//! Which instance each run of a call goes to: where possible to the device that has the tensors which it takes.

use http::HeaderValue;

use super::ensemble::Gathered;
use super::wired::WiredRun;
use crate::models::picked::Picked;

/// So many devices are named of a call.
const SHOWN: usize = 8;

/// The instances of a call's runs, in the order of the wired graph's; nothing for those that are not needed.
pub(in crate::models) struct Picks(Vec<Option<Picked>>);

impl Gathered {
    /// Picks an instance for each run that is needed for the outputs with these numbers, or for all: one on the device to which what it takes can
    /// stay bound, if there is one, and there that with the fewest calls.
    pub(in crate::models) fn pick(&self, outputs: Option<&[usize]>) -> Picks {
        let wired = &self.wired;
        let wanted = outputs.map(|outputs| {
            outputs.iter().filter_map(|output| wired.outputs.get(*output).copied()).collect::<Vec<_>>()
        });
        let needed = wired.needed(wanted.as_ref().unwrap_or(&wired.outputs));
        let mut picks: Vec<Option<Picked>> = Vec::with_capacity(wired.runs.len());
        for (run, needed) in wired.runs.iter().zip(needed) {
            let picked = self.leaves.get(run.leaf).filter(|_| needed).map(|lease| {
                let mut near = self.devices_of(run, &picks).into_iter();
                near.find_map(|device| lease.pick_on(device)).unwrap_or_else(|| lease.pick())
            });
            picks.push(picked);
        }
        Picks(picks)
    }

    /// The devices where what a run takes could stay, that of most of it first.
    fn devices_of(&self, run: &WiredRun, picks: &[Option<Picked>]) -> Vec<usize> {
        let mut devices: Vec<(usize, usize)> = Vec::new();
        for tensor in &run.inputs {
            let giver = self.wired.givers.get(*tensor).copied().flatten();
            let Some(device) = giver.and_then(|giver| picks.get(giver)?.as_ref()?.home()) else { continue };
            match devices.iter_mut().find(|(known, _)| *known == device) {
                Some((_, count)) => *count += 1,
                None => devices.push((device, 1)),
            }
        }
        devices.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        devices.into_iter().map(|(device, _)| device).collect()
    }
}

impl Picks {
    /// The instance of a run; nothing once it has been taken.
    pub(super) fn get(&self, run: usize) -> Option<&Picked> {
        self.0.get(run)?.as_ref()
    }

    /// The same, for the run itself.
    pub(super) fn take(&mut self, run: usize) -> Option<Picked> {
        self.0.get_mut(run)?.take()
    }

    /// The devices of all runs, each once, as the header of the answer says them.
    pub(in crate::models) fn header(&self) -> Option<HeaderValue> {
        let mut all: Vec<HeaderValue> = Vec::new();
        for device in self.0.iter().flatten().filter_map(Picked::header) {
            if all.len() < SHOWN && !all.contains(&device) {
                all.push(device);
            }
        }
        match all.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            some => {
                let texts: Vec<_> = some.iter().map(HeaderValue::as_bytes).collect();
                HeaderValue::from_bytes(&texts.join(&b", "[..])).ok()
            }
        }
    }
}
