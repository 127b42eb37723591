"""PyTorch in Python: python torch_eager.py FOLDER MODEL SHAPE DEVICE. Lines and answers: turns.py.

The models are those of testkit/agreement/models.py (`large`), with other weights. With `save` in place of the last two
they are written to FOLDER as TorchScript and that is all.
"""

import sys

import numpy
import torch
from torch import nn
from torch.nn import functional

import turns


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(50))
        self.norms = nn.ModuleList(nn.BatchNorm2d(64) for _ in range(50))

    def forward(self, x):
        x = self.stem(x)
        for convolution, norm in zip(self.convolutions, self.norms):
            x = x + functional.relu(norm(convolution(x)))
        return x


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        linear = lambda inside, outside: nn.Linear(inside, outside, bias=False)
        self.q, self.k, self.v, self.o = (linear(width, width) for _ in range(4))
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        n = self.norm(x)
        q = self.q(n).reshape(batch, length, 8, 64).transpose(1, 2)
        k = self.k(n).reshape(batch, length, 8, 64).transpose(1, 2)
        v = self.v(n).reshape(batch, length, 8, 64).transpose(1, 2)
        a = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(a.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(x)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer(512) for _ in range(12))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


MODELS = {"convolutions": Convolutions, "transformer": Transformer}

folder, name, shape = sys.argv[1:4]
torch.manual_seed(7)
if shape == "save":
    torch.jit.script(MODELS[name]().eval()).save(f"{folder}/{name}.pt")
    sys.exit()
device = sys.argv[4]
# As ONNX Runtime has it.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
model = MODELS[name]().eval().to(device)
x = numpy.full([int(extent) for extent in shape.split(",")], 0.25, "float32")


def call():
    with torch.inference_mode():
        return model(torch.from_numpy(x).to(device)).cpu()


turns.take(call)
