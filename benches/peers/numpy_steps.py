"""What the steps before and after a model cost in NumPy, the best of 60 runs: beside `--example cost` of outrigger-processing.

    python benches/peers/numpy_steps.py
"""

import time

import numpy as np

SIDE, HEIGHT, WIDTH = 224, 480, 640
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
LARGE = RNG.integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
LOGITS = RNG.standard_normal((1, 1000), dtype=np.float32)
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
FACTOR, OFFSET = np.float32(1 / 255) / STD, -MEAN / STD


def normalize(x):
    return x * FACTOR + OFFSET


def layout(x):
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def nearest(x):
    rows, columns = ((2 * np.arange(SIDE) + 1) * side // (2 * SIDE) for side in (HEIGHT, WIDTH))
    return np.ascontiguousarray(x[:, rows][:, :, columns])


def taps(side):
    centre = np.clip((np.arange(SIDE) + 0.5) * side / SIDE - 0.5, 0, side - 1)
    low = centre.astype(int)
    return low, np.minimum(low + 1, side - 1), (centre - low).astype(np.float32)


def bilinear(x):
    top, bottom, weight = taps(HEIGHT)
    above, below = x[:, top].astype(np.float32), x[:, bottom].astype(np.float32)
    rows = above + (below - above) * weight[:, None, None]
    left, right, weight = taps(WIDTH)
    before, after = rows[:, :, left], rows[:, :, right]
    return before + (after - before) * weight[:, None]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def top_k(x):
    indices = np.argsort(-x, axis=-1, kind="stable")[:, :5]
    return np.take_along_axis(x, indices, -1), indices


def best(function, x):
    times = []
    for _ in range(60):
        begun = time.perf_counter()
        function(x)
        times.append(time.perf_counter() - begun)
    return min(times) * 1e6


for name, function, x in [
    ("convert to FP32", lambda x: x.astype(np.float32), IMAGE),
    ("normalize", normalize, IMAGE),
    ("resize, bilinear", bilinear, LARGE),
    ("resize, nearest", nearest, LARGE),
    ("layout to NCHW", layout, IMAGE.astype(np.float32)),
    ("softmax", softmax, LOGITS),
    ("top_k", top_k, LOGITS),
    ("resize, normalize, layout", lambda x: layout(normalize(bilinear(x))), LARGE),
]:
    print(f"{name:28} {x.dtype!s:8} {list(x.shape)!s:20} {best(function, x):9.1f} us")
