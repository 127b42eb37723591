//! Which devices there are.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use wgpu::{
    Adapter, Backends, DeviceType, Instance, InstanceDescriptor, PowerPreference, RequestAdapterOptions,
};

use crate::memory;

/// A device that a driver offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterInfo {
    /// As the driver calls it.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// What kind of hardware.
    pub hardware: Hardware,
    /// Bytes of its own memory, of the system's where it shares that; 0 if not known.
    pub memory: u64,
    /// The most bytes of one tensor.
    pub max_binding: u64,
}

/// What kind of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hardware {
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor, with the system's memory.
    Integrated,
    /// A part of a card that a hypervisor lends.
    Virtual,
    /// What the driver does not tell.
    Other,
    /// The processor in disguise: a driver that draws in software.
    Software,
}

/// The devices that are used, and what is said of the others.
pub(crate) struct Found {
    pub(crate) adapters: Vec<(Adapter, AdapterInfo)>,
    /// Those in software, where they are not wanted.
    pub(crate) unused: Vec<AdapterInfo>,
    /// Why there are none, where there are none.
    pub(crate) reason: Option<String>,
}

/// Asks every driver. Those in software are used only where that is wanted: nobody means them by "gpu".
pub(crate) fn find(software: bool) -> Found {
    let mut descriptor = InstanceDescriptor::new_without_display_handle();
    descriptor.backends = Backends::VULKAN;
    let instance = Instance::new(descriptor);
    let adapters = now(instance.enumerate_adapters(Backends::VULKAN)).unwrap_or_default();
    let adapters = adapters.into_iter().map(|adapter| {
        let info = describe(&adapter);
        (adapter, info)
    });
    let (mut used, unused): (Vec<_>, Vec<_>) =
        adapters.partition(|(_, info)| software || info.hardware != Hardware::Software);
    // Cards first, as anybody would count them; those alike stay in the driver's order.
    used.sort_by_key(|(_, info)| info.hardware);
    let reason = used.is_empty().then(|| match unused.first() {
        Some((_, info)) => format!(
            "there is only `{}`, which calculates in software; the setting `software=true` permits it",
            info.name
        ),
        None => absent(&instance),
    });
    Found { adapters: used, unused: unused.into_iter().map(|(_, info)| info).collect(), reason }
}

/// What is missing.
fn absent(instance: &Instance) -> String {
    let options =
        RequestAdapterOptions { power_preference: PowerPreference::HighPerformance, ..Default::default() };
    let said = match now(instance.request_adapter(&options)) {
        Some(Err(error)) => error.to_string(),
        _ => String::new(),
    };
    // It goes through all that wgpu could be built with.
    let said = said.split([',', ';']).map(str::trim).find(|part| part.starts_with("vulkan"));
    let said = said.unwrap_or("vulkan offers no device");
    format!(
        "{said}; needed are Vulkan's loader (libvulkan.so.1), a driver that it knows (/usr/share/vulkan/icd.d, or VK_ICD_FILENAMES), and access to the device (/dev/dri)"
    )
}

fn describe(adapter: &Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    let limits = adapter.limits();
    AdapterInfo {
        name: info.name,
        driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
        hardware: match info.device_type {
            DeviceType::DiscreteGpu => Hardware::Discrete,
            DeviceType::IntegratedGpu => Hardware::Integrated,
            DeviceType::VirtualGpu => Hardware::Virtual,
            DeviceType::Cpu => Hardware::Software,
            DeviceType::Other => Hardware::Other,
        },
        memory: memory::total(adapter),
        max_binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
    }
}

/// What a future of wgpu's comes to: outside of browsers they are all there at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
