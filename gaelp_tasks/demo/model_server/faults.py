"""What can go wrong, as HTTP will tell it.

ApiError (status and one sentence)
 +-- ServerBusy     503  the waiting line of the model is full
 +-- EngineFailed   500  the engine could not start, or died
"""


class ApiError(Exception):
    """An answer that is not 2xx; `status` is the HTTP status, the message one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServerBusy(ApiError):
    """All slots of the model are taken and its waiting line is full; Ollama's own words."""

    def __init__(self) -> None:
        super().__init__(503, "server busy, please try again.  maximum pending requests exceeded")


class EngineFailed(ApiError):
    """The engine of a model could not start, or stopped in the middle of its work."""

    def __init__(self, message: str) -> None:
        super().__init__(500, message)
