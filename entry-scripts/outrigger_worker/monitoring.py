"""`azureml.monitoring`: ModelDataCollector, whose rows the replica writes as CSV files to blob storage.

The original hands its rows to a library of its own, which links to an OpenSSL that no system has any more. Here
they go to the replica over the loopback interface; it keeps them on disk and uploads them. Collecting never makes
a call fail: what cannot be handed over is told in the log, and the replica counts what it has to drop.
"""

import csv
import http.client
import io
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from . import context

_log = logging.getLogger("azureml.monitoring")

#: Where the replica takes rows.
PATH: Final = "/modeldata/csv"
#: Seconds that a call waits at most until its rows are taken, also where the replica's `block` is longer.
_PATIENCE: Final = 30.0
#: Seconds after which a connection that nobody has used is not used again: the replica may be about to close it, and
#: whether it has read what is sent then could not be told.
_FRESH: Final = 5.0
#: Seconds between two lines in the log that say that rows are lost.
_SILENCE: Final = 60.0

_DESIGNATIONS: Final = ("inputs", "predictions", "labels", "signals", "general")
#: Those whose file may have a name of its own.
_NAMED: Final = ("signals", "general")

#: The columns that tell which rows belong together, in their order.
CORRELATION: Final = (
    "$aml_dc_correlation_id",
    "$aml_dc_scoring_timestamp",
    "$aml_dc_boundary",
    "$aml_workspace",
    "$aml_service_name",
    "$aml_model_name",
    "$aml_model_version",
    "$aml_request_id",
)
_ID, _TIME, _BOUNDARY, _WORKSPACE, _SERVICE, _MODEL, _VERSION, _REQUEST = CORRELATION
_NO_REQUEST: Final = "00000000-0000-0000-0000-000000000000"
_HOUR, _DAY = 60, 24 * 60
_UNKNOWN: Final = "default"

_Correlations = Mapping[str, Any]


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"


