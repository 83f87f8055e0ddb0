"""The handle of an invocation: Celery's AsyncResult with streams and a cancel that stops the model.

Celery's remote control is here as well: revoking one of ours needs no living worker.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from celery.app.control import Control as CeleryControl
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult
from celery.utils.functional import maybe_list
from kombu.exceptions import OperationalError

from gaelp_tasks import errors
from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.connections import Forbidden, worded
from gaelp_tasks.errors import StreamUnavailable
from gaelp_tasks.line import open_line
from gaelp_tasks.readers import FIRST, Reading, abefore_text, afollow, before_text, follow
from gaelp_tasks.streams import Event

if TYPE_CHECKING:
    from gaelp_tasks.celery_app import GaelpApp

__all__ = ["Control", "InvocationHandle"]

logger = logging.getLogger(__name__)

LOOK_S = 0.1
RELOOK_S = 5.0
LEAST_S = 0.001  #: for Celery no time at all means for ever
RESULT_S = 5.0  #: Celery stores the result after the stream has ended


class InvocationHandle(AsyncResult):
    """What `delay` and `apply_async` return."""

    app: "GaelpApp"
    is_rerun = False  #: an outcome of this id was told before, and is forgotten

    def get(self, timeout: float | None = None, *args: Any, **how: Any) -> Any:
        """As in Celery, which hears of the result; it also looks now and then, for that may go unheard.

        So it does where redis-py restores a lost subscription without Celery's knowledge. For a run after one
        that was forgotten it only looks: what is still heard of the one before would end the waiting.
        """
        until = None if timeout is None else monotonic() + timeout
        while self.is_rerun and not self.ready():
            if until is not None and monotonic() >= until:
                raise CeleryTimeout("The operation timed out.")
            sleep(LOOK_S)
        while True:
            left = RELOOK_S if until is None else min(RELOOK_S, until - monotonic())
            try:
                return super().get(max(left, LEAST_S), *args, **how)  # it looks when it begins
            except CeleryTimeout:
                if self._cache is not None or (until is not None and monotonic() >= until):
                    raise  # the run itself has failed with one, or it is over

    def stream(self, *, timeout: float | None = None) -> Iterator[str]:
        """The text, piece by piece, from token 0, whenever one starts to read; it ends with the run.

        A re-run that goes on from the text, as one that was preempted does where that is exact, is not seen.
        `timeout`: seconds without anything new before celery's TimeoutError; None waits for ever. A cut run
        ends the stream early (`get()` tells why), a failed one raises what it failed with. Raises
        StreamRestarted where a re-run cannot continue the text, StreamUnavailable where none is kept.
        """
        reading = Reading()
        waiting = _Patience(self.id, timeout)
        with worded(self.app.settings):
            begin = before_text(self.app.redis, self._stream_key)
            for event in follow(self.app.redis, self._stream_key, begin, over=self._ended_without_stream):
                waiting.hear(event)
                if text := reading.take(event):
                    yield text
                if reading.end is not None:
                    break
        self._raise_failure(reading)

    async def astream(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  the same word as in Celery's get()
    ) -> AsyncGenerator[str, None]:
        """`stream` for asynchronous code; leave it early inside `contextlib.aclosing`."""
        reading = Reading()
        waiting = _Patience(self.id, timeout)
        with worded(self.app.settings):
            async with aclosing(open_line(self.app.settings)) as line:
                begin = await abefore_text(line, self._stream_key)
                over = partial(asyncio.to_thread, self._ended_without_stream)
                async with aclosing(afollow(line, self._stream_key, begin, over=over)) as events:
                    async for event in events:
                        waiting.hear(event)
                        if text := reading.take(event):
                            yield text
                        if reading.end is not None:
                            break
        await asyncio.to_thread(self._raise_failure, reading)

    def events(self, *, after: str = FIRST) -> Iterator[Event | None]:
        """Everything in the stream after an entry's id, as it comes; None each second without news.

        It ends where nothing more can come: behind the last entry, once the result is there. That need be no
        `End`: what failed before it ran, or killed its workers, has none.
        """
        with worded(self.app.settings):
            yield from follow(self.app.redis, self._stream_key, after, over=self.ready)

    def cancel(self) -> None:
        """Stop it, queued or running; `get()` then returns the partial text with stop_reason cancelled.

        Returns at once; a running model stops within a second. One that has ended stays as it is. Raises
        BrokerUnavailable.
        """
        settings = self.app.settings
        with worded(settings):
            request_cancel(self.app.redis, self.app.keys, self.id, ttl_s=settings.cancel_ttl_s)

    def revoke(self, *_: Any, **__: Any) -> None:
        """`cancel` under Celery's name, so it needs no living worker; signals and time-outs mean nothing."""
        self.cancel()

    @property
    def _stream_key(self) -> str:
        return self.app.keys.stream(self.id)

    def _ended_without_stream(self) -> bool:
        """Whether nothing more can come; asked only when nothing has come for a second."""
        if not self.ready():
            return False
        if self.successful() and not self.app.redis.exists(self._stream_key):
            raise StreamUnavailable(
                f"The stream of invocation {self.id} is no longer kept (GAELP_STREAM_TTL_S); its result is: "
                "use get()."
            )
        return True

    def _raise_failure(self, reading: Reading) -> None:
        if reading.end is None:
            self.maybe_throw()
        elif reading.end.facts["outcome"] == "failed":
            facts = reading.end.facts
            if not hasattr(errors, facts["error"]):
                with suppress(CeleryTimeout):  # not ours: Celery's result can rebuild it, a moment later
                    self.get(timeout=RESULT_S)
            raise getattr(errors, facts["error"], errors.GaelpError)(facts["message"])


class Control(CeleryControl):
    """`app.control`; whatever it does besides is Celery's."""

    app: "GaelpApp"

    def revoke(self, task_id: Any, *args: Any, **options: Any) -> Any:
        """Leave a standing request to cancel, then tell the workers as Celery does.

        Celery's own message is heard only by workers that live right now; a producer's user of Redis may not
        send it. Raises BrokerUnavailable.
        """
        settings = self.app.settings
        with worded(settings):
            request_cancel(
                self.app.redis, self.app.keys, *(maybe_list(task_id) or ()), ttl_s=settings.cancel_ttl_s
            )
        try:
            return super().revoke(task_id, *args, **options)
        except OperationalError as error:
            if not isinstance(error.__cause__, Forbidden):
                raise
            logger.warning("The request to cancel is left in Redis, whose ACL lets this user call no worker.")


class _Patience:
    """Counts the silence of a stream."""

    def __init__(self, invocation_id: str, timeout: float | None) -> None:
        self._id = invocation_id
        self._timeout = timeout
        self._heard_at = monotonic()

    def hear(self, event: Event | None) -> None:
        """Raises celery's TimeoutError where it lasts too long."""
        if event is not None:
            self._heard_at = monotonic()
        elif self._timeout is not None and monotonic() - self._heard_at >= self._timeout:
            raise CeleryTimeout(f"Nothing came from invocation {self._id} for {self._timeout:g} s.")
