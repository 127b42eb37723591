//! GPUs that can be used.

use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::{Context, CudaError, Driver, Gpu};

/// CUDA that ONNX Runtime's packages, from 1.27 on, and PyTorch 2.11 are built with.
const CUDA_VERSION: (i32, i32) = (13, 0);
/// The oldest GPUs that they have code for: Turing.
const CAPABILITY: (i32, i32) = (7, 5);

/// A GPU that can be used.
pub struct Card {
    driver: Arc<Driver>,
    gpu: Gpu,
    /// Made when something is first asked of it, for it takes memory, and most processes use one GPU of all.
    context: Mutex<Option<Arc<Context>>>,
}

impl Card {
    /// One of the driver's.
    pub fn new(driver: &Arc<Driver>, gpu: Gpu) -> Self {
        Self { driver: Arc::clone(driver), gpu, context: Mutex::default() }
    }

    /// What it is.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Its context, made the first time: it takes some hundred megabytes of the GPU.
    ///
    /// # Errors
    /// What the driver says.
    pub fn context(&self) -> Result<Arc<Context>, CudaError> {
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = &*context {
            return Ok(Arc::clone(context));
        }
        let made = Context::retain(&self.driver, self.gpu.number)?;
        Ok(Arc::clone(context.insert(made)))
    }
}

/// The GPUs that `who` can use, which is built with CUDA 13.0.
///
/// # Errors
/// Why there are none.
pub fn usable(driver: &Arc<Driver>, who: &str) -> Result<Vec<Card>, String> {
    let (major, minor) = driver.version();
    if (major, minor) < CUDA_VERSION {
        return Err(format!(
            "the NVIDIA driver is for CUDA {major}.{minor}, {who} needs {}.{} (driver 580 or later); update the driver",
            CUDA_VERSION.0, CUDA_VERSION.1
        ));
    }
    let gpus = driver.gpus().map_err(|error| error.to_string())?;
    let (usable, old): (Vec<_>, Vec<_>) = gpus.into_iter().partition(|gpu| gpu.capability >= CAPABILITY);
    if usable.is_empty() {
        let old = old.iter().map(|gpu| format!("{} ({}.{})", gpu.name, gpu.capability.0, gpu.capability.1));
        let old = old.collect::<Vec<_>>();
        return Err(match &old[..] {
            [] => "the NVIDIA driver has no GPU for this process (CUDA_VISIBLE_DEVICES can hide them)".into(),
            old => format!(
                "compute capability {}.{} is needed, there are only {}",
                CAPABILITY.0,
                CAPABILITY.1,
                old.join(", ")
            ),
        });
    }
    Ok(usable.into_iter().map(|gpu| Card::new(driver, gpu)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    #[test]
    fn gpus_that_are_too_old_are_left_out() {
        let cards = usable(&fake::driver(), "this").unwrap();
        let cards: Vec<_> = cards.iter().map(|card| (card.gpu.number, card.gpu.name.as_str())).collect();
        assert_eq!(cards, [(1, "Fine card")]);
    }

    #[test]
    fn a_card_has_one_context_once_it_is_asked_for() {
        let number = fake::number();
        let gpu = Gpu { number, name: "Fine card".into(), memory: 1, capability: (9, 0) };
        let card = Card::new(&fake::driver(), gpu);
        assert_eq!(fake::seen(number).contexts, 0);
        let (one, other) = (card.context().unwrap(), card.context().unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(fake::seen(number).contexts, 1);
        drop((one, other, card));
        assert_eq!(fake::seen(number).contexts, 0);
    }
}
