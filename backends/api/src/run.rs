//! A run: its number, and one that finishes later.

use std::num::NonZeroU64;

use crate::{BackendError, Output, Tensor};

/// The number of a run, chosen by whoever asks for it; unlike that of every other run under way on the same instance.
pub type RunId = NonZeroU64;

/// What belongs to a run beside its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The number by which it can be cancelled; without one it cannot, and nothing has to be kept for that.
    pub id: Option<RunId>,
}

/// Hears what became of a run: the outputs, or why there are none.
pub type Done = Box<dyn FnOnce(Result<Vec<Output>, BackendError>) + Send>;

/// A run that somebody is told the end of. Dropped unfinished, it ends with [`BackendError::Internal`].
pub struct Submission {
    /// In the order of [`crate::ModelInfo::inputs`].
    pub inputs: Vec<Tensor>,
    /// To be filled.
    pub outputs: Vec<Output>,
    /// Its number.
    pub run: Run,
    done: Option<Done>,
}

impl Submission {
    /// A run whose end `done` is told, once.
    pub fn new(inputs: Vec<Tensor>, outputs: Vec<Output>, run: Run, done: Done) -> Self {
        Self { inputs, outputs, run, done: Some(done) }
    }

    /// It is over. The inputs are let go before anybody is told.
    pub fn finish(mut self, result: Result<(), BackendError>) {
        self.end(result);
    }

    fn end(&mut self, result: Result<(), BackendError>) {
        let Some(done) = self.done.take() else { return };
        self.inputs.clear();
        let outputs = std::mem::take(&mut self.outputs);
        match result {
            Ok(()) => done(Ok(outputs)),
            Err(error) => {
                // What was lent is not touched any more when its owner hears of the end.
                drop(outputs);
                done(Err(error));
            }
        }
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        self.end(Err(BackendError::Internal("the backend gave the run up without a word".into())));
    }
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submission")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn whoever_waits_hears_of_it_once_whatever_becomes_of_the_run() {
        let (sender, heard) = mpsc::channel();
        let submission = || {
            let sender = sender.clone();
            let done: Done = Box::new(move |result| sender.send(result.map(|all| all.len())).unwrap());
            Submission::new(Vec::new(), vec![Output::allocate(0)], Run::default(), done)
        };
        submission().finish(Ok(()));
        assert!(matches!(heard.recv(), Ok(Ok(1))));
        submission().finish(Err(BackendError::Cancelled));
        assert!(matches!(heard.recv(), Ok(Err(BackendError::Cancelled))));
        drop(submission());
        assert!(matches!(heard.recv(), Ok(Err(BackendError::Internal(_)))));
        assert!(heard.try_recv().is_err());
    }
}
