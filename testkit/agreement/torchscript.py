"""Writes TorchScript archives, inputs for them, and what PyTorch in Python gives, into the folder that is the first argument.

For each model `NAME.pt`; for each call of it a line in `calls.json` with inputs and outputs, whose elements are native numbers in files of
their own, and with what `model.toml` says of the model's inputs: names, types, and shapes with names for extents that are free.
"""

import enum
import json
import pathlib
import sys
import warnings
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOLDER = pathlib.Path(sys.argv[1])
NAMES = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32",
    torch.int64: "INT64", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32",
    torch.float64: "FP64",
}  # fmt: skip
CALLS = []


def describe(kind, number, name, tensor):
    tensor = tensor.detach().contiguous().resolve_neg()
    file = f"{len(CALLS)}.{kind}.{number}"
    (FOLDER / file).write_bytes(bytes(tensor.reshape(-1).view(torch.uint8).tolist()))
    return {"name": name, "type": NAMES[tensor.dtype], "shape": list(tensor.shape), "file": file}


def named(result):
    if isinstance(result, Tensor):
        result = [result]
    if isinstance(result, dict):
        return list(result.items())
    return [(f"output_{number}", tensor) for number, tensor in enumerate(result)]


def add(name, module, inputs, *calls, trace=None):
    """`inputs` has a shape for each name of forward's; what is in `trace` is what the model is traced with, else it is scripted."""
    module = module.eval()
    with torch.no_grad():
        made = torch.jit.script(module) if trace is None else torch.jit.trace(module, trace)
        save(name, made, inputs, *calls, reference=module)


def save(name, made, inputs, *calls, reference=None):
    torch.jit.save(made, str(FOLDER / f"{name}.pt"))
    for call in calls:
        with torch.no_grad():
            results = named((reference or made)(*[tensor.clone() for tensor in call]))
        signature = [
            {"name": key, "type": NAMES[tensor.dtype], "shape": shape} for (key, shape), tensor in zip(inputs.items(), call)
        ]
        CALLS.append(
            {
                "model": name,
                "signature": signature,
                "inputs": [describe("in", at, key, tensor) for at, (key, tensor) in enumerate(zip(inputs, call))],
                "outputs": [describe("out", at, *pair) for at, pair in enumerate(results)],
            }
        )


def perceptron():
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 4))
    calls = [(torch.randn(rows, 16),) for rows in (1, 5, 64)]
    add("perceptron", module, {"input": ["batch", 16]}, *calls)
    add("perceptron_traced", module, {"input": ["batch", 16]}, *calls, trace=calls[1])
    with torch.no_grad():
        frozen = torch.jit.freeze(torch.jit.script(module.eval()))
    save("perceptron_frozen", frozen, {"input": ["batch", 16]}, *calls, reference=module)


class Residual(nn.Module):
    def __init__(self, channels: int, stride: int):
        super().__init__()
        wide = channels * stride
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, 1, 1, groups=2, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.skip = nn.Sequential(nn.Conv2d(channels, wide, 1, stride), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def convolutions():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(3, 2, 1), Residual(8, 1), Residual(8, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), nn.Softmax(1),
    )  # fmt: skip
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    calls = [(torch.randn(rows, 3, 32, 40),) for rows in (1, 3)]
    add("convolutions", module, {"input": ["batch", 3, 32, 40]}, *calls)
    add("convolutions_any_size", module, {"input": ["batch", 3, "height", "width"]}, (torch.randn(2, 3, 48, 33),), *calls)


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.LeakyReLU(0.1))
        self.up = nn.ConvTranspose2d(8, 4, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.down(x))
        wide = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.cat([up, F.avg_pool2d(wide, 2)], 1).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """A block of a transformer, written out."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.after(x))


class Encoder(nn.Module):
    """Token ids through an embedding and PyTorch's own layers."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.size(1), device=ids.device)
        return self.layers(self.tokens(ids) + self.places(places))


