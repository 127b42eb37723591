"""Models of the Outrigger replica, for entry scripts.

    from outrigger import model

    def init():
        global digits
        digits = model("digits")

    def run(data):
        return digits.predict(image=json.loads(data)["data"]).tolist()

The model runs in the replica, on the device that it was placed on, and all workers share it. NumPy goes in
and comes out; NumPy is imported by the first `predict`, so that a script without models does not pay for it.

`ctx` is the call that is being worked on: `ctx.deadline`, `ctx.remaining`, `ctx.cancelled`, `ctx.request_id`, `ctx.trace_context`.
"""

from .context import Context, ctx
from .errors import ModelError
from .handle import Model, TensorInfo, model

__all__ = ["Context", "Model", "ModelError", "TensorInfo", "ctx", "model"]
