//! The steps.

use outrigger_backend::DataType;
use serde::{Deserialize, Serialize};

/// The most pixels that `resize` gives along one side.
pub const MAX_SIDE: u32 = 16_384;

/// One step. Axes count from 0, or from the end with -1 for the last.
///
/// Where a device has a form of its own, it agrees with that on the CPU as said here: *exact* is bit for bit, NaN, infinities,
/// subnormal numbers and signs of zero among it. Of other steps, devices may take subnormal numbers for 0, and where an input is not
/// finite what is said of it here holds on every device. An ulp is 2⁻²³ of the value.
///
/// In the graph of an ONNX model ([`WITH_STEPS`](crate::WITH_STEPS)) steps are operators of ONNX's, and agree less closely in this: a NaN stays one, of
/// whatever payload; `resize` with `bilinear` is within `4 + 6 n` ulp of the largest pixel of the image, `n` being the longest of the sides before and
/// after, for its places are calculated in FP32; `softmax` is within 2⁻¹⁵, and a row that is not finite becomes what the device makes of it. ONNX
/// Runtime may join a step with operators of the model, which rounds elsewhere. What ONNX leaves open is not there at all: `convert` to an integer that
/// does not hold all that comes, `top_k`, `gather`, `scatter`, and `resize` with `bilinear` of another number of axes than four.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Step {
    /// Another element type: among `UINT8`, `INT8`, `INT32`, `INT64`, `FP16`, `BF16` and `FP32`. Exact.
    ///
    /// To an integer: towards 0, and what does not fit becomes the nearest that does; NaN becomes 0. To a float: to the nearest,
    /// halves to even; from INT64 or INT32 to FP16 or BF16 by way of FP32. A NaN stays one, quiet, with the upper bits of its payload. To the type that
    /// it has, nothing changes.
    Convert {
        /// The type that it becomes.
        datatype: DataType,
    },
    /// `(x * scale - mean) / std` along an axis of channels, in FP32, out of `UINT8`, `INT8`, `FP16`, `BF16` or `FP32`.
    ///
    /// Calculated as `x * factor + offset` with `factor = scale / std` and `offset = -mean / std`, both rounded to FP32 once: within
    /// 2 ulp of the larger of `|x * factor|`, `|offset|` and `|y|`. NaN stays NaN, an infinity stays one. Factors that are 0, subnormal or not finite in
    /// FP32, and offsets that are not finite, are refused.
    Normalize {
        /// Subtracted: one for each channel, or one for all.
        #[serde(default = "zero")]
        mean: Vec<f64>,
        /// Divided by: one for each channel, or one for all. None is 0.
        #[serde(default = "one")]
        std: Vec<f64>,
        /// Multiplied by, before: 1/255 for bytes. Not 0.
        #[serde(default = "unscaled")]
        scale: f64,
        /// Where the channels are.
        #[serde(default = "last")]
        axis: i64,
    },
    /// Another height and width, of images with half-pixel centres: pixel `i` of `n` lies at `(i + 0.5) / n` of the side.
    ///
    /// `nearest` takes any type with a size, gives the same, and picks pixel `floor((i + 0.5) * from / to)`: Pillow's `NEAREST`, PyTorch's
    /// `nearest-exact`; ONNX's `Resize` with `half_pixel` and `round_prefer_ceil`. Exact.
    ///
    /// `bilinear` takes `UINT8`, `INT8`, `FP16`, `BF16` or `FP32`, gives FP32, not rounded to whole numbers, and weighs the two nearest
    /// pixels each way, clamped at the edges: ONNX's `Resize` with `linear` and `half_pixel`, PyTorch's `bilinear` without `align_corners` or `antialias`,
    /// OpenCV's `INTER_LINEAR`. When it shrinks by more than two it skips pixels, unlike Pillow's `BILINEAR`. Within 4 ulp of the largest of
    /// the four pixels; what a pixel that is not finite touches is NaN or infinite.
    Resize {
        /// Pixels from top to bottom, at most [`MAX_SIDE`].
        height: u32,
        /// Pixels from left to right, at most [`MAX_SIDE`].
        width: u32,
        /// How values between pixels come about.
        #[serde(default)]
        mode: ResizeMode,
        /// Where height and width are.
        #[serde(default)]
        layout: ImageLayout,
    },
    /// Channels first or last: the axis of channels is moved across height and width, those before it stay. Any type with a size. Exact.
    Layout {
        /// What it becomes; it is the other one before.
        layout: ImageLayout,
    },
    /// Softmax along an axis, in FP32, out of `FP16`, `BF16` or `FP32`: `exp(x - max) / sum`.
    ///
    /// Where `x` is more than 87 below the largest the result is 0, as it is for -∞. A row that has NaN or +∞ in it, or nothing but -∞, becomes NaN.
    /// Within `32 + n / 256` ulp for rows of `n`, and 2⁻¹²⁶. `exp` is [`crate::number::exp`] everywhere.
    Softmax {
        /// Along which the results add up to 1.
        #[serde(default = "last")]
        axis: i64,
    },
    /// The `k` largest along an axis, largest first, of `UINT8`, `INT8`, `INT32`, `FP16`, `BF16` or `FP32`; and where they are, INT64. Exact.
    ///
    /// Of equal ones the one with the lower index is first. -0 and +0 are equal; NaN is larger than everything else, and equal to NaN.
    TopK {
        /// How many: at least 1, at most as many as there are.
        k: u32,
        /// Along which.
        #[serde(default = "last")]
        axis: i64,
        /// The name of the tensor of indices that it gives.
        #[serde(default = "indices")]
        indices: String,
    },
    /// Rows picked out of the first axis: `y[i] = x[indices[i]]`, of any type with a size. An index outside is an error of the run. Exact.
    Gather {
        /// The name of the tensor that says which: `INT32` or `INT64`, of one axis.
        indices: String,
    },
    /// Rows put back into the first axis: `y[indices[i]] = x[i]`, zeros elsewhere; of those with the same index the last. Any type with a
    /// size. An index outside is an error of the run. Exact.
    Scatter {
        /// The name of the tensor that says where to: `INT32` or `INT64`, of one axis, as many as there are rows.
        indices: String,
        /// Rows of the result, at least 1.
        rows: u32,
    },
}

