//! What a step gives for what it takes: types, shapes, and whether it takes that at all.

use outrigger_backend::{DataType, Shape, ShapeError, TensorInfo};

use crate::Problem;
use crate::split::axis;
use crate::step::{ImageLayout, MAX_SIDE, ResizeMode, Step};

const CONVERTED: &str = "UINT8, INT8, INT32, INT64, FP16, BF16 or FP32";
const ORDERED: &str = "UINT8, INT8, INT32, FP16, BF16 or FP32";
const MEASURED: &str = "UINT8, INT8, FP16, BF16 or FP32";
const FLOATS: &str = "FP16, BF16 or FP32";
const SIZED: &str = "any type but BYTES";
const INDICES: &str = "INT32 or INT64";

impl Step {
    /// What it gives for `first`, and `second` where it takes two: its results in the order of their names, whose names are those of
    /// the inputs. Extents below 0 are free and stay so.
    pub(crate) fn infer(
        &self,
        first: &TensorInfo,
        second: Option<&TensorInfo>,
    ) -> Result<Vec<TensorInfo>, Problem> {
        let results = match self {
            Self::Convert { datatype } => convert(first, *datatype)?,
            Self::Normalize { mean, std, scale, axis } => normalize(first, mean, std, *scale, *axis)?,
            Self::Resize { height, width, mode, layout } => resize(first, [*height, *width], *mode, *layout)?,
            Self::Layout { layout } => relayout(first, *layout)?,
            Self::Softmax { axis } => softmax(first, *axis)?,
            Self::TopK { k, axis, .. } => top_k(first, *k, *axis)?,
            Self::Gather { .. } => rows(first, second, None)?,
            Self::Scatter { rows: count, .. } => rows(first, second, Some(*count))?,
        };
        for result in &results {
            check_size(result)?;
        }
        Ok(results)
    }
}

fn convert(first: &TensorInfo, datatype: DataType) -> Result<Vec<TensorInfo>, Problem> {
    let takes = |data_type| {
        use DataType::{Bf16, Fp16, Fp32, Int8, Int32, Int64, Uint8};
        matches!(data_type, Uint8 | Int8 | Int32 | Int64 | Fp16 | Bf16 | Fp32)
    };
    check_type(first, takes, CONVERTED)?;
    if !takes(datatype) {
        return Err(Problem::Target { actual: datatype, expected: CONVERTED });
    }
    Ok(vec![TensorInfo { data_type: datatype, ..first.clone() }])
}

fn normalize(
    first: &TensorInfo,
    mean: &[f64],
    std: &[f64],
    scale: f64,
    at: i64,
) -> Result<Vec<TensorInfo>, Problem> {
    check_type(first, is_measured, MEASURED)?;
    let channels = first.shape[axis(at, first)?];
    for (name, values) in [("mean", mean), ("std", std)] {
        let given = values.len();
        if given != 1 && (given == 0 || (channels >= 0 && given as i64 != channels)) {
            return Err(Problem::Channels { name, given, axis: at, tensor: first.name.clone(), channels });
        }
    }
    if mean.len() != 1 && std.len() != 1 && mean.len() != std.len() {
        let (tensor, channels) = (first.name.clone(), mean.len() as i64);
        return Err(Problem::Channels { name: "std", given: std.len(), axis: at, tensor, channels });
    }
    let wrong = |name, value: f64, expected| Problem::Parameter { name, value: value.to_string(), expected };
    // What FP32 makes of them counts, for that is what is calculated with.
    let usable = |value: f64| (value as f32).is_normal();
    if !usable(scale) {
        return Err(wrong("scale", scale, "a number that FP32 holds, not 0"));
    }
    if let Some(value) = mean.iter().find(|value| !(**value as f32).is_finite()) {
        return Err(wrong("mean", *value, "a number that FP32 holds"));
    }
    if let Some(value) = std.iter().find(|value| !usable(**value) || !usable(scale / **value)) {
        return Err(wrong("std", *value, "a number that FP32 holds, not 0, also `scale` divided by it"));
    }
    let of = |values: &[f64], channel| values.get(channel).or(values.first()).copied().unwrap_or(0.);
    let offsets = (0..mean.len().max(std.len())).map(|channel| (of(mean, channel), of(std, channel)));
    for (value, std) in offsets {
        if !((value / std) as f32).is_finite() {
            return Err(wrong("mean", value, "a number that FP32 holds, also divided by `std`"));
        }
    }
    Ok(vec![TensorInfo { data_type: DataType::Fp32, ..first.clone() }])
}

fn resize(
    first: &TensorInfo,
    [height, width]: [u32; 2],
    mode: ResizeMode,
    layout: ImageLayout,
) -> Result<Vec<TensorInfo>, Problem> {
    for (name, value) in [("height", height), ("width", width)] {
        if !(1..=MAX_SIDE).contains(&value) {
            return Err(Problem::Parameter { name, value: value.to_string(), expected: "from 1 to 16384" });
        }
    }
    let mut result = first.clone();
    match mode {
        ResizeMode::Nearest => check_type(first, is_sized, SIZED)?,
        ResizeMode::Bilinear => {
            check_type(first, is_measured, MEASURED)?;
            result.data_type = DataType::Fp32;
        }
    }
    let at = height_axis(first, layout)?;
    let (from_height, from_width) = (first.shape[at], first.shape[at + 1]);
    if from_height == 0 || from_width == 0 {
        let tensor = first.name.clone();
        return Err(Problem::NoPixels { tensor, height: from_height, width: from_width });
    }
    // Their places in the source are indices of 32 bits.
    for (name, extent) in [("height", from_height), ("width", from_width)] {
        if extent > i64::from(i32::MAX) {
            return Err(Problem::Parameter { name, value: extent.to_string(), expected: "below 2147483648" });
        }
    }
    set(&mut result, at, i64::from(height), "");
    set(&mut result, at + 1, i64::from(width), "");
    Ok(vec![result])
}

