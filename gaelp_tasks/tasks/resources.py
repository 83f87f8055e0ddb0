"""What the runs of one process share: connections, clients, streams, and who runs right now."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random, SystemRandom
from socket import gethostname
from time import monotonic, time

from gaelp_tasks.cancellation import Runs
from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.clients import BaseOllamaClient, LocalOllamaClient
from gaelp_tasks.connections import AsyncRedis, Keys, connect_async
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.line import open_line
from gaelp_tasks.retries import RetryPolicy
from gaelp_tasks.runtime import Runtime, shared_runtime
from gaelp_tasks.settings import Settings
from gaelp_tasks.streams import StreamWriter

__all__ = ["Resources", "own_node", "shared_resources"]


@dataclass(slots=True)
class Resources:
    """Everything a run needs from outside; tests put fakes and a clock of their own here."""

    settings: Settings
    keys: Keys
    redis: AsyncRedis
    streams: StreamWriter
    client: BaseOllamaClient
    runs: Runs
    policy: RetryPolicy
    node: str  #: the Ollama server's URL
    worker: str = field(default_factory=gethostname)
    rng: Random = field(default_factory=SystemRandom)
    now: Callable[[], float] = time  #: Unix seconds, to compare with other machines
    tick: Callable[[], float] = monotonic  #: seconds, to measure with


def own_node(settings: Settings) -> str:
    """The one Ollama server beside this worker. Raises SettingsError where several are named."""
    if len(settings.ollama_nodes) > 1:
        raise SettingsError(
            "GAELP_OLLAMA_NODES: this release runs one Ollama server per worker; start a worker for each."
        )
    return settings.ollama_nodes[0]


async def _build(app: GaelpApp, runtime: Runtime) -> Resources:
    settings = app.settings
    node = own_node(settings)
    redis = connect_async(settings)
    return Resources(
        settings=settings,
        keys=app.keys,
        redis=redis,
        streams=StreamWriter(open_line(settings), app.keys, ttl_s=settings.stream_ttl_s),
        client=LocalOllamaClient.from_settings(settings, node),
        runs=Runs(runtime.loop),
        policy=RetryPolicy(
            attempts=settings.retry_attempts,
            base_s=settings.retry_base_s,
            cap_s=settings.retry_cap_s,
            snooze_s=settings.snooze_s,
        ),
        node=node,
    )


@cache
def shared_resources() -> Resources:
    """The resources of this process, made at the first run. Raises SettingsError."""
    runtime = shared_runtime()
    return runtime.run(_build(app, runtime))
