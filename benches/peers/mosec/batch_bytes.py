from mosec import Server, Worker


class Trivial(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Trivial, max_batch_size=16, max_wait_time=1)
    server.run()
