"""`gaelp api` as a process: its socket, its limits of connections, its end. The only door to uvicorn."""

import gc
import resource
import signal
import socket
from contextlib import suppress

from fastapi import FastAPI
from uvicorn import Config, Server

from gaelp_tasks.api.protocol import Impatient, ImpatientSocket
from gaelp_tasks.settings import Settings

__all__ = ["listen", "serve"]

BACKLOG = 2048
KEEP_ALIVE_S = 15  #: for the next request of a connection
MOST_FILES = 65_536
MOST_CONNECTIONS = 8192  #: where that many files may be open
OTHER_FILES = 200  #: that the process has open beside connections
WS_MESSAGE_BYTES = 64 * 1024  #: what a WebSocket's client may say at once


class Settled(Server):
    """What was there when it began stays, so the garbage collector need not look at it again and again."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """A full collection would take a tenth of a second and more, in the middle of some request."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError where that is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def serve(api: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Until SIGTERM, at which requests may end for `drain_grace_s`. Raises KeyboardInterrupt at Ctrl-C."""

    class _Impatient(Impatient):
        head_s = settings.api_head_timeout_s

    signal.signal(signal.SIGTERM, lambda *_: None)  # the server sends itself the signal again when it is over
    config = Config(
        api,
        loop="uvloop",
        http=_Impatient,
        ws=ImpatientSocket,
        ws_max_size=WS_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.api_proxies),
        forwarded_allow_ips=settings.api_proxies or None,
        limit_concurrency=_room(),
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_grace_s),
    )
    Settled(config).run(sockets=[listener])


def _room() -> int:
    """How many connections there may be, after asking for as many files as we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(OTHER_FILES, min(MOST_CONNECTIONS, soft - OTHER_FILES))