def transformers():
    x, mask = torch.randn(3, 7, 24), torch.rand(3, 7) > 0.3
    mask[:, 0] = True
    inputs = {"x": ["batch", "length", 24], "mask": ["batch", "length"]}
    add("attention", Attention(24, 4), inputs, (x, mask), (x[:1, :5], mask[:1, :5]))
    calls = [(torch.randint(50, shape),) for shape in ((1, 4), (3, 11))]
    add("encoder", Encoder(), {"ids": ["batch", "length"]}, *calls)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 10, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(20, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        states, (hidden, cell) = self.lstm(x)
        _, last = self.gru(states)
        return states, hidden + cell, last.squeeze(0)


class Bags(nn.Module):
    """Ids to the mean of their vectors, padding left out."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 12, padding_idx=0)
        self.classes = nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tuple[Tensor, Tensor]:
        known = (ids != 0).unsqueeze(-1)
        mean = (self.table(ids) * known).sum(1) / known.sum(1).clamp(min=1)
        return self.classes(mean).log_softmax(-1), ids.ne(0).sum(-1)


class Detector(nn.Module):
    """What is found has names."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Dict[str, Tensor]:
        best, order = scores.sort(descending=True, stable=True)
        return {"scores": best, "boxes": boxes[order], "kept": best > 0.5, "labels": order.to(torch.int32)}


class Branches(nn.Module):
    """Control flow that depends on what is given."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor, rounds: Tensor) -> Tensor:
        outputs: List[Tensor] = []
        for _ in range(int(rounds.item())):
            for number, step in enumerate(self.steps):
                if number != 1 or bool(x.mean() > 0):
                    x = step(x)
            outputs.append(x)
        count = 0
        while bool(x.abs().max() > 0.125) and count < 20:
            x = x / 2
            count += 1
        if len(outputs) == 0:
            return x
        return torch.stack(outputs).sum(0) + count


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Attributes(nn.Module):
    """Attributes of every kind that a pickle of TorchScript's has."""

    numbers: List[int]
    weights: Dict[str, Tensor]
    nothing: Optional[Tensor]
    pair: Tuple[int, Tuple[float, str]]

    def __init__(self):
        super().__init__()
        self.numbers, self.factors, self.flags = list(range(300)), [0.5, -1.25], [True, False]
        self.names = ["scale", "shift"]
        self.tensors = [torch.randn(3), torch.randn(3)]
        self.weights = {name: torch.randn(3) for name in self.names}
        self.nothing, self.pair, self.large = None, (1 << 40, (2.5, "é")), -(1 << 62)
        self.colour, self.device, self.wave = Colour.BLUE, torch.device("cpu"), 1 + 2j
        self.shared = nn.Parameter(torch.randn(4, 3))
        self.again = self.shared
        self.register_buffer("turned", torch.randn(3, 4).t())
        self.register_buffer("part", torch.randn(100)[10:13])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("scalar", torch.tensor(0.75))
        self.register_buffer("repeated", torch.randn(1).expand(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weights[self.names[0]] + self.weights[self.names[1]]
        y = y + self.factors[0] * self.tensors[0] + float(self.numbers[299]) * self.tensors[1] / 300.0
        y = y @ self.shared.t() @ self.turned + self.part * self.scalar + self.repeated + self.empty.sum()
        if self.flags[0] and self.nothing is None and self.colour == Colour.BLUE:
            y = y @ self.again.t()
        return y.to(self.device) * float(self.pair[1][0]) + float(self.large) / 2.0**62 + float(self.pair[0]) / 2.0**40


class Spectrum(nn.Module):
    """Complex numbers within, and a result that is put off to be negated."""

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        waves = torch.fft.rfft(x)
        return waves.abs(), waves.conj().imag, torch.fft.irfft(waves * waves.conj(), n=x.size(-1))


class Types(nn.Module):
    """Each type that TorchScript has, in and out."""

    def forward(
        self, u8: Tensor, i8: Tensor, i16: Tensor, i32: Tensor, i64: Tensor, f16: Tensor, bf16: Tensor, f32: Tensor, f64: Tensor, flag: Tensor
    ) -> List[Tensor]:
        return [
            u8 * 3, -i8, i16.abs(), i32 // 3, i64 * i64, torch.sqrt(f16), bf16 * 1.5, f32.exp(), f64.sin(), ~flag, u8.to(torch.float32) / 255,
            (i32 + f16).round(), torch.where(flag, f64, i64), f32 > 0.5,
        ]  # fmt: skip


def types():
    shape = (2, 5)
    call = [torch.randint(low, high, shape, dtype=kind) for low, high, kind in (
        (0, 256, torch.uint8), (-128, 128, torch.int8), (-(1 << 15), 1 << 15, torch.int16), (-(1 << 31), 1 << 31, torch.int32),
        (-(1 << 62), 1 << 62, torch.int64),
    )]  # fmt: skip
    call += [torch.rand(shape, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    names = ["u8", "i8", "i16", "i32", "i64", "f16", "bf16", "f32", "f64", "flag"]
    add("types", Types(), {name: ["batch", 5] for name in names}, (*call, torch.rand(shape) > 0.5))
    for name, kind in (("half", torch.float16), ("brain", torch.bfloat16), ("double", torch.float64)):
        module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).to(kind)
        add(name, module, {"input": ["batch", 8]}, (torch.randn(3, 8, dtype=kind),))


class Pixels(nn.Module):
    """Bytes in, bytes out: what image models have around them."""

    def forward(self, image: Tensor) -> Tensor:
        x = image.to(torch.float32).permute(0, 3, 1, 2) / 255
        x = F.interpolate(x, size=[8, 8], mode="bilinear", antialias=False)
        return (x * 255).round().clamp(0, 255).to(torch.uint8)


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
        module = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
        add("quantised", module, {"input": ["batch", 16]}, (torch.randn(3, 16),))


def main():
    torch.manual_seed(7)
    torch.set_num_threads(2)
    perceptron()
    convolutions()
    add("upsampling", Upsampling(), {"x": ["batch", 2, 16, 16]}, (torch.randn(2, 2, 16, 16),))
    transformers()
    add("recurrent", Recurrent(), {"x": ["batch", "length", 6]}, (torch.randn(2, 9, 6),), (torch.randn(1, 1, 6),))
    add("bags", Bags(), {"ids": ["batch", "length"]}, (torch.randint(100, (4, 6)),), (torch.zeros(2, 3, dtype=torch.int64),))
    inputs = {"boxes": ["found", 4], "scores": ["found"]}
    add("detector", Detector(), inputs, (torch.rand(6, 4), torch.rand(6)), (torch.rand(0, 4), torch.rand(0)))
    inputs = {"x": ["batch", 4], "rounds": [1]}
    add("branches", Branches(), inputs, *[(torch.randn(2, 4), torch.tensor([count])) for count in (0, 1, 4)])
    add("attributes", Attributes(), {"x": ["batch", 3]}, (torch.randn(2, 3),))
    add("spectrum", Spectrum(), {"x": ["batch", 32]}, (torch.randn(2, 32),))
    types()
    add("pixels", Pixels(), {"image": ["batch", "height", "width", 3]}, (torch.randint(256, (2, 11, 13, 3), dtype=torch.uint8),))
    quantised()
    (FOLDER / "calls.json").write_text(json.dumps(CALLS))


main()