class ModelDataCollector:
    """Collects rows of one model and designation, as `azureml-monitoring` does."""

    def __init__(
        self,
        model_name: str,
        designation: str = "default",
        feature_names: Sequence[str] | None = None,
        workspace: str = "default/default/default",
        webservice_name: str = _UNKNOWN,
        model_version: str = _UNKNOWN,
        collection_name: str = _UNKNOWN,
    ) -> None:
        """
        :param model_name: the model that rows are collected for
        :param designation: inputs, predictions, labels, signals or general
        :param feature_names: names of the columns; data frames have theirs
        :param workspace: subscription/group/workspace
        :param collection_name: the name of the file, for signals and general; the others' is the designation
        """
        designation = "general" if designation == "default" else designation
        self._debug = _is_true("AML_MODEL_DC_DEBUG")
        self._enabled = _is_true("AML_MODEL_DC_STORAGE_ENABLED")
        self._feature_names = None if feature_names is None else [str(name) for name in feature_names]
        self._designation = designation
        self._correlated = designation == "inputs"
        if designation not in _DESIGNATIONS:
            # The original would fail every call from here on.
            print(f"Data collection: {designation!r} is none of {', '.join(_DESIGNATIONS)}; nothing is collected.")
            self._enabled = self._debug = False
        elif not self._enabled and not self._debug:
            print(
                "Data collection is not enabled: the replica's `collect.to`, or AML_MODEL_DC_STORAGE_ENABLED=true."
            )
        names = _Names(workspace.lower(), webservice_name, model_name, str(model_version))
        self._names = names.completed()
        self._file = collection_name if designation in _NAMED else designation
        self._boundary = _HOUR if os.environ.get("AML_MODEL_DC_BOUNDARY") == "hour" else _DAY

    def collect(self, input_data: Any, user_correlation_id: str = "") -> dict[str, Any] | None:
        """
        Collects rows: a list is one, an array has one or two dimensions, a data frame is of pandas or Spark.

        :return: for inputs, what `add_correlations` takes
        """
        if not self._enabled and not self._debug:
            return None
        try:
            return self._collect(input_data, user_correlation_id)
        except Exception:
            # A call does not fail for what is collected of it, whatever the data is.
            _log.exception("rows are not collected")
            return None

    def _collect(self, input_data: Any, user_correlation_id: str) -> dict[str, Any] | None:
        correlations = None
        if self._designation == "inputs":
            correlations = self._correlations(user_correlation_id)
            input_data = self._added(input_data, correlations)
        table = _table(input_data)
        if table is None:
            _warn_of(input_data)
            return None
        columns, rows = table
        if columns is None:
            columns = self._columns()
        if self._debug:
            print(_csv([columns, *rows] if columns else rows), end="")
        if self._enabled:
            for body in self._bodies(columns, rows):
                _sender.send(body)
        return correlations

    def add_correlations(self, input_data: Any, correlations: _Correlations | None) -> Any:
        """Adds to each row what `collect` of the inputs has returned."""
        if correlations is None:
            return input_data
        try:
            return self._added(input_data, correlations)
        except Exception:
            _log.exception("rows are not joined with others")
            return input_data

    def _added(self, input_data: Any, correlations: _Correlations) -> Any:
        values = [correlations[name] for name in CORRELATION]
        added = _with_columns(input_data, values)
        if added is None:
            _warn_of(input_data)
            return input_data
        self._correlated = True
        return added

    def _columns(self) -> list[str] | None:
        if self._feature_names is None:
            return None
        return [*self._feature_names, *CORRELATION] if self._correlated else list(self._feature_names)

    def _correlations(self, user_id: str) -> dict[str, Any]:
        own = str(uuid.uuid4())
        work = context.current()
        request_id = work.request_id.decode("utf-8", "replace") if work is not None else ""
        names = self._names
        values = (
            f"{user_id}-{own}" if user_id else own,
            datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds"),
            self._boundary,
            names.workspace,
            names.service,
            names.model,
            names.version,
            request_id or _NO_REQUEST,
        )
        return dict(zip(CORRELATION, values, strict=True))

    def _bodies(self, columns: list[str] | None, rows: list[list[str]]) -> Iterator[dict[str, Any]]:
        """What is posted: rows that belong to the same request and into the same file together."""
        work = context.current()
        request_id = work.request_id.decode("utf-8", "replace") if work is not None else ""
        names = columns if columns is not None else list(CORRELATION) if self._correlated else []
        # What tells which rows belong together is written by the replica, in columns of its own.
        correlated = tuple(names[-len(CORRELATION) :]) == CORRELATION
        # Counted from the end, where they are added: a list may have more or fewer cells than it has names.
        at = {name: names.index(name) - len(names) for name in CORRELATION if name in names}

        def place(row: list[str]) -> tuple[str, ...]:
            def said(name: str, otherwise: str) -> str:
                index = at.get(name, 0)
                return row[index] or otherwise if -len(row) <= index < 0 else otherwise

            return (
                said(_WORKSPACE, self._names.workspace),
                said(_SERVICE, self._names.service),
                said(_MODEL, self._names.model),
                said(_VERSION, self._names.version),
                said(_TIME, ""),
                said(_ID, ""),
                said(_REQUEST, request_id),
            )

        end = -len(CORRELATION) if correlated else None
        for where, some in groupby(rows, place):
            workspace, service, model, version, time, correlation_id, request = where
            yield {
                "designation": self._designation,
                "file": self._file,
                "workspace": workspace,
                "service": service,
                "model": model,
                "version": version,
                "correlated": correlated,
                "time": _microseconds(time),
                "correlation_id": correlation_id,
                "request_id": request,
                "columns": columns[:end] if columns is not None else None,
                "rows": [row[:end] for row in some],
            }