/// How `resize` comes by values between pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// The nearest pixel.
    Nearest,
    /// Two pixels each way, by their distance.
    #[default]
    Bilinear,
}

/// Where an image has its channels. Axes before these are any: `N` stands for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageLayout {
    /// Height, width, channels: as images are decoded.
    #[default]
    #[serde(rename = "NHWC")]
    Nhwc,
    /// Channels, height, width: as most networks take them.
    #[serde(rename = "NCHW")]
    Nchw,
}

impl Step {
    /// Its name in a file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Convert { .. } => "convert",
            Self::Normalize { .. } => "normalize",
            Self::Resize { .. } => "resize",
            Self::Layout { .. } => "layout",
            Self::Softmax { .. } => "softmax",
            Self::TopK { .. } => "top_k",
            Self::Gather { .. } => "gather",
            Self::Scatter { .. } => "scatter",
        }
    }

    /// The tensor that it takes beside the one that it changes.
    pub(crate) fn second_input(&self) -> Option<&str> {
        match self {
            Self::Gather { indices } | Self::Scatter { indices, .. } => Some(indices),
            _ => None,
        }
    }

    /// The tensor that it gives beside the one that it changes.
    pub(crate) fn second_output(&self) -> Option<&str> {
        match self {
            Self::TopK { indices, .. } => Some(indices),
            _ => None,
        }
    }
}

fn zero() -> Vec<f64> {
    vec![0.]
}

fn one() -> Vec<f64> {
    vec![1.]
}

fn unscaled() -> f64 {
    1.
}

fn last() -> i64 {
    -1
}

fn indices() -> String {
    "indices".into()
}
