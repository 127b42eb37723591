from typing import Any

from mosec import Server, Worker


class Trivial(Worker):
    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Trivial)
    server.run()
