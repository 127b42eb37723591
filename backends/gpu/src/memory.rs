//! How much memory a device has, which wgpu does not tell.

use wgpu::Adapter;
use wgpu::hal::api::Vulkan;

/// Bytes of the heaps that the driver calls the device's own; 0 if it is not known.
pub(crate) fn total(adapter: &Adapter) -> u64 {
    // SAFETY: the guard is used here only, and nothing is destroyed.
    let Some(adapter) = (unsafe { adapter.as_hal::<Vulkan>() }) else { return 0 };
    // SAFETY: the instance lives as long as the guard, and the physical device is one of its.
    let properties = unsafe {
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT is 1.
    heaps.filter(|heap| heap.flags.as_raw() & 1 == 1).map(|heap| heap.size).sum()
}
