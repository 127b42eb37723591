//! What can go wrong on a device.

use outrigger_backend::BackendError;
use outrigger_processing::StepError;

/// Why something on a GPU did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no device of that number.
    #[error("there is no device number {index}, only {there}")]
    NoDevice {
        /// The number asked for.
        index: usize,
        /// How many there are.
        there: usize,
    },
    /// The driver does not open the device.
    #[error("the driver does not open it: {0}")]
    Open(String),
    /// A tensor is larger than the device can bind.
    #[error("{what} takes {bytes} bytes, the device binds at most {limit} at once")]
    TooLarge {
        /// Which.
        what: String,
        /// Its bytes.
        bytes: u64,
        /// The most that the device binds.
        limit: u64,
    },
    /// The device has no memory left.
    #[error("the device has no memory for {0} bytes")]
    OutOfMemory(u64),
    /// What is held would be more than may be.
    #[error(
        "a run takes {bytes} bytes of the device, where {held} are held; backends.gpu.memory is {budget}"
    )]
    OverBudget {
        /// Bytes that it takes.
        bytes: u64,
        /// Bytes held beside.
        held: u64,
        /// Bytes that may be.
        budget: u64,
    },
    /// The device is gone.
    #[error("{0}")]
    Lost(String),
    /// The driver refuses something: a bug of ours, or of its.
    #[error("the driver refuses: {0}")]
    Driver(String),
    /// The steps do not fit, or an index was none.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl From<GpuError> for BackendError {
    fn from(error: GpuError) -> Self {
        let text = error.to_string();
        match error {
            GpuError::NoDevice { .. } => Self::Input(text),
            GpuError::Open(_) => Self::Unavailable { backend: "gpu".into(), reason: text },
            GpuError::TooLarge { .. }
            | GpuError::OutOfMemory(_)
            | GpuError::OverBudget { .. }
            | GpuError::Step(StepError::Memory(_)) => Self::OutOfMemory(text),
            GpuError::Lost(_) => Self::Lost(text),
            GpuError::Driver(_) => Self::Run(text),
            GpuError::Step(_) => Self::Input(text),
        }
    }
}
