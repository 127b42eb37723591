"""Entry script that asks the replica for its model: one copy for all workers, on whatever device."""

import json

from outrigger import model


def init():
    """Gets a handle; the model itself stays in the replica."""
    global digits
    digits = model("digits")


def run(raw_data):
    """Takes `{"data": [[64 pixels], ...]}`, each 0 to 16; gives a label and ten probabilities per scan."""
    result = digits.predict(image=json.loads(raw_data)["data"])
    return {"labels": result["label"].tolist(), "probabilities": result["probabilities"].tolist()}
