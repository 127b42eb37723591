"""What goes wrong between a script and a model of the replica."""


class ModelError(Exception):
    """The replica could not answer: no such model, wrong input, overload, a lost device.

    `code` is one of the replica's error codes and stable; `message` is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"
