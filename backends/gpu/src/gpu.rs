//! An open device: its queue, its compiled shaders, and how it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use wgpu::{
    Adapter, BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType, Buffer,
    BufferBindingType, BufferDescriptor, BufferUsages, ComputePipeline, ComputePipelineDescriptor, Device,
    DeviceDescriptor, Error, ErrorFilter, Limits, PipelineLayoutDescriptor, PollType, Queue,
    ShaderModuleDescriptor, ShaderSource, ShaderStages,
};

use crate::GpuError;
use crate::adapters::{AdapterInfo, find, now};
use crate::program::Idle;
use crate::shader::Shader;
use crate::turns::Turns;

/// An open device. Any number of threads may use it at once.
pub struct Gpu {
    pub(crate) device: Device,
    pub(crate) queue: Queue,
    info: AdapterInfo,
    limits: Limits,
    /// Shaders are few: each is of some step and some types, whatever the shapes.
    pipelines: Mutex<HashMap<Shader, Arc<Pipeline>>>,
    health: Arc<Health>,
    held: Arc<AtomicU64>,
    /// Bytes that may be held; `None` leaves that to the driver.
    budget: Option<u64>,
    /// Says how many bytes of the budget others hold on the same device: ONNX models.
    beside: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// Runs of all programs.
    pub(crate) turns: Turns,
    /// What programs keep from one run to the next. Locked while memory is taken.
    idle: Mutex<Vec<Weak<Idle>>>,
}

/// What the driver has said outside of any call.
#[derive(Default)]
struct Health {
    lost: OnceLock<String>,
    /// The last error that nobody waited for, until it is told.
    stray: Mutex<Option<String>>,
}

pub(crate) struct Pipeline {
    pub(crate) pipeline: ComputePipeline,
    pub(crate) layout: BindGroupLayout,
}

impl Gpu {
    /// The devices that there are, those in software too where that is wanted; or why there are none.
    ///
    /// # Errors
    /// What is missing, in a sentence.
    pub fn list(software: bool) -> Result<Vec<AdapterInfo>, String> {
        let found = find(software);
        match found.reason {
            Some(reason) => Err(reason),
            None => Ok(found.adapters.into_iter().map(|(_, info)| info).collect()),
        }
    }

    /// Opens device number `index` of [`Gpu::list`].
    ///
    /// # Errors
    /// [`GpuError::NoDevice`], [`GpuError::Open`].
    pub fn open(index: usize, software: bool) -> Result<Self, GpuError> {
        let found = find(software).adapters;
        let there = found.len();
        let (adapter, info) = found.into_iter().nth(index).ok_or(GpuError::NoDevice { index, there })?;
        Self::of(&adapter, info)
    }

    pub(crate) fn of(adapter: &Adapter, info: AdapterInfo) -> Result<Self, GpuError> {
        // All that the device has, for tensors are as large as they are; no features beyond what every device has.
        let limits = adapter.limits();
        let descriptor = DeviceDescriptor { required_limits: limits.clone(), ..Default::default() };
        let opened = now(adapter.request_device(&descriptor));
        let (device, queue) = match opened {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => return Err(GpuError::Open(error.to_string())),
            None => return Err(GpuError::Open("it does not answer".into())),
        };
        let health = Arc::new(Health::default());
        let told = Arc::clone(&health);
        device.set_device_lost_callback(move |reason, text| {
            let _ = told.lost.set(format!("{reason:?}: {text}"));
        });
        let told = Arc::clone(&health);
        device.on_uncaptured_error(Arc::new(move |error: Error| {
            *told.stray.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }));
        Ok(Self {
            device,
            queue,
            info,
            limits,
            pipelines: Mutex::default(),
            health,
            held: Arc::default(),
            budget: None,
            beside: None,
            turns: Turns::default(),
            idle: Mutex::default(),
        })
    }

    /// Lets so many bytes be held. What a program keeps between runs makes way for a run that needs it, and a run waits for what others have
    /// under way, for up to 30 seconds; one that is over the budget all the same is [`GpuError::OverBudget`].
    #[must_use]
    pub fn within(mut self, budget: Option<u64>) -> Self {
        self.budget = budget;
        self
    }

    /// What the driver says of it.
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    /// Bytes of buffers that this handle holds on the device.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Why nothing on it succeeds any more, if so.
    pub fn lost(&self) -> Option<&str> {
        self.health.lost.get().map(String::as_str)
    }

