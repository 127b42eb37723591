from typing import Any

from mosec import Server, Worker


class Trivial(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Trivial, max_batch_size=16, max_wait_time=1)
    server.run()
