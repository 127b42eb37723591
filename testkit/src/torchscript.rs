//! Small TorchScript archives, made in memory: no binary file is kept for tests, and no libtorch is needed to make one.
//!
//! An archive is a ZIP file: the module's code as text, its attributes as a pickle, the bytes of each tensor as a file.
//! Source: PyTorch's `torch/csrc/jit/docs/serialization.md`; ZIP is PKWARE's APPNOTE 6.3, pickle is PEP 307.

use outrigger_backend::DataType;

/// A module.
#[derive(Clone, Debug, Default)]
pub struct Module {
    methods: String,
    weights: Vec<Weight>,
}

#[derive(Clone, Debug)]
struct Weight {
    name: String,
    shape: Vec<i64>,
    values: Vec<f32>,
}

impl Module {
    /// `forward` with these arguments, as in `x: Tensor, y: Tensor`, this type of result, and these statements, a line for each.
    pub fn forward(arguments: &str, result: &str, statements: &[&str]) -> Self {
        let mut methods = format!("  def forward(self: __torch__.M,\n    {arguments}) -> {result}:\n");
        statements.iter().for_each(|statement| methods += &format!("    {statement}\n"));
        Self { methods, weights: Vec::new() }
    }

    /// An attribute, `FP32`, to be read as `self.NAME`.
    pub fn weight(mut self, name: &str, shape: &[i64], values: Vec<f32>) -> Self {
        self.weights.push(Weight { name: name.into(), shape: shape.into(), values });
        self
    }

    /// The module's source, as it lies in the archive.
    pub fn code(&self) -> String {
        let names: String = self.weights.iter().map(|weight| format!("\"{}\", ", weight.name)).collect();
        let attributes: String =
            self.weights.iter().map(|weight| format!("  {} : Tensor\n", weight.name)).collect();
        format!(
            "class M(Module):\n  __parameters__ = [{names}]\n  __buffers__ = []\n{attributes}  training : bool\n{}",
            self.methods
        )
    }

    /// The archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut zip = Zip::default();
        zip.stored("model/data.pkl", &self.pickle());
        zip.deflated("model/code/__torch__.py", self.code().as_bytes());
        zip.stored("model/constants.pkl", b"\x80\x02).");
        zip.stored("model/version", b"3\n");
        for (number, weight) in self.weights.iter().enumerate() {
            let bytes: Vec<u8> = weight.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            zip.stored(&format!("model/data/{number}"), &bytes);
        }
        zip.finish()
    }

    /// What makes the module of its tensors.
    pub fn pickle(&self) -> Vec<u8> {
        let mut out = b"\x80\x02c__torch__\nM\n)\x81}(".to_vec();
        for (number, weight) in self.weights.iter().enumerate() {
            text(&mut out, &weight.name);
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text(&mut out, "storage");
            out.extend(b"ctorch\nFloatStorage\n");
            text(&mut out, &number.to_string());
            text(&mut out, "cpu");
            integer(&mut out, weight.values.len() as i64);
            out.extend(b"tQK\x00(");
            weight.shape.iter().for_each(|extent| integer(&mut out, *extent));
            out.extend(b"t(");
            strides(&weight.shape).iter().for_each(|stride| integer(&mut out, *stride));
            out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
        }
        text(&mut out, "training");
        out.extend(b"\x88ub.");
        out
    }
}

/// `x + y`.
pub fn add() -> Module {
    Module::forward("x: Tensor,\n    y: Tensor", "Tensor", &["return torch.add(x, y)"])
}

/// `x`.
pub fn identity() -> Module {
    Module::forward("x: Tensor", "Tensor", &["return x"])
}

/// Where `x` is not 0, as `[rank, found]`.
pub fn non_zero() -> Module {
    Module::forward("x: Tensor", "Tensor", &["return torch.t(torch.nonzero(x))"])
}

/// A perceptron as [`crate::onnx::mlp`], with the same weights.
pub fn mlp(widths: &[i64]) -> Module {
    let layers = widths.len() - 1;
    let mut statements = vec!["h0 = x".to_owned()];
    for number in 0..layers {
        let product = format!("torch.matmul(h{number}, self.w{number})");
        let after = if number + 1 == layers { product } else { format!("torch.relu({product})") };
        statements.push(format!("h{} = {after}", number + 1));
    }
    statements.push(format!("return h{layers}"));
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    let module = Module::forward("x: Tensor", "Tensor", &statements);
    widths.windows(2).enumerate().fold(module, |module, (number, pair)| {
        let value = |at: i64| ((at * 7919 % 1013) as f32 / 1013.0 - 0.5) / pair[0] as f32;
        module.weight(&format!("w{number}"), pair, (0..pair[0] * pair[1]).map(value).collect())
    })
}

/// The types that a TorchScript model can take: PyTorch computes with no other unsigned ones.
pub const TYPES: [DataType; 10] = [
    DataType::Bool,
    DataType::Uint8,
    DataType::Int8,
    DataType::Int16,
    DataType::Int32,
    DataType::Int64,
    DataType::Fp16,
    DataType::Bf16,
    DataType::Fp32,
    DataType::Fp64,
];

fn strides(shape: &[i64]) -> Vec<i64> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, number: i64) {
    out.push(b'J');
    out.extend(i32::try_from(number).expect("small numbers").to_le_bytes());
}

/// A ZIP file under way. Its files are stored as they are, unless they claim something else.
#[derive(Default)]
pub struct Zip {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

impl Zip {
    /// Adds a file as it is.
    pub fn stored(&mut self, name: &str, bytes: &[u8]) {
        self.claiming(name, bytes, 0, bytes.len() as u32);
    }

    /// Adds a file in deflate's format, as libtorch adds code: in blocks that say that they are as they were. Source: RFC 1951, section 3.2.4.
    pub fn deflated(&mut self, name: &str, bytes: &[u8]) {
        let blocks = bytes.chunks(u16::MAX.into()).count().max(1);
        let mut out = Vec::new();
        for (number, block) in bytes.chunks(u16::MAX.into()).enumerate() {
            let len = block.len() as u16;
            out.push(u8::from(number + 1 == blocks));
            out.extend(len.to_le_bytes());
            out.extend((!len).to_le_bytes());
            out.extend(block);
        }
        self.add(name, &out, 8, bytes.len() as u32, crc32(bytes));
    }

    /// Adds a file whose header claims this way of compression, 8 being deflate, and this size.
    pub fn claiming(&mut self, name: &str, bytes: &[u8], method: u16, size: u32) {
        self.add(name, bytes, method, size, crc32(bytes));
    }

    fn add(&mut self, name: &str, bytes: &[u8], method: u16, size: u32, crc: u32) {
        let offset = self.bytes.len() as u32;
        let mut common = Vec::new();
        let mut put = |number: u16| common.extend(number.to_le_bytes());
        [20, 0, method, 0, 0].into_iter().for_each(&mut put);
        common.extend(crc.to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        self.bytes.extend(b"PK\x03\x04");
        self.bytes.extend(&common);
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(bytes);
        self.directory.extend(b"PK\x01\x02\x14\x00");
        self.directory.extend(&common);
        self.directory.extend([0; 10]);
        self.directory.extend(offset.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.count += 1;
    }

    /// The file.
    pub fn finish(mut self) -> Vec<u8> {
        let offset = self.bytes.len() as u32;
        self.bytes.extend(&self.directory);
        self.bytes.extend(b"PK\x05\x06\0\0\0\0");
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend((self.directory.len() as u32).to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
        self.bytes.extend([0, 0]);
        self.bytes
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
