"""HTTP on a connection, with patience for nobody: uvicorn's own protocol waits for ever in a few places.

Who connects and says nothing, sends its head byte by byte, goes on sending what was refused, or does not read
what it asked for, is cut off. It costs a request that behaves nothing but two timers.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

__all__ = ["Impatient", "ImpatientSocket"]

UNREAD_S = 30.0  #: for a peer that does not read
MOST_HEAD_BYTES = 64 * 1024  #: of a request's line and headers, trailers included
MOST_WASTED_BYTES = 8 * 1024**2  #: of a body that goes on after its answer


class Impatient(HttpToolsProtocol):
    """One connection."""

    #: from a connection, or the first byte of a request, to the end of its head
    head_s: ClassVar[float] = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._wasted_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is awaited from now on."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._cancel(self._head_timer, self._unread_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A head may come in pieces, but soon, and not without end."""
        in_head = self._head_timer is not None and self._head_bytes > 0
        if self._head_timer is None and self._is_idle():
            self._await_head()
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data) if in_head else 1
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """Count anew."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also those after a body. Raises ValueError, which ends the connection, where they are too many."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MOST_HEAD_BYTES:
            raise ValueError("the head is too long")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """It was in time."""
        self._cancel(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Of a body that was refused a little is taken, so that the peer comes to read the answer."""
        if self.cycle is not None and self.cycle.response_complete:
            self._wasted_bytes += len(body)
            if self._wasted_bytes > MOST_WASTED_BYTES:
                self.transport.abort()
        super().on_body(body)

    def on_response_complete(self) -> None:
        """What is not read in time is never read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came."""
        self._end()

    def pause_writing(self) -> None:
        """The peer does not read: its time runs."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel(self._unread_timer)
            self._unread_timer = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_s, self._end)

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")
            self._abort_later()

    def _end(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._abort_later()

    def _abort_later(self) -> None:
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(UNREAD_S, self.transport.abort)

    def _cancel(self, *timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()


class ImpatientSocket(WebSocketsSansIOProtocol):
    """One WebSocket: who reads nothing, not even why it is closed, is cut off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """The peer does not read: its time runs."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel()

    def on_task_complete(self, task: "asyncio.Task[None]") -> None:
        """What has been said by now is read soon, or never."""
        super().on_task_complete(task)
        if not self.disconnected:
            self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._cancel()
        super().connection_lost(exc)

    def _abort_later(self) -> None:
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(UNREAD_S, self.transport.abort)

    def _cancel(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
