"""A model server as people write them with mosec, on a free port of this machine, which it prints. It ends when its standard input does, however
the process that holds it ends."""

import os
import signal
import socket
import sys
import threading
import time
import urllib.request


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


if "--port" not in sys.argv:
    port = free_port()
    sys.argv += ["--port", str(port), "--address", "127.0.0.1", "--timeout", "60000"]


from mosec import Server, Worker  # noqa: E402


class Sum(Worker):
    def forward(self, data):
        return [{"sum": sum(numbers), "batch": len(data)} for numbers in data]


def watch():
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            break
        except OSError:
            time.sleep(0.05)
    print(f"http://127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    server = Server()
    server.append_worker(Sum, num=1, max_batch_size=8)
    server.run()
