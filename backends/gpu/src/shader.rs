//! The text of a shader, put together: what it is bound to, how elements of its types are read and written, and what it does.
//!
//! Storage is words of 32 bits. Elements of one or two bytes lie four or two to a word, lowest first; those of eight bytes take two.
//! Each thread makes one word of the result, so that none is written by two.

use outrigger_backend::DataType;

/// Threads of a workgroup: as many as every device has.
pub(crate) const THREADS: u32 = 256;

const NUMBERS: &str = include_str!("shaders/numbers.wgsl");
/// The entry that calls `each(number)` in a thread for each number, and some beyond.
const EACH: &str = include_str!("shaders/each.wgsl");
/// The entry that calls `one_row(row, lane)` in a workgroup for each row.
const ROWS: &str = include_str!("shaders/rows.wgsl");

const BINDINGS: &str = "
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> source: array<u32>;
";
const RESULT: &str = "@group(0) @binding(2) var<storage, read_write> result: array<u32>;\n";
const SHARED_RESULT: &str = "@group(0) @binding(2) var<storage, read_write> result: array<atomic<u32>>;\n";
const SECOND: &str = "@group(0) @binding(3) var<storage, read> second: array<u32>;\n";
const STATUS: &str = "@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>;\n";

/// A shader: its text, and what is bound to it beside params, source and result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shader {
    pub(crate) text: String,
    pub(crate) has_second: bool,
    pub(crate) has_status: bool,
}

impl Shader {
    /// One that has a thread for each word of the result, out of a body with `fn element(i: u32)`, whose first parameter is the number
    /// of elements of `size` bytes.
    pub(crate) fn elements(bodies: &[&str], size: usize) -> Self {
        Self::new(bodies, &[each_word(size), EACH])
    }

    /// One that has a workgroup for each row, out of a body with `fn one_row(row: u32, lane: u32)`.
    pub(crate) fn rows(bodies: &[&str]) -> Self {
        Self::new(bodies, &[ROWS])
    }

    /// One that has a thread for each number, out of a body with `fn each(number: u32)`.
    pub(crate) fn each(bodies: &[&str]) -> Self {
        Self::new(bodies, &[EACH])
    }

    fn new(bodies: &[&str], main: &[&str]) -> Self {
        let body = bodies.concat();
        let has_second = body.contains("second");
        let has_status = body.contains("status");
        // Threads of the same row may write the same word.
        let is_shared = body.contains("&result[");
        let optional =
            [(!is_shared, RESULT), (is_shared, SHARED_RESULT), (has_second, SECOND), (has_status, STATUS)];
        let optional: String = optional.iter().filter(|(is, _)| *is).map(|(_, text)| *text).collect();
        let text = [BINDINGS, &optional, NUMBERS, &body, &main.concat()].concat();
        Self { text, has_second, has_status }
    }
}

/// Words that so many elements take.
pub(crate) fn words(elements: usize, size: usize) -> usize {
    (elements * size).div_ceil(4)
}

/// `source_bits(i)`: an element of `size` bytes as `Bits`.
pub(crate) fn bits(size: usize) -> &'static str {
    match size {
        1 => {
            "alias Bits = u32;
fn source_bits(i: u32) -> u32 { return (source[i / 4u] >> (i % 4u * 8u)) & 0xffu; }
"
        }
        2 => {
            "alias Bits = u32;
fn source_bits(i: u32) -> u32 { return (source[i / 2u] >> (i % 2u * 16u)) & 0xffffu; }
"
        }
        4 => {
            "alias Bits = u32;
fn source_bits(i: u32) -> u32 { return source[i]; }
"
        }
        _ => {
            "alias Bits = vec2<u32>;
fn source_bits(i: u32) -> vec2<u32> { return vec2<u32>(source[2u * i], source[2u * i + 1u]); }
"
        }
    }
}

/// `source_int(i)`: an element of an integer type as INT64; none for a float.
pub(crate) fn int(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Uint8 => "fn source_int(i: u32) -> vec2<u32> { return vec2<u32>(source_bits(i), 0u); }\n",
        DataType::Int8 => {
            "fn source_int(i: u32) -> vec2<u32> { return widen(bitcast<i32>(source_bits(i) << 24u) >> 24u); }\n"
        }
        DataType::Int32 => {
            "fn source_int(i: u32) -> vec2<u32> { return widen(bitcast<i32>(source_bits(i))); }\n"
        }
        DataType::Int64 => "fn source_int(i: u32) -> vec2<u32> { return source_bits(i); }\n",
        _ => "fn source_int(i: u32) -> vec2<u32> { return single_to_int(source_single(i)); }\n",
    }
}

