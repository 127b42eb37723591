"""A debugger that waits, where AZUREML_DEBUG_PORT names its port: the worker connects to it before the script is imported."""

import os

from .loading import ScriptError

#: The variable; the same as with AzureML's server.
VARIABLE = "AZUREML_DEBUG_PORT"


def connect() -> None:
    """Connects to the debugger, if there is to be one, and waits until it has set its breakpoints. Raises ScriptError."""
    port = os.environ.get(VARIABLE)
    if not port:
        return
    try:
        # Nobody else needs it.
        import debugpy  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        message = f"{VARIABLE} is set, but this interpreter has no debugpy: install it, or unset the variable"
        raise ScriptError("import", message) from error
    print(f"connecting to the debugger on port {port}; not for production ({VARIABLE})")
    try:
        debugpy.connect(int(port))
        debugpy.wait_for_client()
    except Exception as error:
        raise ScriptError("import", f"no debugger on port {port} ({VARIABLE}): {error}") from error