def _microseconds(time: str) -> int | None:
    """Since 1970, of a time in UTC that says no zone; None for what is no such time."""
    try:
        since = datetime.fromisoformat(time).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except ValueError:
        return None
    return max(0, since // timedelta(microseconds=1))


class _Names:
    """Whose rows they are."""

    def __init__(self, workspace: str, service: str, model: str, version: str) -> None:
        self.workspace, self.service, self.model, self.version = workspace, service, model, version

    def completed(self) -> "_Names":
        """With what the variables and AzureML's list of models say of what nobody has said."""
        if self.service == _UNKNOWN:
            self.service = os.environ.get("SERVICE_NAME") or _UNKNOWN
        try:
            self._complete(_model_config())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("model_config_map.json has another form than AzureML's, and is not used: %r", error)
        return self

    def _complete(self, config: Mapping[str, Any]) -> None:
        versions = config.get("modelsInfo", {}).get(self.model, {})
        if self.version == _UNKNOWN and versions:
            self.version = max(versions, key=int)
        account = config.get("accountContext", {})
        parts = [account.get(name) for name in ("subscriptionId", "resourceGroupName", "accountName")]
        if self.workspace == "default/default/default" and all(parts):
            self.workspace = "/".join(str(part).lower() for part in parts)


def _model_config() -> Mapping[str, Any]:
    root = os.environ.get("AML_APP_ROOT", "/var/azureml-app")
    try:
        return json.loads((Path(root) / "model_config_map.json").read_text("utf-8"))
    except OSError:
        return {}


def _table(data: Any) -> tuple[list[str] | None, list[list[str]]] | None:
    """Columns where the data has them, and rows as the texts that a CSV file shows; None for what is no table."""
    if isinstance(data, list):
        return None, _texts([data])
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and isinstance(data, numpy.ndarray):
        return None, _texts(data.reshape(1, -1) if data.ndim < 2 else data)
    frame = _frame(data)
    if frame is None or pandas is None:
        return None
    text = frame.to_csv(index=False, header=False, lineterminator="\n")
    return [str(name) for name in frame], list(csv.reader(io.StringIO(text, newline="")))


def _frame(data: Any) -> Any:
    """A pandas data frame, also of a Spark one; None for what is neither."""
    pandas, spark = sys.modules.get("pandas"), sys.modules.get("pyspark.sql")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return data
    return data.toPandas() if spark is not None and isinstance(data, spark.DataFrame) else None


def _texts(rows: Iterable[Iterable[Any]]) -> list[list[str]]:
    """As `csv.writer` writes them."""
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


def _with_columns(data: Any, values: list[Any]) -> Any:
    """Data with the same further values in each row; None for what is no table."""
    if isinstance(data, list):
        return data + values
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(data, numpy.ndarray):
        rows = data.reshape(1, -1) if data.ndim < 2 else data
        more = numpy.tile(numpy.array(values, dtype=object), (len(rows), 1))
        return numpy.append(rows.astype(object), more, axis=1)
    frame = _frame(data)
    return None if frame is None else frame.assign(**dict(zip(CORRELATION, values, strict=True)))


def _csv(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _warn_of(data: Any) -> None:
    _log.warning(
        "a %s is not collected: a list, a NumPy array and a data frame of pandas or Spark are", type(data).__name__
    )


class _Sender:
    """Hands rows to the replica, over one connection for each thread."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._told = float("-inf")

    def send(self, body: Mapping[str, Any]) -> None:
        """Never raises: a call does not fail for what is collected of it."""
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        try:
            status, reason = self._post(text)
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, reason = 0, repr(error)
        if not 200 <= status < 300:
            self._tell(reason)

    def _post(self, body: bytes) -> tuple[int, str]:
        connection = self._connection()
        try:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.status, answer.read().decode("utf-8", "replace")
        except BaseException:
            connection.close()
            raise
        self._local.used = time.monotonic()
        return said

    def _connection(self) -> http.client.HTTPConnection:
        known = getattr(self._local, "connection", None)
        # A fork has its parent's memory, and must not have its connection.
        if known is None or self._local.process != os.getpid():
            host = os.environ.get("AZUREML_MDC_HOST", "127.0.0.1")
            port = int(os.environ.get("AZUREML_MDC_PORT", "50011"))
            known = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
            self._local.connection, self._local.process, self._local.used = known, os.getpid(), 0.0
        elif time.monotonic() - self._local.used > _FRESH:
            known.close()
        return known

    def _tell(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._told >= _SILENCE:
            self._told = now
            _log.warning("rows are not collected, and further ones may not be either: %s", reason.strip())


_sender = _Sender()
