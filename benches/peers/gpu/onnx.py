"""ONNX Runtime in Python: python onnx.py FOLDER MODEL SHAPE DEVICE, with FOLDER/MODEL.onnx. Lines and answers: turns.py."""

import sys

import numpy
import onnxruntime

import turns

folder, model, shape, device = sys.argv[1:]
wanted = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device]
if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession(f"{folder}/{model}.onnx", providers=[wanted])
if session.get_providers()[0] != wanted:
    sys.exit(f"onnxruntime has no {wanted} here")
x = numpy.full([int(extent) for extent in shape.split(",")], 0.25, "float32")
turns.take(lambda: session.run(None, {"x": x}))
