"""Models of the Outrigger replica, for entry scripts.

    from outrigger import model

    def init():
        global digits
        digits = model("digits")

    def run(data):
        return digits.predict(image=json.loads(data)["data"]).tolist()

The model runs in the replica, on the device that it was placed on, and all workers share it. NumPy goes in
and comes out; NumPy is imported by the first `predict`, so that a script without models does not pay for it.
"""

from .errors import ModelError
from .handle import Model, TensorInfo, model

__all__ = ["Model", "ModelError", "TensorInfo", "model"]
