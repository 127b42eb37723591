"""`model(name)` and the handle that it gives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from outrigger_worker import connection, frames
from outrigger_worker.channel import Answer, Channel
from outrigger_worker.link import ProtocolError

from .errors import ModelError

if TYPE_CHECKING:
    import numpy

    from . import tensors


class TensorInfo(NamedTuple):
    """An input or output of a model: `datatype` as in the Open Inference Protocol, `shape` -1 where free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Model:
    """A handle of a model in the replica. `model` makes it.

    Every thread of the worker may use it, at any time. It is of no use in a forked process.
    """

    __slots__ = ("_channel", "_name", "_inputs", "_outputs")

    def __init__(
        self, channel: Channel, name: str, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
    ) -> None:
        self._channel = channel
        self._name = name
        self._inputs = inputs
        self._outputs = outputs

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What `predict` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What `predict` gives."""
        return self._outputs

    def __repr__(self) -> str:
        takes = ", ".join(f"{info.name}: {info.datatype}{list(info.shape)}" for info in self._inputs)
        gives = ", ".join(f"{info.name}: {info.datatype}{list(info.shape)}" for info in self._outputs)
        return f"<model {self._name!r} ({takes}) -> ({gives})>"

    def predict(self, /, *args: Any, **inputs: Any) -> numpy.ndarray | dict[str, numpy.ndarray]:
        """Runs the model and waits for its answer.

        Every input is given by its name; a model with one input takes it as the only positional argument as
        well. An input is an array, or whatever `numpy.asarray` makes one of. It is converted to the model's
        type where no more than precision is lost: float64 to float32 is, integers to floating point are, an
        integer type to a narrower one is while all values fit; floating point to integers is not.

        Gives the array of the one output, or a dict of arrays by name when the model has several. The arrays
        are read-only views of the received bytes; `.copy()` makes one that can be changed. They stay as they are
        for as long as they are held; large ones hold memory that is shared with the replica.

        Raises TypeError for missing, unknown or unsuitable inputs, ValueError when they take too many bytes,
        ModelError for what the replica reports, ConnectionError when the replica is gone, RuntimeError in a
        process forked from the worker.
        """
        from . import tensors

        head, data = self._question(args, inputs)
        return self._result(self._channel.request(frames.INFER, head, data, tensors.allocate))

    async def predict_async(self, /, *args: Any, **inputs: Any) -> numpy.ndarray | dict[str, numpy.ndarray]:
        """Like `predict`, for coroutines: others run while the model works.

        Other than in `predict`, the wait can be cancelled; the replica's answer is then passed over.
        """
        from . import waiting

        head, data = self._question(args, inputs)
        return self._result(await waiting.request(self._channel, frames.INFER, head, data))

    def _question(self, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[bytes, tensors.Data]:
        """The payload of an INFER."""
        from . import tensors

        values = self._named(args, inputs)
        accepted = [tensors.accept(values[info.name], self._name, info) for info in self._inputs]
        name = self._name.encode()
        head, data = tensors.encode(frames.INFER_HEAD.pack(len(name)) + name, accepted)
        length, most = len(head) + data.size, self._channel.max_payload
        if length > most:
            raise ValueError(f"the inputs of model `{self._name}` take {length} bytes, the most is {most}")
        return head, data

    def _result(self, answer: Answer) -> numpy.ndarray | dict[str, numpy.ndarray]:
        from . import tensors

        if answer.kind != frames.TENSORS:
            raise _error_of(self._channel, answer)
        try:
            results = tensors.decode(answer.payload, answer.tail)
        except ProtocolError as error:
            raise self._channel.give_up(error) from None
        return next(iter(results.values())) if len(results) == 1 and len(self._outputs) == 1 else results

    def _named(self, args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs by name. Raises TypeError unless there is exactly one value for each."""
        expected = [info.name for info in self._inputs]
        if args:
            if len(args) != 1 or inputs or len(expected) != 1:
                takes = f"model `{self._name}` takes {_list(expected)}"
                raise TypeError(f"{takes}: only a single input can be given without its name")
            return {expected[0]: args[0]}
        missing = [name for name in expected if name not in inputs]
        unknown = [name for name in inputs if name not in expected]
        if missing or unknown:
            wrong = [f"{_list(missing)} missing"] if missing else []
            wrong += [f"{_list(unknown)} unknown"] if unknown else []
            raise TypeError(f"model `{self._name}` takes {_list(expected)}: {', '.join(wrong)}")
        return inputs


def model(name: str) -> Model:
    """A handle of the replica's model `name`; the replica loads the model if it has not yet.

    Works in `init()`, in `run()` and in threads of the script.

    Raises ModelError when the replica has no such model or cannot load it, RuntimeError outside of a worker.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a model is a str, not {type(name).__name__}")
    channel = connection.current()
    if channel is None:
        raise RuntimeError("outrigger.model() works only in an entry script that an Outrigger replica runs")
    raw = name.encode()
    if not 0 < len(raw) < 1 << 16:
        raise ValueError(f"the name of a model has 1 to 65535 bytes, not {len(raw)}")
    answer = channel.request(frames.MODEL, raw, None, bytearray)
    if answer.kind != frames.MODEL_INFO:
        raise _error_of(channel, answer)
    try:
        info = json.loads(answer.whole())
        return Model(channel, str(info["name"]), _infos(info["inputs"]), _infos(info["outputs"]))
    except (ValueError, KeyError, TypeError) as error:
        raise channel.give_up(ProtocolError(f"the description of model `{name}` does not parse")) from error


def _infos(described: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(info["name"], info["datatype"], tuple(map(int, info["shape"]))) for info in described
    )


def _error_of(channel: Channel, answer: Answer) -> Exception:
    """The exception for an answer that is not the one hoped for."""
    try:
        if answer.kind != frames.MODEL_ERROR:
            raise ValueError(f"it is of kind {answer.kind}")
        fields = json.loads(answer.whole())
        return ModelError(str(fields["code"]), str(fields["message"]))
    except (ValueError, KeyError, TypeError) as error:
        return channel.give_up(ProtocolError(f"an answer of the runtime does not parse: {error!r}"))


def _list(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no inputs"
