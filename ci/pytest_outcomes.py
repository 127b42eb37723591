"""pytest plug-in of `cargo xtask test`: writes the outcome of each test as a line of JSON.

The file is named by OUTRIGGER_TEST_OUTCOMES. pytest's own summary folds skips together, so that names are lost.
"""

import json
import os


def pytest_configure(config):
    """Makes the file, and so tells that pytest has come this far."""
    config.pluginmanager.register(Outcomes(os.environ["OUTRIGGER_TEST_OUTCOMES"]), "outcomes")


class Outcomes:
    """Writes a line when a test has ended; what collection could not load or skipped is a line, too."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8", buffering=1)
        self.running = ("passed", "")

    def pytest_runtest_logstart(self):
        """Begins a test."""
        self.running = ("passed", "")

    def pytest_runtest_logreport(self, report):
        """Takes set-up, call or tear-down of a test. A failure in any of them is the test's."""
        if report.failed or (report.skipped and self.running[0] == "passed"):
            self.running = (report.outcome, reason(report))

    def pytest_runtest_logfinish(self, nodeid):
        """Ends a test."""
        self.write(nodeid, *self.running)

    def pytest_collectreport(self, report):
        """Takes a file or class whose tests are not known, because it could not be loaded or skips as a whole."""
        if not report.passed:
            self.write(report.nodeid, report.outcome, reason(report))

    def write(self, test, outcome, why):
        """Writes a line."""
        self.file.write(json.dumps({"test": test, "outcome": outcome, "reason": why}) + "\n")

    def pytest_unconfigure(self):
        """Closes the file."""
        self.file.close()


def reason(report):
    """Why a test was skipped; what a failure says is in pytest's own output."""
    if not report.skipped:
        return ""
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
