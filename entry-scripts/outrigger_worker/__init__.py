"""The worker: the process that runs the user's entry script for an Outrigger replica.

The runtime starts it with ``python -m outrigger_worker``. It needs nothing beyond Python itself (3.11 or
newer), so that it never stands in the way of the script's own packages. ``PROTOCOL.md`` says what goes over
the wire.

===============  =====================================================================
``work``         the life of a worker, from START to its end
``forkserver``   forks workers that are ready to start
``frames``       the layout of frames: numbers and precompiled structs
``link``         the stream socket, and what becomes of it
``inbox``        receiving: bytes into a buffer, frames out of it
``outbox``       sending whole frames, from any thread
``channel``      who waits for which frame: the call loop, and threads that use a model
``regions``      shared memory: that of the runtime, and our own
``descriptors``  descriptors over sockets
``connection``   where other code finds the channel
``loading``      finding, importing and checking the entry script
``aliases``      the import paths of AzureML's server
``calls``        the loop of sync scripts
``tasks``        the loop of async scripts
``batches``      the loop of batch scripts
``context``      the call that is being worked on
``inputs``       from a CALL to the arguments of ``run()``
``schema``       ``@input_schema`` and ``@output_schema``
``request``      what ``@rawhttp`` gets
``forms``        bodies that are forms
``headers``      headers by any case, repeated ones too
``responses``    from what ``run()`` returns to a REPLY
``formatting``   items of a stream as bytes
``streams``      answers that are streamed
``printing``     what is printed and logged, line by line
``failures``     exceptions as text
``debugging``    the way to a debugger
``stopping``     signals, and the Python stack when one ends the process
===============  =====================================================================
"""
