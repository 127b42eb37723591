"""Writes models, inputs for them, and what Python's ONNX Runtime gives, into the folder that is the first argument.
With `large` as the second it writes two large models and no calls: what `load_time.rs` of the CPU backend's examples is run on.

For each model `NAME.onnx`; for each call of it a line in `calls.json` with inputs and outputs, whose elements are in files of
their own: native numbers, and strings each after its length in 32 bits.
"""

import json
import pathlib
import struct
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

FOLDER = pathlib.Path(sys.argv[1])
RANDOM = np.random.default_rng(7)
NAMES = {
    "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "object": "BYTES",
}  # fmt: skip
CALLS = []


def floats(*shape, scale=1.0):
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, constants=None, opset=20, more=()):
    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *more])
    made.ir_version = 8
    return made


def element_bytes(array):
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    texts = [text.encode() if isinstance(text, str) else bytes(text) for text in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def describe(kind, number, name, array):
    file = f"{len(CALLS)}.{kind}.{number}"
    (FOLDER / file).write_bytes(element_bytes(array))
    return {"name": name, "type": NAMES[array.dtype.name], "shape": list(array.shape), "file": file}


def add(name, made, *calls):
    path = FOLDER / f"{name}.onnx"
    path.write_bytes(made.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for inputs in calls:
        names = [output.name for output in session.get_outputs()]
        results = [np.asarray(result) for result in session.run(names, inputs)]
        order = [info.name for info in session.get_inputs()]
        CALLS.append(
            {
                "model": name,
                "inputs": [describe("in", at, key, inputs[key]) for at, key in enumerate(order)],
                "outputs": [describe("out", at, *pair) for at, pair in enumerate(zip(names, results))],
            }
        )


def mlp():
    constants = {"w0": floats(64, 128, scale=0.1), "b0": floats(128), "w1": floats(128, 10, scale=0.1), "b1": floats(10)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"], axis=-1),
    ]
    made = model(nodes, [value("x", TensorProto.FLOAT, 1, 64)], [value("y", TensorProto.FLOAT, 1, 10)], constants)
    add("mlp", made, {"x": floats(1, 64)}, {"x": floats(1, 64, scale=5)})


def cnn():
    constants = {
        "stem": floats(16, 3, 3, 3, scale=0.2), "depthwise": floats(16, 1, 3, 3, scale=0.3),
        "pointwise": floats(32, 16, 1, 1, scale=0.2), "head": floats(32, 10, scale=0.2), "bias": floats(10),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "depthwise"], ["c1"], group=16, pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "pointwise"], ["c2"]),
        helper.make_node("MaxPool", ["c2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["y"]),
    ]
    made = model(nodes, [value("x", TensorProto.FLOAT, "n", 3, 32, 32)], [value("y", TensorProto.FLOAT, "n", 10)], constants)
    add("cnn", made, {"x": floats(1, 3, 32, 32)}, {"x": floats(4, 3, 32, 32)})


def lstm():
    hidden, width = 16, 8
    constants = {
        "w": floats(1, 4 * hidden, width, scale=0.3), "r": floats(1, 4 * hidden, hidden, scale=0.3),
        "b": floats(1, 8 * hidden, scale=0.1), "axis": np.array([1], dtype=np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["all", "last", "cell"], hidden_size=hidden),
        helper.make_node("Squeeze", ["all", "axis"], ["y"]),
    ]
    outputs = [value("y", TensorProto.FLOAT, "time", "batch", hidden), value("cell", TensorProto.FLOAT, 1, "batch", hidden)]
    made = model(nodes, [value("x", TensorProto.FLOAT, "time", "batch", width)], outputs, constants)
    add("lstm", made, {"x": floats(5, 1, width)}, {"x": floats(1, 3, width)})


def transformer():
    width, heads = 32, 4
    constants = {
        **{name: floats(width, width, scale=0.2) for name in ("wq", "wk", "wv", "wo")},
        "up": floats(width, 64, scale=0.2), "down": floats(64, width, scale=0.2),
        "scale": np.ones(width, np.float32), "shift": np.zeros(width, np.float32),
        "embedding": floats(100, width), "split": np.array([0, 0, heads, width // heads], np.int64),
        "join": np.array([0, 0, width], np.int64), "root": np.array(np.sqrt(width / heads), np.float32),
    }  # fmt: skip
    nodes = [helper.make_node("Gather", ["embedding", "tokens"], ["x"])]
    nodes.append(helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n0"], axis=-1))
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(helper.make_node("MatMul", ["n0", f"w{name}"], [f"{name}0"]))
        nodes.append(helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]))
        nodes.append(helper.make_node("Transpose", [f"{name}1"], [name], perm=order))
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["s0"]),
        helper.make_node("Div", ["s0", "root"], ["s1"]),
        helper.make_node("Softmax", ["s1"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "v"], ["a0"]),
        helper.make_node("Transpose", ["a0"], ["a1"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["a1", "join"], ["a2"]),
        helper.make_node("MatMul", ["a2", "wo"], ["a3"]),
        helper.make_node("Add", ["x", "a3"], ["h0"]),
        helper.make_node("LayerNormalization", ["h0", "scale", "shift"], ["n1"], axis=-1),
        helper.make_node("MatMul", ["n1", "up"], ["u0"]),
        helper.make_node("Gelu", ["u0"], ["u1"]),
        helper.make_node("MatMul", ["u1", "down"], ["u2"]),
        helper.make_node("Add", ["h0", "u2"], ["y"]),
    ]
    outputs = [
        value("y", TensorProto.FLOAT, "batch", "length", width),
        value("attention", TensorProto.FLOAT, "batch", heads, "length", "length"),
    ]
    made = model(nodes, [value("tokens", TensorProto.INT64, "batch", "length")], outputs, constants)
    tokens = lambda *shape: {"tokens": RANDOM.integers(0, 100, shape)}
    add("transformer", made, tokens(1, 7), tokens(3, 12), tokens(2, 1))


def trees():
    data = load_iris()
    forest = RandomForestClassifier(n_estimators=20, max_depth=5, random_state=0)
    forest.fit(data.data.astype(np.float32), np.array(["setosa", "versicolor", "virginica"])[data.target])
    for name, labels in (("trees", data.target), ("trees_named", None)):
        if labels is not None:
            chosen = RandomForestClassifier(n_estimators=20, max_depth=5, random_state=0).fit(data.data, labels)
        else:
            chosen = forest
        made = to_onnx(chosen, initial_types=[("x", FloatTensorType([None, 4]))], options={"zipmap": False}, target_opset=20)
        rows = data.data.astype(np.float32)
        add(name, made, {"x": rows[:1]}, {"x": rows[40:110]})


def quantised():
    # Weights of 7 bits: on x86 without VNNI, ONNX Runtime adds two products of a byte each in 16 bits, which those of 8 bits overflow, and what it then
    # gives is neither what ONNX says nor what it gives elsewhere.
    constants = {
        "xs": np.array(0.05, np.float32), "xz": np.array(128, np.uint8),
        "w": RANDOM.integers(-64, 65, (8, 3, 3, 3)).astype(np.int8), "ws": np.array(0.01, np.float32), "wz": np.array(0, np.int8),
        "ys": np.array(0.2, np.float32), "yz": np.array(100, np.uint8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["y"]),
    ]
    outputs = [value("y", TensorProto.FLOAT, "n", 8, 16, 16), value("q", TensorProto.UINT8, "n", 8, 16, 16)]
    made = model(nodes, [value("x", TensorProto.FLOAT, "n", 3, 16, 16)], outputs, constants)
    add("quantised", made, {"x": floats(1, 3, 16, 16)}, {"x": floats(3, 3, 16, 16, scale=3)})


def dynamic():
    constants = {"w": floats(6, 6)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Concat", ["t", "x"], ["y"], axis=1),
    ]
    made = model(nodes, [value("x", TensorProto.FLOAT, "batch", 6)], [value("y", TensorProto.FLOAT, "batch", 12)], constants)
    add("dynamic", made, *({"x": floats(batch, 6)} for batch in (1, 2, 3, 17, 256)))


def strings():
    labels = helper.make_node(
        "LabelEncoder", ["text"], ["label"], domain="ai.onnx.ml",
        keys_strings=["red", "grün", ""], values_int64s=[1, 2, 3], default_int64=-1,
    )  # fmt: skip
    joined = helper.make_node("StringConcat", ["text", "suffix"], ["joined"])
    inputs = [value("text", TensorProto.STRING, "n"), value("suffix", TensorProto.STRING, "n")]
    outputs = [value("label", TensorProto.INT64, "n"), value("joined", TensorProto.STRING, "n")]
    made = model([labels, joined], inputs, outputs, more=[helper.make_opsetid("ai.onnx.ml", 2)])
    call = lambda *texts: {
        "text": np.array(texts, dtype=object), "suffix": np.array(["!" * at for at in range(len(texts))], dtype=object),
    }  # fmt: skip
    add("strings", made, call("red", "grün", "", "blue" * 1000), call("x"))


def many():
    constants = {"k": np.array([3], np.int64), "zero": np.array(0, np.float32), "axes": np.array([1], np.int64)}
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["best", "at"], axis=-1),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["x"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Exp", ["double"], ["exp"]),
        helper.make_node("Cast", ["x"], ["int"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        helper.make_node("NonZero", ["positive"], ["where"]),
    ]
    outputs = [
        value("best", TensorProto.FLOAT, "n", 3), value("at", TensorProto.INT64, "n", 3),
        value("positive", TensorProto.BOOL, "n", 8), value("half", TensorProto.FLOAT16, "n", 8),
        value("exp", TensorProto.DOUBLE, "n", 8), value("int", TensorProto.INT32, "n", 8),
        value("sum", TensorProto.FLOAT, "n"), value("where", TensorProto.INT64, 2, None),
    ]  # fmt: skip
    made = model(nodes, [value("x", TensorProto.FLOAT, "n", 8)], outputs, constants)
    add("many", made, {"x": floats(1, 8, scale=3)}, {"x": floats(9, 8, scale=3)})


def empty():
    constants = {"w": floats(3, 2), "axes": np.array([1], np.int64)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Concat", ["x", "z"], ["both"], axis=0),
        helper.make_node("ReduceSum", ["z", "axes"], ["sum"], keepdims=0),
        helper.make_node("Shape", ["x"], ["shape"]),
    ]
    inputs = [value("x", TensorProto.FLOAT, "n", 3), value("z", TensorProto.FLOAT, "m", 3)]
    outputs = [
        value("y", TensorProto.FLOAT, "n", 2), value("both", TensorProto.FLOAT, None, 3),
        value("sum", TensorProto.FLOAT, "m"), value("shape", TensorProto.INT64, 2),
    ]  # fmt: skip
    made = model(nodes, inputs, outputs, constants)
    add("empty", made, *({"x": floats(n, 3), "z": floats(m, 3)} for n, m in ((0, 2), (2, 0), (0, 0), (1, 1))))


def large():
    """A transformer of 12 layers and a network of 50 convolutions, each with what exporters leave to the optimiser."""
    width = 512
    constants = {"scale": np.ones(width, np.float32), "shift": np.zeros(width, np.float32), "split": np.array([0, 0, 8, 64], np.int64),
                 "join": np.array([0, 0, width], np.int64), "root": np.array(8, np.float32), "one": np.ones(64, np.float32),
                 "zero": np.zeros(64, np.float32), "mean": floats(64, scale=0.1), "stem": floats(64, 3, 3, 3, scale=0.2)}  # fmt: skip
    nodes, h = [], "x"
    add_node = lambda kind, inputs, output, **more: nodes.append(helper.make_node(kind, inputs, [output], **more))
    for layer in range(12):
        name = lambda text: f"{text}.{layer}"
        for key, shape in (("q", (width, width)), ("k", (width, width)), ("v", (width, width)), ("o", (width, width)),
                           ("up", (width, 4 * width)), ("down", (4 * width, width))):  # fmt: skip
            constants[name(f"w{key}")] = floats(*shape, scale=0.05)
        add_node("LayerNormalization", [h, "scale", "shift"], name("n"), axis=-1)
        for key, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            add_node("MatMul", [name("n"), name(f"w{key}")], name(f"{key}0"))
            add_node("Reshape", [name(f"{key}0"), "split"], name(f"{key}1"))
            add_node("Transpose", [name(f"{key}1")], name(key), perm=order)
        add_node("MatMul", [name("q"), name("k")], name("s"))
        add_node("Div", [name("s"), "root"], name("d"))
        add_node("Softmax", [name("d")], name("a"), axis=-1)
        add_node("MatMul", [name("a"), name("v")], name("b"))
        add_node("Transpose", [name("b")], name("c"), perm=[0, 2, 1, 3])
        add_node("Reshape", [name("c"), "join"], name("e"))
        add_node("MatMul", [name("e"), name("wo")], name("f"))
        add_node("Add", [h, name("f")], name("g"))
        add_node("MatMul", [name("g"), name("wup")], name("u"))
        add_node("Gelu", [name("u")], name("t"))
        add_node("MatMul", [name("t"), name("wdown")], name("r"))
        add_node("Add", [name("g"), name("r")], name("h"))
        h = name("h")
    shape = ("batch", "length", width)
    made = model(nodes, [value("x", TensorProto.FLOAT, *shape)], [value(h, TensorProto.FLOAT, *shape)],
                 {key: constant for key, constant in constants.items() if key not in ("one", "zero", "mean", "stem")})  # fmt: skip
    (FOLDER / "transformer.onnx").write_bytes(made.SerializeToString())

    nodes.clear()
    add_node("Conv", ["x", "stem"], "h0", pads=[1, 1, 1, 1])
    used = {key: constants[key] for key in ("one", "zero", "mean", "stem")}
    for layer in range(50):
        used[f"w{layer}"] = floats(64, 64, 3, 3, scale=0.05)
        add_node("Conv", [f"h{layer}", f"w{layer}"], f"c{layer}", pads=[1, 1, 1, 1])
        add_node("BatchNormalization", [f"c{layer}", "one", "zero", "mean", "one"], f"b{layer}")
        add_node("Relu", [f"b{layer}"], f"r{layer}")
        add_node("Add", [f"h{layer}", f"r{layer}"], f"h{layer + 1}")
    shape = lambda channels: ("n", channels, "height", "width")
    made = model(nodes, [value("x", TensorProto.FLOAT, *shape(3))], [value("h50", TensorProto.FLOAT, *shape(64))], used)
    (FOLDER / "convolutions.onnx").write_bytes(made.SerializeToString())


if sys.argv[2:] == ["large"]:
    large()
    sys.exit()
for make in (mlp, cnn, lstm, transformer, trees, quantised, dynamic, strings, many, empty):
    make()
(FOLDER / "calls.json").write_text(json.dumps(CALLS, indent=1))
