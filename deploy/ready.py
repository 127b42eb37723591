"""Exits with 0 if the replica in this container is ready: the image's health check."""

import http.client
import os
import sys

port = int(os.environ.get("OUTRIGGER_OBSERVE_LISTEN", "127.0.0.1:5002").rpartition(":")[2])
try:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    connection.request("GET", "/ready")
    answer = connection.getresponse()
    print(answer.status, answer.read(1000).decode(errors="replace").strip())
    sys.exit(0 if answer.status == 200 else 1)
except OSError as error:
    sys.exit(f"no answer on port {port}: {error}")
