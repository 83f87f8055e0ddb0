"""Hears what waiting clients are told: Celery publishes each result record with the write that stores it."""

import threading
import time
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import Self

import redis

from faults.history.record import Acceptance
from faults.history.subjects import RECORD, acceptance
from support.redis_server import RedisServer

TURN_S = 0.1


class Observer:
    """`with Observer(server) as observer: ... observer.heard`; listens again after every cut.

    What is told while it is cut off goes unheard; the record found later still counts.
    """

    def __init__(self, server: RedisServer) -> None:
        self.heard: list[Acceptance] = []  #: appended by a thread of its own
        self._server = server
        self._over = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(timeout=10), "Redis does not answer"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._listen()
            except redis.RedisError:
                self._over.wait(TURN_S)  # struck; it comes back

    def _listen(self) -> None:
        with closing(self._server.client()) as client, closing(client.pubsub()) as channel:
            channel.psubscribe(RECORD + "*")
            while not self._over.is_set():
                message = channel.get_message(timeout=TURN_S)
                if message is None:
                    continue
                if message["type"] == "psubscribe":
                    self._listening.set()
                elif told := acceptance(message["data"]):
                    self.heard.append(replace(told, at=time.monotonic()))
