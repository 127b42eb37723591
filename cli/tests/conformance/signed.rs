//! A backend whose models are described beside their files: each of those is loaded with what is said of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Buffer, Device, DeviceMemory, DeviceStatus, LoadOptions, Model,
    ModelInfo,
};

/// What is said of each file.
pub(crate) type Signatures = BTreeMap<PathBuf, ModelInfo>;

pub(crate) struct Signed {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) signatures: Arc<Signatures>,
}

impl Backend for Signed {
    fn info(&self) -> &BackendInfo {
        self.backend.info()
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        let device = self.backend.open(index)?;
        Ok(Arc::new(SignedDevice { device, signatures: Arc::clone(&self.signatures) }))
    }
}

struct SignedDevice {
    device: Arc<dyn Device>,
    signatures: Arc<Signatures>,
}

impl SignedDevice {
    fn said(&self, options: &LoadOptions) -> LoadOptions {
        let said = self.signatures.get(&options.path);
        let signature = said.unwrap_or(&options.signature).clone();
        LoadOptions { signature, ..options.clone() }
    }
}

impl Device for SignedDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        self.device.status()
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        self.device.estimate(&self.said(options))
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        self.device.load(&self.said(options))
    }

    fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        self.device.pinned(bytes)
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        self.device.allocate(bytes)
    }

    fn upload(&self, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        self.device.upload(from, to)
    }

    fn download(&self, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        self.device.download(from, to)
    }
}