/// `source_single(i)`: an element as the bits of an FP32. Needs `source_int` for integers.
pub(crate) fn single(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Fp16 => "fn source_single(i: u32) -> u32 { return half_to_single(source_bits(i)); }\n",
        DataType::Bf16 => "fn source_single(i: u32) -> u32 { return bfloat_to_single(source_bits(i)); }\n",
        DataType::Fp32 => "fn source_single(i: u32) -> u32 { return source_bits(i); }\n",
        _ => "fn source_single(i: u32) -> u32 { return int_to_single(source_int(i)); }\n",
    }
}

/// `source_order(i)`: a number whose order is that of the elements.
pub(crate) fn order(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 => {
            "fn source_order(i: u32) -> u32 { return order(source_single(i)); }\n"
        }
        _ => "fn source_order(i: u32) -> u32 { return source_int(i).x ^ 0x80000000u; }\n",
    }
}

/// `element(i)` that converts to a type.
pub(crate) fn convert(to: DataType) -> &'static str {
    match to {
        DataType::Uint8 => "fn element(i: u32) -> u32 { return narrow(source_int(i), 0, 255); }\n",
        DataType::Int8 => "fn element(i: u32) -> u32 { return narrow(source_int(i), -128, 127); }\n",
        DataType::Int32 => {
            "fn element(i: u32) -> u32 { return narrow(source_int(i), i32(-2147483648), 2147483647); }\n"
        }
        DataType::Int64 => "fn element(i: u32) -> vec2<u32> { return source_int(i); }\n",
        DataType::Fp16 => "fn element(i: u32) -> u32 { return single_to_half(source_single(i)); }\n",
        DataType::Bf16 => "fn element(i: u32) -> u32 { return single_to_bfloat(source_single(i)); }\n",
        _ => "fn element(i: u32) -> u32 { return source_single(i); }\n",
    }
}

/// `NAME_index(i)`: an index out of the buffer of that name; what is negative or beyond 32 bits is larger than any number of rows.
pub(crate) fn index(buffer: &str, data_type: DataType) -> String {
    let body = match data_type {
        DataType::Int32 => format!("return {buffer}[i];"),
        _ => format!("return select(0xffffffffu, {buffer}[2u * i], {buffer}[2u * i + 1u] == 0u);"),
    };
    format!("fn {buffer}_index(i: u32) -> u32 {{ {body} }}\n")
}

/// `index_words(i)`: an index out of the source as INT64, lower half first.
pub(crate) fn index_words(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Int32 => "fn index_words(i: u32) -> vec2<u32> { return widen(bitcast<i32>(source[i])); }\n",
        _ => {
            "fn index_words(i: u32) -> vec2<u32> { return vec2<u32>(source[2u * i], source[2u * i + 1u]); }\n"
        }
    }
}

/// `each(word)` that makes words out of elements of so many bytes.
fn each_word(size: usize) -> &'static str {
    match size {
        1 => {
            "fn each(word: u32) {
    if 4u * word >= params[0] { return; }
    var bits = 0u;
    for (var part = 0u; part < 4u; part += 1u) {
        let i = 4u * word + part;
        if i < params[0] { bits |= (element(i) & 0xffu) << (8u * part); }
    }
    result[word] = bits;
}
"
        }
        2 => {
            "fn each(word: u32) {
    if 2u * word >= params[0] { return; }
    var bits = element(2u * word) & 0xffffu;
    if 2u * word + 1u < params[0] { bits |= element(2u * word + 1u) << 16u; }
    result[word] = bits;
}
"
        }
        4 => {
            "fn each(word: u32) {
    if word >= params[0] { return; }
    result[word] = element(word);
}
"
        }
        // A thread for each element: two words.
        _ => {
            "fn each(word: u32) {
    if word >= params[0] { return; }
    let bits = element(word);
    result[2u * word] = bits.x;
    result[2u * word + 1u] = bits.y;
}
"
        }
    }
}
