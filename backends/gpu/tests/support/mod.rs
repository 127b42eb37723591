//! What the tests share: the device that they run on, tensors, and comparison.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use outrigger_backend::{DataType, Shape, Tensor, TensorInfo};
use outrigger_gpu::Gpu;
use outrigger_testkit::vulkan;

/// The first device, in software if there is no other; says why if there is none.
pub(crate) fn gpu() -> Option<Arc<Gpu>> {
    static GPU: OnceLock<Result<Arc<Gpu>, String>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        Gpu::list(true)?;
        Gpu::open(0, true).map(Arc::new).map_err(|error| error.to_string())
    });
    vulkan::found(gpu.as_ref().map(Arc::clone))
}

pub(crate) fn tensor(data_type: DataType, shape: &[i64], data: impl Into<Bytes>) -> Tensor {
    Tensor::new(data_type, Shape::new(shape).unwrap(), data.into()).unwrap()
}

pub(crate) fn fp32(shape: &[i64], values: &[f32]) -> Tensor {
    tensor(DataType::Fp32, shape, values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>())
}

pub(crate) fn int64(values: &[i64]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    tensor(DataType::Int64, &[values.len() as i64], data)
}

pub(crate) fn info(name: &str, tensor: &Tensor) -> TensorInfo {
    TensorInfo {
        name: name.into(),
        data_type: tensor.data_type(),
        shape: tensor.shape().extents().into(),
        symbols: Vec::new(),
    }
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.data_type(), DataType::Fp32);
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

/// Numbers that look random and are the same each time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A tensor of any bits at all.
    pub(crate) fn bits(&mut self, data_type: DataType, shape: &[i64]) -> Tensor {
        let bytes = Shape::new(shape).unwrap().bytes(data_type).unwrap();
        let data: Vec<u8> =
            (0..bytes.div_ceil(8)).flat_map(|_| self.next().to_ne_bytes()).take(bytes).collect();
        tensor(data_type, shape, data)
    }

    /// A tensor of numbers from -`size` to `size`.
    pub(crate) fn measured(&mut self, data_type: DataType, shape: &[i64], size: f32) -> Tensor {
        use outrigger_processing::{Chain, Step};
        let elements = Shape::new(shape).unwrap().elements();
        let values: Vec<f32> =
            (0..elements).map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.) * size).collect();
        let values = fp32(shape, &values);
        let chain: Chain = [Step::Convert { datatype: data_type }].into_iter().collect();
        chain.plan(&[info("x", &values)], &["x"]).unwrap().run(&[values]).unwrap().remove(0)
    }
}
