//! The CUDA backend: ONNX models on NVIDIA GPUs through ONNX Runtime's providers for CUDA and TensorRT, as a plug-in library.
//!
//! | setting | what it says | without it |
//! |---|---|---|
//! | `onnxruntime` | the path of ONNX Runtime's library, that of the package `onnxruntime-gpu` | the one that the system's loader finds |
//! | `libraries` | folders, divided by `:`, of CUDA's, cuDNN's and TensorRT's libraries | those of NVIDIA's Python packages beside `onnxruntime`, and where the system's loader looks |
//! | `cuda_driver` | the path of the driver's library | `libcuda.so.1` |
//! | `cache`, `cache_bytes` | a folder for optimised models, as for `cpu`; models that TensorRT runs are not kept there | none are kept |
//! | `arena_bytes` | the most bytes of a device that runs may take in between, all models together; 0 is no limit | 0 |
//! | `shrink` | after how many seconds without a run on a device the next run gives back, at its end, what its arena has and nothing uses; or `never` | `never` |
//! | `convolutions` | how cuDNN's algorithms are chosen: `heuristic`, `exhaustive` (measured at the first run of each shape), `default` | `heuristic` |
//! | `tf32` | whether FP32 may be multiplied with 10 bits of mantissa, which is several times as fast: `true` or `false` | `true`, as ONNX Runtime has it |
//! | `tensorrt` | whether TensorRT has the first choice of operators: `false`, `true`, or `fp16`, which lets it compute in FP16 | `false` |
//! | `tensorrt_cache` | a folder for TensorRT's engines, which take minutes to build; this user's alone | they are built at each load |
//! | `leftovers` | whether operators that the GPU has not may run on the CPU: `allowed` or `refused` | `allowed` |
//!
//! `convolutions`, `tf32`, `tensorrt` and `leftovers` are settings of a model, too, which go over these. A model alone has
//!
//! | setting of a model | what it says | without it |
//! |---|---|---|
//! | `graphs` | which runs are recorded as a CUDA graph and replayed: `off`; `fixed`, for a model whose inputs have no free extents; or batch sizes, `1,8,32`: inputs of such a first extent | `off` |
//! | `graph_shapes` | of how many sets of shapes at most; further ones run without | 8 |
//!
//! Without driver, library or device the backend opens all the same, with no devices and the reason. A provider that cannot be had fails the
//! load: the CPU is never used instead.
//!
//! Memory: weights are taken from the driver one by one and go back to it when their model is unloaded. What runs take in between comes
//! from one arena for each device, which all models share, and which keeps what it once had, up to `arena_bytes`, unless
//! `shrink` says otherwise: the run that shrinks waits for that, and those after it take the memory anew. Telling the memory of a
//! device, the first time, makes its CUDA context, which takes some hundred megabytes.
//!
//! Streams: each run has a stream of its own among those that are under way, which ONNX Runtime lends it from a pool of the session's, and is
//! waited for at its end. So runs of one model overlap on the device as far as there are threads (`backends.cuda.threads`).
//!
//! A run that was cancelled ends when it is over: its operators are in the device's queue long before the first has run.
//!
//! CUDA graphs: what is recorded are addresses, so inputs are copied into buffers of the model's own before each run and results out of them after it, with
//! the driver's waiting copies. A model that has them has one run at a time, also of shapes that are not recorded, made by a thread of its own: ONNX
//! Runtime keeps recordings and the handles of cuBLAS and cuDNN for each thread that runs such a session, until that ends. It has an arena of its own, whose limit is
//! `arena_bytes` as well; buffers count as what the device holds. The first run of a set of shapes runs twice. All operators have to be CUDA's, none of
//! them control flow, and all inputs read on the device, else the model does not load: kernels that take an input's values on the CPU, as those of `Clip`,
//! `Pad`, `Slice` and `TopK` do, would have the first ones for ever. Nor does a model with `graphs` and `tensorrt` load, for TensorRT has one recording
//! for all shapes. One whose results have shapes that only the run tells, or that
//! are strings, runs without. An operator that asks the device in the middle of a run, as `NonZero` does, cannot be recorded: such
//! sets of shapes run without. While a run is recorded, which is once for each set of shapes, no other model of this process runs, loads or copies on any
//! GPU: CUDA would take its calls for the recording's. With `cuda_torch` in the same process, which they are not by default, nothing sees to that.

#[expect(unsafe_code, reason = "opens libraries for others to find")]
mod libraries;
mod provider;
mod settings;

use std::sync::Arc;

use outrigger_backend::{Backend, BackendError};
use outrigger_onnxruntime::Pool;

use provider::Cuda;
use settings::Settings;

outrigger_backend::export!(open);

/// Threads that compute what is left to the CPU, which is little: shapes, mostly.
const THREADS: usize = 2;

/// Opens the backend.
///
/// # Errors
/// [`BackendError::Unavailable`] for a setting that is not known or has no valid value.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings = Settings::read(settings)
        .map_err(|error| BackendError::Unavailable { backend: "cuda".into(), reason: error.to_string() })?;
    let common = settings.common.clone();
    let pool = Pool { threads: THREADS, affinity: None };
    outrigger_onnxruntime::open(Cuda::new(settings), &common, &pool)
}
