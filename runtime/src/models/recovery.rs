//! Devices that are being started anew while models are loaded: what ended them was one model, and others are to find them again.

use std::time::{Duration, Instant};

use outrigger_backend::Health;

use super::survey::OpenDevice;
use crate::config::BackendsConfig;

/// How often a device is asked whether it is there again.
const ASKED: Duration = Duration::from_millis(10);

/// Waits for a device while it says that it is being started anew: for as long as that may take with what is loaded on it, so many
/// models.
///
/// # Errors
/// Why it is not there again.
pub(super) fn wait(config: &BackendsConfig, open: &OpenDevice, loaded: u32) -> Result<(), String> {
    let timing = config.of(&open.id.backend).host.timing;
    let limit = timing.reload.saturating_mul(loaded).saturating_add(timing.backoff_most + timing.start);
    let began = Instant::now();
    loop {
        match open.device.status().map(|status| status.health) {
            Ok(Health::Recovering(why)) if began.elapsed() >= limit => {
                return Err(format!("it is not there again after {limit:?}: {why}"));
            }
            Ok(Health::Recovering(_)) => std::thread::sleep(ASKED),
            Ok(Health::Lost(why)) => return Err(why),
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}
