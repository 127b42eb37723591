import numpy as np
from mosec import Server, Worker


class Mean(Worker):
    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32)

    def forward(self, data: np.ndarray) -> float:
        return float(data.mean())


if __name__ == "__main__":
    server = Server()
    server.append_worker(Mean)
    server.run()
