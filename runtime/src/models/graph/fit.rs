//! Holds what a run gives against what those take to whom it goes: what does not fit is the giver's fault, whom callers know nothing of.

use outrigger_backend::{Tensor, TensorInfo};

use super::wired::{Wired, WiredRun};

impl Wired {
    /// What is wrong with what a run has given, if anything is: tensors by the numbers of its outputs, for the runs that are needed.
    pub(super) fn misfit(
        &self,
        run: &WiredRun,
        outputs: &[usize],
        given: &[Tensor],
        needed: &[bool],
    ) -> Option<String> {
        let is_needed = |taker: usize| needed.get(taker).is_some_and(|needed| *needed);
        outputs.iter().zip(given).find_map(|(index, tensor)| {
            let mut takers = self.takers_of(run.first + *index).filter(|(taker, _)| is_needed(*taker));
            takers.find_map(|(taker, input)| {
                let taker = self.runs.get(taker)?;
                let info = taker.info.inputs.get(input).filter(|info| !fits(info, tensor))?;
                let own = run.info.outputs.get(*index).map_or("", |info| info.name.as_str());
                let (got, extents) = (tensor.data_type(), tensor.shape().extents());
                Some(format!(
                    "output `{own}` is {got} {extents:?}, and node `{}`, to which it goes, takes {} {:?}",
                    taker.name, info.data_type, info.shape
                ))
            })
        })
    }
}

/// Whether a tensor is of that type and shape: −1 is anything.
fn fits(info: &TensorInfo, tensor: &Tensor) -> bool {
    let extents = tensor.shape().extents();
    tensor.data_type() == info.data_type
        && extents.len() == info.shape.len()
        && extents.iter().zip(&info.shape).all(|(got, want)| *want < 0 || got == want)
}
