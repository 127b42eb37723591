"""Fixtures: worker processes that end with the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Worker

#: Makes a worker whose entry script is the given text, with further environment variables.
Launch = Callable[..., Worker]

INIT = "def init():\n    pass\n\n"


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    with ExitStack() as workers:

        def start(script: str | None = None, **environment: str) -> Worker:
            return workers.enter_context(Worker(tmp_path, script, **environment))

        yield start


@pytest.fixture
def serve(launch: Launch) -> Launch:
    """Like `launch`, for the text of `run()` and what it needs; the worker is ready."""

    def start(script: str, *, compat: bool = False, **environment: str) -> Worker:
        worker = launch(script if "def init" in script else INIT + script, **environment)
        worker.start(compat=compat)
        return worker

    return start