/// The axis of heights; that of widths is the next.
pub(crate) fn height_axis(tensor: &TensorInfo, layout: ImageLayout) -> Result<usize, Problem> {
    let (least, expected) = match layout {
        ImageLayout::Nhwc => (3, "3 or more (height, width, channels)"),
        ImageLayout::Nchw => (2, "2 or more (height, width)"),
    };
    let rank = tensor.shape.len();
    rank.checked_sub(least).ok_or_else(|| Problem::Rank {
        tensor: tensor.name.clone(),
        actual: rank,
        expected,
    })
}

fn relayout(first: &TensorInfo, layout: ImageLayout) -> Result<Vec<TensorInfo>, Problem> {
    check_type(first, is_sized, SIZED)?;
    let rank = first.shape.len();
    let expected = "3 or more (height, width, channels)";
    let begin = rank.checked_sub(3);
    let begin = begin.ok_or_else(|| Problem::Rank { tensor: first.name.clone(), actual: rank, expected })?;
    let mut result = first.clone();
    result.symbols.resize(rank, String::new());
    match layout {
        ImageLayout::Nchw => {
            result.shape[begin..].rotate_right(1);
            result.symbols[begin..].rotate_right(1);
        }
        ImageLayout::Nhwc => {
            result.shape[begin..].rotate_left(1);
            result.symbols[begin..].rotate_left(1);
        }
    }
    Ok(vec![result])
}

fn softmax(first: &TensorInfo, at: i64) -> Result<Vec<TensorInfo>, Problem> {
    check_type(first, is_float, FLOATS)?;
    axis(at, first)?;
    Ok(vec![TensorInfo { data_type: DataType::Fp32, ..first.clone() }])
}

fn top_k(first: &TensorInfo, k: u32, at: i64) -> Result<Vec<TensorInfo>, Problem> {
    check_type(first, |data_type| is_measured(data_type) || data_type == DataType::Int32, ORDERED)?;
    if k == 0 {
        return Err(Problem::Parameter { name: "k", value: "0".into(), expected: "1 or more" });
    }
    let along = axis(at, first)?;
    let extent = first.shape[along];
    if (0..i64::from(k)).contains(&extent) {
        return Err(Problem::TooFew { k, axis: at, tensor: first.name.clone(), extent });
    }
    if extent > i64::from(u32::MAX) {
        return Err(ShapeError::Overflow.into());
    }
    let mut values = first.clone();
    set(&mut values, along, i64::from(k), "");
    let indices = TensorInfo { data_type: DataType::Int64, ..values.clone() };
    Ok(vec![values, indices])
}

/// `gather`, or `scatter` into so many rows.
fn rows(
    first: &TensorInfo,
    second: Option<&TensorInfo>,
    scattered: Option<u32>,
) -> Result<Vec<TensorInfo>, Problem> {
    check_type(first, is_sized, SIZED)?;
    let Some(indices) = second else {
        // The chain looks for it by its name and fails if it is not there.
        return Err(Problem::Which { there: "no indices".into() });
    };
    check_type(indices, |data_type| matches!(data_type, DataType::Int32 | DataType::Int64), INDICES)?;
    let [count] = indices.shape[..] else {
        let (tensor, actual) = (indices.name.clone(), indices.shape.len());
        return Err(Problem::Rank { tensor, actual, expected: "1" });
    };
    let Some(&there) = first.shape.first() else {
        return Err(Problem::Rank { tensor: first.name.clone(), actual: 0, expected: "1 or more" });
    };
    let mut result = first.clone();
    match scattered {
        None => {
            let symbol = indices.symbols.first().map_or("", String::as_str);
            set(&mut result, 0, count, symbol);
        }
        Some(0) => return Err(Problem::Parameter { name: "rows", value: "0".into(), expected: "1 or more" }),
        Some(rows) => {
            if there >= 0 && count >= 0 && there != count {
                let (tensor, indices) = (first.name.clone(), indices.name.clone());
                return Err(Problem::Rows { tensor, rows: there, indices, given: count });
            }
            set(&mut result, 0, i64::from(rows), "");
        }
    }
    Ok(vec![result])
}

fn set(tensor: &mut TensorInfo, axis: usize, extent: i64, symbol: &str) {
    tensor.shape[axis] = extent;
    tensor.symbols.resize(tensor.shape.len(), String::new());
    tensor.symbols[axis] = symbol.into();
}

fn check_type(
    tensor: &TensorInfo,
    takes: impl Fn(DataType) -> bool,
    expected: &'static str,
) -> Result<(), Problem> {
    if takes(tensor.data_type) {
        return Ok(());
    }
    Err(Problem::Type { tensor: tensor.name.clone(), actual: tensor.data_type, expected })
}

/// Whether its elements and bytes can be counted, free extents left aside.
pub(crate) fn check_size(tensor: &TensorInfo) -> Result<(), ShapeError> {
    let known: Vec<i64> = tensor.shape.iter().map(|&extent| if extent < 0 { 1 } else { extent }).collect();
    let shape = Shape::new(known)?;
    if is_sized(tensor.data_type) {
        shape.bytes(tensor.data_type)?;
    }
    Ok(())
}

fn is_sized(data_type: DataType) -> bool {
    data_type.size().is_some()
}

fn is_float(data_type: DataType) -> bool {
    matches!(data_type, DataType::Fp16 | DataType::Bf16 | DataType::Fp32)
}

fn is_measured(data_type: DataType) -> bool {
    is_float(data_type) || matches!(data_type, DataType::Uint8 | DataType::Int8)
}
