//! The CUDA driver: a table of its functions, what is asked of it, and contexts.
//!
//! Source: CUDA Driver API (13.0). The functions are those of versions that all drivers since 2012 have.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libloading::Library;
use outrigger_backend::BackendError;

use crate::faults::{self, Fault};

/// `CUresult`; 0 is success.
pub type Status = c_int;
/// `CUdevice`: a device's number.
pub type Number = c_int;
/// `CUcontext`.
pub type Handle = *mut c_void;
/// `CUdeviceptr`.
pub type Address = u64;

macro_rules! functions {
    ($($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The driver's functions, or a test's.
        #[derive(Clone, Copy)]
        #[allow(missing_docs, reason = "the driver's documentation has them")]
        pub struct Functions {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Functions {
            fn of(library: &Library) -> Result<Self, String> {
                Ok(Self {
                    // SAFETY: the types are those of the driver's documentation.
                    $($field: *unsafe { library.get($symbol) }
                        .map_err(|_| concat!("it has no function `", $symbol, "`").to_owned())?,)*
                })
            }
        }
    };
}

functions! {
    init = "cuInit" (c_uint);
    driver_version = "cuDriverGetVersion" (*mut c_int);
    error_name = "cuGetErrorName" (Status, *mut *const c_char);
    error_text = "cuGetErrorString" (Status, *mut *const c_char);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device_get = "cuDeviceGet" (*mut Number, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, Number);
    device_memory = "cuDeviceTotalMem_v2" (*mut usize, Number);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, Number);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut Handle, Number);
    context_release = "cuDevicePrimaryCtxRelease_v2" (Number);
    context_push = "cuCtxPushCurrent_v2" (Handle);
    context_pop = "cuCtxPopCurrent_v2" (*mut Handle);
    stream_wait = "cuStreamSynchronize" (*mut c_void);
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    memory_take = "cuMemAlloc_v2" (*mut Address, usize);
    memory_free = "cuMemFree_v2" (Address);
    memory_set = "cuMemsetD8_v2" (Address, u8, usize);
    copy_to_device = "cuMemcpyHtoD_v2" (Address, *const c_void, usize);
    copy_to_host = "cuMemcpyDtoH_v2" (*mut c_void, Address, usize);
    copy_on_device = "cuMemcpyDtoD_v2" (Address, Address, usize);
    pinned_take = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    pinned_free = "cuMemFreeHost" (*mut c_void);
}

const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

/// The driver, initialised. Its library is never closed.
pub struct Driver {
    pub(crate) functions: Functions,
    version: (i32, i32),
}

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Its library does not open.
    #[error(
        "NVIDIA driver not found: {library}: {why}; install the driver of the GPU, or give the container the GPUs \
         (`--gpus all` with NVIDIA's container toolkit)"
    )]
    Missing {
        /// As it was looked for.
        library: String,
        /// What the system's loader says.
        why: String,
    },
    /// Another library.
    #[error("{library} is no driver of NVIDIA's: {why}")]
    Foreign {
        /// As it was looked for.
        library: String,
        /// What it has not.
        why: String,
    },
    /// It is there and has no use for this machine.
    #[error("the NVIDIA driver does not start")]
    Start(#[from] CudaError),
}

/// A call that the driver has refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("CUDA failure {code}: {text} ({name}) in {call}")]
pub struct CudaError {
    /// As the driver numbers them.
    pub code: Status,
    name: String,
    text: String,
    call: &'static str,
}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        match faults::of_code(error.code) {
            Some(Fault::Lost) => Self::Lost(error.to_string()),
            Some(Fault::OutOfMemory) => Self::OutOfMemory(error.to_string()),
            None => Self::Internal(error.to_string()),
        }
    }
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// Free, whoever has taken the rest.
    pub free: u64,
}

/// A GPU, as far as it tells without a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// CUDA's number, which heeds `CUDA_VISIBLE_DEVICES`.
    pub number: Number,
    /// As its maker calls it.
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// Compute capability.
    pub capability: (i32, i32),
}

