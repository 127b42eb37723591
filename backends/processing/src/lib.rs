//! What happens to tensors before and after a model: types converted, images resized and normalised, layouts changed, softmax, the
//! best of many, rows picked out and put back.
//!
//! A [`Step`] says what, a [`Chain`] is steps in their order, as they stand in a TOML file:
//!
//! ```toml
//! [[before]]
//! step = "resize"               # [batch, height, width, channels] of bytes, any size
//! from = "image"                # which tensor; without it what the step before gave, or the only one that there is
//! height = 224
//! width = 224
//!
//! [[before]]
//! step = "normalize"            # to FP32: (x * scale - mean) / std, by channel
//! scale = 0.00392156862745098   # 1 / 255
//! mean = [0.485, 0.456, 0.406]
//! std = [0.229, 0.224, 0.225]
//!
//! [[before]]
//! step = "layout"
//! layout = "NCHW"
//! to = "pixels"                 # the name of what it gives; without it the name stays
//!
//! [[after]]
//! step = "softmax"
//! from = "logits"
//!
//! [[after]]
//! step = "top_k"
//! k = 5
//! to = "scores"
//! indices = "classes"
//! ```
//!
//! [`Chain::plan`] checks a chain against the tensors that it begins with and says what comes out; extents may be free. [`Plan::run`]
//! is the form on the CPU, in plain loops on the caller's thread. A device may have a form of its own, which gives the same within
//! what [`Step`] states for each; the form on the CPU is the definition.
//!
//! No step has more than one meaning: what a type, a rank or an extent does not fit is an error that names step, tensor and what would
//! fit, before anything runs. Only an index that is none is found at the run.

mod around;
mod chain;
mod cpu;
mod error;
mod infer;
pub mod number;
mod plan;
mod resize;
mod split;
mod step;

pub use around::{Around, SETTING, WITH_STEPS, plan_after, plan_before, rename};
pub use chain::{Chain, MAX_STEPS, Stage};
pub use cpu::{Images, Matrices};
pub use error::{Problem, StepError};
pub use plan::{Operation, Plan};
pub use resize::{Tap, bilinear_taps, nearest_taps};
pub use split::Split;
pub use step::{ImageLayout, MAX_SIDE, ResizeMode, Step};
