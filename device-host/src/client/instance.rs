//! An instance over a child: the way of a call.

use std::sync::Arc;

use outrigger_backend::{BackendError, Instance, ModelInfo, Output, Run, RunId, Tensor};

use super::device::LoadedModel;
use super::host::Host;
use super::link::Link;
use super::loaded::{Known, Loaded};
use super::remote::{number_of, remote};
use super::results::Came;
use super::trouble::Trouble;
use crate::frame::{Asked, At, Form, Infer, Kind, Sent};
use crate::patience::Forever;

/// An instance in the child.
pub(super) struct LiveInstance {
    pub(super) model: Arc<LoadedModel>,
    pub(super) number: u64,
    pub(super) known: Arc<Known>,
}

impl Drop for LiveInstance {
    fn drop(&mut self) {
        let device = &self.model.device;
        let forget = |loaded: &mut Loaded| drop(loaded.instances.remove(&self.number));
        if let Some(link) = device.host().unregister(forget) {
            device.release(&link, self.number);
        }
    }
}

pub(super) struct HostedInstance(pub(super) LiveInstance);

impl HostedInstance {
    fn host(&self) -> &Arc<Host> {
        self.0.model.device.host()
    }

    /// Where those inputs are that the child has already.
    fn placed(&self, link: &Arc<Link>, inputs: &[Tensor]) -> Result<Vec<Option<At>>, BackendError> {
        let device = &self.0.model.device;
        let mut placed = device.pinned.find(link, inputs);
        for (index, input) in inputs.iter().enumerate() {
            let Some(memory) = input.resident() else { continue };
            let number = number_of(memory, device, link)?;
            placed.resize(inputs.len().max(placed.len()), None);
            if let Some(place) = placed.get_mut(index) {
                *place = Some(At::Resident { number, device: memory.device(), len: memory.len() as u64 });
            }
        }
        Ok(placed)
    }

    fn run(
        &self,
        link: &Arc<Link>,
        inputs: &[Tensor],
        placed: &[Option<At>],
        outputs: &mut [Output],
        run: Run,
    ) -> Result<Vec<Came>, Trouble> {
        let live = &self.0;
        let limits = &self.host().options.limits;
        // Before a connection is waited for, so that it can be cancelled meanwhile.
        let begun = link.begin(live.number, run.id);
        let mut lent = link.for_run()?;
        begun.goes()?;
        let count = outputs.len();
        let asked: Vec<Asked> = outputs.iter_mut().map(asked).collect();
        lent.with(|connection| {
            let laid = connection.lay(inputs, limits, placed)?;
            let write = |sent: &Sent, out: &mut Vec<u8>| Infer::write(live.number, run.id, sent, &asked, out);
            connection.send_tensors(Kind::Infer, begun.run, laid, &Forever, write)?;
            connection.take_tensors(count, limits)
        })
    }
}

impl Instance for HostedInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        let live = &self.0;
        live.model.info.check_outputs(outputs)?;
        let link = self.host().link()?;
        live.known.fault.check()?;
        // Memory that was lost with a child before is no fault of the child that serves now, and not asked of it.
        let placed = self.placed(&link, inputs)?;
        let came = self.run(&link, inputs, &placed, outputs, run);
        let filled = came.and_then(|came| {
            let results = outputs.iter_mut().zip(came);
            results.into_iter().try_for_each(|(output, came)| self.fill(&link, output, came))
        });
        match filled {
            Ok(()) => {
                link.succeeded();
                Ok(())
            }
            Err(trouble) => Err(link.fails(trouble)),
        }
    }

    /// The child writes what it can foresee into shared memory, which the caller gets as it is.
    fn allocates_best(&self) -> bool {
        true
    }

    fn cancel(&self, id: RunId) {
        if let Ok(link) = self.host().link() {
            link.cancel(self.0.number, id, self.can_cancel());
        }
    }

    fn can_cancel(&self) -> bool {
        self.0.known.can_cancel()
    }

    /// What the child said last: when it made the instance, or with the device's status.
    fn bytes_held(&self) -> u64 {
        self.0.known.held()
    }
}

/// What is asked of the child for an output.
fn asked(output: &mut Output) -> Asked {
    let (index, resident) = (output.index(), output.wants_resident());
    let form = match output.place_mut() {
        Some((data_type, shape, _)) => Form::Place(data_type, shape.clone()),
        None if resident => Form::Resident,
        None => Form::Allocate,
    };
    Asked { index, form }
}

impl HostedInstance {
    /// Puts a result where it was asked for, if it is what it should be.
    fn fill(&self, link: &Arc<Link>, output: &mut Output, came: Came) -> Result<(), Trouble> {
        let index = output.index();
        let info: &ModelInfo = &self.0.model.info;
        let is_of = |data_type| info.outputs.get(index).is_some_and(|info| info.data_type == data_type);
        let wrong = |what: &str| Trouble::Protocol(format!("output number {index} is {what}"));
        let resident = output.wants_resident();
        match came {
            Came::Host(tensor) if is_of(tensor.data_type()) && !resident => {
                match output.place_mut() {
                    Some((_, shape, place)) if shape == tensor.shape() => {
                        place.copy_from_slice(tensor.data())
                    }
                    _ => output.set(tensor),
                }
                Ok(())
            }
            Came::Resident { head, number, device, len } if is_of(head.data_type) && resident => {
                let memory = remote(&self.0.model.device, link, number, device, len);
                let tensor = Tensor::on_device(head.data_type, head.shape, memory);
                output.set(tensor.map_err(|error| wrong(&error.to_string()))?);
                Ok(())
            }
            Came::Host(tensor) if !is_of(tensor.data_type()) => Err(wrong("of another type")),
            _ => Err(wrong("in other memory than was asked for")),
        }
    }
}