impl Driver {
    /// Opens the driver's library and starts it.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(library: &Path) -> Result<Arc<Self>, DriverError> {
        let name = || library.display().to_string();
        // SAFETY: the driver's library, or what the setting says is one.
        let opened = unsafe { Library::new(library) }.map_err(|error| DriverError::Missing {
            library: name(),
            why: outrigger_backend::chain(&error),
        })?;
        // It has threads of its own.
        let opened = Box::leak(Box::new(opened));
        let functions = Functions::of(opened).map_err(|why| DriverError::Foreign { library: name(), why })?;
        Ok(Self::over(functions)?)
    }

    /// Starts a driver that is these functions.
    ///
    /// # Errors
    /// What it says.
    pub fn over(functions: Functions) -> Result<Arc<Self>, CudaError> {
        let mut driver = Self { functions, version: (0, 0) };
        let mut version = 0;
        // SAFETY: the first call of all, with the only flags that there are.
        driver.check("cuInit", unsafe { (functions.init)(0) })?;
        // SAFETY: the pointer is a place of this frame.
        driver.check("cuDriverGetVersion", unsafe { (functions.driver_version)(&mut version) })?;
        driver.version = (version / 1000, version % 1000 / 10);
        Ok(Arc::new(driver))
    }

    /// The newest CUDA that it can run.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The GPUs, in CUDA's order. Makes no context.
    ///
    /// # Errors
    /// What it says.
    pub fn gpus(&self) -> Result<Vec<Gpu>, CudaError> {
        let functions = &self.functions;
        let mut count = 0;
        // SAFETY: the pointer is a place of this frame.
        self.check("cuDeviceGetCount", unsafe { (functions.device_count)(&mut count) })?;
        (0..count).map(|index| self.gpu(index)).collect()
    }

    fn gpu(&self, index: c_int) -> Result<Gpu, CudaError> {
        let functions = &self.functions;
        let (mut number, mut memory, mut name) = (0, 0, [0 as c_char; 256]);
        let mut capability = (0, 0);
        // SAFETY: all pointers are places of this frame; the name's is as long as is said, and zeros to the end where nothing is written.
        let name = unsafe {
            self.check("cuDeviceGet", (functions.device_get)(&mut number, index))?;
            self.check("cuDeviceGetName", (functions.device_name)(name.as_mut_ptr(), 255, number))?;
            self.check("cuDeviceTotalMem", (functions.device_memory)(&mut memory, number))?;
            for (attribute, value) in
                [(COMPUTE_CAPABILITY_MAJOR, &mut capability.0), (COMPUTE_CAPABILITY_MINOR, &mut capability.1)]
            {
                let asked = (functions.device_attribute)(value, attribute, number);
                self.check("cuDeviceGetAttribute", asked)?;
            }
            CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
        };
        Ok(Gpu { number, name, memory: memory as u64, capability })
    }

    pub(crate) fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 { Ok(()) } else { Err(self.error(call, status)) }
    }

    fn error(&self, call: &'static str, status: Status) -> CudaError {
        let told = |ask: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text = null();
            // SAFETY: the pointer is a place of this frame; a text that comes is a static one.
            unsafe {
                match ask(status, &mut text) {
                    0 if !text.is_null() => CStr::from_ptr(text).to_string_lossy().into_owned(),
                    _ => "unrecognized error code".to_owned(),
                }
            }
        };
        let (name, text) = (told(self.functions.error_name), told(self.functions.error_text));
        CudaError { code: status, name, text, call }
    }
}

/// A GPU's primary context, the one that CUDA's runtime, and so ONNX Runtime, has too.
pub struct Context {
    driver: Arc<Driver>,
    number: Number,
    handle: Handle,
    /// Bytes of the device's whose blocks have gone, and which it did not take back.
    unfreed: AtomicU64,
}

// SAFETY: a context may be current on any number of threads, and the driver locks what needs it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes a GPU's primary context, or shares in it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn retain(driver: &Arc<Driver>, number: Number) -> Result<Arc<Self>, CudaError> {
        let mut handle = null_mut();
        // SAFETY: the pointer is a place of this frame, the number the driver's.
        let status = unsafe { (driver.functions.context_retain)(&mut handle, number) };
        driver.check("cuDevicePrimaryCtxRetain", status)?;
        Ok(Arc::new(Self { driver: Arc::clone(driver), number, handle, unfreed: AtomicU64::new(0) }))
    }

    /// Calls a function of the driver's with the context current on this thread, and puts the one before back.
    pub(crate) fn call(
        &self,
        name: &'static str,
        call: impl FnOnce(&Functions) -> Status,
    ) -> Result<(), CudaError> {
        let functions = &self.driver.functions;
        // SAFETY: the context is live until this is dropped.
        self.driver.check("cuCtxPushCurrent", unsafe { (functions.context_push)(self.handle) })?;
        let status = call(functions);
        let mut popped = null_mut();
        // SAFETY: the pointer is a place of this frame; what was pushed above is popped.
        let pop = unsafe { (functions.context_pop)(&mut popped) };
        self.driver.check(name, status)?;
        self.driver.check("cuCtxPopCurrent", pop)
    }

    /// What the driver says if it has no memory, for a call that has given none without an error.
    pub(crate) fn no_memory(&self, name: &'static str) -> CudaError {
        self.driver.error(name, faults::OUT_OF_MEMORY)
    }

    /// A block of so many bytes has gone without being given back.
    pub(crate) fn keep(&self, bytes: usize) {
        self.unfreed.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of blocks that have gone and that the device did not take back. They are the process's until it ends.
    pub fn unfreed(&self) -> u64 {
        self.unfreed.load(Ordering::Relaxed)
    }

    /// The memory of the device, whoever has taken what is not free.
    ///
    /// # Errors
    /// What the driver says. An error that ends the process comes back from this as from every call.
    pub fn memory(&self) -> Result<Memory, CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are places of this frame.
        self.call("cuMemGetInfo", |functions| unsafe { (functions.memory_info)(&mut free, &mut total) })?;
        Ok(Memory { total: total as u64, free: free as u64 })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, and released only here. That it fails, as it does at the end of the process, is of no use to know.
        unsafe { (self.driver.functions.context_release)(self.number) };
    }
}
