"""A producer's side on another Redis than the session's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.settings import Settings

QUICK_S = 2.0


class Elsewhere:
    """`with elsewhere(url) as place: place.invoke("Hi").get()`."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.app = GaelpApp(Settings(broker_url=url, connect_timeout_s=QUICK_S, **settings))

    def invoke(self, prompt: str, **arguments: Any) -> InvocationHandle:
        """Publish an invocation, as a service does."""
        sent = self.app.send_task("gaelp.invoke_agent", [prompt], arguments, queue="interactive")
        return self.handle(sent.id)

    def handle(self, invocation_id: str) -> InvocationHandle:
        return InvocationHandle(invocation_id, app=self.app, backend=self.app.backend)

    def close(self) -> None:
        self.app.close()
        self.app.redis.close()


@contextmanager
def elsewhere(url: str, **settings: Any) -> Iterator[Elsewhere]:
    """Connections to that address while the block runs."""
    place = Elsewhere(url, **settings)
    try:
        yield place
    finally:
        place.close()
