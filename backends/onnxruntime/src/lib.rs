//! What backends on ONNX Runtime have in common: the library and its environment, sessions, runs, tensors between DLPack and
//! ONNX Runtime, strings, cancels, models held against their files, optimised models on disk, and errors.
//!
//! A backend is what is left: a [`Provider`], which knows its devices, its settings for a model, and the execution providers that run
//! its sessions, and a call of [`open`] with the [`Settings`] that all of them have.
//!
//! Telemetry is always off. Without the library a backend opens all the same, with no devices and the reason.
//!
//! ONNX Runtime has one environment in a process, with one pool of threads for all models; so the first [`open`] that finds the
//! library decides on both, and later ones join it. It is one for each plug-in library, which contains this crate: nothing else may
//! contain it.

#[expect(unsafe_code, reason = "calls ONNX Runtime")]
mod append;
#[expect(unsafe_code, reason = "calls ONNX Runtime")]
mod arena;
mod backend;
mod cache;
mod cancel;
mod complaints;
mod contents;
#[expect(unsafe_code, reason = "calls ONNX Runtime")]
mod editor;
mod error;
mod folder;
mod graphs;
mod instance;
mod kept;
mod model;
#[expect(unsafe_code, reason = "lends what a caller has borrowed to a thread that it waits for")]
mod own;
mod provider;
#[expect(unsafe_code, reason = "calls ONNX Runtime")]
mod raw;
mod recordings;
mod runtime;
mod session;
mod settings;
mod shrink;
mod steps;
mod tensor;
mod turns;
mod webgpu;

pub use arena::Arena;
pub use backend::{open, version};
pub use contents::look_at;
pub use folder::private_folder;
pub use graphs::{GraphShapes, Graphs};
pub use provider::{ExecutionProvider, Fault, Leftovers, Memory, Plan, PlanError, Pool, Provider, Residence};
pub use recordings::{Beside, EndsBeside, Recordings};
pub use runtime::Runtime;
pub use settings::{Settings, SettingsError};
pub use shrink::Shrink;
pub use turns::Turns;
pub use webgpu::WebGpu;
