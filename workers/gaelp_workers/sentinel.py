"""The claim transport where sentinels tell who the master is: each new connection asks them again."""

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from gaelp_tasks import addresses
from gaelp_tasks.connections import sentinel_pool
from gaelp_workers import transport

__all__ = ["SCHEME", "Channel", "Transport", "ways_in"]

SCHEME = "claim-sentinel"  #: what Celery's banner and log call our connection
TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"

ADDRESS = "address"  #: the transport option with the whole address: kombu's own hold one place each


class Channel(transport.Channel, kombu_redis.SentinelChannel):
    """A channel whose fetch is a claim, on whoever is the master."""

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        found = addresses.sentinels(self.connection.client.transport_options[ADDRESS])
        assert found is not None  # noqa: S101  ways_in() gave it
        options = self._connparams(asynchronous)  # type: ignore[no-untyped-call]
        for name in ("host", "port", "db", "username", "password"):
            options.pop(name, None)
        return sentinel_pool(found, **options)


class Transport(transport.Transport):
    """The leases stay those of the claim transport: both are one worker's."""

    Channel = Channel


def ways_in(url: str) -> dict[str, Any]:
    """How the worker's consumer connects to this address: what to give to `app.connection_for_read`."""
    if found := addresses.sentinels(url):
        # one place only: with several, kombu would switch to the next, and to its own transport with it
        return {"url": found.urls[0], "transport": SCHEME, "transport_options": {ADDRESS: url}}
    return {"transport": transport.SCHEME}
