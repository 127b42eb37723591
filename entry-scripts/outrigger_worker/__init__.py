"""The worker: the process that runs the user's entry script for an Outrigger replica.

The runtime starts it with ``python -m outrigger_worker``. It needs nothing beyond Python itself (3.11 or
newer), so that it never stands in the way of the script's own packages. ``PROTOCOL.md`` says what goes over
the wire.

=============  =========================================================================
``frames``     the layout of frames: numbers and precompiled structs
``channel``    the socket, shared by the call loop and by every thread that uses a model
``loading``    finding, importing and checking the entry script
``inputs``     from a CALL to the arguments of ``run()``
``calls``      the call loop
``failures``   exceptions as text
``stopping``   signals, and the Python stack when one ends the process
=============  =========================================================================
"""