    /// The last thing that went wrong outside of any call, once. It says nothing of what comes after.
    pub(crate) fn take_stray(&self) -> Option<String> {
        self.health.stray.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// So many bytes of the budget are held beside, whenever that is asked.
    pub(crate) fn beside(mut self, bytes: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.beside = Some(Box::new(bytes));
        self
    }

    /// A program that keeps something between runs.
    pub(crate) fn keeps(&self, idle: &Arc<Idle>) {
        let mut all = self.lock_idle();
        all.retain(|idle| idle.strong_count() > 0);
        all.push(Arc::downgrade(idle));
    }

    /// Sees to it that so many bytes can be taken, for as long as what is returned lives: nobody else takes any meanwhile.
    pub(crate) fn room(&self, bytes: u64) -> Result<Room<'_>, GpuError> {
        let all = self.lock_idle();
        let Some(budget) = self.budget else { return Ok(Room(all)) };
        let is_over = |held: u64| held.saturating_add(bytes) > budget;
        let beside = || self.beside.as_ref().map_or(0, |beside| beside());
        let held = || self.held().saturating_add(beside());
        if is_over(held()) {
            all.iter().filter_map(Weak::upgrade).for_each(|idle| idle.clear());
            let _ = self.device.poll(PollType::Poll);
        }
        let held = held();
        if is_over(held) { Err(GpuError::OverBudget { bytes, held, budget }) } else { Ok(Room(all)) }
    }

    fn lock_idle(&self) -> MutexGuard<'_, Vec<Weak<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most bytes of any buffer.
    pub(crate) fn max_buffer(&self) -> u64 {
        self.limits.max_buffer_size
    }

    /// The most bytes of one buffer that a shader sees.
    pub(crate) fn max_binding(&self) -> u64 {
        self.info.max_binding
    }

    /// So many workgroups in two dimensions, for each has its limit; a few more where they do not divide evenly.
    pub(crate) fn dispatch(&self, groups: usize) -> (u32, u32) {
        let most = self.limits.max_compute_workgroups_per_dimension.max(1) as usize;
        let across = groups.clamp(1, most);
        (across as u32, groups.div_ceil(across).min(most) as u32)
    }

    /// Does something with the driver and hears what it says of that, on this thread.
    pub(crate) fn guarded<T>(&self, bytes: u64, work: impl FnOnce() -> T) -> Result<T, GpuError> {
        if let Some(lost) = self.lost() {
            return Err(GpuError::Lost(lost.into()));
        }
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let result = work();
        let errors = [now(internal.pop()), now(validation.pop()), now(memory.pop())];
        match errors.into_iter().flatten().flatten().next() {
            None => Ok(result),
            Some(Error::OutOfMemory { .. }) => Err(GpuError::OutOfMemory(bytes)),
            Some(error) => match self.lost() {
                Some(lost) => Err(GpuError::Lost(lost.into())),
                None => Err(GpuError::Driver(error.to_string())),
            },
        }
    }

    /// Takes memory. It is given back when the last [`Held`] of it is dropped.
    pub(crate) fn buffer(&self, bytes: u64, usage: BufferUsages) -> Held {
        let descriptor = BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Held { buffer, held: Arc::clone(&self.held) }
    }

    /// The shader, compiled; once for all programs of the device.
    pub(crate) fn pipeline(&self, shader: &Shader) -> Result<Arc<Pipeline>, GpuError> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(shader) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(self.guarded(0, || self.compile(shader))?);
        pipelines.insert(shader.clone(), Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn compile(&self, shader: &Shader) -> Pipeline {
        let source = ShaderSource::Wgsl(shader.text.as_str().into());
        let module = self.device.create_shader_module(ShaderModuleDescriptor { label: None, source });
        let entry = |binding, read_only| BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer {
                ty: BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let mut entries = vec![entry(0, true), entry(1, true), entry(2, false)];
        entries.extend(shader.has_second.then(|| entry(3, true)));
        entries.extend(shader.has_status.then(|| entry(4, false)));
        let layout = self
            .device
            .create_bind_group_layout(&BindGroupLayoutDescriptor { label: None, entries: &entries });
        let whole = self.device.create_pipeline_layout(&PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: None,
            layout: Some(&whole),
            module: &module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        Pipeline { pipeline, layout }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).field("held", &self.held()).finish_non_exhaustive()
    }
}

/// That memory may be taken.
pub(crate) struct Room<'a>(#[expect(dead_code, reason = "is held")] MutexGuard<'a, Vec<Weak<Idle>>>);

/// Memory of the device's, counted.
pub(crate) struct Held {
    pub(crate) buffer: Buffer,
    held: Arc<AtomicU64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.buffer.size(), Ordering::Relaxed);
    }
}
