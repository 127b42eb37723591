import time
from typing import Any

from mosec import Server, SSEWorker


class Stream(SSEWorker):
    def forward(self, data: Any) -> None:
        self.send_stream_event(str(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))
        time.sleep(0.01)
        self.send_stream_event("end")


if __name__ == "__main__":
    server = Server()
    server.append_worker(Stream)
    server.run()
