"""The worker: the process that runs the user's entry script for an Outrigger replica.

The runtime starts it with ``python -m outrigger_worker``. It needs nothing beyond Python itself (3.11 or
newer), so that it never stands in the way of the script's own packages. ``PROTOCOL.md`` says what goes over
the wire.

===============  =====================================================================
``work``         the life of a worker, from START to its end
``forkserver``   forks workers that are ready to start
``frames``       the layout of frames: numbers and precompiled structs
``channel``      the sockets, shared by the call loop and by every thread that uses a model
``regions``      shared memory: that of the runtime, and our own
``descriptors``  descriptors over sockets
``loading``      finding, importing and checking the entry script
``inputs``       from a CALL to the arguments of ``run()``
``calls``        the loop of sync scripts
``tasks``        the loop of async scripts
``batches``      the loop of batch scripts
``streams``      answers that are streamed
``context``      the call that is being worked on
``failures``     exceptions as text
``stopping``     signals, and the Python stack when one ends the process
===============  =====================================================================
"""
